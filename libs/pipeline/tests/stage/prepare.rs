//! A second state that is prepared beside the one in force, and takes its place.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use event_log::{
    Batch, Error, Log, Membership, Outcome, Outputs, Position, ProcessorOptions, Range, Read, Reader, Record,
    TopicPartition, Transactor,
};
use pipeline::{Emit, Metrics, Options, Transform};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::rebuild::Watched;
use crate::support::{PATIENCE, append, contents, is_done, open, options};
use crate::troubled::Troubled;

/// In what is counted the version comes before this many.
const VERSION: u64 = 1_000_000;

/// What one test says to its stages, and hears of them.
#[derive(Clone)]
pub(crate) struct Rules {
    /// The version that states are to have.
    wanted: Arc<AtomicU64>,
    /// The version of each partition's state.
    in_force: Arc<Mutex<BTreeMap<u32, u64>>>,
    out: Arc<str>,
}

impl Rules {
    pub(crate) fn new(out: &str) -> Self {
        Self { wanted: Arc::new(AtomicU64::new(1)), in_force: Arc::default(), out: out.into() }
    }

    pub(crate) fn want(&self, version: u64) {
        self.wanted.store(version, Ordering::Relaxed);
    }

    fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Whether the states of all three partitions have the wanted version.
    pub(crate) fn are_in_force(&self) -> bool {
        let in_force = self.in_force.lock().unwrap();
        in_force.len() == 3 && in_force.values().all(|version| *version == self.wanted())
    }

    pub(crate) fn transform(&self) -> Count {
        Count { rules: self.clone(), fixed: None, states: HashMap::new() }
    }
}

/// Counts the records of each key, from `VERSION` times its version on: no two versions make the same of them.
pub(crate) struct Count {
    rules: Rules,
    /// Of a successor.
    fixed: Option<u64>,
    states: HashMap<u32, (u64, BTreeMap<String, u64>)>,
}

impl Count {
    fn next(&mut self, partition: u32, key: &[u8]) -> u64 {
        let (rules, fixed) = (&self.rules, self.fixed);
        let (version, counts) = self.states.entry(partition).or_insert_with(|| {
            let version = fixed.unwrap_or_else(|| rules.wanted());
            if fixed.is_none() {
                rules.in_force.lock().unwrap().insert(partition, version);
            }
            (version, BTreeMap::new())
        });
        let count = counts.entry(String::from_utf8_lossy(key).into_owned()).or_insert(*version * VERSION);
        *count += 1;
        *count
    }
}

impl Transform for Count {
    fn reset(&mut self, _topic: &Arc<str>, partition: u32) {
        self.states.remove(&partition);
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn snapshot(&self, _topic: &Arc<str>, partition: u32) -> Vec<u8> {
        let (version, counts) = &self.states[&partition];
        let counts = counts.iter().map(|(key, count)| format!("{key} {count}\n"));
        format!("{version}\n{}", counts.collect::<String>()).into_bytes()
    }

    fn restore(&mut self, _topic: &Arc<str>, partition: u32, snapshot: &[u8]) -> anyhow::Result<()> {
        assert!(!self.states.contains_key(&partition), "the partition was not reset");
        let mut lines = std::str::from_utf8(snapshot)?.lines();
        let version = lines.next().context("no version")?.parse()?;
        let mut counts = BTreeMap::new();
        for line in lines {
            let (key, count) = line.split_once(' ').context("no count")?;
            counts.insert(key.to_owned(), count.parse()?);
        }
        self.states.insert(partition, (version, counts));
        self.rules.in_force.lock().unwrap().insert(partition, version);
        Ok(())
    }

    fn replay(&mut self, batch: &Batch) -> anyhow::Result<()> {
        for record in batch.iter() {
            self.next(batch.partition(), record.key);
        }
        Ok(())
    }

    fn apply(&mut self, batch: &Batch, emit: &mut Emit) -> anyhow::Result<()> {
        assert!(self.fixed.is_none(), "a successor emits nothing");
        for record in batch.iter() {
            let text = self.next(batch.partition(), record.key).to_string();
            let out = Record { key: record.key, value: Some(text.as_bytes()), headers: &[], timestamp_ms: 5 };
            emit.send(&self.rules.out, &out);
        }
        Ok(())
    }

    fn is_outdated(&self, _topic: &Arc<str>, partition: u32) -> bool {
        self.states.get(&partition).is_some_and(|(version, _)| *version != self.rules.wanted())
    }

    fn successor(&self, _topic: &Arc<str>, _partition: u32) -> anyhow::Result<Box<dyn Transform>> {
        let (fixed, states) = (Some(self.rules.wanted()), HashMap::new());
        Ok(Box::new(Self { rules: self.rules.clone(), fixed, states }))
    }
}

/// Checks that each record of a key was counted once and in order, under whatever version. Returns the versions of each
/// key, in order.
pub(crate) fn check_counts(log: &Arc<dyn Log>, topic: &str) -> BTreeMap<String, Vec<u64>> {
    let mut versions: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (key, value, _) in contents(log, topic) {
        let count: u64 = value.parse().unwrap();
        let of_key = versions.entry(key.clone()).or_default();
        of_key.push(count / VERSION);
        assert_eq!(count % VERSION, of_key.len() as u64, "{key}: a count is missing or there twice: {of_key:?}");
    }
    versions
}

/// The same, where each version is newer than the one before. Returns how many records there are.
fn check_rising_counts(log: &Arc<dyn Log>) -> usize {
    let versions = check_counts(log, "out");
    assert!(versions.values().all(|of_key| of_key.is_sorted()), "a version came back: {versions:?}");
    versions.values().map(Vec::len).sum()
}

const KEYS: usize = 7;

fn feed(log: &Arc<dyn Log>, records: std::ops::Range<usize>) {
    append(log, "in", records.map(|i| (format!("key{}", i % KEYS), i.to_string())));
}

fn small(log: &Arc<dyn Log>) -> Options {
    Options { state: Some("state".into()), snapshot_records: 5, ..options(log, 4) }
}

/// A loop on a thread of its own, until it is stopped.
pub(crate) struct Running<'s> {
    stage: std::thread::ScopedJoinHandle<'s, anyhow::Result<()>>,
    shutdown: tokio_util::sync::DropGuard,
    pub(crate) metrics: Metrics,
}

impl<'s> Running<'s> {
    pub(crate) fn start(scope: &'s std::thread::Scope<'s, '_>, options: Options, rules: &Rules) -> Self {
        let metrics = Metrics::new(&mut Registry::default(), "test");
        let (shutdown, mut transform, of_stage) = (CancellationToken::new(), rules.transform(), metrics.clone());
        let stop = shutdown.clone();
        let stage = scope.spawn(move || pipeline::run(options, &mut transform, &of_stage, &stop));
        Self { stage, shutdown: shutdown.drop_guard(), metrics }
    }

    pub(crate) fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let began = Instant::now();
        while !condition() {
            assert!(!self.stage.is_finished() && began.elapsed() < PATIENCE, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn stop(self) -> Metrics {
        drop(self.shutdown);
        self.stage.join().unwrap().unwrap();
        self.metrics
    }
}

/// Runs until all is committed and every partition has the wanted version.
fn run_to_end(log: &Arc<dyn Log>, options: Options, rules: &Rules) -> Metrics {
    std::thread::scope(|scope| {
        let running = Running::start(scope, options, rules);
        running.until("the end", || is_done(log) && rules.are_in_force());
        running.stop()
    })
}

/// Not timed: what the successor is made of comes as slowly as the test lets it.
#[test]
fn the_state_in_force_continues_until_its_successor_has_caught_up() {
    let directory = tempfile::tempdir().unwrap();
    let (log, rules) = (open(directory.path()), Rules::new("out"));
    feed(&log, 0..70);
    run_to_end(&log, small(&log), &rules);
    let slow = Arc::new(Slow { log: log.clone(), reads: AtomicI64::new(0) });
    std::thread::scope(|scope| {
        let running = Running::start(scope, small(&(slow.clone() as Arc<dyn Log>)), &rules);
        rules.want(2);
        let left = || running.metrics.preparing_records.get();
        running.until("the beginning of a preparation", || left() > 0);
        let mut fed = 70;
        for _ in 0..4 {
            feed(&log, fed..fed + 14);
            fed += 14;
            running.until("the commits", || is_done(&log));
            let before = left();
            slow.reads.store(1, Ordering::Relaxed);
            running.until("a read", || left() < before);
        }
        let versions = check_counts(&log, "out");
        assert!(versions.values().flatten().all(|version| *version == 1), "{versions:?}");
        assert_eq!(running.metrics.states_replaced.get(), 0);
        assert!(running.metrics.readiness.reasons().iter().all(|why| why.starts_with("the start")), "it is ready");
        slow.reads.store(i64::MAX, Ordering::Relaxed);
        running.until("the switch", || rules.are_in_force() && left() == 0);
        assert_eq!(running.metrics.states_replaced.get(), 3);
        feed(&log, fed..fed + 14);
        running.until("the commits", || is_done(&log));
        running.stop();
        assert_eq!(check_rising_counts(&log), fed + 14);
        let last = |of_key: &Vec<u64>| of_key[of_key.len() - 2..] == [2, 2] && of_key[of_key.len() - 3] == 1;
        assert!(check_counts(&log, "out").values().all(last), "the switch is behind the last record of before");
    });
    // What took over is what a start finds.
    rules.in_force.lock().unwrap().clear();
    let metrics = run_to_end(&log, small(&log), &rules);
    assert_eq!((metrics.restored.get(), metrics.states_replaced.get()), (3, 0));
}

/// The process is killed before and after every commit, and at every read, of a preparation and the switch.
#[test]
fn a_preparation_that_dies_anywhere_changes_no_count() {
    let (mut died, mut after_a_switch) = (0, 0);
    for lives in 0.. {
        let directory = tempfile::tempdir().unwrap();
        let (log, rules) = (open(directory.path()), Rules::new("out"));
        feed(&log, 0..35);
        run_to_end(&log, small(&log), &rules);
        feed(&log, 35..49);
        rules.want(2);
        let mortal = Arc::new(Mortal { log: log.clone(), lives: AtomicI64::new(lives) });
        let survived = std::thread::scope(|scope| {
            let running = Running::start(scope, small(&(mortal.clone() as Arc<dyn Log>)), &rules);
            let is_over = || is_done(&log) && rules.are_in_force();
            while !running.stage.is_finished() && !is_over() {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(running.shutdown);
            running.stage.join().is_ok()
        });
        let switched = rules.in_force.lock().unwrap().values().filter(|version| **version == 2).count();
        after_a_switch += usize::from(!survived && switched > 0);
        rules.in_force.lock().unwrap().clear();
        feed(&log, 49..63);
        run_to_end(&log, small(&log), &rules);
        feed(&log, 63..70);
        run_to_end(&log, small(&log), &rules);
        assert_eq!(check_rising_counts(&log), 70, "killed at step {lives}");
        assert!(check_counts(&log, "out").values().all(|of_key| of_key.last() == Some(&2)));
        if survived {
            break;
        }
        died += 1;
    }
    assert!(died > 20 && after_a_switch > 5, "{died} {after_a_switch}");
}

/// Commits fail in every way, partitions come and go, and the rules change meanwhile.
#[test]
fn a_switch_is_exact_whatever_happens() {
    let (mut replaced, mut all) = (0, [0; 4]);
    for seed in 0..12 {
        let directory = tempfile::tempdir().unwrap();
        let (plain, rules) = (open(directory.path()), Rules::new("out"));
        let troubled = Troubled::new(plain.clone(), seed);
        let log: Arc<dyn Log> = troubled.clone();
        for part in 0..4 {
            feed(&plain, part * 120..(part + 1) * 120);
            rules.want(1 + part as u64);
            // Whether it has switched by the end or not: a snapshot that fails is tried again after some seconds only.
            let options = Options { snapshot_records: 1 + 7 * seed, max_records: 16, ..small(&log) };
            std::thread::scope(|scope| {
                let running = Running::start(scope, options, &rules);
                running.until("the commits", || is_done(&plain));
                replaced += running.stop().states_replaced.get();
            });
        }
        assert_eq!(check_rising_counts(&plain), 480, "seed {seed}");
        run_to_end(&plain, small(&plain), &rules);
        feed(&plain, 480..487);
        run_to_end(&plain, small(&plain), &rules);
        assert!(check_counts(&plain, "out").values().all(|of_key| of_key.last() == Some(&4)), "seed {seed}");
        let t = troubled.trouble();
        all.iter_mut().zip([t.rolled_back, t.unknown, t.gone, t.moved]).for_each(|(sum, n)| *sum += n);
    }
    assert!(all.iter().all(|n| *n > 10), "little went wrong, and nothing was tested: {all:?}");
    assert!(replaced > 20, "{replaced}");
}

#[test]
fn a_newer_version_follows_and_one_that_is_in_force_again_ends_a_preparation() {
    let directory = tempfile::tempdir().unwrap();
    let (log, rules) = (open(directory.path()), Rules::new("out"));
    feed(&log, 0..70);
    run_to_end(&log, small(&log), &rules);
    let slow = Arc::new(Slow { log: log.clone(), reads: AtomicI64::new(0) });
    std::thread::scope(|scope| {
        let running = Running::start(scope, small(&(slow.clone() as Arc<dyn Log>)), &rules);
        let left = || running.metrics.preparing_records.get();
        rules.want(2);
        running.until("a preparation", || left() > 0);
        rules.want(1);
        running.until("its end", || left() == 0);
        rules.want(3);
        running.until("another one", || left() > 0);
        // The partition that is being prepared is finished first, so that there is an end however often this happens.
        rules.want(4);
        slow.reads.store(i64::MAX, Ordering::Relaxed);
        running.until("the newest", || rules.are_in_force() && left() == 0);
        assert_eq!(running.metrics.states_replaced.get(), 4);
        feed(&log, 70..77);
        running.until("the commits", || is_done(&log));
        // And back: an earlier version is one like any other.
        rules.want(2);
        running.until("an earlier one", || rules.are_in_force());
        feed(&log, 77..84);
        running.until("the commits", || is_done(&log));
        running.stop();
    });
    let versions = check_counts(&log, "out");
    let expected = [vec![1; 10], vec![4, 2]].concat();
    assert!(versions.len() == KEYS && versions.values().all(|of_key| *of_key == expected), "{versions:?}");
}

#[test]
fn a_switch_that_cannot_be_written_leaves_the_state_in_force() {
    let directory = tempfile::tempdir().unwrap();
    let (log, rules) = (open(directory.path()), Rules::new("out"));
    feed(&log, 0..70);
    run_to_end(&log, small(&log), &rules);
    let watched = Arc::new(Watched::new(log.clone()));
    watched.refuses.store(true, Ordering::Relaxed);
    std::thread::scope(|scope| {
        let running = Running::start(scope, small(&(watched.clone() as Arc<dyn Log>)), &rules);
        rules.want(2);
        running.until("a refusal", || watched.refused.load(Ordering::Relaxed) > 0);
        feed(&log, 70..77);
        running.until("the commits", || is_done(&log));
        assert_eq!(running.stop().states_replaced.get(), 0);
    });
    assert!(check_counts(&log, "out").values().flatten().all(|version| *version == 1));
    assert_eq!(run_to_end(&log, small(&log), &rules).states_replaced.get(), 3);
    feed(&log, 77..84);
    run_to_end(&log, small(&log), &rules);
    assert_eq!(check_rising_counts(&log), 84);
}

/// A log whose records of topic `in` can be read one by one only, and so many times, but by its group.
struct Slow {
    log: Arc<dyn Log>,
    reads: AtomicI64,
}

impl fmt::Debug for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slow({:?})", self.log)
    }
}

impl Log for Slow {
    test_support::passes_on!(log: url ensure_topic describe committed appender consumer transactor);

    fn reader(self: Arc<Self>, ranges: Vec<Range>) -> Result<Box<dyn Reader>, Error> {
        let is_slow = ranges.iter().any(|range| *range.topic == *"in");
        let reader = self.log.clone().reader(ranges)?;
        Ok(if is_slow { Box::new(SlowReader { reader, log: self }) } else { reader })
    }
}

struct SlowReader {
    reader: Box<dyn Reader>,
    log: Arc<Slow>,
}

impl Reader for SlowReader {
    fn next(&mut self, _max_records: usize, timeout: Duration) -> Result<Read, Error> {
        let one_less = |reads| (reads > 0).then_some(reads - 1);
        match self.log.reads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less) {
            Ok(_) => self.reader.next(1, timeout),
            Err(_) => Ok(Read::Idle),
        }
    }
}

/// A log under which the process is killed: at a read of topic `in`, or before or after a commit, after so many.
struct Mortal {
    log: Arc<dyn Log>,
    lives: AtomicI64,
}

impl Mortal {
    fn step(&self) {
        if self.lives.fetch_sub(1, Ordering::Relaxed) == 0 {
            std::panic::resume_unwind(Box::new("killed"));
        }
    }
}

impl fmt::Debug for Mortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mortal({:?})", self.log)
    }
}

impl Log for Mortal {
    test_support::passes_on!(log: url ensure_topic describe committed appender consumer);

    fn reader(self: Arc<Self>, ranges: Vec<Range>) -> Result<Box<dyn Reader>, Error> {
        let is_counted = ranges.iter().any(|range| *range.topic == *"in");
        let reader = self.log.clone().reader(ranges)?;
        Ok(if is_counted { Box::new(MortalReader { reader, log: self }) } else { reader })
    }

    fn transactor(self: Arc<Self>, options: &ProcessorOptions) -> Result<Box<dyn Transactor>, Error> {
        let transactor = self.log.clone().transactor(options)?;
        Ok(Box::new(MortalTransactor { transactor, log: self }))
    }
}

struct MortalReader {
    reader: Box<dyn Reader>,
    log: Arc<Mortal>,
}

impl Reader for MortalReader {
    fn next(&mut self, _max_records: usize, timeout: Duration) -> Result<Read, Error> {
        self.log.step();
        self.reader.next(5, timeout)
    }
}

struct MortalTransactor {
    transactor: Box<dyn Transactor>,
    log: Arc<Mortal>,
}

impl Transactor for MortalTransactor {
    fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, Error> {
        self.transactor.committed(partitions)
    }

    fn commit(&mut self, outputs: &Outputs, positions: &[Position], membership: &Membership) -> Result<Outcome, Error> {
        self.log.step();
        let outcome = self.transactor.commit(outputs, positions, membership);
        self.log.step();
        outcome
    }
}
