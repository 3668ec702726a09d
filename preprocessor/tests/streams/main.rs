//! The stage on an embedded log: good readings, every kind of bad one, duplicates over restarts, drivers, canaries.
//!
//! All cases share one site and its readings: one file.
#![allow(clippy::unwrap_used)]

mod cars;
mod event_time;
mod memory;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, Float64Type, Int32Type, Int64Type};
use event_log::{AppendError, Log, LogUrl, Outcome, Outputs, ProcessorOptions, Range, Read, Record, TopicSpec};
use preprocessor::{Args, Metrics, reason};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use service::ContractArgs;
use telemetry::avro::AvroDecoder;
use telemetry::pseudonym::PseudonymKey;
use test_support::clock::{now_ms, yesterday_ms};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);
const KEY: &str = "the key of this site, for tests";

/// Planted in every personal field.
const CANARY: &str = "Canary";

struct Site {
    directory: tempfile::TempDir,
    log: Arc<dyn Log>,
}

#[derive(Debug, Clone)]
struct Stored {
    key: Vec<u8>,
    value: Vec<u8>,
    headers: Vec<(String, Vec<u8>)>,
    timestamp_ms: i64,
}

impl Stored {
    fn header(&self, name: &str) -> String {
        let found =
            self.headers.iter().find(|(header, _)| header == name).unwrap_or_else(|| panic!("no header {name}"));
        String::from_utf8(found.1.clone()).unwrap()
    }
}

fn vin(n: u32) -> String {
    format!("CANARYVIN{n:08}")
}

fn pseudonym(n: u32) -> String {
    PseudonymKey::from_bytes(KEY.as_bytes()).unwrap().pseudonym(&vin(n))
}

fn reading(n: u32, boot: i64, seq: i64) -> Value {
    let mut reading = json!({
        "vin": vin(n), "boot_id": boot, "seq": seq, "event_time_ms": yesterday_ms() + seq,
        "trip_id": 4_242_424_242i64,
        "driver": format!("{CANARY} Driver"), "plate": format!("{CANARY} 1"),
        "latitude": 52.523_456, "longitude": 13.412_345,
        "coolant_temp": 90.5, "intake_air_temp": 20, "intake_air_flow_speed": 5, "battery_percentage": 50,
        "battery_voltage": 400, "current_draw": 10, "speed": 33.25, "engine_vibration_amplitude": 1,
        "throttle_pos": 0.5, "control_unit_firmware": 2000, "ambient_temp": 7.5,
    });
    for n in ["11", "12", "21", "22"] {
        reading[format!("tire_pressure_{n}")] = 32.into();
        reading[format!("accelerometer_{n}_value")] = 0.25.into();
    }
    reading
}

fn driver(n: u32, segment: &str, years: i32) -> Value {
    json!({
        "vin": vin(n), "name": format!("{CANARY} Name"), "email": format!("{CANARY}@example.org"),
        "phone": format!("{CANARY} 030"), "licence_number": format!("{CANARY} L"),
        "address": format!("{CANARY} Street"), "segment": segment, "experience_years": years,
    })
}

impl Site {
    fn new() -> Self {
        Self::with_retention(None)
    }

    /// With another retention of `telemetry.raw` than the platform's.
    fn with_retention(of_raw: Option<Duration>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("site.key"), format!("{KEY}\n")).unwrap();
        let log = event_log::open(&LogUrl::Directory(directory.path().join("log")), &[]).unwrap();
        let raw = topics::builtin("telemetry.raw");
        log.ensure_topic(&TopicSpec { retention: of_raw.or(raw.retention), ..raw }).unwrap();
        let topics = ["faults.raw", "drivers", "telemetry", "faults", "telemetry.dead-letter", "faults.dead-letter"];
        for topic in topics {
            log.ensure_topic(&topics::builtin(topic)).unwrap();
        }
        Self { directory, log }
    }

    fn args(&self) -> Args {
        let path = |name: &str| self.directory.path().join(name);
        let mut args = Args::new(LogUrl::Directory(path("log")), path("site.key"));
        args.pipeline.batch_wait = Duration::from_millis(5);
        args
    }

    /// As the bridge would.
    fn append(&self, topic: &str, key: &str, mqtt_topic: Option<&str>, value: Option<&[u8]>) {
        self.append_at(topic, key, mqtt_topic, value, (now_ms(), Some(now_ms().to_string())));
    }

    /// As the bridge would, at that time, with that note of the receipt.
    fn append_at(
        &self,
        topic: &str,
        key: &str,
        mqtt_topic: Option<&str>,
        value: Option<&[u8]>,
        (timestamp_ms, received_ms): (i64, Option<String>),
    ) {
        let appender = self.log.clone().appender(Box::new(|done| assert!(done.iter().all(|c| c.durable)))).unwrap();
        let mut headers: Vec<(&str, &[u8])> = Vec::new();
        headers.extend(received_ms.as_ref().map(|time| ("received_ms", time.as_bytes())));
        headers.extend(mqtt_topic.map(|topic| ("mqtt_topic", topic.as_bytes())));
        let record = Record { key: key.as_bytes(), value, headers: &headers, timestamp_ms };
        while let Err(AppendError::Full) = appender.append(&topic.into(), &record, 0) {
            std::thread::yield_now();
        }
        assert!(appender.flush(PATIENCE));
    }

    /// Writes records to the partitions that a test wants.
    fn commit(&self, outputs: &Outputs) {
        let options = ProcessorOptions { group: "test".into(), instance: "1".into(), topics: Vec::new() };
        let mut transactor = self.log.clone().transactor(&options).unwrap();
        assert_eq!(transactor.commit(outputs, &[], &Default::default()).unwrap(), Outcome::Committed);
    }

    fn send(&self, kind: &str, n: u32, value: &Value) {
        let topic = match kind {
            "telemetry" => "telemetry.raw",
            "faults" => "faults.raw",
            other => other,
        };
        let mqtt_topic = format!("vehicles/{}/{kind}", vin(n));
        self.append(topic, &vin(n), Some(&mqtt_topic), Some(value.to_string().as_bytes()));
    }

    fn contents(&self, topic: &str) -> Vec<Stored> {
        let partitions = self.log.describe(topic).unwrap().partitions;
        let ranges = (0..).zip(&partitions).map(|(partition, bounds)| Range {
            topic: topic.into(),
            partition,
            start: bounds.first,
            end: Some(bounds.next),
        });
        let mut reader = self.log.clone().reader(ranges.collect()).unwrap();
        let mut records = Vec::new();
        loop {
            match reader.next(100, PATIENCE).unwrap() {
                Read::Batch(batch) => records.extend(batch.iter().map(|r| Stored {
                    key: r.key.to_vec(),
                    value: r.value.unwrap().to_vec(),
                    headers: r.headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect(),
                    timestamp_ms: r.timestamp_ms,
                })),
                Read::Idle => {}
                Read::End => return records,
            }
        }
    }

    fn clean(&self) -> RecordBatch {
        decode("telemetry.v2.avsc", &self.contents("telemetry"))
    }

    /// Runs the stage until it has committed everything there is, then stops it. Gives its metrics as text.
    fn run(&self) -> String {
        self.run_with(self.args())
    }

    fn run_with(&self, args: Args) -> String {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shutdown = CancellationToken::new();
        let stage = runtime.spawn(preprocessor::run_with(args, metrics, shutdown.clone()));
        let began = Instant::now();
        let done = |stream: &str| {
            let committed = self.log.committed(&format!("preprocessor-{stream}"), &format!("{stream}.raw")).unwrap();
            let partitions = self.log.describe(&format!("{stream}.raw")).unwrap().partitions;
            committed.iter().zip(&partitions).all(|(at, bounds)| at.unwrap_or(0) == bounds.next)
        };
        while !(done("telemetry") && done("faults")) {
            assert!(began.elapsed() < PATIENCE && !stage.is_finished(), "the stage did not get there");
            std::thread::sleep(Duration::from_millis(5));
        }
        shutdown.cancel();
        runtime.block_on(stage).unwrap().unwrap();
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }
}

fn has(metrics: &str, line: &str) {
    assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
}

fn decode(schema: &str, records: &[Stored]) -> RecordBatch {
    let mut decoder = AvroDecoder::new(contract::Contract::builtin().schemas(), schema).unwrap();
    for record in records {
        decoder.decode(&record.value).unwrap();
    }
    decoder.finish()
}

#[test]
fn a_reading_comes_out_clean() {
    let site = Site::new();
    site.send("drivers", 1, &driver(1, "fleet", 12));
    site.send("telemetry", 1, &reading(1, 7, 3));
    site.send(
        "faults",
        1,
        &json!({
            "vin": vin(1), "boot_id": 1, "seq": 1, "workshop": format!("{CANARY} Garage"), "kind": "bearing_wear",
            "component": "bearing_2", "began_ms": yesterday_ms(), "repaired_ms": yesterday_ms() + 100_000,
        }),
    );
    let metrics = site.run();
    let (raw, records, batch) = (site.contents("telemetry.raw"), site.contents("telemetry"), site.clean());
    assert_eq!(batch.num_rows(), 1);
    assert_eq!(records[0].key, pseudonym(1).as_bytes());
    assert_eq!((records[0].headers.len(), records[0].timestamp_ms), (0, raw[0].timestamp_ms));
    let column = |name: &str| batch.column_by_name(name).unwrap().clone();
    assert_eq!(column("car").as_string::<i32>().value(0), pseudonym(1));
    assert_eq!(
        (column("boot_id").as_primitive::<Int64Type>().value(0), column("seq").as_primitive::<Int64Type>().value(0)),
        (7, 3)
    );
    assert_eq!(column("latitude").as_primitive::<Float64Type>().value(0), 52.5);
    assert_eq!(column("longitude").as_primitive::<Float64Type>().value(0), 13.4);
    assert_eq!(column("driver_segment").as_string::<i32>().value(0), "fleet");
    assert_eq!(column("driver_experience_years").as_primitive::<Int32Type>().value(0), 12);
    assert_eq!(column("speed").as_primitive::<Float32Type>().value(0), 33.25);
    let faults = decode("fault.avsc", &site.contents("faults"));
    assert_eq!(faults.column_by_name("car").unwrap().as_string::<i32>().value(0), pseudonym(1));
    assert_eq!(faults.column_by_name("kind").unwrap().as_string::<i32>().value(0), "bearing_wear");
    assert!(site.contents("telemetry.dead-letter").is_empty() && site.contents("faults.dead-letter").is_empty());
    assert!(metrics.contains("carstream_preprocessor_clean_total{stream=\"telemetry\"} 1"), "{metrics}");
    assert!(
        metrics.contains("carstream_preprocessor_table_rows{stream=\"telemetry\",table=\"drivers\"} 1"),
        "{metrics}"
    );
}

#[test]
fn every_bad_reading_is_a_dead_letter_with_its_reason() {
    let site = Site::new();
    let good = |seq: i64| reading(1, 1, seq).to_string().into_bytes();
    let with = |field: &str, value: Value| {
        let mut reading = reading(1, 1, 0);
        reading[field] = value;
        reading.to_string().into_bytes()
    };
    let mut missing = reading(1, 1, 0);
    missing.as_object_mut().unwrap().remove("speed");
    let twice = String::from_utf8(good(0)).unwrap().replacen('{', "{\"seq\":0,", 1).into_bytes();
    let mqtt_topic = format!("vehicles/{}/telemetry", vin(1));
    let other = format!("vehicles/{}/telemetry", vin(2));
    let own = Some(mqtt_topic.as_str());
    type Case<'a> = (&'a str, String, Option<&'a str>, Option<Vec<u8>>);
    let cases: Vec<Case<'_>> = vec![
        ("malformed-json", vin(1), own, Some(b"{\"vin\": \"Canary".to_vec())),
        ("not-utf8", vin(1), own, Some(b"\xff\xfe".to_vec())),
        ("too-large", vin(1), own, Some(vec![b'x'; 1 << 20])),
        ("missing-field", vin(1), own, Some(missing.to_string().into_bytes())),
        ("unknown-field", vin(1), own, Some(with("colour", "red".into()))),
        ("duplicate-field", vin(1), own, Some(twice)),
        ("wrong-type", vin(1), own, Some(with("seq", "0".into()))),
        ("out-of-range", vin(1), own, Some(with("speed", 500.into()))),
        (reason::EVENT_TIME_OUT_OF_WINDOW, vin(1), own, Some(with("event_time_ms", 946_684_800_001i64.into()))),
        (reason::EVENT_TIME_OUT_OF_WINDOW, vin(1), own, Some(with("event_time_ms", 4_000_000_000_000i64.into()))),
        (reason::NO_PAYLOAD, vin(1), own, None),
        (reason::TOPIC_MISMATCH, vin(2), Some(&other), Some(good(0))),
        (reason::TOPIC_MISMATCH, vin(1), Some(&other), Some(good(0))),
        (reason::TOPIC_MISMATCH, vin(2), own, Some(good(0))),
        (reason::TOPIC_MISMATCH, vin(1), None, Some(good(0))),
        (reason::TOPIC_MISMATCH, vin(1), Some("vehicles/"), Some(good(0))),
    ];
    for (_, key, mqtt_topic, value) in &cases {
        site.append("telemetry.raw", key, *mqtt_topic, value.as_deref());
    }
    // None of them counts as seen: the same reading, sent well, is let through.
    site.append("telemetry.raw", &vin(1), own, Some(&good(0)));
    let metrics = site.run();
    assert_eq!(site.clean().num_rows(), 1);
    let letters = site.contents_with_tombstones("telemetry.dead-letter");
    assert_eq!(letters.len(), cases.len());
    for (reason, key, mqtt_topic, value) in &cases {
        let letter = letters.iter().find(|(letter, letter_value)| {
            letter.header("dead-letter.reason") == *reason
                && letter_value == value
                && letter.key == key.as_bytes()
                && letter.headers.iter().find(|(name, _)| name == "mqtt_topic").map(|(_, v)| v.as_slice())
                    == mqtt_topic.map(str::as_bytes)
        });
        let (letter, _) = letter.unwrap_or_else(|| panic!("no dead letter {reason} of {key}"));
        assert_eq!(letter.header("dead-letter.source.topic"), "telemetry.raw");
        let detail = letter.header("dead-letter.detail");
        assert!(!detail.is_empty() && !detail.to_lowercase().contains("canary"), "{detail}");
    }
    assert!(metrics.contains("carstream_preprocessor_dead_letters_total{reason=\"topic-mismatch\"} 5"), "{metrics}");
}

impl Site {
    fn contents_with_tombstones(&self, topic: &str) -> Vec<(Stored, Option<Vec<u8>>)> {
        let partitions = self.log.describe(topic).unwrap().partitions;
        let ranges = (0..).zip(&partitions);
        let ranges =
            ranges.map(|(partition, b)| Range { topic: topic.into(), partition, start: b.first, end: Some(b.next) });
        let mut reader = self.log.clone().reader(ranges.collect()).unwrap();
        let mut records = Vec::new();
        while let read @ (Read::Batch(_) | Read::Idle) = reader.next(100, PATIENCE).unwrap() {
            let Read::Batch(batch) = read else { continue };
            records.extend(batch.iter().map(|r| {
                let headers = r.headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
                let value = r.value.map(<[u8]>::to_vec);
                (
                    Stored {
                        key: r.key.to_vec(),
                        value: value.clone().unwrap_or_default(),
                        headers,
                        timestamp_ms: r.timestamp_ms,
                    },
                    value,
                )
            }));
        }
        records
    }
}

#[test]
fn duplicates_are_removed_also_over_restarts() {
    let site = Site::new();
    let send = |n: u32, boot: i64, seqs: &[i64]| {
        seqs.iter().for_each(|seq| site.send("telemetry", n, &reading(n, boot, *seq)))
    };
    send(1, 1, &[0, 1, 1, 2, 0, 5]);
    send(2, 1, &[0, 1]);
    let metrics = site.run();
    assert!(metrics.contains("carstream_preprocessor_duplicates_removed_total{stream=\"telemetry\"} 2"), "{metrics}");
    send(1, 1, &[2, 3, 5, 4, 6]);
    send(1, 2, &[0, 1, 0]);
    send(2, 1, &[1, 2, 1]);
    let metrics = site.run();
    assert!(metrics.contains("carstream_preprocessor_duplicates_removed_total{stream=\"telemetry\"} 5"), "{metrics}");
    let clean = site.clean();
    let (cars, boots, seqs) = (
        clean.column(0).as_string::<i32>(),
        clean.column(1).as_primitive::<Int64Type>(),
        clean.column(2).as_primitive::<Int64Type>(),
    );
    let mut identities: Vec<_> =
        (0..clean.num_rows()).map(|i| (cars.value(i) == pseudonym(1), boots.value(i), seqs.value(i))).collect();
    identities.sort_unstable();
    let mut expected: Vec<_> = (0..7)
        .map(|seq| (true, 1, seq))
        .chain([(true, 2, 0), (true, 2, 1)])
        .chain((0..3).map(|seq| (false, 1, seq)))
        .collect();
    expected.sort_unstable();
    assert_eq!(identities, expected);
    assert!(site.contents("telemetry.dead-letter").is_empty());
}

#[test]
fn the_driver_is_looked_up_as_of_now_and_may_be_unknown() {
    let site = Site::new();
    let mut expected = Vec::new();
    let mut step = |change: Option<Option<Value>>, segment: Option<&'static str>| {
        match change {
            Some(Some(row)) => site.send("drivers", 1, &row),
            Some(None) => site.append("drivers", &vin(1), None, None),
            None => {}
        }
        site.send("telemetry", 1, &reading(1, 1, expected.len() as i64));
        expected.push(segment);
        site.run()
    };
    step(None, None);
    step(Some(Some(driver(1, "fleet", 1))), Some("fleet"));
    step(Some(Some(driver(1, "rental", 2))), Some("rental"));
    // A row that can't be used changes nothing, whether it is broken or another car's.
    let metrics = step(Some(Some(driver(1, "private", 500))), Some("rental"));
    assert!(
        metrics.contains("carstream_preprocessor_bad_table_rows_total{stream=\"telemetry\",table=\"drivers\"} 1"),
        "{metrics}"
    );
    let metrics = step(Some(Some(driver(2, "private", 3))), Some("rental"));
    assert!(
        metrics.contains("carstream_preprocessor_bad_table_rows_total{stream=\"telemetry\",table=\"drivers\"} 2"),
        "{metrics}"
    );
    step(Some(None), None);
    let clean = site.clean();
    let segments = clean.column_by_name("driver_segment").unwrap().as_string::<i32>().clone();
    let segments: Vec<_> =
        (0..segments.len()).map(|i| segments.is_valid(i).then(|| segments.value(i).to_owned())).collect();
    assert_eq!(segments, expected.iter().map(|s| s.map(str::to_owned)).collect::<Vec<_>>());
}

/// Nothing personal in any byte of what may leave the edge.
#[test]
fn no_canary_gets_out() {
    let site = Site::new();
    for n in 0..20 {
        site.send("drivers", n, &driver(n, "fleet", 1));
        for seq in 0..5 {
            site.send("telemetry", n, &reading(n, 1, seq));
        }
        site.send("faults", n, &json!({
            "vin": vin(n), "boot_id": 1, "seq": 1, "workshop": format!("{CANARY} Garage"), "kind": "cooling_failure",
            "component": "coolant_temp", "began_ms": yesterday_ms(), "repaired_ms": yesterday_ms() + 100_000,
        }));
    }
    let metrics = site.run();
    let clean: Vec<_> = [site.contents("telemetry"), site.contents("faults")].concat();
    assert_eq!(clean.len(), 120);
    let mut haystack = metrics.into_bytes();
    for record in &clean {
        haystack.extend(record.key.iter().chain(&record.value));
        record.headers.iter().for_each(|(name, value)| haystack.extend(name.bytes().chain(value.iter().copied())));
    }
    haystack.make_ascii_lowercase();
    // As text; the trip as Avro writes it (zigzag varint); the position as a double.
    let zigzag = 4_242_424_242u64 << 1;
    let trip: Vec<u8> = (0..5).map(|i| (zigzag >> (7 * i)) as u8 & 0x7f | if i < 4 { 0x80 } else { 0 }).collect();
    let needles: [&[u8]; 6] =
        [b"canary", b"4242424242", &trip, &52.523_456f64.to_le_bytes(), &13.412_345f64.to_le_bytes(), b"vehicles/"];
    for needle in needles {
        let mut needle = needle.to_vec();
        needle.make_ascii_lowercase();
        assert!(!haystack.windows(needle.len()).any(|window| window == needle), "{needle:?} got out");
    }
    // The same search finds existing values.
    assert!(haystack.windows(5).any(|window| window == b"fleet"));
}

/// A contract in which the platform's stream of readings has another statement.
fn own_contract(directory: &Path, sql: &str) -> ContractArgs {
    let own = directory.join("own");
    for (path, text) in contract::Contract::platform_files() {
        if path.starts_with("streams/telemetry/") {
            let path = own.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }
    std::fs::write(own.join("streams/telemetry/query.sql"), sql).unwrap();
    ContractArgs::of(own)
}

#[test]
fn the_stream_of_a_sites_contract_replaces_the_platforms() {
    let site = Site::new();
    let platform = contract::Contract::builtin().stream("telemetry").unwrap();
    let sql = platform.sql.clone() + " WHERE r.speed > 40 AND d.segment = 'fleet'";
    let mut args = site.args();
    args.contract = own_contract(site.directory.path(), &sql);
    let stream = contract::Contract::builtin().stream("telemetry").unwrap();
    assert!(preprocessor::explain(stream).unwrap().contains("stream telemetry"));
    let shutdown = CancellationToken::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    site.send("drivers", 1, &driver(1, "fleet", 1));
    for (seq, speed) in [(0, 39), (1, 41), (2, 40), (3, 42), (3, 42)] {
        let mut reading = reading(1, 1, seq);
        reading["speed"] = speed.into();
        site.send("telemetry", 1, &reading);
    }
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let stage = runtime.spawn(preprocessor::run_with(args, metrics, shutdown.clone()));
    let began = Instant::now();
    while site.contents("telemetry").len() < 2 {
        assert!(began.elapsed() < PATIENCE && !stage.is_finished());
        std::thread::sleep(Duration::from_millis(5));
    }
    shutdown.cancel();
    runtime.block_on(stage).unwrap().unwrap();
    let seqs = site.clean().column_by_name("seq").unwrap().as_primitive::<Int64Type>().values().to_vec();
    assert_eq!(seqs, [1, 3]);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    assert!(text.contains("carstream_preprocessor_filtered_total{stream=\"telemetry\"} 2"), "{text}");
    assert!(site.contents("telemetry.dead-letter").is_empty());
}

#[test]
fn everything_wrong_with_the_settings_is_told_together() {
    let site = Site::new();
    let mut args = site.args();
    args.pipeline.batch_records = 0;
    args.pseudonym_key_file = Some(site.directory.path().join("missing.key"));
    let leak = "CREATE STREAM telemetry AS SELECT plate AS car FROM telemetry_raw";
    args.contract = own_contract(site.directory.path(), leak);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let metrics = Metrics::new(&mut Registry::default());
    let error = runtime.block_on(preprocessor::run_with(args, metrics, CancellationToken::new())).unwrap_err();
    let problems = &error.downcast_ref::<service::ConfigError>().unwrap().0;
    for wanted in [
        "--batch-records must be at least 1",
        "missing.key: the file does not exist: it holds the site's secret key",
        "query.sql:1: column car lets out telemetry_raw.plate, which is tagged \"personal\"",
        "query.sql:1: column seq is missing",
    ] {
        assert!(problems.iter().any(|p| p.contains(wanted)), "{wanted}: {problems:#?}");
    }
}
