//! An embedded log with readings, a sink beside it, and the comparison of the lake's rows with the log.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

pub mod faults;
#[path = "../../../libs/lake/tests/support/s3.rs"]
pub mod s3;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use event_log::{AppendError, Log, LogArgs, LogUrl, Range, Read, Record};
use lake::{Footer, Lake, LakeUrl, ObjectName, OffsetRange, RowHash};
use prometheus_client::registry::Registry;
use sink::{Args, Metrics};
use telemetry::avro::{AvroDecoder, AvroEncoder};
use telemetry::json::JsonDecoder;
use test_support::clock::yesterday_ms;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What a test waits for comes within this time, or never.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The footers of all objects of a topic, sorted by partition and start offset.
pub async fn footers(lake: &Lake, topic: &str) -> Vec<(ObjectName, Footer)> {
    let mut footers = Vec::new();
    for name in lake.objects(topic).await.unwrap() {
        let footer = lake.footer(&name).await.unwrap();
        footers.push((name, footer));
    }
    footers
}

/// A directory with a log and a lake.
pub struct Place {
    pub folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn log_url(&self) -> LogUrl {
        LogUrl::Directory(self.folder.path().join("log"))
    }

    pub fn lake_url(&self) -> LakeUrl {
        LakeUrl::Directory(self.lake_folder())
    }

    pub fn lake_folder(&self) -> std::path::PathBuf {
        self.folder.path().join("lake")
    }

    pub fn log(&self) -> Arc<dyn Log> {
        LogArgs::new(self.log_url()).open().unwrap()
    }

    pub fn lake(&self) -> Lake {
        Lake::open(&self.lake_url()).unwrap()
    }

    pub fn args(&self, topics: &[&str]) -> Args {
        let mut args = Args::new(self.log_url(), self.lake_url());
        args.topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        args
    }
}

const MEASUREMENTS: [&str; 17] = [
    "coolant_temp",
    "intake_air_temp",
    "intake_air_flow_speed",
    "battery_percentage",
    "battery_voltage",
    "current_draw",
    "speed",
    "engine_vibration_amplitude",
    "throttle_pos",
    "tire_pressure_11",
    "tire_pressure_12",
    "tire_pressure_21",
    "tire_pressure_22",
    "accelerometer_11_value",
    "accelerometer_12_value",
    "accelerometer_21_value",
    "accelerometer_22_value",
];

/// A number that hardly compresses, as measurements hardly do: 0 to 100, the same for the same arguments.
fn noise(i: u64, k: u64) -> f64 {
    let mixed = (i * 31 + k + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f64 / 167_772.16
}

/// Avro messages of `count` readings from `first` on, one a second since yesterday at 08:00; schema id 1 has no
/// ambient_temp.
pub fn readings(first: u64, count: u64, schema_id: u32) -> Vec<Vec<u8>> {
    let schemas = contract::Contract::builtin().schemas();
    let mut decoder = JsonDecoder::new(schemas.id(schema_id).unwrap());
    for i in first..first + count {
        let ambient = if schema_id == 2 { format!(r#","ambient_temp":{}"#, i % 40) } else { String::new() };
        let segment = if i % 3 == 0 { "null".to_owned() } else { r#""fleet""#.to_owned() };
        let mut json = format!(
            r#"{{"car":"{:032x}","boot_id":{},"seq":{i},"event_time_ms":{},"latitude":48.05,"longitude":11.6,
            "driver_segment":{segment},"driver_experience_years":{},"control_unit_firmware":1000{ambient}"#,
            i % 20,
            i % 7,
            yesterday_ms() + 1000 * i as i64,
            i % 30,
        );
        for (k, name) in MEASUREMENTS.into_iter().enumerate() {
            json.push_str(&format!(r#","{name}":{}"#, noise(i, k as u64)));
        }
        json.push('}');
        decoder.decode(json.as_bytes()).unwrap();
    }
    let mut encoder = AvroEncoder::new(schemas, schema_id).unwrap();
    encoder.encode(&decoder.finish()).unwrap().iter().map(<[u8]>::to_vec).collect()
}

/// Appends values, spread over the partitions by key, and waits until they are durable. The record timestamps lie 5 ms
/// after the event times of [`readings`].
pub fn append(log: &Arc<dyn Log>, topic: &str, first: u64, values: &[Vec<u8>]) {
    log.ensure_topic(&topics::builtin(topic)).unwrap();
    let topic: Arc<str> = topic.into();
    let appender =
        log.clone().appender(Box::new(|completions| assert!(completions.iter().all(|c| c.durable)))).unwrap();
    for (i, value) in (first..).zip(values) {
        let (key, timestamp_ms) = (format!("{:032x}", i % 20), yesterday_ms() + 1000 * i as i64 + 5);
        let record = Record { key: key.as_bytes(), value: Some(value), headers: &[("h", b"v")], timestamp_ms };
        loop {
            match appender.append(&topic, &record, i) {
                Ok(()) => break,
                Err(AppendError::Full) => std::thread::sleep(Duration::from_millis(1)),
                Err(AppendError::Refused(error)) => panic!("{error}"),
            }
        }
    }
    assert!(appender.flush(PATIENCE));
}

/// A running sink.
pub struct Sink {
    pub shutdown: CancellationToken,
    pub metrics: Metrics,
    pub task: JoinHandle<anyhow::Result<()>>,
}

/// Starts a sink as its binary would.
pub fn start(args: Args) -> Sink {
    let (shutdown, metrics) = (CancellationToken::new(), Metrics::new(&mut Registry::default()));
    let task = tokio::spawn(sink::run_with(args, metrics.clone(), shutdown.clone()));
    Sink { shutdown, metrics, task }
}

/// Starts a sink on a lake of the test's own.
pub fn start_on(args: Args, log: Arc<dyn Log>, lake: Lake) -> Sink {
    let (shutdown, metrics) = (CancellationToken::new(), Metrics::new(&mut Registry::default()));
    let (m, s) = (metrics.clone(), shutdown.clone());
    let task = tokio::spawn(async move { sink::run_on(&args, log, lake, m, s).await });
    Sink { shutdown, metrics, task }
}

impl Sink {
    /// Stops it as SIGTERM would, and returns how it ended.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        self.end().await
    }

    /// Waits for it to end by itself.
    pub async fn end(mut self) -> anyhow::Result<()> {
        tokio::time::timeout(PATIENCE, &mut self.task).await.expect("it ends in time").expect("it does not panic")
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // A test that fails must not leave its sink running.
        self.task.abort();
    }
}

/// Polls until `done`.
pub async fn wait_until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !done().await {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Rows and offsets of one partition.
pub struct Rows {
    pub range: OffsetRange,
    pub offsets: Vec<u64>,
    pub timestamps_ms: Vec<i64>,
    pub batch: RecordBatch,
}

impl Rows {
    pub fn hash(&self) -> String {
        let mut hash = RowHash::new(self.batch.schema_ref()).unwrap();
        hash.update(&self.batch);
        hash.finish()
    }
}

/// What the log holds of a topic, decoded, partition by partition.
pub fn rows_of_log(log: &Arc<dyn Log>, topic: &str, schema: &str) -> Vec<Rows> {
    let described = log.describe(topic).unwrap();
    let partitions = described.partitions.iter().enumerate();
    let rows = partitions.map(|(partition, bounds)| {
        let (partition, start, end) = (partition as u32, bounds.first, bounds.next);
        let range = Range { topic: topic.into(), partition, start, end: Some(end) };
        let mut reader = log.clone().reader(vec![range]).unwrap();
        let mut decoder = AvroDecoder::new(contract::Contract::builtin().schemas(), schema).unwrap();
        let (mut offsets, mut timestamps_ms) = (Vec::new(), Vec::new());
        loop {
            match reader.next(10_000, Duration::from_secs(1)).unwrap() {
                Read::End => break,
                Read::Idle => {}
                Read::Batch(batch) => {
                    for record in batch.iter() {
                        if decoder.decode(record.value.unwrap_or_default()).is_ok() {
                            offsets.push(record.offset);
                            timestamps_ms.push(record.timestamp_ms);
                        }
                    }
                }
            }
        }
        let range = OffsetRange { topic: topic.into(), partition, start, end };
        Rows { range, offsets, timestamps_ms, batch: decoder.finish() }
    });
    rows.collect()
}

/// What the lake holds of a topic, partition by partition.
pub async fn rows_of_lake(lake: &Lake, topic: &str, schema: &str) -> Vec<Rows> {
    let schema = contract::Contract::builtin().schemas().file(schema).unwrap().arrow.clone();
    let mut all = Vec::new();
    let covered = lake.coverage(topic).await.unwrap();
    assert_eq!(covered.remarks(), Vec::<String>::new(), "nothing is missing");
    for range in covered.ranges {
        let mut reader = lake.read(range.clone(), schema.clone()).await.unwrap();
        let (mut batches, mut offsets, mut timestamps_ms) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(rows) = reader.next().await.unwrap() {
            offsets.extend(rows.offsets.values().iter().map(|o| *o as u64));
            timestamps_ms.extend_from_slice(rows.timestamps_ms.values());
            batches.push(rows.batch);
        }
        all.push(Rows { range, offsets, timestamps_ms, batch: concat_batches(&schema, &batches).unwrap() });
    }
    all
}

/// Asserts that the lake holds exactly what the log holds: every record, once, in order, as it is.
pub async fn assert_complete(log: &Arc<dyn Log>, lake: &Lake, topic: &str, schema: &str) {
    let mut from_log = rows_of_log(log, topic, schema);
    from_log.retain(|rows| rows.range.start < rows.range.end);
    let from_lake = rows_of_lake(lake, topic, schema).await;
    assert_eq!(ranges(&from_lake), ranges(&from_log), "what of the partitions is in the lake");
    for (lake, log) in from_lake.iter().zip(&from_log) {
        assert_eq!(lake.offsets, log.offsets, "offsets of {}", log.range);
        assert_eq!(lake.timestamps_ms, log.timestamps_ms, "timestamps of {}", log.range);
        assert_eq!(lake.batch, log.batch, "rows of {}", log.range);
        assert_eq!(lake.hash(), log.hash(), "hash of {}", log.range);
    }
}

fn ranges(rows: &[Rows]) -> Vec<OffsetRange> {
    rows.iter().map(|rows| rows.range.clone()).collect()
}

/// All files below a folder, hidden ones too.
pub fn files(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push(path.display().to_string());
        }
    }
    files.sort();
    files
}
