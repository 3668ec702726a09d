//! The trainer on an embedded log and a directory as the lake.
//!
//! ```text
//!  rows made here ──► log ──► sink ──► lake
//!                      │                │
//!                      └── trainer ─────┴──► two models, which must be one
//! ```

#![allow(clippy::unwrap_used)]

#[path = "../../libs/lake/tests/support/s3.rs"]
mod s3;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::array::{TimestampMillisecondArray, new_null_array};
use arrow::datatypes::DataType;
use clap::Parser;
use event_log::{Log, LogUrl, Read, Record, partition_for_key};
use lake::LakeArgs;
use model::random::SplitMix64;
use model::{CarState, FEATURES, Model};
use s3::S3;
use telemetry::avro::AvroEncoder;
use test_support::clock::yesterday_ms;
use tokio_util::sync::CancellationToken;
use trainer::{Args, Metrics, TrainedModel, train_once};

const CARS: usize = 40;
const READINGS: i64 = 240;
/// Event time of the first readings: data, so it may be fixed.
const START_MS: i64 = 1_780_290_000_000;

fn pseudonym(car: usize) -> String {
    format!("{:032x}", (car as u128 + 1) * 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
}

/// Readings of all cars at one time: speed drives the rest; a tyre of every third car leaks from reading 160 to 200.
/// `poison`: cars whose tyre pressures are nonsense.
fn readings(t: i64, poison: &dyn Fn(usize) -> bool) -> RecordBatch {
    let schema = contract::Contract::builtin().schemas().id(2).unwrap();
    let mut features: Vec<Vec<f32>> = vec![Vec::new(); FEATURES.len()];
    for car in 0..CARS {
        let mut random = SplitMix64::new(car as u64 * 1_000_003 + t as u64);
        let mut noise = |size: f32| size * (2.0 * random.uniform() as f32 - 1.0);
        let own = car as f32 / CARS as f32;
        let speed = 15.0 + 10.0 * (t as f32 / (6.0 + own)).sin() + noise(1.0);
        let leak = if car % 3 == 0 && (160..200).contains(&t) { 0.2 * (t - 159) as f32 } else { 0.0 };
        let wrong = if poison(car) { 50.0 } else { 0.0 };
        let pressure = 32.0 + 3.0 * own + 0.05 * speed + wrong;
        let values = [
            90.0 + noise(2.0),
            25.0 + 5.0 * own + noise(1.0),
            5.0 + 0.5 * speed + noise(0.5),
            80.0 - 0.05 * t as f32,
            380.0 - 0.04 * t as f32 - 0.1 * speed + noise(0.2),
            speed + noise(1.0),
            speed,
            3.0 + 0.1 * speed + noise(0.3),
            0.02 * speed + noise(0.02),
            pressure + noise(0.1) - leak,
            pressure + noise(0.1),
            pressure + noise(0.1),
            pressure + noise(0.1),
            0.01 * speed + noise(0.02),
            0.01 * speed + noise(0.02),
            0.01 * speed + noise(0.02),
            0.01 * speed + noise(0.02),
            2000.0,
        ];
        features.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
    }
    let columns = schema.arrow.fields().iter().map(|field| -> ArrayRef {
        let name = field.name().as_str();
        if let Some(i) = FEATURES.iter().position(|feature| *feature == name) {
            return match field.data_type() {
                DataType::Int32 => Arc::new(features[i].iter().map(|v| *v as i32).collect::<Int32Array>()),
                _ => Arc::new(Float32Array::from(features[i].clone())),
            };
        }
        match name {
            "car" => Arc::new(StringArray::from_iter_values((0..CARS).map(pseudonym))),
            "boot_id" => Arc::new(Int64Array::from(vec![1; CARS])),
            "seq" => Arc::new(Int64Array::from(vec![t; CARS])),
            "event_time_ms" => {
                Arc::new(TimestampMillisecondArray::from(vec![START_MS + 30_000 * t; CARS]).with_timezone("+00:00"))
            }
            "latitude" | "longitude" => Arc::new(Float64Array::from(vec![48.0; CARS])),
            _ => new_null_array(field.data_type(), CARS),
        }
    });
    RecordBatch::try_new(schema.arrow.clone(), columns.collect()).unwrap()
}

fn findings() -> (RecordBatch, Vec<String>) {
    let schema = contract::Contract::builtin().schemas().id(3).unwrap();
    let cars: Vec<String> = (0..CARS).filter(|car| car % 3 == 0).map(pseudonym).collect();
    let n = cars.len();
    let time =
        |t: i64| Arc::new(TimestampMillisecondArray::from(vec![START_MS + 30_000 * t; n]).with_timezone("+00:00"));
    let text = |text: &str| Arc::new(StringArray::from(vec![text; n]));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(cars.clone())),
        Arc::new(Int64Array::from(vec![1; n])),
        Arc::new(Int64Array::from(vec![0; n])),
        text("slow_tire_leak"),
        text("tire_11"),
        time(160),
        time(200),
    ];
    (RecordBatch::try_new(schema.arrow.clone(), columns).unwrap(), cars)
}

/// Appends rows as the preprocessor does: Avro, keyed by pseudonym.
fn append(log: &Arc<dyn Log>, topic: &str, schema_id: u32, batch: &RecordBatch, keys: &[String]) {
    let durable = Arc::new(AtomicUsize::new(0));
    let counter = durable.clone();
    let count = move |completions: &[event_log::Completion]| {
        counter.fetch_add(completions.iter().filter(|c| c.durable).count(), Ordering::SeqCst);
    };
    let appender = log.clone().appender(Box::new(count)).unwrap();
    let mut encoder = AvroEncoder::new(contract::Contract::builtin().schemas(), schema_id).unwrap();
    let encoded = encoder.encode(batch).unwrap();
    let topic: Arc<str> = topic.into();
    for (i, (value, key)) in encoded.iter().zip(keys).enumerate() {
        let record = Record { key: key.as_bytes(), value: Some(value), headers: &[], timestamp_ms: yesterday_ms() };
        appender.append(&topic, &record, i as u64).unwrap();
    }
    assert!(appender.flush(Duration::from_secs(30)));
    assert_eq!(durable.load(Ordering::SeqCst), keys.len());
}

/// A log with readings and findings.
fn filled_log(directory: &Path, poison: &dyn Fn(usize) -> bool) -> Arc<dyn Log> {
    let log = event_log::open(&LogUrl::Directory(directory.into()), &[]).unwrap();
    for topic in ["telemetry", "faults"] {
        log.ensure_topic(&topics::builtin(topic)).unwrap();
    }
    let keys: Vec<String> = (0..CARS).map(pseudonym).collect();
    for t in 0..READINGS {
        append(&log, "telemetry", 2, &readings(t, poison), &keys);
    }
    let (findings, cars) = findings();
    append(&log, "faults", 3, &findings, &cars);
    log
}

fn args(directory: &Path, more: &[&str]) -> Args {
    let (log, lake) = (directory.join("log"), directory.join("lake"));
    let mut line = vec!["trainer", "--log", log.to_str().unwrap(), "--lake", lake.to_str().unwrap()];
    for (name, value) in [("--epochs", "3"), ("--min-rows", "9000"), ("--seed", "3")] {
        if !more.contains(&name) {
            line.extend([name, value]);
        }
    }
    line.extend(more);
    Args::try_parse_from(line).unwrap()
}

async fn trained(args: &Args) -> TrainedModel {
    train_once(args, &Metrics::default(), &CancellationToken::new()).await.unwrap().expect("nothing shuts it down")
}

/// Manifest and weights of a stored model.
async fn files(args: &Args, model: &TrainedModel) -> (Vec<u8>, Vec<u8>) {
    let lake = args.lake.open().unwrap();
    let files = model_registry::get(&lake, &model.name, &model.version).await.unwrap();
    (files.manifest.to_vec(), files.weights.to_vec())
}

async fn sink_all(lake: LakeArgs, log: &Arc<dyn Log>) {
    sink_in_objects_of(100_000, lake, log).await;
}

async fn sink_in_objects_of(max_rows: u64, lake: LakeArgs, log: &Arc<dyn Log>) {
    let mut args = sink::Args::new(log.url().clone(), lake.lake.clone());
    (args.lake, args.max_rows) = (lake, max_rows);
    args.topics = vec!["telemetry".into(), "faults".into()];
    let stop = CancellationToken::new();
    // Stopped at once, it writes what the log holds.
    let running = tokio::spawn(sink::run_with(
        args,
        sink::Metrics::new(&mut prometheus_client::registry::Registry::default()),
        stop.clone(),
    ));
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lake_and_the_log_give_the_same_model() {
    let directory = tempfile::tempdir().unwrap();
    let log = filled_log(&directory.path().join("log"), &|_| false);
    sink_all(args(directory.path(), &[]).lake, &log).await;
    let from_log = args(directory.path(), &["--from", "log"]);
    let model = trained(&from_log).await;
    let stored = files(&from_log, &model).await;

    // All available readings, and the same ones named range by range.
    assert_eq!(model.manifest.training.rows, CARS as u64 * READINGS as u64);
    let names: Vec<String> = model
        .manifest
        .training
        .ranges
        .iter()
        .map(|r| format!("{}/{}:{}-{}", r.topic, r.partition, r.start, r.end))
        .collect();
    let mut named: Vec<&str> = names.iter().flat_map(|name| ["--range", name.as_str()]).collect();
    named.extend(["--from", "lake"]);
    for from_lake in [args(directory.path(), &["--from", "lake"]), args(directory.path(), &named)] {
        let again = trained(&from_lake).await;
        assert_eq!(again.manifest.training.row_hash, model.manifest.training.row_hash);
        assert_eq!(again.version, model.version);
        assert!(files(&from_lake, &again).await == stored, "the same bytes");
    }
    // Twice the same from the log, too; another seed is another model; a part of the rows is another hash.
    assert_eq!(trained(&from_log).await.version, model.version);
    assert_ne!(trained(&args(directory.path(), &["--from", "log", "--seed", "4"])).await.version, model.version);
    let first = &model.manifest.training.ranges.iter().find(|r| r.topic == "telemetry").unwrap();
    let mut shorter = named.clone();
    let cut = format!("telemetry/{}:{}-{}", first.partition, first.start, first.end - 1);
    let place = shorter.iter().position(|name| name.starts_with(&format!("telemetry/{}:", first.partition))).unwrap();
    shorter[place] = &cut;
    assert_ne!(
        trained(&args(directory.path(), &shorter)).await.manifest.training.row_hash,
        model.manifest.training.row_hash
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_its_owner_tidied_is_trained_on() {
    let directory = tempfile::tempdir().unwrap();
    let log = filled_log(&directory.path().join("log"), &|_| false);
    let args = args(directory.path(), &["--from", "lake", "--no-announce", "--min-rows", "8000"]);
    sink_in_objects_of(100, args.lake.clone(), &log).await;
    let objects = args.lake.open().unwrap().objects("telemetry").await.unwrap();
    // One from the middle of its partition, and one at the beginning of another.
    let middle = (1..objects.len() - 1).find(|i| {
        objects[i - 1].partition == objects[*i].partition && objects[i + 1].partition == objects[*i].partition
    });
    let middle = &objects[middle.unwrap()];
    let first = objects.iter().find(|object| object.partition != middle.partition && object.start == 0).unwrap();
    for object in [middle, first] {
        std::fs::remove_file(directory.path().join("lake").join(object.to_string())).unwrap();
    }
    let training = trained(&args).await.manifest.training;
    assert_eq!(training.rows, CARS as u64 * READINGS as u64 - 200);
    let of = |partition| {
        let of_partition = training.ranges.iter().filter(move |r| r.topic == "telemetry" && r.partition == partition);
        of_partition.map(|range| (range.start, range.end)).collect::<Vec<_>>()
    };
    let around_it = of(middle.partition);
    assert_eq!((around_it.len(), around_it[0]), (2, (0, middle.start)), "{around_it:?}");
    assert_eq!(around_it[1].0, middle.start + 100);
    assert_eq!(of(first.partition)[0].0, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_gives_the_same_model_and_keeps_it() {
    let Some(s3) = S3::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let log = filled_log(&directory.path().join("log"), &|_| false);
    sink_all(s3.lake("lake"), &log).await;
    let from_log = args(directory.path(), &["--from", "log"]);
    let mut from_bucket = args(directory.path(), &["--from", "lake"]);
    from_bucket.lake = s3.lake("lake");
    let (model, same) = (trained(&from_log).await, trained(&from_bucket).await);
    assert_eq!(same.version, model.version);
    assert!(files(&from_bucket, &same).await == files(&from_log, &model).await, "the same bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_stored_announced_and_finds_the_leaks() {
    let directory = tempfile::tempdir().unwrap();
    let log = filled_log(&directory.path().join("log"), &|_| false);
    let args = args(directory.path(), &["--from", "log", "--epochs", "12"]);
    let model = trained(&args).await;
    let (manifest, weights) = files(&args, &model).await;
    let loaded = Model::from_parts(&manifest, &weights).unwrap();
    let metrics = &loaded.manifest().metrics;
    assert!(metrics.training_loss.last() < metrics.training_loss.first(), "{:?}", metrics.training_loss);
    assert!(metrics.test.faults > 0 && metrics.test.auc.unwrap() > 0.8, "{:?}", metrics.test);
    assert!(metrics.validation.alarms_per_car_day <= metrics.wanted_alarms_per_car_day);
    assert!(model.report().contains(&model.version));

    let plots = args.lake.open().unwrap().list(&format!("{}/plots", model.path)).await.unwrap();
    let names: Vec<_> = plots.iter().map(|path| path.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["car.png", "detection.png", "loss.png", "residuals.png"]);

    let range = event_log::Range { topic: "models".into(), partition: 0, start: 0, end: Some(1) };
    let mut reader = log.clone().reader(vec![range]).unwrap();
    let Read::Batch(batch) = reader.next(1, Duration::from_secs(30)).unwrap() else { panic!("no announcement") };
    let announced: serde_json::Value = serde_json::from_slice(batch.get(0).value.unwrap()).unwrap();
    assert_eq!(batch.get(0).key, b"telemetry-anomaly");
    assert_eq!(
        (&announced["version"], &announced["path"]),
        (&model.version.clone().into(), &model.path.clone().into())
    );
}

/// The scorer's call gives the scores that the trainer's metrics came from, however the readings are cut into batches.
#[tokio::test(flavor = "multi_thread")]
async fn a_score_does_not_depend_on_the_batch() {
    let directory = tempfile::tempdir().unwrap();
    let _log = filled_log(&directory.path().join("log"), &|_| false);
    let args = args(directory.path(), &["--from", "log", "--no-announce"]);
    let (manifest, weights) = files(&args, &trained(&args).await).await;
    let model = Model::from_parts(&manifest, &weights).unwrap();
    let mut one_by_one: HashMap<String, CarState> = HashMap::new();
    let mut many: HashMap<String, CarState> = HashMap::new();
    let batches: Vec<RecordBatch> = (0..READINGS).map(|t| readings(t, &|_| false)).collect();
    let single: Vec<_> = batches.iter().flat_map(|b| model.score(b, &mut one_by_one).unwrap()).collect();
    let together = arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap();
    assert_eq!(model.score(&together, &mut many).unwrap(), single);
    assert_eq!(many, one_by_one);
    assert!(single.iter().any(|verdict| verdict.anomalous), "a leak is seen");
}

/// Whatever validation and test cars hold, it does not reach scaling, network and sigmas.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_training_split_is_learnt_from() {
    let clean = tempfile::tempdir().unwrap();
    let _clean_log = filled_log(&clean.path().join("log"), &|_| false);
    let args_clean = args(clean.path(), &["--from", "log", "--no-announce"]);
    let expected = trained(&args_clean).await;
    let is_training = |car: usize| trainer::is_training_car(3, &pseudonym(car));
    assert!((0..CARS).any(|car| !is_training(car)) && (0..CARS).any(is_training));

    let poisoned = tempfile::tempdir().unwrap();
    let _poisoned_log = filled_log(&poisoned.path().join("log"), &|car| !is_training(car));
    let args_poisoned = args(poisoned.path(), &["--from", "log", "--no-announce"]);
    let got = trained(&args_poisoned).await;
    assert_ne!(got.manifest.training.row_hash, expected.manifest.training.row_hash, "the rows do differ");
    assert_eq!(got.manifest.scaling, expected.manifest.scaling);
    assert_eq!(got.manifest.residual_sigma, expected.manifest.residual_sigma);
    assert_eq!(got.manifest.smoothed_sigma, expected.manifest.smoothed_sigma);
    assert_eq!(got.manifest.weights_sha256, expected.manifest.weights_sha256);
}

/// A car's clock after a flat battery, and one that is years ahead.
#[tokio::test(flavor = "multi_thread")]
async fn readings_of_wrong_clocks_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let log = filled_log(&directory.path().join("log"), &|_| false);
    let args = args(directory.path(), &["--from", "log", "--no-announce"]);
    let expected = trained(&args).await.manifest;
    let keys: Vec<_> = (0..CARS).map(pseudonym).collect();
    for wrong_ms in [946_684_800_000, 4_070_908_800_000] {
        append(&log, "telemetry", 2, &readings((wrong_ms - START_MS) / 30_000, &|_| false), &keys);
    }
    let got = trained(&args).await.manifest;
    assert_eq!(got.training.rows, expected.training.rows + 2 * CARS as u64, "they were read");
    assert_eq!(got.training.event_time_ms, expected.training.event_time_ms);
    assert_eq!(got.training.split, expected.training.split);
    assert_eq!((got.scaling, got.threshold), (expected.scaling, expected.threshold));
    assert_eq!((got.weights_sha256, got.metrics), (expected.weights_sha256, expected.metrics));
    let time = |version: &str| version.split('-').next().map(str::to_owned);
    assert_eq!(time(&got.version), time(&expected.version), "a version is named after the newest true reading");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_trained_on_is_refused_with_advice() {
    let directory = tempfile::tempdir().unwrap();
    let log = filled_log(&directory.path().join("log"), &|_| false);
    let refused = |more: &'static [&'static str]| {
        let args = args(directory.path(), more);
        async move {
            let result = train_once(&args, &Metrics::default(), &CancellationToken::new()).await;
            format!("{:#}", result.expect_err("it must be refused"))
        }
    };
    let beyond = refused(&["--from", "log", "--range", "telemetry/0:0-99999999"]).await;
    assert!(beyond.contains("telemetry/0 offsets 0 to 99999999"), "{beyond}");
    let in_lake = refused(&["--from", "lake", "--range", "telemetry/0:0-10"]).await;
    assert!(in_lake.contains("telemetry"), "{in_lake}");
    let few = refused(&["--from", "log", "--range", "telemetry/0:0-50"]).await;
    assert!(few.contains("too few"), "{few}");
    let settings = refused(&["--epochs", "0", "--batch-size", "0"]).await;
    assert!(settings.contains("--epochs") && settings.contains("--batch-size"), "{settings}");
    // A record that is no reading is left out, as the sink leaves it out.
    let before = trained(&args(directory.path(), &["--from", "log", "--no-announce"])).await;
    let appender = log.clone().appender(Box::new(|_| {})).unwrap();
    let record = Record { key: b"x", value: Some(b"no avro"), headers: &[], timestamp_ms: yesterday_ms() };
    assert!(partition_for_key(b"x", 4) < 4);
    appender.append(&"telemetry".into(), &record, 0).unwrap();
    assert!(appender.flush(Duration::from_secs(30)));
    let after = trained(&args(directory.path(), &["--from", "log", "--no-announce"])).await;
    assert_eq!(after.manifest.training.row_hash, before.manifest.training.row_hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_until_there_is_enough_and_stops_when_told() {
    let directory = tempfile::tempdir().unwrap();
    let log = event_log::open(&LogUrl::Directory(directory.path().join("log")), &[]).unwrap();
    let (waiting_args, stop) = (args(directory.path(), &["--from", "log"]), CancellationToken::new());
    let waiting = tokio::spawn({
        let (args, stop) = (waiting_args.clone(), stop.clone());
        async move { train_once(&args, &Metrics::default(), &stop).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished(), "there is not even a topic");
    drop(log);
    let filling = directory.path().join("log");
    let _log = tokio::task::spawn_blocking(move || filled_log(&filling, &|_| false)).await.unwrap();
    let model = tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap().unwrap().unwrap();
    assert!(model.is_some());
    let never = args(directory.path(), &["--from", "log", "--min-rows", "1000000"]);
    let waiting = tokio::spawn({
        let stop = stop.clone();
        async move { train_once(&never, &Metrics::default(), &stop).await }
    });
    stop.cancel();
    assert!(tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap().unwrap().unwrap().is_none());
}
