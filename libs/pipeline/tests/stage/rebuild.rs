//! Rebuilding that takes long or ends early, and snapshots that cannot be written.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use event_log::{
    Batch, Consumer, Error, Event, Log, Membership, Outcome, Outputs, Position, ProcessorOptions, TopicPartition,
    Transactor,
};
use pipeline::{Emit, Metrics, Options, Transform, run};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::support::{Number, append, check_numbers, is_done, open, options, run_with};

/// Several reads of a replay in each partition.
const RECORDS: usize = 60_000;
/// Records of one read.
const READ: u64 = 8192;

/// `Number`, with a look at each batch that is replayed.
pub(crate) struct Looking<L> {
    pub(crate) inner: Number,
    pub(crate) look: L,
}

impl<L: FnMut(&Batch) -> anyhow::Result<()> + Send> Transform for Looking<L> {
    fn reset(&mut self, topic: &Arc<str>, partition: u32) {
        self.inner.reset(topic, partition);
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn replay(&mut self, batch: &Batch) -> anyhow::Result<()> {
        (self.look)(batch)?;
        self.inner.replay(batch)
    }

    fn snapshot(&self, topic: &Arc<str>, partition: u32) -> Vec<u8> {
        self.inner.snapshot(topic, partition)
    }

    fn restore(&mut self, topic: &Arc<str>, partition: u32, snapshot: &[u8]) -> anyhow::Result<()> {
        self.inner.restore(topic, partition, snapshot)
    }

    fn apply(&mut self, batch: &Batch, emit: &mut Emit) -> anyhow::Result<()> {
        self.inner.apply(batch, emit)
    }
}

fn feed(log: &Arc<dyn Log>, records: std::ops::Range<usize>) {
    append(log, "in", records.map(|i| (format!("key{}", i % 7), i.to_string())));
}

fn without_snapshots(log: &Arc<dyn Log>) -> Options {
    options(log, 5000)
}

fn with_snapshots(log: &Arc<dyn Log>) -> Options {
    Options { state: Some("state".into()), ..options(log, 5000) }
}

/// Processes [`RECORDS`] records, and leaves no snapshot.
fn process(log: &Arc<dyn Log>) {
    feed(log, 0..RECORDS);
    run_with(without_snapshots(log), Number::default(), |_| is_done(log)).unwrap();
}

/// Runs until the transform has cancelled `shutdown`, or has failed.
fn run_looking(
    options: Options,
    shutdown: &CancellationToken,
    look: impl FnMut(&Batch) -> anyhow::Result<()> + Send,
) -> (Metrics, anyhow::Result<()>) {
    let metrics = Metrics::new(&mut Registry::default(), "test");
    let mut transform = Looking { inner: Number::default(), look };
    let ended = run(options, &mut transform, &metrics, shutdown);
    (metrics, ended)
}

#[test]
fn a_shutdown_during_a_replay_keeps_what_was_replayed() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    process(&log);
    feed(&log, 0..7);
    let shutdown = CancellationToken::new();
    let (metrics, ended) = run_looking(with_snapshots(&log), &shutdown, |_| {
        shutdown.cancel();
        Ok(())
    });
    ended.unwrap();
    assert_eq!((metrics.replayed.get(), metrics.snapshots.get()), (READ, 1));
    let metrics = run_with(with_snapshots(&log), Number::default(), |_| is_done(&log)).unwrap();
    assert_eq!((metrics.restored.get(), metrics.replayed.get()), (1, RECORDS as u64 - READ));
    assert_eq!(check_numbers(&log), RECORDS + 7);
}

#[test]
fn a_replay_that_dies_resumes_from_a_snapshot_on_the_way() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    process(&log);
    feed(&log, 0..7);
    let mut reads = 0;
    let options = Options { snapshot_records: 100, ..with_snapshots(&log) };
    let (metrics, ended) = run_looking(options, &CancellationToken::new(), |_| {
        reads += 1;
        if reads > 2 { anyhow::bail!("dies here") } else { Ok(()) }
    });
    ended.unwrap_err();
    assert_eq!((metrics.replayed.get(), metrics.snapshots.get()), (2 * READ, 2));
    let metrics = run_with(with_snapshots(&log), Number::default(), |_| is_done(&log)).unwrap();
    assert_eq!((metrics.restored.get(), metrics.replayed.get()), (1, RECORDS as u64 - 2 * READ));
    assert_eq!(check_numbers(&log), RECORDS + 7);
}

#[test]
fn a_replay_keeps_the_place_in_the_group_and_other_partitions_going() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    process(&log);
    let positions = || -> Vec<_> { log.committed("g", "in").unwrap().into_iter().map(Option::unwrap).collect() };
    let until = positions();
    feed(&log, 0..7);
    let watched = Arc::new(Watched::new(log.clone()));
    let shutdown = CancellationToken::new();
    let (mut polls, mut rebuilt, mut processed) = (Vec::new(), 0, 0);
    let options = without_snapshots(&(watched.clone() as Arc<dyn Log>));
    let (metrics, ended) = run_looking(options, &shutdown, |batch| {
        polls.push(watched.polls.load(Ordering::Relaxed));
        processed = positions().iter().zip(&until).filter(|(position, until)| position > until).count();
        rebuilt += usize::from(batch.next_offset() == Some(until[batch.partition() as usize]));
        if rebuilt == 3 {
            shutdown.cancel();
        }
        Ok(())
    });
    ended.unwrap();
    assert_eq!(metrics.replayed.get(), RECORDS as u64);
    assert!(polls.windows(2).all(|pair| pair[0] < pair[1]), "the group is asked between any two reads: {polls:?}");
    assert!(processed > 0, "a partition that is rebuilt is processed while another one is not yet");
}

/// A snapshot is a shortcut: one that cannot be written costs neither the state nor many attempts.
#[test]
fn a_snapshot_that_cannot_be_written_leaves_the_state_alone() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    feed(&log, 0..700);
    let watched = Arc::new(Watched::new(log.clone()));
    watched.refuses.store(true, Ordering::Relaxed);
    let options = |log: &Arc<Watched>| {
        let log: Arc<dyn Log> = log.clone();
        Options { snapshot_records: 20, max_records: 16, ..with_snapshots(&log) }
    };
    let began = Instant::now();
    let metrics = run_with(options(&watched), Number::default(), |_| is_done(&log)).unwrap();
    let (refused, attempts) = (watched.refused.load(Ordering::Relaxed), 2 + began.elapsed().as_secs() / 10);
    assert!(
        (2..=attempts).contains(&refused),
        "one, later ones after ten seconds and more, one at the stop: {refused}"
    );
    assert_eq!((metrics.snapshots.get(), metrics.rollbacks.get()), (0, refused));
    assert_eq!(metrics.replayed.get(), 0, "nothing was rebuilt");
    watched.refuses.store(false, Ordering::Relaxed);
    feed(&log, 700..707);
    let metrics = run_with(options(&watched), Number::default(), |_| is_done(&log)).unwrap();
    assert_eq!((metrics.restored.get(), metrics.replayed.get()), (0, 700));
    assert!(metrics.snapshots.get() >= 3);
    assert_eq!(check_numbers(&log), 707);
}

/// A log that counts how often the group is asked, and refuses snapshots if it is told to.
pub(crate) struct Watched {
    log: Arc<dyn Log>,
    polls: AtomicU64,
    pub(crate) refuses: AtomicBool,
    pub(crate) refused: AtomicU64,
}

impl Watched {
    pub(crate) fn new(log: Arc<dyn Log>) -> Self {
        Self { log, polls: AtomicU64::new(0), refuses: AtomicBool::new(false), refused: AtomicU64::new(0) }
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watched({:?})", self.log)
    }
}

impl Log for Watched {
    test_support::passes_on!(log: url ensure_topic describe committed appender reader);

    fn consumer(self: Arc<Self>, options: &ProcessorOptions) -> Result<Box<dyn Consumer>, Error> {
        let consumer = self.log.clone().consumer(options)?;
        Ok(Box::new(WatchedConsumer { consumer, log: self }))
    }

    fn transactor(self: Arc<Self>, options: &ProcessorOptions) -> Result<Box<dyn Transactor>, Error> {
        let transactor = self.log.clone().transactor(options)?;
        Ok(Box::new(WatchedTransactor { transactor, log: self }))
    }
}

struct WatchedConsumer {
    consumer: Box<dyn Consumer>,
    log: Arc<Watched>,
}

impl Consumer for WatchedConsumer {
    fn poll(&mut self, max_records: usize, timeout: Duration) -> Result<Event, Error> {
        self.log.polls.fetch_add(1, Ordering::Relaxed);
        self.consumer.poll(max_records, timeout)
    }

    fn seek(&mut self, positions: &[Position]) -> Result<(), Error> {
        self.consumer.seek(positions)
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        self.consumer.pause(partitions)
    }

    fn membership(&self) -> Membership {
        self.consumer.membership()
    }
}

struct WatchedTransactor {
    transactor: Box<dyn Transactor>,
    log: Arc<Watched>,
}

impl Transactor for WatchedTransactor {
    fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, Error> {
        self.transactor.committed(partitions)
    }

    fn commit(&mut self, outputs: &Outputs, positions: &[Position], membership: &Membership) -> Result<Outcome, Error> {
        let is_snapshot = outputs.batches().any(|batch| **batch.topic() == *"state");
        if is_snapshot && self.log.refuses.load(Ordering::Relaxed) {
            self.log.refused.fetch_add(1, Ordering::Relaxed);
            return Ok(Outcome::RolledBack);
        }
        self.transactor.commit(outputs, positions, membership)
    }
}
