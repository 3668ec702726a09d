//! An embedded log in a temporary directory, a small model, readings, and the stage run on them.
//!
//! All that the tests beside it need to set up: one file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{
    ArrayRef, AsArray, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMillisecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{Float32Type, Int64Type, TimestampMillisecondType};
use event_log::{Log, LogUrl, Range, Read, Record, append_and_wait};
use lake::{Lake, LakeUrl};
use model::alert::AlertRule;
use model::artefact::{Detection, FORMAT, Metrics as Quality, Split, Training};
use model::features::{COOLANT, CURRENT, FEATURE_COUNT, FIRMWARE, SPEED, VIBRATION};
use model::{FEATURES, Manifest, Model, Row, Scaling, Settings};
use model_registry::ModelFiles;
use prometheus_client::registry::Registry;
pub(crate) use scorer::Args;
use scorer::alerts::Alert;
use scorer::{MODEL_NAME, Metrics, ModelInForce, ModelSource};
use sha2::{Digest, Sha256};
use telemetry::avro::{AvroDecoder, AvroEncoder};
use test_support::clock::yesterday_ms;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Generous: the machine may be busy.
const PATIENCE_S: u64 = 60;

/// Event time of the first reading: data, so it may be fixed.
pub(crate) const START_MS: i64 = 1_795_219_200_000;

/// A place for one test: a log and a lake.
pub(crate) struct Site {
    directory: tempfile::TempDir,
    pub(crate) log: Arc<dyn Log>,
}

impl Site {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = event_log::open(&LogUrl::Directory(directory.path().join("log")), &[]).unwrap();
        for topic in ["telemetry", "scores", "alerts", "scorer.dead-letter", "models"] {
            log.ensure_topic(&topics::builtin(topic)).unwrap();
        }
        Self { directory, log }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn lake(&self) -> Lake {
        Lake::open(&LakeUrl::Directory(self.path("lake"))).unwrap()
    }

    /// Settings that follow announcements.
    pub(crate) fn args(&self) -> Args {
        Args::new(self.log.url().clone(), LakeUrl::Directory(self.path("lake")))
    }

    /// Settings with a fixed model.
    pub(crate) fn args_with(&self, model: &Files) -> Args {
        let directory = self.path(&format!("model-{}", model.version));
        model.write(&directory);
        Args { model: Some(directory), ..self.args() }
    }

    /// Appends records and waits until they are durable.
    pub(crate) fn append(&self, topic: &str, records: &[(Vec<u8>, Option<Vec<u8>>)]) {
        self.append_at(topic, records, yesterday_ms());
    }

    fn append_at(&self, topic: &str, records: &[(Vec<u8>, Option<Vec<u8>>)], timestamp_ms: i64) {
        let durable = Arc::new(AtomicUsize::new(0));
        let appender = {
            let durable = durable.clone();
            let count = move |completions: &[event_log::Completion]| {
                durable.fetch_add(completions.iter().filter(|c| c.durable).count(), Ordering::SeqCst);
            };
            self.log.clone().appender(Box::new(count)).unwrap()
        };
        let topic = Arc::from(topic);
        for (token, (key, value)) in records.iter().enumerate() {
            let value = value.as_deref();
            let record = Record { key, value, headers: &[("origin", b"test")], timestamp_ms };
            appender.append(&topic, &record, token as u64).unwrap();
        }
        assert!(appender.flush(Duration::from_secs(PATIENCE_S)));
        assert_eq!(durable.load(Ordering::SeqCst), records.len());
    }

    /// As the preprocessor passes it on.
    pub(crate) fn ask_to_forget(&self, car: &str) {
        let headers: [(&str, &[u8]); 1] = [(contract::FORGET, b"1795219200000")];
        let record = Record { key: car.as_bytes(), value: None, headers: &headers, timestamp_ms: yesterday_ms() };
        let timeout = Duration::from_secs(PATIENCE_S);
        assert!(append_and_wait(&self.log, &"telemetry".into(), &record, timeout).unwrap());
    }

    pub(crate) fn append_readings(&self, readings: &[Reading]) {
        self.append_readings_at(readings, yesterday_ms());
    }

    /// Readings that the bridge received at that time.
    pub(crate) fn append_readings_at(&self, readings: &[Reading], received_ms: i64) {
        let values = encode(readings);
        let records: Vec<_> =
            readings.iter().zip(values).map(|(r, value)| (r.car.clone().into_bytes(), Some(value))).collect();
        self.append_at("telemetry", &records, received_ms);
    }

    /// All records of a topic, partition by partition.
    pub(crate) fn read(&self, topic: &str) -> Vec<Stored> {
        let partitions = self.log.describe(topic).unwrap().partitions;
        let ranges = partitions.iter().enumerate().map(|(partition, bounds)| Range {
            topic: topic.into(),
            partition: partition as u32,
            start: bounds.first,
            end: Some(bounds.next),
        });
        let mut reader = self.log.clone().reader(ranges.collect()).unwrap();
        let mut stored = Vec::new();
        loop {
            match reader.next(1000, Duration::from_millis(100)).unwrap() {
                Read::Batch(batch) => stored.extend(batch.iter().map(|record| Stored {
                    key: String::from_utf8(record.key.to_vec()).unwrap(),
                    value: record.value.unwrap_or_default().to_vec(),
                    headers: record.headers.map(|(n, v)| (n.to_owned(), String::from_utf8_lossy(v).into())).collect(),
                    timestamp_ms: record.timestamp_ms,
                })),
                Read::Idle => {}
                Read::End => return stored,
            }
        }
    }

    pub(crate) fn count(&self, topic: &str) -> usize {
        self.read(topic).len()
    }

    pub(crate) fn alerts(&self) -> Vec<Alert> {
        self.read("alerts").iter().map(|record| serde_json::from_slice(&record.value).unwrap()).collect()
    }

    /// The scores by identity. A score that occurs twice fails the test.
    pub(crate) fn scores(&self) -> HashMap<(String, i64), Score> {
        let mut decoder = AvroDecoder::new(contract::Contract::builtin().schemas(), "score.avsc").unwrap();
        let mut scores = HashMap::new();
        for stored in self.read("scores").into_iter().filter(|stored| !stored.headers.contains_key(contract::FORGET)) {
            decoder.decode(&stored.value).unwrap();
            let row = decoder.finish();
            let float = |name: &str| row[name].as_primitive::<Float32Type>().value(0);
            let text = |name: &str| row[name].as_string::<i32>().value(0).to_owned();
            let score = Score {
                event_time_ms: row["event_time_ms"].as_primitive::<TimestampMillisecondType>().value(0),
                score: float("score"),
                threshold: float("threshold"),
                anomalous: row["anomalous"].as_boolean().value(0),
                features: ["feature_1", "feature_2", "feature_3"].map(text),
                contributions: ["contribution_1", "contribution_2", "contribution_3"].map(float),
                model_version: text("model_version"),
            };
            assert_eq!(stored.key, text("car"), "keyed by the pseudonym");
            let identity = (text("car"), row["seq"].as_primitive::<Int64Type>().value(0));
            assert_eq!(row["boot_id"].as_primitive::<Int64Type>().value(0), BOOT_ID);
            assert!(scores.insert(identity.clone(), score).is_none(), "{identity:?} was scored twice");
        }
        scores
    }

    pub(crate) async fn announce(&self, files: &Files) {
        let lake_files = ModelFiles {
            manifest: files.manifest.clone().into(),
            weights: files.weights.clone().into(),
            plots: vec![],
        };
        model_registry::put(&self.lake(), MODEL_NAME, &files.version, &lake_files).await.unwrap();
        self.announce_raw(files.announcement().as_bytes());
    }

    pub(crate) fn announce_raw(&self, value: &[u8]) {
        self.append("models", &[(MODEL_NAME.into(), Some(value.to_vec()))]);
    }
}

/// A record that was read.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) timestamp_ms: i64,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Score {
    pub(crate) event_time_ms: i64,
    pub(crate) score: f32,
    pub(crate) threshold: f32,
    pub(crate) anomalous: bool,
    pub(crate) features: [String; 3],
    pub(crate) contributions: [f32; 3],
    pub(crate) model_version: String,
}

/// The stage, running in this process.
pub(crate) struct Running {
    stage: JoinHandle<anyhow::Result<()>>,
    /// Cancels, also when a test fails: the runtime waits for the stage.
    shutdown: DropGuard,
    pub(crate) metrics: Metrics,
    pub(crate) registry: Registry,
}

impl Running {
    pub(crate) fn start(args: Args) -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let shutdown = CancellationToken::new();
        let stage = tokio::spawn(scorer::run_with(args, metrics.clone(), shutdown.clone()));
        Self { stage, shutdown: shutdown.drop_guard(), metrics, registry }
    }

    /// With its log and its models opened already.
    pub(crate) fn start_on(args: Args, log: Arc<dyn Log>, models: ModelSource) -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let (shutdown, of_stage) = (CancellationToken::new(), metrics.clone());
        let stop = shutdown.clone();
        let stage = tokio::spawn(async move { scorer::run_on(&args, log, models, of_stage, stop).await });
        Self { stage, shutdown: shutdown.drop_guard(), metrics, registry }
    }

    pub(crate) async fn stop(self) {
        drop(self.shutdown);
        self.stage.await.unwrap().unwrap();
    }

    pub(crate) async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(PATIENCE_S);
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain for: {what}");
            assert!(!self.stage.is_finished(), "the stage ended while waiting for: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn until_model(&self, version: &str) -> ModelInForce {
        let models = self.metrics.model_in_force();
        let in_force = || models.borrow().as_ref().is_some_and(|m| m.version == version);
        self.until(&format!("model {version}"), in_force).await;
        models.borrow().clone().unwrap()
    }
}

/// Runs the stage over what is in the log, and stops it: the drain scores it all.
pub(crate) async fn run_to_end(args: Args) {
    let running = Running::start(args);
    let models = running.metrics.model_in_force();
    running.until("a model", || models.borrow().is_some()).await;
    running.stop().await;
}

/// A reading as the preprocessor would write it.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) car: String,
    pub(crate) seq: i64,
    pub(crate) event_time_ms: i64,
    pub(crate) row: Row,
}

pub(crate) const BOOT_ID: i64 = 77;

/// Numbers that look random and never change (Knuth's MMIX constants).
pub(crate) struct Lcg(pub(crate) u64);

impl Lcg {
    /// In ±1.
    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    }
}

pub(crate) fn car(i: usize) -> String {
    format!("{:032x}", 0xabcd_ef01_u64 + i as u64)
}

/// Readings `from..to` of each of `cars` cars, interleaved. `broken` says which car's current is far off, and when.
pub(crate) fn readings(cars: usize, from: i64, to: i64, broken: impl Fn(usize, i64) -> bool) -> Vec<Reading> {
    let mut readings = Vec::new();
    for seq in from..to {
        for i in 0..cars {
            let mut random = Lcg(1 + i as u64 * 1_000_003 + seq as u64);
            let mut row: Row = std::array::from_fn(|_| random.next());
            row[COOLANT] += 90.0;
            row[CURRENT] += 20.0;
            row[SPEED] += 15.0;
            row[VIBRATION] += 3.0;
            row[FIRMWARE] = 2000.0;
            if broken(i, seq) {
                row[CURRENT] += 40.0;
            }
            readings.push(Reading { car: car(i), seq, event_time_ms: START_MS + 1000 * seq, row });
        }
    }
    readings
}

/// The rows of schema telemetry.v2.
pub(crate) fn rows(readings: &[Reading]) -> RecordBatch {
    let schema = contract::Contract::builtin().schemas().file("telemetry.v2.avsc").unwrap().arrow.clone();
    let columns = schema.fields().iter().map(|field| -> ArrayRef {
        let feature = FEATURES.iter().position(|name| name == field.name());
        match (field.name().as_str(), feature) {
            ("car", _) => Arc::new(StringArray::from_iter_values(readings.iter().map(|r| &r.car))),
            ("boot_id", _) => Arc::new(Int64Array::from_iter_values(readings.iter().map(|_| BOOT_ID))),
            ("seq", _) => Arc::new(Int64Array::from_iter_values(readings.iter().map(|r| r.seq))),
            ("event_time_ms", _) => {
                let times = TimestampMillisecondArray::from_iter_values(readings.iter().map(|r| r.event_time_ms));
                cast(&times, field.data_type()).unwrap()
            }
            ("latitude" | "longitude", _) => Arc::new(Float64Array::from_iter_values(readings.iter().map(|_| 48.05))),
            (_, Some(FIRMWARE)) => {
                Arc::new(Int32Array::from_iter_values(readings.iter().map(|r| r.row[FIRMWARE] as i32)))
            }
            (_, Some(i)) => Arc::new(Float32Array::from_iter_values(readings.iter().map(|r| r.row[i]))),
            (_, None) => arrow::array::new_null_array(field.data_type(), readings.len()),
        }
    });
    let columns = columns.collect();
    RecordBatch::try_new(schema, columns).unwrap()
}

/// Readings on the wire: schema telemetry.v2.
pub(crate) fn encode(readings: &[Reading]) -> Vec<Vec<u8>> {
    let mut encoder = AvroEncoder::new(contract::Contract::builtin().schemas(), 2).unwrap();
    encoder.encode(&rows(readings)).unwrap().iter().map(<[u8]>::to_vec).collect()
}

/// Readings as an older writer sends them: schema telemetry.v1.
pub(crate) fn encode_v1(readings: &[Reading]) -> Vec<Vec<u8>> {
    let schemas = contract::Contract::builtin().schemas();
    let wanted = schemas.id(1).unwrap().arrow.clone();
    let rows = rows(readings);
    let columns = wanted.fields().iter().map(|field| rows[field.name()].clone()).collect();
    let rows = RecordBatch::try_new(wanted, columns).unwrap();
    AvroEncoder::new(schemas, 1).unwrap().encode(&rows).unwrap().iter().map(<[u8]>::to_vec).collect()
}

/// What `model` says about each reading, in one go and without a log.
pub(crate) fn expected(model: &Files, readings: &[Reading]) -> HashMap<(String, i64), Score> {
    let model = Model::from_parts(&model.manifest, &model.weights).unwrap();
    let verdicts = model.score(&rows(readings), &mut HashMap::new()).unwrap();
    let score = |(r, v): (&Reading, model::Verdict)| {
        let score = Score {
            event_time_ms: r.event_time_ms,
            score: v.score,
            threshold: v.threshold,
            anomalous: v.anomalous,
            features: v.contributors.map(|(feature, _)| FEATURES[feature].to_owned()),
            contributions: v.contributors.map(|(_, size)| size),
            model_version: model.manifest().version.clone(),
        };
        ((r.car.clone(), r.seq), score)
    };
    readings.iter().zip(verdicts).map(score).collect()
}

/// A model's files.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) version: String,
    pub(crate) manifest: Vec<u8>,
    pub(crate) weights: Vec<u8>,
}

impl Files {
    pub(crate) fn write(&self, directory: &Path) {
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(directory.join("manifest.json"), &self.manifest).unwrap();
        std::fs::write(directory.join("weights.safetensors"), &self.weights).unwrap();
    }

    pub(crate) fn announcement(&self) -> String {
        let (version, hash) = (&self.version, hex::encode(Sha256::digest(&self.manifest)));
        format!(
            r#"{{"name":"{MODEL_NAME}","version":"{version}","path":"models/{MODEL_NAME}/{version}",
                "manifest_sha256":"{hash}"}}"#
        )
    }
}

/// A small model; another seed gives other weights.
pub(crate) fn small_model(seed: u64, threshold: f32) -> Files {
    small_model_with(seed, threshold, |_| {})
}

pub(crate) fn small_model_with(seed: u64, threshold: f32, change: impl Fn(&mut Manifest)) -> Files {
    let weights = random_weights(seed);
    let mut manifest = Manifest {
        format: FORMAT,
        name: MODEL_NAME.to_owned(),
        version: String::new(),
        code_version: "test".to_owned(),
        features: Manifest::features(),
        architecture: Manifest::architecture(),
        settings: Settings { prior_readings: 5.0, warm_up_readings: 5, smoothing_readings: 3.0, ..Settings::default() },
        scaling: scaling(),
        residual_sigma: [1.0; FEATURE_COUNT],
        smoothed_sigma: [1.0; FEATURE_COUNT],
        threshold,
        alert: AlertRule { open_after: 3, close_below: 0.9, close_after: 4 },
        training: Training {
            ranges: vec![],
            row_hash: String::new(),
            rows: 0,
            findings: 0,
            event_time_ms: [0, 0],
            seed,
            epochs: 0,
            batch_size: 1,
            learning_rate: 0.0,
            rows_trained: 0,
            split: Split {
                description: "none".to_owned(),
                training_until_ms: 0,
                training_cars: 0,
                validation_cars: 0,
                test_cars: 0,
            },
        },
        metrics: Quality {
            training_loss: vec![],
            validation_loss: vec![],
            wanted_alarms_per_car_day: 1.0,
            test: Detection::default(),
            validation: Detection::default(),
            later: Detection::default(),
        },
        weights_sha256: String::new(),
    };
    change(&mut manifest);
    manifest.seal(&weights, "20261121T000000Z");
    Files { version: manifest.version.clone(), manifest: manifest.to_json(), weights }
}

fn scaling() -> Scaling {
    let mut cars = vec![Vec::new(); 20];
    for (n, reading) in readings(20, 0, 100, |_, _| false).into_iter().enumerate() {
        cars[n % 20].push(reading.row);
    }
    Scaling::fit(cars.iter().map(Vec::as_slice))
}

/// A safetensors file, written by hand: length of the header, header, numbers.
fn random_weights(seed: u64) -> Vec<u8> {
    let mut random = Lcg(seed);
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, inputs, outputs) in
        [("encoder.0", 18, 14), ("encoder.2", 14, 7), ("decoder.0", 7, 7), ("decoder.2", 7, 18)]
    {
        for (part, shape) in [("bias", vec![outputs]), ("weight", vec![outputs, inputs])] {
            let start = data.len();
            for _ in 0..shape.iter().product::<usize>() {
                data.extend((0.3 * random.next()).to_le_bytes());
            }
            let tensor = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
            header.insert(format!("{name}.{part}"), tensor);
        }
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    file
}
