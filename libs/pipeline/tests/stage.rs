//! The loop on an embedded log: restarts, state, tables, dead letters.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use event_log::{AppendError, Batch, Log, LogUrl, Range, Read, Record, TopicSpec};
use pipeline::{DeadLetterHeader, Emit, Metrics, Options, Transform};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

fn open(directory: &Path) -> Arc<dyn Log> {
    let log = event_log::open(&LogUrl::Directory(directory.into()), &[]).unwrap();
    for (name, compacted) in [("in", false), ("out", false), ("dead", false), ("table", true)] {
        log.ensure_topic(&TopicSpec { name: name.into(), partitions: 3, retention: None, compacted }).unwrap();
    }
    log
}

fn append(log: &Arc<dyn Log>, topic: &str, records: impl IntoIterator<Item = (String, String)>) {
    let appender = log.clone().appender(Box::new(|done| assert!(done.iter().all(|c| c.durable)))).unwrap();
    for (token, (key, value)) in records.into_iter().enumerate() {
        let headers: &[(&str, &[u8])] = &[("origin", b"test")];
        let record = Record { key: key.as_bytes(), value: Some(value.as_bytes()), headers, timestamp_ms: 5 };
        while let Err(AppendError::Full) = appender.append(&topic.into(), &record, token as u64) {
            std::thread::yield_now();
        }
    }
    assert!(appender.flush(PATIENCE));
}

/// Key, value and headers of every record of a topic, by partition and offset.
fn contents(log: &Arc<dyn Log>, topic: &str) -> Vec<(String, String, HashMap<String, String>)> {
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
            Read::Batch(batch) => records.extend(batch.iter().map(|r| {
                let headers = r.headers.map(|(name, value)| (name.to_owned(), text(value))).collect();
                (text(r.key), text(r.value.unwrap()), headers)
            })),
            Read::Idle => {}
            Read::End => return records,
        }
    }
}

fn options(log: &Arc<dyn Log>, max_records: usize) -> Options {
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
        snapshot_records: pipeline::SNAPSHOT_RECORDS,
        max_records,
        max_wait: Duration::from_millis(2),
    }
}

/// Numbers the records of each key, which needs its state after a restart; `bad` is a dead letter; looks up a table.
#[derive(Default)]
struct Number {
    seen: HashMap<u32, HashMap<Vec<u8>, u64>>,
    table: HashMap<Vec<u8>, Vec<u8>>,
    applied: Arc<AtomicUsize>,
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
                    emit.send(&"out".into(), &out);
                }
            }
            self.applied.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Runs the stage until `enough` says so.
fn run_until(log: &Arc<dyn Log>, max_records: usize, enough: impl Fn(usize) -> bool) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let mut transform = Number::default();
    let applied = transform.applied.clone();
    let metrics = Metrics::new(&mut Registry::default(), "test");
    std::thread::scope(|scope| {
        let stage = scope.spawn(|| pipeline::run(options(log, max_records), &mut transform, &metrics, &shutdown));
        let began = Instant::now();
        while !stage.is_finished() && !enough(applied.load(Ordering::Relaxed)) {
            assert!(began.elapsed() < PATIENCE, "the stage did not get that far");
            std::thread::sleep(Duration::from_millis(1));
        }
        shutdown.cancel();
        stage.join().unwrap()
    })
}

fn is_done(log: &Arc<dyn Log>) -> bool {
    let next: Vec<_> = log.describe("in").unwrap().partitions.iter().map(|p| Some(p.next)).collect();
    let committed = log.committed("g", "in").unwrap();
    next.iter().zip(committed).all(|(next, committed)| *next == committed || *next == Some(0))
}

#[test]
fn restarts_lose_nothing_double_nothing_and_keep_state() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    const KEYS: usize = 7;
    const RECORDS: usize = 5_000;
    append(&log, "in", (0..RECORDS).map(|i| (format!("key{}", i % KEYS), i.to_string())));
    // Small transactions, and a stop after every few of them.
    let mut runs = 0;
    while !is_done(&log) {
        run_until(&log, 64, |applied| applied >= 700 || is_done(&log)).unwrap();
        runs += 1;
    }
    assert!(runs > 2, "one run did it all: nothing was tested");
    let mut last = HashMap::new();
    let out = contents(&log, "out");
    assert_eq!(out.len(), RECORDS);
    for (key, value, _) in out {
        let number: u64 = value.split(' ').next().unwrap().parse().unwrap();
        let before = last.insert(key.clone(), number).unwrap_or(0);
        assert_eq!(number, before + 1, "{key}: a number missing or twice, or state not rebuilt");
    }
}

#[test]
fn a_table_is_read_to_its_end_before_the_records_that_follow() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    for round in 0..3 {
        append(&log, "table", (0..5).map(|i| (format!("key{i}"), format!("row{round}"))));
        append(&log, "in", (0..5).map(|i| (format!("key{i}"), "x".into())));
        run_until(&log, 64, |_| is_done(&log)).unwrap();
        let rows: Vec<_> = contents(&log, "out").into_iter().map(|(_, value, _)| value).collect();
        let expected = format!("{} row{round}", round + 1);
        assert_eq!(rows.iter().filter(|row| **row == expected).count(), 5, "{rows:?}");
    }
}

#[test]
fn a_dead_letter_says_where_it_came_from_and_why() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    append(&log, "in", [("k".into(), "good".into()), ("k".into(), "bad".into()), ("k".into(), "good".into())]);
    run_until(&log, 64, |_| is_done(&log)).unwrap();
    assert_eq!(contents(&log, "out").len(), 2);
    let dead = contents(&log, "dead");
    let [(key, value, headers)] = &dead[..] else { panic!("{dead:?}") };
    assert_eq!((key.as_str(), value.as_str()), ("k", "bad"));
    for (name, expected) in [
        ("origin", "test"),
        (DeadLetterHeader::REASON, "bad"),
        (DeadLetterHeader::DETAIL, "says so itself"),
        (DeadLetterHeader::TOPIC, "in"),
        (DeadLetterHeader::OFFSET, "1"),
    ] {
        assert_eq!(headers[name], expected, "{name}");
    }
    assert!(headers.contains_key(DeadLetterHeader::TIME_MS) && headers.contains_key(DeadLetterHeader::PARTITION));
}

#[test]
fn an_error_of_the_transform_stops_the_stage_and_names_the_place() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    append(&log, "in", [("k".into(), "good".into()), ("k".into(), "fatal".into())]);
    let error = run_until(&log, 64, |_| false).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("in/") && text.contains("cannot go on"), "{text}");
    assert!(contents(&log, "out").is_empty(), "what was not committed must not be visible");
}
