//! A site with every hop, filled as a test wants it: two embedded logs, a lake, a ledger and a key.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)] // each test uses a part of it

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::array::{BooleanArray, TimestampMillisecondArray, new_null_array};
use arrow::datatypes::{DataType, SchemaRef};
use carstream::audit::{Evidence, Report, Sources, audit};
use contract::own;
use event_log::{Clock, Log, Outcome, Outputs, Position, ProcessorOptions, Range, Read, Record, partition_for_key};
use lake::{Encodings, Lake, LakeUrl, ObjectName, ObjectWriter};
use pipeline::DeadLetterHeader;
use pipeline::gaps::{self, Accept, Decision, Place};
use serde_json::json;
use telemetry::avro::AvroEncoder;
use telemetry::pseudonym::PseudonymKey;
use test_support::clock::now_ms;
use tokio_util::sync::CancellationToken;

pub const BOOT: i64 = 81;
pub const CARS: u32 = 3;
pub const SEQS: i64 = 70;

/// The VIN of a car.
pub fn vin(car: u32) -> String {
    format!("0CS12345X0T{car:06}")
}

/// When the bridge received a reading, as it notes it: on the day of [`EVENT_TIME_MS`].
const RECEIVED_MS: &[u8] = b"1795219300000";

const EVENT_TIME_MS: i64 = 1_795_219_200_000;

/// A reading as a car sends it.
pub fn payload(car: u32, boot_id: i64, seq: i64) -> Vec<u8> {
    let mut reading = json!({
        "vin": vin(car), "boot_id": boot_id, "seq": seq, "event_time_ms": EVENT_TIME_MS + seq * 1000,
        "driver": "Anna Schmidt", "plate": "S-AB 1234", "latitude": 48.7, "longitude": 9.2,
        "control_unit_firmware": 2000,
    });
    for schema_field in &contract::Contract::builtin().schemas().file("telemetry_raw.avsc").unwrap().fields {
        let name = &schema_field.name;
        if reading.get(name).is_none() && !schema_field.nullable {
            reading[name] = json!(0.5);
        }
    }
    reading.to_string().into_bytes()
}

/// A place where a reading can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Raw,
    Clean,
    Cloud,
    Lake,
    Scores,
}

pub const HOPS: [(At, &str); 5] =
    [(At::Raw, "raw"), (At::Clean, "clean"), (At::Cloud, "cloud"), (At::Lake, "parquet"), (At::Scores, "scores")];

pub struct Site {
    directory: tempfile::TempDir,
    pub edge: Arc<dyn Log>,
    /// The clock of the edge's log.
    pub clock: Clock,
    pub cloud: Arc<dyn Log>,
    /// The clock of the cloud's log.
    pub cloud_clock: Clock,
    pub lake: Lake,
    pub key: PseudonymKey,
}

impl Site {
    /// An empty one, with its topics.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("site.key"), "a key of one test site, and no other").unwrap();
        let clock = Clock::default();
        let edge = event_log::open_with_clock(&path("edge"), clock.clone()).unwrap();
        let cloud_clock = Clock::default();
        let cloud = event_log::open_with_clock(&path("cloud"), cloud_clock.clone()).unwrap();
        for topic in ["telemetry.raw", "telemetry.dead-letter", "telemetry", "scores", "drivers"] {
            edge.ensure_topic(&topics::builtin(topic)).unwrap();
        }
        cloud.ensure_topic(&topics::builtin("telemetry")).unwrap();
        let lake = Lake::open(&LakeUrl::Directory(path("lake"))).unwrap();
        let key = PseudonymKey::from_bytes(b"a key of one test site, and no other").unwrap();
        Self { directory, edge, clock, cloud, cloud_clock, lake, key }
    }

    /// [`CARS`] cars with [`SEQS`] acknowledged readings each, and as many copies of each at each hop as `copies` says.
    pub async fn with(copies: impl Fn(At, u32, i64) -> usize) -> Self {
        let site = Self::new();
        let all: Vec<_> = (0..CARS).flat_map(|car| (0..SEQS).map(move |seq| (car, seq))).collect();
        let at = |hop| {
            let times =
                all.iter().flat_map(|(car, seq)| std::iter::repeat_n((*car, BOOT, *seq), copies(hop, *car, *seq)));
            times.collect::<Vec<_>>()
        };
        site.raw(&at(At::Raw), now_ms());
        site.avro(At::Clean, &at(At::Clean), now_ms());
        site.avro(At::Cloud, &at(At::Cloud), now_ms());
        site.avro(At::Scores, &at(At::Scores), now_ms());
        site.objects(&at(At::Lake), 0).await;
        site.caught_up();
        site.ledger(&all.iter().map(|(car, seq)| (*car, *seq, "valid", "acknowledged")).collect::<Vec<_>>(), true);
        site
    }

    /// Closes everything, and keeps the files.
    pub fn into_directory(self) -> tempfile::TempDir {
        self.directory
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn ledger_file(&self) -> PathBuf {
        self.path("ledger.csv")
    }

    /// Writes the ledger: car, seq, payload, outcome.
    pub fn ledger(&self, rows: &[(u32, i64, &str, &str)], complete: bool) {
        self.ledger_at(rows, complete, now_ms());
    }

    pub fn ledger_at(&self, rows: &[(u32, i64, &str, &str)], complete: bool, sent_ms: i64) {
        let header = "vin,boot_id,seq,payload,outcome,event_time_ms,first_sent_ms,acknowledged_ms,attempts\n";
        let mut text = header.to_owned();
        for (car, seq, payload, outcome) in rows {
            writeln!(text, "{},{BOOT},{seq},{payload},{outcome},1,{sent_ms},{sent_ms},1", vin(*car)).unwrap();
        }
        std::fs::write(self.ledger_file(), text).unwrap();
        let run = json!({"fleet": {}, "complete": complete, "covered": true, "unacknowledged": 0});
        std::fs::write(self.path("ledger.csv.run"), run.to_string()).unwrap();
    }

    /// Appends readings to the raw topic, as the bridge does.
    pub fn raw(&self, readings: &[(u32, i64, i64)], time_ms: i64) {
        let records = readings.iter().map(|(car, boot_id, seq)| (*car, payload(*car, *boot_id, *seq)));
        self.raw_bytes(&records.collect::<Vec<_>>(), time_ms);
    }

    /// Appends bytes of cars to the raw topic. Returns the place of each.
    pub fn raw_bytes(&self, records: &[(u32, Vec<u8>)], time_ms: i64) -> Vec<(u32, u64)> {
        let mut next = ends(&self.edge, "telemetry.raw");
        let mut outputs = Outputs::default();
        let mut places = Vec::new();
        for (car, bytes) in records {
            let vin = vin(*car);
            let topic = format!("vehicles/{vin}/telemetry");
            let record = Record {
                key: vin.as_bytes(),
                value: Some(bytes),
                headers: &[("received_ms", RECEIVED_MS), ("mqtt_topic", topic.as_bytes())],
                timestamp_ms: time_ms,
            };
            let partition = partition_for_key(record.key, 4);
            outputs.push(&"telemetry.raw".into(), partition, &record);
            places.push((partition, next[partition as usize]));
            next[partition as usize] += 1;
        }
        commit(&self.edge, "test", &outputs, &[]);
        places
    }

    /// Appends clean readings or scores.
    pub fn avro(&self, hop: At, readings: &[(u32, i64, i64)], time_ms: i64) {
        let (log, topic, id) = match hop {
            At::Clean => (&self.edge, "telemetry", 2),
            At::Cloud => (&self.cloud, "telemetry", 2),
            At::Scores => (&self.edge, "scores", 4),
            At::Raw | At::Lake => unreachable!("they hold no Avro"),
        };
        let rows = self.rows(if id == 4 { "score.avsc" } else { "telemetry.v2.avsc" }, readings);
        let encoded = AvroEncoder::new(contract::Contract::builtin().schemas(), id).unwrap().encode(&rows).unwrap();
        let mut outputs = Outputs::default();
        for ((car, _, _), message) in readings.iter().zip(encoded.iter()) {
            let key = self.key.pseudonym(&vin(*car));
            let record = Record { key: key.as_bytes(), value: Some(message), headers: &[], timestamp_ms: time_ms };
            outputs.push(&topic.into(), partition_for_key(record.key, 4), &record);
        }
        commit(log, "test", &outputs, &[]);
    }

    /// Writes readings as one object per partition that answers for offsets from `start` on.
    pub async fn objects(&self, readings: &[(u32, i64, i64)], start: u64) {
        let schema = &contract::Contract::builtin().schemas().file("telemetry.v2.avsc").unwrap().arrow;
        for partition in 0..4 {
            let key = |car: u32| self.key.pseudonym(&vin(car));
            let mut of_partition = readings.to_vec();
            of_partition.retain(|(car, _, _)| partition_for_key(key(*car).as_bytes(), 4) == partition);
            let rows = of_partition.len() as u64;
            if rows == 0 {
                continue;
            }
            let name = ObjectName::new("telemetry", partition, start, EVENT_TIME_MS);
            let mut writer = ObjectWriter::new(name, schema, 2, Encodings::default()).unwrap();
            let offsets: Vec<_> = (start..start + rows).collect();
            writer
                .write(&self.rows("telemetry.v2.avsc", &of_partition), &offsets, &vec![now_ms(); rows as usize])
                .unwrap();
            // An object also answers for offsets without a record, so that a missing row is no lag.
            let end = (start + rows).max(ends(&self.cloud, "telemetry")[partition as usize]);
            self.lake.put_object(&writer.finish(end).unwrap()).await.unwrap();
        }
    }

    fn rows(&self, schema: &str, readings: &[(u32, i64, i64)]) -> RecordBatch {
        self.rows_of(&contract::Contract::builtin().schemas().file(schema).unwrap().arrow, readings)
    }

    /// Readings as rows of this schema, with nulls where it has them.
    pub fn rows_of(&self, schema: &SchemaRef, readings: &[(u32, i64, i64)]) -> RecordBatch {
        let rows = readings.len();
        let columns = schema.fields().iter().map(|field| -> ArrayRef {
            match (field.name().as_str(), field.data_type()) {
                ("car", _) => {
                    let names = readings.iter().map(|(car, _, _)| self.key.pseudonym(&vin(*car)));
                    Arc::new(names.map(Some).collect::<StringArray>())
                }
                ("boot_id", _) => Arc::new(readings.iter().map(|reading| reading.1).collect::<Int64Array>()),
                ("seq", _) => Arc::new(readings.iter().map(|reading| reading.2).collect::<Int64Array>()),
                (_, data_type) if field.is_nullable() => new_null_array(data_type, rows),
                (_, DataType::Utf8) => Arc::new(StringArray::from(vec!["x"; rows])),
                (_, DataType::Int64) => Arc::new(Int64Array::from(vec![1; rows])),
                (_, DataType::Int32) => Arc::new(Int32Array::from(vec![1; rows])),
                (_, DataType::Float32) => Arc::new(Float32Array::from(vec![1.0; rows])),
                (_, DataType::Float64) => Arc::new(Float64Array::from(vec![1.0; rows])),
                (_, DataType::Boolean) => Arc::new(BooleanArray::from(vec![false; rows])),
                (_, DataType::Timestamp(..)) => Arc::new(
                    TimestampMillisecondArray::from(vec![EVENT_TIME_MS; rows])
                        .with_data_type(field.data_type().clone()),
                ),
                (name, other) => panic!("a {other} in column {name}"),
            }
        });
        RecordBatch::try_new(schema.clone(), columns.collect()).unwrap()
    }

    /// Appends a dead letter of a raw record.
    pub fn dead_letter(&self, car: u32, bytes: &[u8], source: (u32, u64), reason: &str, time_ms: i64) {
        let key = vin(car);
        let topic = format!("vehicles/{key}/telemetry");
        let (partition, offset, time) = (source.0.to_string(), source.1.to_string(), time_ms.to_string());
        let headers: [(&str, &[u8]); 8] = [
            ("received_ms", RECEIVED_MS),
            ("mqtt_topic", topic.as_bytes()),
            (DeadLetterHeader::REASON, reason.as_bytes()),
            (DeadLetterHeader::DETAIL, b"speed is too much"),
            (DeadLetterHeader::TOPIC, b"telemetry.raw"),
            (DeadLetterHeader::PARTITION, partition.as_bytes()),
            (DeadLetterHeader::OFFSET, offset.as_bytes()),
            (DeadLetterHeader::TIME_MS, time.as_bytes()),
        ];
        let record = Record { key: key.as_bytes(), value: Some(bytes), headers: &headers, timestamp_ms: time_ms };
        let mut outputs = Outputs::default();
        outputs.push(&"telemetry.dead-letter".into(), partition_for_key(record.key, 4), &record);
        commit(&self.edge, "test", &outputs, &[]);
    }

    /// Every stage has committed all there is.
    pub fn caught_up(&self) {
        self.position("preprocessor-telemetry", &self.edge, "telemetry.raw", &ends(&self.edge, "telemetry.raw"));
        let clean = ends(&self.edge, "telemetry");
        self.position("replicator-edge-telemetry", &self.cloud, "telemetry", &clean);
        self.position("scorer", &self.edge, "telemetry", &clean);
    }

    /// Commits positions of a group.
    pub fn position(&self, group: &str, log: &Arc<dyn Log>, topic: &str, offsets: &[u64]) {
        let position = |(partition, offset): (u32, &u64)| Position { topic: topic.into(), partition, offset: *offset };
        let positions: Vec<_> = (0..).zip(offsets).map(position).collect();
        commit(log, group, &Outputs::default(), &positions);
    }

    /// An operator has let a group go without what is before these offsets of the edge's topic, by partition.
    pub fn accepted_gaps(&self, group: &str, topic: &str, to: &[u64]) {
        self.accepted_gaps_from(group, topic, &vec![0; to.len()], to);
    }

    /// The same for what is between offsets.
    pub fn accepted_gaps_from(&self, group: &str, topic: &str, from: &[u64], to: &[u64]) {
        let topic_id = self.edge.describe(topic).unwrap().id;
        self.edge.ensure_topic(&topics::builtin(own::GAPS)).unwrap();
        for (partition, (from, to)) in (0..).zip(from.iter().zip(to)) {
            let place = Place { group: group.into(), topic: topic.into(), partition, from: *from };
            let decision =
                Decision { topic_id: topic_id.clone(), accepted: Accept::Gap, accepted_ms: now_ms(), to: Some(*to) };
            gaps::decide(&self.edge, &own::GAPS.into(), &place, &decision).unwrap();
        }
    }

    /// The same for the replicator and clean readings.
    pub fn copies_without(&self, to: &[u64]) {
        self.cloud.ensure_topic(&topics::builtin(replicator::STATE_TOPIC)).unwrap();
        let partitions = (0..).zip(to).map(|(partition, to)| replicator::Gap { partition, from: 0, to: *to }).collect();
        let value = serde_json::to_vec(&replicator::Accepted::Gap { partitions }).unwrap();
        let record =
            Record { key: b"edge/telemetry/accepted/1", value: Some(&value), headers: &[], timestamp_ms: now_ms() };
        let mut outputs = Outputs::default();
        outputs.push(&replicator::STATE_TOPIC.into(), 0, &record);
        commit(&self.cloud, "test", &outputs, &[]);
    }

    pub fn sources(&self) -> Sources {
        Sources::new(Some(self.edge.clone()), Some(self.cloud.clone()), Some(self.lake.clone()))
    }

    pub async fn audit(&self) -> Report {
        self.audit_with(self.sources(), true).await.unwrap()
    }

    pub async fn audit_with(&self, sources: Sources, ledger: bool) -> anyhow::Result<Report> {
        let ledgers = if ledger { vec![self.ledger_file()] } else { Vec::new() };
        let evidence = Evidence { ledgers, key: Some(self.key.clone()) };
        audit(sources, evidence, None, CancellationToken::new()).await
    }
}

pub fn commit(log: &Arc<dyn Log>, group: &str, outputs: &Outputs, positions: &[Position]) {
    let options = ProcessorOptions { group: group.into(), instance: "1".into(), topics: Vec::new() };
    let mut transactor = log.clone().transactor(&options).unwrap();
    assert_eq!(transactor.commit(outputs, positions, &Default::default()).unwrap(), Outcome::Committed);
}

/// Where each partition ends.
pub fn ends(log: &Arc<dyn Log>, topic: &str) -> Vec<u64> {
    log.describe(topic).unwrap().partitions.iter().map(|bounds| bounds.next).collect()
}

/// Partition, offset, key, value and headers of every record of a topic.
pub type Whole = (u32, u64, Vec<u8>, Vec<u8>, Vec<(String, Vec<u8>)>);

pub fn records(log: &Arc<dyn Log>, topic: &str) -> Vec<Whole> {
    let Ok(described) = log.describe(topic) else { return Vec::new() };
    let ranges = (0..).zip(described.partitions).map(|(partition, bounds)| Range {
        topic: topic.into(),
        partition,
        start: bounds.first,
        end: Some(bounds.next),
    });
    let mut reader = log.clone().reader(ranges.collect()).unwrap();
    let mut records = Vec::new();
    loop {
        match reader.next(4096, Duration::from_secs(1)).unwrap() {
            Read::Batch(batch) => records.extend(batch.iter().map(|record| {
                let headers = record.headers.map(|(name, value)| (name.to_owned(), value.to_vec()));
                let value = record.value.unwrap_or_default().to_vec();
                (batch.partition(), record.offset, record.key.to_vec(), value, headers.collect())
            })),
            Read::Idle => {}
            Read::End => return records,
        }
    }
}

/// Runs the built binary; its exit code, standard output and standard error.
pub fn carstream(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = std::process::Command::new(Path::new(env!("CARGO_BIN_EXE_carstream")));
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("CARSTREAM_") {
            command.env_remove(variable);
        }
    }
    let output = command.args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}
