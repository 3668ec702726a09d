//! How much memory and time an audit takes: a whole one, over hops that are made up as they are read.
//!
//! ```text
//! cargo bench -p carstream --bench audit_memory -- [READINGS] [CARS] [READINGS OF A BOOT]
//! ```
//!
//! The defaults are 10 million readings of 10,000 cars that start anew every 100 readings. The ledger is a real file
//! (90 bytes a reading, removed afterwards); raw topic, clean topics and scores are logs that encode each record when
//! it is read, so that nothing but the audit itself is large. One reading is missing in the cloud, so that the second
//! pass is measured too: it must be found, or this fails. Prints the peak of the resident memory, as the kernel has it.

use std::fmt::Write as _;
use std::io::{BufWriter, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use arrow::array::{ArrayRef, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::array::{BooleanArray, TimestampMillisecondArray, new_null_array};
use arrow::datatypes::DataType;
use carstream::audit::{Evidence, Sources, audit};
use event_log::{
    Appender, Batch, Consumer, Error, Log, LogUrl, OnCompletion, PartitionDescription, ProcessorOptions, Range, Read,
    Reader, TopicDescription, TopicSpec, Transactor,
};
use telemetry::avro::AvroEncoder;
use telemetry::pseudonym::PseudonymKey;
use test_support::measurement;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PARTITIONS: u64 = 4;
const TIME_MS: i64 = 1_795_219_200_000;

/// A fleet whose readings are identified by their number.
#[derive(Debug, Clone)]
struct Fleet {
    readings: u64,
    cars: u64,
    per_boot: u64,
    pseudonyms: Arc<Vec<String>>,
}

impl Fleet {
    /// Car, boot id and sequence number of the reading at an offset: cars take turns.
    fn reading(&self, partition: u64, offset: u64) -> (u64, i64, i64) {
        let cars = self.cars / PARTITIONS;
        let (turn, car) = (offset / cars, (offset % cars) * PARTITIONS + partition);
        let boot = turn / self.per_boot;
        (car, (car * 1_000_003 + boot * 7 + 1) as i64, (turn % self.per_boot) as i64)
    }

    fn per_partition(&self) -> u64 {
        self.readings / PARTITIONS
    }
}

fn vin(car: u64) -> String {
    format!("0CS12345X0T{car:06}")
}

/// A log that makes its records when they are read.
#[derive(Debug)]
struct MadeUp {
    url: LogUrl,
    fleet: Fleet,
    /// An offset of partition 0 without a record.
    missing: Option<u64>,
}

impl MadeUp {
    fn refused<T>(&self) -> Result<T, Error> {
        let source = "this log is made up, and only read".into();
        Err(Error::Refused { operation: "anything but reading", log: self.url.to_string(), source })
    }
}

impl Log for MadeUp {
    fn url(&self) -> &LogUrl {
        &self.url
    }

    fn ensure_topic(&self, _: &TopicSpec) -> Result<(), Error> {
        self.refused()
    }

    fn describe(&self, topic: &str) -> Result<TopicDescription, Error> {
        let next = if topic.ends_with("dead-letter") || topic == "models" { 0 } else { self.fleet.per_partition() };
        let partitions = vec![PartitionDescription { first: 0, next }; PARTITIONS as usize];
        let (settings_known, max_record_bytes) = (true, usize::MAX);
        Ok(TopicDescription {
            settings_known,
            max_record_bytes,
            id: topic.to_owned(),
            partitions,
            compacted: false,
            retention: None,
            replicas: None,
        })
    }

    fn committed(&self, _: &str, _: &str) -> Result<Vec<Option<u64>>, Error> {
        Ok(vec![Some(self.fleet.per_partition()); PARTITIONS as usize])
    }

    fn appender(self: Arc<Self>, _: OnCompletion) -> Result<Arc<dyn Appender>, Error> {
        self.refused()
    }

    fn reader(self: Arc<Self>, ranges: Vec<Range>) -> Result<Box<dyn Reader>, Error> {
        let topic = ranges.first().map(|range| range.topic.to_string()).unwrap_or_default();
        let id = if topic == "scores" { 4 } else { 2 };
        let encoder = AvroEncoder::new(contract::Contract::builtin().schemas(), id).map_err(|e| Error::Refused {
            operation: "making an encoder",
            log: self.url.to_string(),
            source: e.into(),
        })?;
        Ok(Box::new(MakingUp { log: self, ranges, encoder, raw: topic == "telemetry.raw", tail: payload_tail() }))
    }

    fn consumer(self: Arc<Self>, _: &ProcessorOptions) -> Result<Box<dyn Consumer>, Error> {
        self.refused()
    }

    fn transactor(self: Arc<Self>, _: &ProcessorOptions) -> Result<Box<dyn Transactor>, Error> {
        self.refused()
    }
}

struct MakingUp {
    log: Arc<MadeUp>,
    ranges: Vec<Range>,
    encoder: AvroEncoder,
    raw: bool,
    tail: String,
}

impl Reader for MakingUp {
    fn next(&mut self, max_records: usize, _: Duration) -> Result<Read, Error> {
        self.ranges.retain(|range| range.end.is_some_and(|end| range.start < end));
        let Some(range) = self.ranges.first_mut() else { return Ok(Read::End) };
        let end = range.end.unwrap_or_default().min(range.start + max_records as u64);
        let offsets = range.start..end;
        range.start = end;
        let fleet = &self.log.fleet;
        let mut batch = Batch::new(range.topic.clone(), range.partition);
        let partition = u64::from(range.partition);
        let gone = self.log.missing.filter(|_| partition == 0);
        let readings: Vec<_> = offsets.filter(|offset| Some(*offset) != gone).collect();
        if self.raw {
            for offset in readings {
                let (car, boot_id, seq) = fleet.reading(partition, offset);
                let vin = vin(car);
                let value = format!("{{\"vin\":\"{vin}\",\"boot_id\":{boot_id},\"seq\":{seq}{}", self.tail);
                batch.push(offset, TIME_MS, vin.as_bytes(), Some(value.as_bytes()), []);
            }
            return Ok(Read::Batch(batch));
        }
        let of: Vec<_> = readings.iter().map(|offset| fleet.reading(partition, *offset)).collect();
        let file = if &*range.topic == "scores" { "score.avsc" } else { "telemetry.v2.avsc" };
        let failed = |e: telemetry::avro::Error| Error::Refused {
            operation: "encoding",
            log: self.log.url.to_string(),
            source: e.into(),
        };
        let encoded = self.encoder.encode(&rows(file, &of, &fleet.pseudonyms)).map_err(failed)?;
        for ((offset, (car, _, _)), message) in readings.iter().zip(&of).zip(encoded.iter()) {
            batch.push(*offset, TIME_MS, fleet.pseudonyms[*car as usize].as_bytes(), Some(message), []);
        }
        Ok(Read::Batch(batch))
    }
}

/// What follows the sequence number in a payload.
fn payload_tail() -> String {
    let schema = contract::Contract::builtin().schemas().file("telemetry_raw.avsc").expect("it is built in");
    let mut tail = format!(",\"event_time_ms\":{TIME_MS}");
    for field in schema.fields.iter().skip(4).filter(|field| !field.nullable) {
        let value = match field.kind.arrow() {
            DataType::Utf8 => "\"Anna Schmidt\"",
            DataType::Int32 | DataType::Int64 => "2000",
            _ => "0.515",
        };
        write!(tail, ",\"{}\":{value}", field.name).expect("a String takes everything");
    }
    tail + "}"
}

fn rows(file: &str, of: &[(u64, i64, i64)], pseudonyms: &[String]) -> RecordBatch {
    let schema = &contract::Contract::builtin().schemas().file(file).expect("it is built in").arrow;
    let rows = of.len();
    let columns = schema.fields().iter().map(|field| -> ArrayRef {
        match (field.name().as_str(), field.data_type()) {
            ("car", _) => Arc::new(
                of.iter().map(|reading| Some(pseudonyms[reading.0 as usize].as_str())).collect::<StringArray>(),
            ),
            ("boot_id", _) => Arc::new(of.iter().map(|reading| reading.1).collect::<Int64Array>()),
            ("seq", _) => Arc::new(of.iter().map(|reading| reading.2).collect::<Int64Array>()),
            (_, data_type) if field.is_nullable() => new_null_array(data_type, rows),
            (_, DataType::Utf8) => Arc::new(StringArray::from(vec!["speed"; rows])),
            (_, DataType::Int64) => Arc::new(Int64Array::from(vec![1; rows])),
            (_, DataType::Int32) => Arc::new(Int32Array::from(vec![1; rows])),
            (_, DataType::Float32) => Arc::new(Float32Array::from(vec![1.0; rows])),
            (_, DataType::Float64) => Arc::new(Float64Array::from(vec![1.0; rows])),
            (_, DataType::Boolean) => Arc::new(BooleanArray::from(vec![false; rows])),
            (_, other) => {
                let times = TimestampMillisecondArray::from(vec![TIME_MS; rows]);
                Arc::new(times.with_data_type(other.clone()))
            }
        }
    });
    RecordBatch::try_new(schema.clone(), columns.collect()).expect("a column of each type")
}

fn main() -> anyhow::Result<()> {
    let mut args = measurement::arguments().skip(1);
    let mut number = |default: u64| match args.next() {
        Some(text) => text.parse().with_context(|| format!("{text:?} is not a number")),
        None => Ok(default),
    };
    let (readings, cars, per_boot) = (number(10_000_000)?, number(10_000)?, number(100)?);
    anyhow::ensure!(cars >= PARTITIONS && cars % PARTITIONS == 0 && per_boot > 0, "cars must be a multiple of 4");
    let readings = readings / PARTITIONS * PARTITIONS;
    let key = PseudonymKey::from_bytes(b"a key of one bench, and no other")?;
    let pseudonyms = Arc::new((0..cars).map(|car| key.pseudonym(&vin(car))).collect::<Vec<_>>());
    let fleet = Fleet { readings, cars, per_boot, pseudonyms };

    let directory = tempfile::tempdir()?;
    let ledger = directory.path().join("ledger.csv");
    let mut file = BufWriter::new(std::fs::File::create(&ledger)?);
    writeln!(file, "vin,boot_id,seq,payload,outcome,event_time_ms,first_sent_ms,acknowledged_ms,attempts")?;
    for offset in 0..fleet.per_partition() {
        for partition in 0..PARTITIONS {
            let (car, boot_id, seq) = fleet.reading(partition, offset);
            writeln!(file, "{},{boot_id},{seq},valid,acknowledged,{TIME_MS},{TIME_MS},{TIME_MS},1", vin(car))?;
        }
    }
    file.into_inner()?.sync_all()?;
    std::fs::write(directory.path().join("ledger.csv.run"), "{\"complete\":true}")?;
    let before = peak_mib()?;

    let log = |name: &str, missing| -> Arc<dyn Log> {
        Arc::new(MadeUp { url: LogUrl::Directory(name.into()), fleet: fleet.clone(), missing })
    };
    let missing = fleet.per_partition() / 2;
    let sources = Sources::new(Some(log("made-up-edge", None)), Some(log("made-up-cloud", Some(missing))), None);
    let evidence = Evidence { ledgers: vec![ledger], key: Some(key) };
    let began = Instant::now();
    let runtime = tokio::runtime::Runtime::new()?;
    let report = runtime.block_on(audit(sources, evidence, None, CancellationToken::new()))?;
    print!("{report}");
    let (peak, seconds) = (peak_mib()?, began.elapsed().as_secs_f64());
    println!("\n{readings} readings at 4 hops: {seconds:.1} s for both passes, making the records up included");
    println!("peak resident memory {peak} MiB, of which {before} MiB before the audit began");
    anyhow::ensure!(
        report.ledger.lost == 1 && report.discrepancies.len() == 1,
        "the one that is missing was not found"
    );
    Ok(())
}

/// The largest resident memory of this process so far.
fn peak_mib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("only on Linux")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024)
}
