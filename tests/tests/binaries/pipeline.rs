//! A small fleet, its readings through seven processes, and the account at the end.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use event_log::{Log, LogUrl, Range, Read};
use telemetry::avro::AvroDecoder;

use crate::examples;
use crate::forget;
use crate::independent;
use crate::monitoring::{self, Prometheus};
use whole_pipeline_tests::process::Process;

/// Until all readings have gone all the way, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// The broker that `CARSTREAM_TEST_KAFKA` names. Without it the test is skipped, but not in CI.
fn broker() -> Option<String> {
    match std::env::var("CARSTREAM_TEST_KAFKA") {
        Ok(bootstrap) if !bootstrap.is_empty() => Some(bootstrap),
        _ if std::env::var("CI").is_ok_and(|ci| ci == "true") => {
            panic!("in CI, CARSTREAM_TEST_KAFKA must be HOST:PORT of a fresh Kafka broker")
        }
        _ => {
            eprintln!("skipped: CARSTREAM_TEST_KAFKA=HOST:PORT names no Kafka broker; scripts/test starts one");
            None
        }
    }
}

#[test]
fn seven_processes_take_readings_from_cars_to_scores_on_kafka() {
    let Some(bootstrap) = broker() else { return };
    let log_url = format!("kafka://{bootstrap}");
    let kafka = event_log::open(&log_url.parse().unwrap(), &[]).unwrap();
    assert!(
        kafka.describe("telemetry.raw").is_err(),
        "the broker at {bootstrap} is not fresh: topic telemetry.raw exists (scripts/kafka start --data NEW-DIRECTORY)"
    );
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("site.key"), "a key of one test site, and no other").unwrap();
    let (key, lake, cloud, ledger) = (path("site.key"), path("lake"), path("cloud-log"), path("ledger.csv"));

    // More partitions than the contract has, for more instances of a stage: the deployment decides.
    let deploy = ["deploy", "--edge-log", &log_url, "--replication-factor", "1"];
    let six = [&deploy[..], &["--partitions", "6"]].concat();
    Process::start("carstream", &six).succeed();
    Process::start("carstream", &[&six[..], &["--check"]].concat()).succeed();
    let (code, said) = Process::start("carstream", &deploy).end();
    let difference = "topic telemetry.raw in kafka://";
    assert!(code == Some(1) && said.contains(difference) && said.contains("are 6, should be 4"), "{said}");

    // Everything waits for what it needs, so the order does not matter. The scorer has no model yet.
    let start = |stage: &str, args: &[&str]| {
        let mut process = Process::start(stage, &[args, &["--admin", "127.0.0.1:0"]].concat());
        let admin = monitoring::admin_of(&mut process);
        (process, admin)
    };
    let (mut scorer, scorer_admin) = start("scorer", &["--log", &log_url, "--lake", &lake]);
    let (sink, sink_admin) = start("sink", &["--log", &log_url, "--lake", &lake, "--max-age", "1s"]);
    let (replicator, replicator_admin) = start("replicator", &["--edge-log", &log_url, "--cloud-log", &cloud]);
    let (preprocessor, preprocessor_admin) = start("preprocessor", &["--log", &log_url, "--pseudonym-key-file", &key]);
    let (mut bridge, bridge_admin) =
        start("mqtt-bridge", &["--log", &log_url, "--listen", "127.0.0.1:0", "--pseudonym-key-file", &key]);
    scorer.line_with(&["waiting for a model"]);
    let (status, said) = monitoring::ask(&scorer_admin, "/readyz");
    assert!(status == 503 && said.starts_with("waiting for a model"), "{status} {said}");
    let mut prometheus = Prometheus::start(directory.path());
    let mut watch = |stage: &str, admin: &str| {
        if let Some(prometheus) = &mut prometheus {
            prometheus.watch(stage, admin.to_owned());
        }
    };
    for (stage, admin) in [
        ("mqtt-bridge", &bridge_admin),
        ("preprocessor", &preprocessor_admin),
        ("replicator", &replicator_admin),
        ("sink", &sink_admin),
    ] {
        monitoring::wait_until_ready(admin);
        watch(stage, admin);
    }
    watch("scorer", &scorer_admin);
    let line = bridge.line_with(&["MQTT at 127.0.0.1:"]);
    let mqtt = line.split("MQTT at ").nth(1).unwrap().trim().to_owned();

    let fleet = ["--cars", "60", "--seed", "5", "--speedup", "4800", "--duration", "15s"];
    let (fleet, fleet_admin) = start("simulator", &[&fleet[..], &["--mqtt", &mqtt, "--ledger", &ledger]].concat());
    watch("simulator", &fleet_admin);
    fleet.succeed();
    let (acknowledged, others) = outcomes(Path::new(&ledger));
    assert_eq!(others, 0, "the fleet waits for its last acknowledgements");
    assert!(acknowledged > 5000, "{acknowledged} readings are too few to show anything");

    let clean = || identities(&kafka, "telemetry", "telemetry.v2.avsc");
    until("all acknowledged readings to be clean", || clean().len() == acknowledged);
    until("the lake to hold them", || parquet_rows(&Path::new(&lake).join("telemetry")) == acknowledged);

    let train = ["--log", &log_url, "--lake", &lake, "--min-rows", "5000", "--every", "1h"];
    let (trainer, trainer_admin) = start("trainer", &train);
    watch("trainer", &trainer_admin);
    scorer.line_with(&["scoring with model"]);
    until("all to be scored", || identities(&kafka, "scores", "score.avsc").len() == acknowledged);
    assert_eq!(identities(&kafka, "scores", "score.avsc"), clean(), "one score for each reading");

    for admin in [&trainer_admin, &scorer_admin] {
        monitoring::wait_until_ready(admin);
    }
    if let Some(prometheus) = prometheus {
        prometheus.dashboards_have_data();
    }

    let stages = [bridge, preprocessor, replicator, sink, scorer, trainer];
    for stage in &stages {
        stage.terminate();
    }
    for stage in stages {
        stage.succeed();
    }
    assert_eq!(identities(&kafka, "telemetry", "telemetry.v2.avsc").len(), acknowledged, "nothing came afterwards");
    // The embedded log has one process at a time: it can be looked into now.
    let places = ["--edge-log", &log_url, "--cloud-log", &cloud, "--lake", &lake];
    let counted = independent::audit(&[&places[..], &["--pseudonym-key-file", &key, "--ledger", &ledger]].concat());
    assert_eq!(counted["acknowledged"], acknowledged);
    independent::console_consumer_agrees(&counted, &bootstrap);
    independent::python_agrees(&counted, Path::new(&lake));
    examples::kafka_has_this_alert(&bootstrap, &kafka);
    let copies = event_log::open(&LogUrl::Directory(cloud.clone().into()), &[]).unwrap();
    for (topic, schema) in [("telemetry", "telemetry.v2.avsc"), ("scores", "score.avsc")] {
        assert_eq!(identities(&copies, topic, schema), identities(&kafka, topic, schema), "{topic} in the cloud");
    }
    drop(copies);

    // One of its cars asks to be forgotten, and nothing else changes.
    let cars = forget::two_cars(Path::new(&ledger));
    let again = vec![
        start("scorer", &["--log", &log_url, "--lake", &lake]).0,
        start("sink", &["--log", &log_url, "--lake", &lake, "--max-age", "1s"]).0,
        start("replicator", &["--edge-log", &log_url, "--cloud-log", &cloud]).0,
        start("preprocessor", &["--log", &log_url, "--pseudonym-key-file", &key]).0,
    ];
    forget::one_of(&cars, (&log_url, &kafka), &key, again);
    let after = independent::audit(&[&places[..], &["--pseudonym-key-file", &key, "--ledger", &ledger]].concat());
    assert_eq!(after, counted);
}

/// Readings of the ledger that were acknowledged, and others. None is broken on purpose here.
fn outcomes(ledger: &Path) -> (usize, usize) {
    let text = std::fs::read_to_string(ledger).unwrap();
    let mut lines = text.lines();
    let outcome = lines.next().unwrap().split(',').position(|column| column == "outcome").unwrap();
    let (acknowledged, others): (Vec<_>, Vec<_>) =
        lines.partition(|line| line.split(',').nth(outcome) == Some("acknowledged"));
    (acknowledged.len(), others.len())
}

/// (car, boot, seq) of every record of a topic. A duplicate fails the test.
fn identities(log: &Arc<dyn Log>, topic: &str, schema: &str) -> BTreeSet<(String, i64, i64)> {
    let Ok(described) = log.describe(topic) else { return BTreeSet::new() };
    let ranges = (0..).zip(described.partitions).map(|(partition, bounds)| Range {
        topic: topic.into(),
        partition,
        start: bounds.first,
        end: Some(bounds.next),
    });
    let mut reader = log.clone().reader(ranges.collect()).unwrap();
    let mut decoder = AvroDecoder::new(contract::Contract::builtin().schemas(), schema).unwrap();
    loop {
        match reader.next(4096, Duration::from_secs(1)).unwrap() {
            Read::Batch(batch) => {
                batch.iter().for_each(|record| decoder.decode(record.value.unwrap_or_default()).unwrap());
            }
            Read::Idle => {}
            Read::End => break,
        }
    }
    let rows = decoder.finish();
    let long = |name: &str, i: usize| rows[name].as_primitive::<Int64Type>().value(i);
    let cars = rows["car"].as_string::<i32>();
    let identities: BTreeSet<_> =
        (0..rows.num_rows()).map(|i| (cars.value(i).to_owned(), long("boot_id", i), long("seq", i))).collect();
    assert_eq!(identities.len(), rows.num_rows(), "{topic} holds a reading twice");
    identities
}

fn parquet_rows(directory: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let rows = |path: &Path| {
        let file = std::fs::File::open(path).unwrap();
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        usize::try_from(reader.metadata().file_metadata().num_rows()).unwrap()
    };
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| match path.is_dir() {
            true => parquet_rows(&path),
            false if path.extension().is_some_and(|e| e == "parquet") => rows(&path),
            false => 0,
        })
        .sum()
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(250));
    }
}
