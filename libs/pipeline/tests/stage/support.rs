//! An embedded log in a temporary directory, a transform with state, and the loop run on them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use event_log::{AppendError, Batch, Log, LogUrl, Range, Read, Record, TopicSpec};
use pipeline::{Emit, Metrics, Options, Transform};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn open(directory: &Path) -> Arc<dyn Log> {
    let log = event_log::open(&LogUrl::Directory(directory.into()), &[]).unwrap();
    for (name, compacted) in [("in", false), ("out", false), ("dead", false), ("table", true)] {
        log.ensure_topic(&TopicSpec { name: name.into(), partitions: 3, retention: None, compacted }).unwrap();
    }
    // Not as many as `in`: snapshots of several partitions share one.
    log.ensure_topic(&TopicSpec { name: "state".into(), partitions: 2, retention: None, compacted: true }).unwrap();
    log
}

pub(crate) fn append(log: &Arc<dyn Log>, topic: &str, records: impl IntoIterator<Item = (String, String)>) {
    append_at(log, topic, records, 5);
}

pub(crate) fn append_at(
    log: &Arc<dyn Log>,
    topic: &str,
    records: impl IntoIterator<Item = (String, String)>,
    timestamp_ms: i64,
) {
    let appender = log.clone().appender(Box::new(|done| assert!(done.iter().all(|c| c.durable)))).unwrap();
    for (token, (key, value)) in records.into_iter().enumerate() {
        let headers: &[(&str, &[u8])] = &[("origin", b"test")];
        let record = Record { key: key.as_bytes(), value: Some(value.as_bytes()), headers, timestamp_ms };
        while let Err(AppendError::Full) = appender.append(&topic.into(), &record, token as u64) {
            std::thread::yield_now();
        }
    }
    assert!(appender.flush(PATIENCE));
}

/// Key, value and headers of every record of a topic that has a value, by partition and offset.
pub(crate) fn contents(log: &Arc<dyn Log>, topic: &str) -> Vec<(String, String, HashMap<String, String>)> {
    let partitions = log.describe(topic).unwrap().partitions;
    let ranges = (0..).zip(&partitions).map(|(partition, bounds)| Range {
        topic: topic.into(),
        partition,
        start: bounds.first,
        end: Some(bounds.next),
    });
    let mut reader = log.clone().reader(ranges.collect()).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut records = Vec::new();
    loop {
        match reader.next(100, PATIENCE).unwrap() {
            Read::Batch(batch) => records.extend(batch.iter().filter_map(|r| {
                let headers = r.headers.map(|(name, value)| (name.to_owned(), text(value))).collect();
                Some((text(r.key), text(r.value?), headers))
            })),
            Read::Idle => {}
            Read::End => return records,
        }
    }
}

pub(crate) fn options(log: &Arc<dyn Log>, max_records: usize) -> Options {
    Options {
        source: log.clone(),
        target: log.clone(),
        group: "g".into(),
        instance: "0".into(),
        topics: vec!["in".into()],
        tables: vec!["table".into()],
        outputs: vec!["out".into()],
        dead_letter: Some("dead".into()),
        state: None,
        gaps: None,
        accept_gap: false,
        snapshot_records: pipeline::SNAPSHOT_RECORDS,
        max_records,
        max_wait: Duration::from_millis(2),
    }
}

/// Numbers the records of each key, which needs its state after a restart; `bad` is a dead letter; looks up a table.
#[derive(Default)]
pub(crate) struct Number {
    pub(crate) seen: HashMap<u32, HashMap<Vec<u8>, u64>>,
    pub(crate) table: HashMap<Vec<u8>, Vec<u8>>,
    pub(crate) applied: Arc<AtomicUsize>,
    pub(crate) version: String,
    /// Where numbers go; `out` if that is not set.
    pub(crate) out: Option<Arc<str>>,
    /// Good and bad ones, as they are committed.
    pub(crate) counted: Counter,
}

impl Number {
    fn next(&mut self, partition: u32, key: &[u8]) -> u64 {
        let count = self.seen.entry(partition).or_default().entry(key.to_vec()).or_default();
        *count += 1;
        *count
    }
}

impl Transform for Number {
    fn reset(&mut self, _topic: &Arc<str>, partition: u32) {
        self.seen.remove(&partition);
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn state_version(&self) -> String {
        self.version.clone()
    }

    fn snapshot(&self, _topic: &Arc<str>, partition: u32) -> Vec<u8> {
        let counts = self.seen.get(&partition).into_iter().flatten();
        let mut lines: Vec<_> = counts.map(|(key, n)| format!("{} {n}\n", String::from_utf8_lossy(key))).collect();
        lines.sort();
        lines.concat().into_bytes()
    }

    fn restore(&mut self, _topic: &Arc<str>, partition: u32, snapshot: &[u8]) -> anyhow::Result<()> {
        let seen = self.seen.entry(partition).or_default();
        assert!(seen.is_empty(), "the partition was not reset");
        for line in std::str::from_utf8(snapshot)?.lines() {
            let (key, n) = line.split_once(' ').context("no count")?;
            seen.insert(key.into(), n.parse()?);
        }
        Ok(())
    }

    fn replay(&mut self, batch: &Batch) -> anyhow::Result<()> {
        for record in batch.iter().filter(|r| r.value != Some(b"bad")) {
            self.next(batch.partition(), record.key);
        }
        Ok(())
    }

    fn table(&mut self, batch: &Batch) -> anyhow::Result<()> {
        for row in batch.iter() {
            self.table.insert(row.key.to_vec(), row.value.unwrap().to_vec());
        }
        Ok(())
    }

    fn apply(&mut self, batch: &Batch, emit: &mut Emit) -> anyhow::Result<()> {
        for record in batch.iter() {
            match record.value {
                Some(b"bad") => emit.dead_letter(&record, "bad", "says so itself"),
                Some(b"fatal") => anyhow::bail!("cannot go on"),
                _ => {
                    let number = self.next(batch.partition(), record.key);
                    let row = self.table.get(record.key).map_or("-".into(), |row| String::from_utf8_lossy(row));
                    let value = format!("{number} {row}");
                    let out = Record {
                        key: record.key,
                        value: Some(value.as_bytes()),
                        headers: &[],
                        timestamp_ms: record.timestamp_ms,
                    };
                    emit.send(self.out.as_ref().unwrap_or(&"out".into()), &out);
                }
            }
            self.applied.fetch_add(1, Ordering::Relaxed);
        }
        emit.count(&self.counted, batch.len() as u64);
        Ok(())
    }
}

/// Runs the stage until `enough` says so.
pub(crate) fn run_until(
    log: &Arc<dyn Log>,
    max_records: usize,
    enough: impl Fn(usize) -> bool,
) -> anyhow::Result<Metrics> {
    run_with(options(log, max_records), Number::default(), enough)
}

/// Runs this transform with these options until `enough` says so.
pub(crate) fn run_with(
    options: Options,
    mut transform: Number,
    enough: impl Fn(usize) -> bool,
) -> anyhow::Result<Metrics> {
    let shutdown = CancellationToken::new();
    let applied = transform.applied.clone();
    let metrics = Metrics::new(&mut Registry::default(), "test");
    std::thread::scope(|scope| {
        let stage = scope.spawn(|| pipeline::run(options, &mut transform, &metrics, &shutdown));
        let _stop = shutdown.clone().drop_guard(); // also when this panics: the scope waits for the stage
        let began = Instant::now();
        while !stage.is_finished() && !enough(applied.load(Ordering::Relaxed)) {
            assert!(began.elapsed() < PATIENCE, "the stage did not get that far");
            std::thread::sleep(Duration::from_millis(1));
        }
        shutdown.cancel();
        stage.join().unwrap()
    })?;
    Ok(metrics)
}

/// Whether all of `in` is committed.
pub(crate) fn is_done(log: &Arc<dyn Log>) -> bool {
    let next: Vec<_> = log.describe("in").unwrap().partitions.iter().map(|p| Some(p.next)).collect();
    let committed = log.committed("g", "in").unwrap();
    next.iter().zip(committed).all(|(next, committed)| *next == committed || *next == Some(0))
}

/// Checks that each key of topic `out` is numbered from 1 without a gap or a repeat. Returns how many records there
/// are.
pub(crate) fn check_numbers(log: &Arc<dyn Log>) -> usize {
    check_numbers_in(log, "out")
}

/// The same of another topic.
pub(crate) fn check_numbers_in(log: &Arc<dyn Log>, topic: &str) -> usize {
    let mut last = HashMap::new();
    let out = contents(log, topic);
    for (key, value, _) in &out {
        let number: u64 = value.split(' ').next().unwrap().parse().unwrap();
        let before = last.insert(key, number).unwrap_or(0);
        assert_eq!(number, before + 1, "{key}: a number is missing or there twice: its state was not exact");
    }
    out.len()
}
