//! The cloud log holds what the edge log holds: each record once, as it is, whatever happens to replicators.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{
    Log, LogArgs, LogUrl, Outputs, Processor, ProcessorOptions, Range, Read, Record, TopicSpec, catalogue,
};
use prometheus_client::registry::Registry;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use replicator::{Args, Metrics, SOURCE_CLUSTER, SOURCE_OFFSET, SOURCE_PARTITION, SOURCE_TOPIC};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What a test waits for comes within this time, or never.
const PATIENCE: Duration = Duration::from_secs(60);

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn url(&self, name: &str) -> LogUrl {
        LogUrl::Directory(self.folder.path().join(name))
    }

    fn log(&self, name: &str) -> Arc<dyn Log> {
        LogArgs::new(self.url(name)).open().unwrap()
    }

    fn args(&self, topics: &[&str]) -> Args {
        let mut args = Args::new(self.url("edge"), self.url("cloud"));
        args.topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        args
    }
}

/// A record with all that a record has.
#[derive(Debug, Clone, PartialEq)]
struct Whole {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
    timestamp_ms: i64,
}

fn any_record(rng: &mut ChaCha8Rng, i: u64) -> Whole {
    let bytes = |rng: &mut ChaCha8Rng, max: usize| -> Vec<u8> {
        let len = rng.random_range(0..max);
        (0..len).map(|_| rng.random()).collect()
    };
    let value = (!rng.random_ratio(1, 8)).then(|| bytes(rng, 300));
    let headers = (0..rng.random_range(0..4)).map(|h| (format!("h{}", h % 2), bytes(rng, 20))).collect();
    Whole { key: bytes(rng, 40), value, headers, timestamp_ms: 1_795_248_000_000 + i as i64 }
}

/// Writes records into chosen partitions, a transaction for each few of them.
fn write(log: &Arc<dyn Log>, topic: &str, records: &[(u32, Whole)]) {
    log.ensure_topic(&catalogue::topic(topic)).unwrap();
    let topic: Arc<str> = topic.into();
    let options =
        ProcessorOptions { group: format!("writer-{topic}"), instance: "1".into(), topics: vec![topic.clone()] };
    let mut processor = Processor::new(log.clone(), log.clone(), &options).unwrap();
    for chunk in records.chunks(100) {
        let mut outputs = Outputs::default();
        for (partition, record) in chunk {
            let headers: Vec<_> = record.headers.iter().map(|(name, value)| (name.as_str(), &value[..])).collect();
            let (key, value) = (&record.key[..], record.value.as_deref());
            let record = Record { key, value, headers: &headers, timestamp_ms: record.timestamp_ms };
            outputs.push(&topic, *partition, &record);
        }
        processor.commit(&outputs, &[]).unwrap();
    }
}

fn read(log: &Arc<dyn Log>, topic: &str, partition: u32) -> Vec<Whole> {
    let bounds = log.describe(topic).unwrap().partitions[partition as usize];
    let range = Range { topic: topic.into(), partition, start: bounds.first, end: Some(bounds.next) };
    let mut reader = log.clone().reader(vec![range]).unwrap();
    let mut records = Vec::new();
    loop {
        match reader.next(10_000, Duration::from_secs(1)).unwrap() {
            Read::End => return records,
            Read::Idle => {}
            Read::Batch(batch) => records.extend(batch.iter().map(|record| Whole {
                key: record.key.to_vec(),
                value: record.value.map(<[u8]>::to_vec),
                headers: record.headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect(),
                timestamp_ms: record.timestamp_ms,
            })),
        }
    }
}

/// Asserts that the cloud holds the edge's records: partition by partition, in order, once, with their origin.
fn assert_copied(place: &Place, topic: &str, source_name: &str) {
    let (edge, cloud) = (place.log("edge"), place.log("cloud"));
    let partitions = edge.describe(topic).unwrap().partitions.len();
    assert_eq!(cloud.describe(topic).unwrap().partitions.len(), partitions);
    for partition in 0..partitions as u32 {
        let expected: Vec<_> = (0u64..)
            .zip(read(&edge, topic, partition))
            .map(|(offset, mut record)| {
                for (name, value) in [
                    (SOURCE_CLUSTER, source_name.to_owned()),
                    (SOURCE_TOPIC, topic.to_owned()),
                    (SOURCE_PARTITION, partition.to_string()),
                    (SOURCE_OFFSET, offset.to_string()),
                ] {
                    record.headers.push((name.to_owned(), value.into_bytes()));
                }
                record
            })
            .collect();
        assert_eq!(read(&cloud, topic, partition), expected, "{topic}/{partition}");
    }
}

struct Replicator {
    shutdown: CancellationToken,
    metrics: Metrics,
    task: JoinHandle<anyhow::Result<()>>,
}

fn start(args: Args) -> Replicator {
    let (shutdown, metrics) = (CancellationToken::new(), Metrics::new(&mut Registry::default()));
    let task = tokio::spawn(replicator::run_with(args, metrics.clone(), shutdown.clone()));
    Replicator { shutdown, metrics, task }
}

impl Replicator {
    async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        self.end().await
    }

    async fn end(mut self) -> anyhow::Result<()> {
        tokio::time::timeout(PATIENCE, &mut self.task).await.expect("it ends in time").expect("it does not panic")
    }
}

impl Drop for Replicator {
    fn drop(&mut self) {
        // A test that fails must not leave its replicator running.
        self.shutdown.cancel();
    }
}

async fn wait_until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn records(seed: u64, count: u64) -> Vec<(u32, Whole)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|i| (rng.random_range(0..4), any_record(&mut rng, i))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_arrive_as_they_are_with_their_origin() {
    let place = Place::new();
    let edge = place.log("edge");
    write(&edge, "telemetry", &records(1, 2000));
    write(&edge, "alerts", &records(2, 100));
    let replicator = start(place.args(&["telemetry", "alerts"]));
    wait_until("most of it", || replicator.metrics.pipeline.records_in.get() >= 1000).await;
    write(&edge, "telemetry", &records(3, 333));
    let metrics = replicator.metrics.clone();
    replicator.stop().await.unwrap();
    assert_copied(&place, "telemetry", "edge");
    assert_copied(&place, "alerts", "edge");
    assert_eq!(metrics.pipeline.records_out.get(), 2433);
    assert!(read(&edge, "telemetry", 0).iter().any(|r| r.value.is_none()), "tombstones were among them");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicators_that_come_and_go_copy_each_record_once() {
    let place = Place::new();
    let edge = place.log("edge");
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for round in 0..10 {
        write(&edge, "telemetry", &records(100 + round, 400));
        let mut args = place.args(&["telemetry"]);
        // It leaves at once, in the middle of whatever it does.
        (args.drain_timeout, args.batch) = (Duration::ZERO, rng.random_range(1..90));
        let replicator = start(args);
        let some = rng.random_range(0..300);
        wait_until("some records", || replicator.metrics.pipeline.records_in.get() >= some).await;
        replicator.stop().await.unwrap();
    }
    start(place.args(&["telemetry"])).stop().await.unwrap();
    assert_copied(&place, "telemetry", "edge");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_other_partitions_stops_its_topic_only() {
    let place = Place::new();
    let (edge, cloud) = (place.log("edge"), place.log("cloud"));
    write(&edge, "telemetry", &records(1, 100));
    write(&edge, "faults", &records(2, 100));
    cloud.ensure_topic(&TopicSpec { partitions: 7, ..catalogue::topic("faults") }).unwrap();
    let replicator = start(place.args(&["telemetry", "faults"]));
    wait_until("the stop of faults", || replicator.metrics.stopped_topics.get() == 1).await;
    write(&edge, "telemetry", &records(3, 100));
    let error = format!("{:#}", replicator.stop().await.unwrap_err());
    for part in ["faults", "4 partitions", "7 in"] {
        assert!(error.contains(part), "{error} should name {part}");
    }
    assert!(!error.contains("telemetry"), "{error}");
    assert_copied(&place, "telemetry", "edge");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_with_other_partitions_than_declared_is_matched() {
    let place = Place::new();
    let edge = place.log("edge");
    edge.ensure_topic(&TopicSpec { partitions: 2, ..catalogue::topic("alerts") }).unwrap();
    start(place.args(&["alerts"])).stop().await.unwrap();
    assert_eq!(place.log("cloud").describe("alerts").unwrap().partitions.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_is_stopped_at_the_first_record_that_comes_back() {
    let place = Place::new();
    write(&place.log("edge"), "alerts", &records(1, 50));
    start(place.args(&["alerts"])).stop().await.unwrap();
    let mut back = Args::new(place.url("cloud"), place.url("edge"));
    back.topics = vec!["alerts".into()];
    (back.source_name, back.target_name) = ("cloud".into(), "edge".into());
    let before: Vec<_> = (0..4).map(|p| read(&place.log("edge"), "alerts", p)).collect();
    let error = format!("{:#}", start(back).end().await.unwrap_err());
    for part in ["alerts", "offset 0", "\"edge\"", "never end"] {
        assert!(error.contains(part), "{error} should name {part}");
    }
    let after: Vec<_> = (0..4).map(|p| read(&place.log("edge"), "alerts", p)).collect();
    assert_eq!(before, after, "nothing was copied back");
    // On to a third log they may go, and then have both origins.
    let mut on = Args::new(place.url("cloud"), place.url("third"));
    on.topics = vec!["alerts".into()];
    (on.source_name, on.target_name) = ("cloud".into(), "third".into());
    start(on).stop().await.unwrap();
    let copied = (0..4).flat_map(|p| read(&place.log("third"), "alerts", p)).next().unwrap();
    let origins: Vec<_> =
        copied.headers.iter().filter(|(name, _)| name == SOURCE_CLUSTER).map(|(_, v)| &v[..]).collect();
    assert_eq!(origins, [b"edge", b"cloud" as &[u8]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sources_of_one_target_do_not_share_positions() {
    let place = Place::new();
    for (name, count) in [("edge", 200), ("edge2", 50)] {
        write(&place.log(name), "alerts", &records(count, count));
        let mut args = Args::new(place.url(name), place.url("cloud"));
        (args.topics, args.source_name) = (vec!["alerts".into()], name.to_owned());
        start(args).stop().await.unwrap();
    }
    let copied: usize = (0..4).map(|p| read(&place.log("cloud"), "alerts", p).len()).sum();
    assert_eq!(copied, 250);
}

#[tokio::test(flavor = "multi_thread")]
async fn personal_topics_are_bad_configuration() {
    let place = Place::new();
    let error = start(place.args(&["telemetry", "telemetry.raw", "drivers"])).end().await.unwrap_err();
    let problems = &error.downcast_ref::<service::ConfigError>().expect("exit code 64").0;
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(!place.folder.path().join("cloud").exists(), "nothing was opened");
}
