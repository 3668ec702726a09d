//! Two logs, records to be copied, and a replicator that runs in this process.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)] // every test file uses a part

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{Clock, Log, LogUrl, Membership, Outcome, Outputs, ProcessorOptions, Range, Read, Record};
use prometheus_client::registry::Registry;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use replicator::{Accept, Args, Command, Metrics, OffsetsArgs, ResumeArgs};
use test_support::clock::now_ms;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What a test waits for comes within this time, or never.
pub const PATIENCE: Duration = Duration::from_secs(180);

pub struct Place {
    pub folder: tempfile::TempDir,
    /// Of logs that are opened through [`Place::log`] first.
    pub clock: Clock,
}

impl Place {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), clock: Clock::default() }
    }

    pub fn url(&self, name: &str) -> LogUrl {
        LogUrl::Directory(self.folder.path().join(name))
    }

    pub fn log(&self, name: &str) -> Arc<dyn Log> {
        event_log::open_with_clock(&self.folder.path().join(name), self.clock.clone()).unwrap()
    }

    pub fn args(&self, topics: &[&str]) -> Args {
        let mut args = Args::new(self.url("edge"), self.url("cloud"));
        args.topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        args
    }
}

/// A record with all that a record has.
#[derive(Debug, Clone, PartialEq)]
pub struct Whole {
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub timestamp_ms: i64,
}

pub fn any_record(rng: &mut ChaCha8Rng, i: u64) -> Whole {
    let bytes = |rng: &mut ChaCha8Rng, max: usize| -> Vec<u8> {
        let len = rng.random_range(0..max);
        (0..len).map(|_| rng.random()).collect()
    };
    let value = (!rng.random_ratio(1, 8)).then(|| bytes(rng, 300));
    let headers = (0..rng.random_range(0..4)).map(|h| (format!("h{}", h % 2), bytes(rng, 20))).collect();
    Whole { key: bytes(rng, 40), value, headers, timestamp_ms: now_ms() + i as i64 }
}

/// Writes records into chosen partitions, a transaction for each few of them.
pub fn write(log: &Arc<dyn Log>, topic: &str, records: &[(u32, Whole)]) {
    log.ensure_topic(&topics::builtin(topic)).unwrap();
    let topic: Arc<str> = topic.into();
    // The writing half alone: a group that reads the topic would be one that retention waits for.
    let options = ProcessorOptions { group: format!("writer-{topic}"), instance: "1".into(), topics: Vec::new() };
    let mut transactor = log.clone().transactor(&options).unwrap();
    for chunk in records.chunks(100) {
        let mut outputs = Outputs::default();
        for (partition, record) in chunk {
            let headers: Vec<_> = record.headers.iter().map(|(name, value)| (name.as_str(), &value[..])).collect();
            let (key, value) = (&record.key[..], record.value.as_deref());
            let record = Record { key, value, headers: &headers, timestamp_ms: record.timestamp_ms };
            outputs.push(&topic, *partition, &record);
        }
        let outcome = transactor.commit(&outputs, &[], &Membership::default()).unwrap();
        assert_eq!(outcome, Outcome::Committed);
    }
}

pub fn read(log: &Arc<dyn Log>, topic: &str, partition: u32) -> Vec<Whole> {
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

pub struct Replicator {
    pub shutdown: CancellationToken,
    pub metrics: Metrics,
    pub task: JoinHandle<anyhow::Result<()>>,
}

pub fn start(args: Args) -> Replicator {
    let (shutdown, metrics) = (CancellationToken::new(), Metrics::new(&mut Registry::default()));
    let task = tokio::spawn(replicator::run_with(args, metrics.clone(), shutdown.clone()));
    Replicator { shutdown, metrics, task }
}

impl Replicator {
    pub async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        self.end().await
    }

    pub async fn end(mut self) -> anyhow::Result<()> {
        tokio::time::timeout(PATIENCE, &mut self.task).await.expect("it ends in time").expect("it does not panic")
    }
}

impl Drop for Replicator {
    fn drop(&mut self) {
        // A test that fails must not leave its replicator running.
        self.shutdown.cancel();
    }
}

pub async fn wait_until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn records(seed: u64, count: u64) -> Vec<(u32, Whole)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|i| (rng.random_range(0..4), any_record(&mut rng, i))).collect()
}

/// `replicator resume`: what it says, or why it refuses.
pub fn resume(args: &Args, topic: &str, accept: Accept) -> Result<String, String> {
    let command = Command::Resume(ResumeArgs { topic: topic.to_owned(), accept });
    replicator::run_command(args, &command).map_err(|error| format!("{error:#}"))
}

/// `replicator offsets --json` for one partition: source_offset and target_offset, if one of them is given.
pub fn translate(args: &Args, topic: &str, partition: u32, source: Option<u64>, target: Option<u64>) -> Option<u64> {
    let offsets = OffsetsArgs {
        topic: Some(topic.to_owned()),
        partition: Some(partition),
        source_offset: source,
        target_offset: target,
        json: true,
    };
    let line = replicator::run_command(args, &Command::Offsets(offsets)).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    line[if source.is_some() { "target_offset" } else { "source_offset" }].as_u64()
}

/// Asserts that a message contains all of these.
pub fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "this should say {part:?}:\n{text}");
    }
}

/// What an operator has accepted, oldest first.
pub fn accepted(cloud: &Arc<dyn Log>) -> Vec<replicator::Accepted> {
    let records = read(cloud, replicator::STATE_TOPIC, 0);
    let accepted = records.iter().filter(|r| String::from_utf8_lossy(&r.key).contains("/accepted/"));
    accepted.map(|r| serde_json::from_slice(r.value.as_ref().unwrap()).unwrap()).collect()
}
