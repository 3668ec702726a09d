//! State over restarts: exact, and from a snapshot where there is one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use event_log::{AppendError, Log, LogUrl, Outcome, Outputs, Position, ProcessorOptions, Record, TopicSpec};
use pipeline::{Metrics, Options};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use test_support::clock::now_ms;

use crate::support::{Number, PATIENCE, append, append_at, check_numbers, contents, is_done, open, options, run_with};
use crate::troubled::Troubled;

const KEYS: usize = 7;

fn snapshots_every(records: u64, log: &Arc<dyn Log>) -> Options {
    Options { state: Some("state".into()), snapshot_records: records, ..options(log, 16) }
}

fn feed(log: &Arc<dyn Log>, records: std::ops::Range<usize>) {
    append(log, "in", records.map(|i| (format!("key{}", i % KEYS), i.to_string())));
}

/// As if they had come just now.
fn feed_now(log: &Arc<dyn Log>, records: std::ops::Range<usize>) {
    append_at(log, "in", records.map(|i| (format!("key{}", i % KEYS), i.to_string())), now_ms());
}

/// Runs until all is committed, and stops cleanly.
fn run_to_end(options: Options, version: &str) -> Metrics {
    let log = options.source.clone();
    run_with(options, Number { version: version.to_owned(), ..Number::default() }, |_| is_done(&log)).unwrap()
}

/// A batch that is rolled back is done again, and must not count twice. One whose commit ended unknown may not count.
#[test]
fn what_is_rolled_back_is_not_counted() {
    // Which seeds bring a roll-back depends on how the threads run; several in a row without one would be a fault.
    let rolled_back = (1..=8).filter(|seed| counts_what_is_committed(*seed)).count();
    assert!(rolled_back > 0, "nothing was done again");
}

/// Whether a batch was done again.
fn counts_what_is_committed(seed: u64) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let plain = open(directory.path());
    const RECORDS: usize = 480;
    feed(&plain, 0..RECORDS);
    let troubled = Troubled::new(plain.clone(), seed);
    let transform = Number::default();
    let (applied, counted) = (transform.applied.clone(), transform.counted.clone());
    let metrics = run_with(options(&(troubled.clone() as Arc<dyn Log>), 16), transform, |_| is_done(&plain)).unwrap();
    assert_eq!(counted.get(), metrics.records_in.get());
    assert!(counted.get() <= RECORDS as u64, "{} of {RECORDS} records were counted", counted.get());
    let text = |registry: &Registry| {
        let mut text = String::new();
        encode(&mut text, registry).map(|()| text).unwrap()
    };
    let mut registry = Registry::default();
    registry.register("test", "", metrics.latency_seconds.clone());
    let latencies = text(&registry);
    let commits = latencies.lines().find_map(|line| line.strip_prefix(r#"test_count{topic="in"} "#)).unwrap();
    assert!(commits.parse::<u64>().unwrap() >= metrics.commits.get(), "at least one partition is in each: {latencies}");
    assert!(metrics.readiness.reasons().iter().all(|why| why.starts_with("the start")), "it has opened its topics");
    troubled.trouble().rolled_back > 0 && applied.load(Ordering::Relaxed) > RECORDS
}

/// Commits fail in every way, partitions come and go, snapshots lie at many positions: no number is lost or doubled.
#[test]
fn state_is_exact_whatever_happens() {
    let (mut restored, mut snapshots, mut all) = (0, 0, [0; 4]);
    for seed in 0..8 {
        let directory = tempfile::tempdir().unwrap();
        let plain = open(directory.path());
        const RECORDS: usize = 480;
        let troubled = Troubled::new(plain.clone(), seed);
        let log: Arc<dyn Log> = troubled.clone();
        for part in 0..3 {
            feed(&plain, part * RECORDS / 3..(part + 1) * RECORDS / 3);
            let metrics = run_to_end(snapshots_every(1 + 7 * seed, &log), "");
            restored += metrics.restored.get();
            snapshots += metrics.snapshots.get();
            assert_eq!(metrics.state_gaps.get(), 0);
            plain.maintain().unwrap();
        }
        assert_eq!(check_numbers(&plain), RECORDS, "seed {seed}");
        let t = troubled.trouble();
        all.iter_mut().zip([t.rolled_back, t.unknown, t.gone, t.moved]).for_each(|(sum, n)| *sum += n);
    }
    assert!(all.iter().all(|n| *n > 10), "little went wrong, and nothing was tested: {all:?}");
    assert!(restored > 100 && snapshots > 100, "{restored} {snapshots}");
}

#[test]
fn only_what_follows_the_snapshot_is_replayed() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    feed(&log, 0..900);
    let first = run_to_end(snapshots_every(100, &log), "");
    assert!(first.snapshots.get() >= 6, "about one in 100 records of a partition, and one at the stop");
    // A clean stop leaves nothing to be replayed, and what has not changed is not written again.
    feed(&log, 900..901);
    let second = run_to_end(snapshots_every(100, &log), "");
    assert_eq!((second.restored.get(), second.replayed.get(), second.snapshots.get()), (3, 0, 1));
    // A stop that is not clean: what was committed after the last snapshot is not in one.
    feed(&log, 901..931);
    let stage = Options { state: None, ..options(&log, 16) };
    run_to_end(stage, "");
    feed(&log, 931..938);
    let third = run_to_end(snapshots_every(100, &log), "");
    assert_eq!((third.restored.get(), third.replayed.get()), (3, 30));
    assert_eq!(check_numbers(&log), 938);
}

#[test]
fn another_state_version_begins_with_what_is_held() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    feed(&log, 0..100);
    run_to_end(snapshots_every(10, &log), "one model");
    feed(&log, 100..110);
    let other = run_to_end(snapshots_every(10, &log), "another model");
    assert_eq!((other.restored.get(), other.replayed.get(), other.state_gaps.get()), (0, 100, 0));
    feed(&log, 110..120);
    let same = run_to_end(snapshots_every(10, &log), "another model");
    assert_eq!((same.restored.get(), same.replayed.get()), (3, 0));
    assert_eq!(check_numbers(&log), 120);
}

/// A snapshot that its transform does not understand is passed over, and all is replayed.
#[test]
fn a_snapshot_that_cannot_be_restored_is_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    feed(&log, 0..50);
    run_to_end(snapshots_every(10, &log), "");
    // The same headers, another text, the right hash: as a faulty version of the program would write it.
    let damaged = Damaged(log.clone());
    damaged.rewrite();
    feed(&log, 50..60);
    let metrics = run_to_end(snapshots_every(1000, &log), "");
    assert_eq!((metrics.restored.get(), metrics.replayed.get()), (0, 50));
    assert_eq!(check_numbers(&log), 60);
}

/// Rewrites every snapshot so that `Number` does not understand it.
struct Damaged(Arc<dyn Log>);

impl Damaged {
    fn rewrite(&self) {
        use sha2::{Digest, Sha256};
        let text = b"neither key nor count, and".repeat(3);
        let hash = hex::encode(Sha256::digest(&text));
        let state: Arc<str> = "state".into();
        let mut outputs = Outputs::default();
        for (key, _, headers) in contents(&self.0, "state") {
            let partition = key.split('/').nth(2).unwrap().parse::<u32>().unwrap() % 2;
            let bytes = text.len().to_string();
            let headers: Vec<(&str, &[u8])> = headers
                .iter()
                .map(|(name, value)| match name.as_str() {
                    "snapshot.sha256" => (name.as_str(), hash.as_bytes()),
                    "snapshot.bytes" => (name.as_str(), bytes.as_bytes()),
                    _ => (name.as_str(), value.as_bytes()),
                })
                .collect();
            let record = Record { key: key.as_bytes(), value: Some(&text), headers: &headers, timestamp_ms: 5 };
            outputs.push(&state, partition, &record);
        }
        let by = ProcessorOptions { group: "damage".into(), instance: "0".into(), topics: vec![] };
        let mut transactor = self.0.clone().transactor(&by).unwrap();
        assert_eq!(transactor.commit(&outputs, &[], &Default::default()).unwrap(), Outcome::Committed);
    }
}

/// A topic that was deleted and created again has other records; positions that were set back have a future.
#[test]
fn snapshots_of_another_past_are_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    feed(&log, 0..90);
    run_to_end(snapshots_every(10, &log), "");
    // Everything once more, from the beginning.
    let by = ProcessorOptions { group: "g".into(), instance: "0".into(), topics: vec!["in".into()] };
    let back: Vec<_> = (0..3).map(|partition| Position { topic: "in".into(), partition, offset: 0 }).collect();
    let mut transactor = log.clone().transactor(&by).unwrap();
    assert_eq!(transactor.commit(&Outputs::default(), &back, &Default::default()).unwrap(), Outcome::Committed);
    drop(transactor);
    let metrics = run_to_end(snapshots_every(10, &log), "");
    assert_eq!(metrics.restored.get(), 0);
    let numbers: Vec<_> = contents(&log, "out").into_iter().map(|(key, value, _)| (key, value)).collect();
    let mut twice: Vec<_> = numbers.iter().collect();
    twice.sort();
    assert_eq!(numbers.len(), 180);
    assert!(twice.chunks(2).all(|pair| pair[0] == pair[1]), "the same once more: the state began anew");
}

/// Long enough to be processed first on a busy machine; needed once.
const RETENTION: Duration = Duration::from_secs(5);

/// Retention removes all that was processed; then two records more of each key. Returns the last number and the gaps.
fn after_retention(stage: impl Fn(&Arc<dyn Log>) -> Options) -> (String, u64) {
    let directory = tempfile::tempdir().unwrap();
    let log = event_log::open(&LogUrl::Directory(directory.path().into()), &[]).unwrap();
    for (name, compacted) in [("in", false), ("out", false), ("dead", false), ("table", true), ("state", true)] {
        let retention = (name == "in").then_some(RETENTION);
        log.ensure_topic(&TopicSpec { name: name.into(), partitions: 1, retention, compacted }).unwrap();
    }
    feed_now(&log, 0..70);
    run_to_end(stage(&log), "");
    let began = Instant::now();
    while log.describe("in").unwrap().partitions[0].first < 70 {
        assert!(began.elapsed() < PATIENCE, "retention has not removed the records");
        std::thread::sleep(Duration::from_millis(50));
        log.maintain().unwrap();
    }
    feed_now(&log, 70..84);
    let metrics = run_to_end(stage(&log), "");
    assert_eq!(metrics.replayed.get(), 0);
    let (_, last, _) = contents(&log, "out").pop().unwrap();
    (last, metrics.state_gaps.get())
}

#[test]
fn what_retention_has_removed_is_in_the_snapshot() {
    assert_eq!(after_retention(|log| snapshots_every(1000, log)), ("12 -".to_owned(), 0));
}

#[test]
fn what_retention_has_removed_and_no_snapshot_has_is_said() {
    assert_eq!(after_retention(|log| options(log, 16)), ("2 -".to_owned(), 1));
}

/// More than one chunk: written and found again, and what a shorter one does not need is removed.
#[test]
fn a_large_state_is_cut_into_records_that_every_log_takes() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    let long = "k".repeat(1000);
    let appender = log.clone().appender(Box::new(|done| assert!(done.iter().all(|c| c.durable)))).unwrap();
    for i in 0..3000u64 {
        let key = format!("{long}{i}");
        let record = Record { key: key.as_bytes(), value: Some(b"x"), headers: &[], timestamp_ms: 5 };
        while let Err(AppendError::Full) = appender.append(&"in".into(), &record, i) {
            std::thread::yield_now();
        }
    }
    assert!(appender.flush(PATIENCE));
    run_to_end(snapshots_every(100_000, &log), "");
    let chunks = contents(&log, "state");
    assert!((6..=9).contains(&chunks.len()), "1 MB a partition is two or three records: {}", chunks.len());
    assert!(chunks.iter().all(|(_, value, _)| value.len() <= 512 * 1024));
    feed(&log, 0..1);
    let again = run_to_end(snapshots_every(100_000, &log), "");
    assert_eq!((again.restored.get(), again.replayed.get()), (3, 0));
    // Another version begins anew and stays small: the chunks that it does not replace must go.
    let by = ProcessorOptions { group: "g".into(), instance: "0".into(), topics: vec!["in".into()] };
    let back: Vec<_> = (0..3).map(|partition| Position { topic: "in".into(), partition, offset: 1 }).collect();
    let mut transactor = log.clone().transactor(&by).unwrap();
    assert_eq!(transactor.commit(&Outputs::default(), &back, &Default::default()).unwrap(), Outcome::Committed);
    drop(transactor);
    let stage = Options { snapshot_records: 1, max_records: 1, ..snapshots_every(1, &log) };
    run_with(stage, Number::default(), |applied| applied >= 10).unwrap();
    log.maintain().unwrap();
    let keys: std::collections::HashSet<_> = contents_with_tombstones(&log).into_iter().collect();
    assert_eq!(keys.len(), 3, "one chunk a partition: {keys:?}");
}

/// The keys of topic `state` that have a value.
fn contents_with_tombstones(log: &Arc<dyn Log>) -> Vec<String> {
    use event_log::{Range, Read};
    let bounds = log.describe("state").unwrap().partitions;
    let ranges = (0..).zip(bounds).map(|(partition, b)| Range {
        topic: "state".into(),
        partition,
        start: b.first,
        end: Some(b.next),
    });
    let mut reader = log.clone().reader(ranges.collect()).unwrap();
    let mut keys = Vec::new();
    loop {
        match reader.next(100, Duration::from_secs(1)).unwrap() {
            Read::Batch(batch) => {
                let live = batch.iter().filter(|r| r.value.is_some());
                keys.extend(live.map(|r| String::from_utf8(r.key.to_vec()).unwrap()));
            }
            Read::Idle => {}
            Read::End => return keys,
        }
    }
}
