//! The loop of a stage: read, transform, commit.
//!
//! ```text
//!               prepare: what is not in the log, and not known yet
//!            ┌────────────────────── one transaction ──────────────────────┐
//!  source ──►│ batches ─► Transform::apply ─► Emit (outputs, dead letters) │──► target
//!            │                                 + positions                 │
//!            └─────────────────────────────────────────────────────────────┘
//!  now and then, and at a stop:  Transform::snapshot ─► state topic
//!  behind retention:             that partition stops; decided: position and record of the gap, in one transaction
//!  assigned, or rolled back:     reset ─► restore ─► replay up to the committed position, emitting nothing
//!  state is outdated:            its successor is prepared beside it, and takes its place between two batches
//! ```
//!
//! The preprocessor, the replicator and the scorer share this one loop. It owns reading, transactions, commits and
//! recovery; a [`Transform`] is a pure synchronous function from batch to batch and does none of these.

mod ages;
mod args;
mod behind;
mod commit;
mod drain;
mod emit;
pub mod gaps;
mod lag;
mod metrics;
mod prepare;
mod rebuild;
mod snapshot;
mod stall;
mod state;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use event_log::{
    Batch, Error, Event, Log, PartitionDescription, Position, Processor, ProcessorOptions, Tail, TopicPartition,
};
use service::{Waiting, retry_until};
use tokio_util::sync::CancellationToken;

pub use ages::{ForgetAfter, RecordClock};
pub use args::{ForgetArgs, LoopArgs, SnapshotArgs};
use behind::Behind;
pub use behind::stopped;
pub use drain::{drain, run_and_drain};
pub use emit::{DeadLetterHeader, Emit};
pub use lag::Lag;
pub use metrics::{Metrics, Topic};
use stall::Stall;
use state::State;

/// How long one wait for records lasts, and so how late a shutdown may be noticed.
const POLL_MS: u64 = 50;

/// How often to look for partitions that were added to the outputs.
const LOOK_FOR_PARTITIONS: Duration = Duration::from_secs(30);

/// Records per read while state is rebuilt: large, since nothing waits for a commit.
const REPLAY_RECORDS: usize = 8192;

/// The usual [`Options::snapshot_records`]: replaying this many takes about a second, and a snapshot of a large fleet
/// costs little compared with processing them.
pub const SNAPSHOT_RECORDS: u64 = 200_000;

/// What a stage makes of records. Pure and synchronous; all I/O is the loop's.
///
/// A stage without state only needs [`apply`](Self::apply):
///
/// ```
/// use std::sync::Arc;
///
/// use event_log::{Batch, Record};
/// use pipeline::{Emit, Transform};
///
/// /// Copies texts in capitals. A record without a text becomes a dead letter.
/// struct Capitals {
///     output: Arc<str>,
/// }
///
/// impl Transform for Capitals {
///     fn apply(&mut self, batch: &Batch, emit: &mut Emit) -> anyhow::Result<()> {
///         for record in batch.iter() {
///             let Some(text) = record.value else {
///                 emit.dead_letter(&record, "no-text", "the record has no value");
///                 continue;
///             };
///             let value = text.to_ascii_uppercase();
///             let capitals =
///                 Record { key: record.key, value: Some(&value), headers: &[], timestamp_ms: record.timestamp_ms };
///             emit.send(&self.output, &capitals);
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait Transform: Send {
    /// Forgets the state of a partition: it was assigned, revoked, or its last batches were rolled back.
    fn reset(&mut self, _topic: &Arc<str>, _partition: u32) {}

    /// Whether the records before the committed position are replayed after a reset.
    fn is_stateful(&self) -> bool {
        false
    }

    /// Fetches whatever these records need that is not in the log, such as an unknown writer's schema. Called before
    /// each [`replay`](Self::replay) and [`apply`](Self::apply), which then have everything they need.
    ///
    /// May block, but for less than Kafka's `max.poll.interval.ms`. [`Error::Unavailable`] counts as if the log did not
    /// answer: the loop returns to the last commit, and retries.
    fn prepare(&mut self, _batch: &Batch) -> anyhow::Result<()> {
        Ok(())
    }

    /// Rebuilds state from records that were processed before. Emits nothing.
    fn replay(&mut self, _batch: &Batch) -> anyhow::Result<()> {
        Ok(())
    }

    /// What a snapshot depends on besides the records and its own contents: its format, and the rules by which records
    /// become state. A snapshot of another version is not restored.
    fn state_version(&self) -> String {
        String::new()
    }

    /// The state of a partition, as bytes: a function of its records so far, and of nothing else.
    fn snapshot(&self, _topic: &Arc<str>, _partition: u32) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over a snapshot of this version; the partition was reset before, and is again after an error.
    fn restore(&mut self, _topic: &Arc<str>, _partition: u32, _snapshot: &[u8]) -> anyhow::Result<()> {
        Ok(())
    }

    /// Whether the state of this partition is to be replaced, by one that the same records make under other rules: by
    /// another model, say. Asked again and again, so it must be quick.
    fn is_outdated(&self, _topic: &Arc<str>, _partition: u32) -> bool {
        false
    }

    /// A transform of the same state version that builds what replaces an outdated state. The loop replays all records
    /// of that partition to it that are held, while this transform continues; then this one restores its snapshot.
    fn successor(&self, topic: &Arc<str>, partition: u32) -> anyhow::Result<Box<dyn Transform>> {
        anyhow::bail!("nothing replaces the state of {topic}/{partition}")
    }

    /// Takes rows of a reference table, up to the table's end as of the transaction that follows.
    fn table(&mut self, _batch: &Batch) -> anyhow::Result<()> {
        Ok(())
    }

    /// Turns the records of one partition into outputs and dead letters.
    ///
    /// An error stops the stage: a record that cannot be used is a dead letter, not an error.
    fn apply(&mut self, batch: &Batch, emit: &mut Emit) -> anyhow::Result<()>;
}

/// Where a stage reads and writes.
#[derive(Debug, Clone)]
pub struct Options {
    /// The log to read.
    pub source: Arc<dyn Log>,
    /// The log that gets outputs and positions.
    pub target: Arc<dyn Log>,
    /// The consumer group.
    pub group: String,
    /// The name of this instance within the group.
    pub instance: String,
    /// The topics to read.
    pub topics: Vec<Arc<str>>,
    /// Reference tables in the source log.
    pub tables: Vec<Arc<str>>,
    /// The topics of the target log that the transform emits to.
    pub outputs: Vec<Arc<str>>,
    /// Where dead letters go, in the target log; a stage without it can use every record.
    pub dead_letter: Option<Arc<str>>,
    /// Where snapshots of the state go: a compacted topic of the target log. Without it state is rebuilt from all that
    /// the source holds.
    pub state: Option<Arc<str>>,
    /// The compacted topic of the target log, of one partition, with decisions about partitions whose position is no
    /// longer in the source ([`gaps`]). Such a partition stops alone. Without the topic it ends the loop.
    pub gaps: Option<Arc<str>>,
    /// Resume after each gap without a decision; the gap is recorded like a decided one.
    pub accept_gap: bool,
    /// Records of a partition between two snapshots.
    pub snapshot_records: u64,
    /// Commit at the latest after this many records.
    pub max_records: usize,
    /// Commit at the latest this long after the first record.
    pub max_wait: Duration,
}

/// Runs the loop until shutdown. Blocking.
///
/// At shutdown the loop commits the open transaction and snapshots of the state. If the log does not answer, the loop
/// waits, drops everything since the last commit, and repeats it. It does the same, with an ERROR in the log output,
/// while the target takes no record of this size or time. Only these end the loop: a transform's error, being fenced,
/// and, without [`Options::gaps`], a position that the log no longer holds.
pub fn run(
    options: Options,
    transform: &mut dyn Transform,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    options.topics.iter().for_each(|topic| metrics.begin(topic));
    let what = awaited(&options.topics);
    let mut stall = Stall::new(&what, &metrics.readiness);
    let mut behind = Behind::new(&options);
    while !shutdown.is_cancelled() {
        let waiting = Waiting::new(&what).with_readiness(&metrics.readiness);
        let opened = retry_until(shutdown, waiting, is_waitable, || Stage::open(&options))
            .with_context(|| format!("cannot read {what} in {}", options.source.url()))?;
        let Some(mut stage) = opened else { break };
        metrics.readiness.available(&what);
        let ended = stage.run(&mut behind, transform, metrics, &mut stall, shutdown);
        stage.state.reset_all(transform);
        behind.forget_all(metrics);
        match ended {
            Ok(()) => break,
            Err(error) => match error.downcast_ref::<Error>() {
                Some(cause) if cause.needs_operator() => stall.wait(cause, shutdown),
                Some(cause) if cause.is_retriable() => {
                    tracing::warn!("restarting from the last commit: {error:#}");
                    metrics.restarts.inc();
                }
                _ => return Err(error),
            },
        }
    }
    Ok(())
}

/// What a loop on these topics waits for until it has opened them: the name under which it stands in
/// [`Metrics::readiness`]. A stage of several loops names them all before it says that it has started.
///
/// Without the log: the cause names it, and several topics that wait for one cause are one clause.
pub fn awaited(topics: &[Arc<str>]) -> String {
    let topic = if topics.len() == 1 { "topic" } else { "topics" };
    format!("{topic} {}", topics.join(", "))
}

/// Whether the other part may only not be there yet.
fn is_waitable(error: &Error) -> bool {
    error.is_retriable() || matches!(error, Error::UnknownTopic { .. })
}

struct Stage<'o> {
    options: &'o Options,
    processor: Processor,
    /// Reference tables: compacted topics, read up to their ends before each transaction.
    tables: Vec<Tail>,
    emit: Emit,
    state: State,
    pending: BTreeMap<TopicPartition, Pending>,
    records: usize,
    since: Instant,
    /// When offsets without a record were passed.
    passed: Instant,
    /// Something was, since the loop looked.
    committed: bool,
    /// When the partitions of the outputs were counted.
    counted: Instant,
}

/// What of a partition is processed and not committed.
#[derive(Debug, Clone, Copy)]
struct Pending {
    next_offset: u64,
    oldest_ms: i64,
}

impl<'o> Stage<'o> {
    fn open(options: &'o Options) -> Result<Self, Error> {
        let processor_options = ProcessorOptions {
            group: options.group.clone(),
            instance: options.instance.clone(),
            topics: options.topics.clone(),
        };
        for topic in options.topics.iter().chain(&options.tables) {
            options.source.describe(topic)?;
        }
        let emit = Emit::new(options.target.as_ref(), &options.outputs, options.dead_letter.as_ref())?;
        let state = State::open(options)?;
        let processor = Processor::new(options.source.clone(), options.target.clone(), &processor_options)?;
        let tables = options.tables.iter().map(|topic| Tail::new(options.source.clone(), topic.clone())).collect();
        let (pending, since) = (BTreeMap::new(), Instant::now());
        Ok(Self {
            options,
            processor,
            tables,
            emit,
            state,
            pending,
            records: 0,
            since,
            passed: since,
            committed: false,
            counted: since,
        })
    }

    fn run(
        &mut self,
        behind: &mut Behind,
        transform: &mut dyn Transform,
        metrics: &Metrics,
        stall: &mut Stall,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        loop {
            if std::mem::take(&mut self.committed) {
                stall.over();
            }
            if shutdown.is_cancelled() {
                return self.stop(transform, metrics);
            }
            self.resume_stopped(behind, transform, metrics)?;
            let idle = self.pending.is_empty();
            let left = self.options.max_wait.saturating_sub(self.since.elapsed());
            if !idle && (left.is_zero() || self.records >= self.options.max_records) {
                self.commit(transform, metrics)?;
                continue;
            }
            let is_busy = self.step_rebuild(transform, metrics)? || self.step_prepare(transform, metrics)?;
            let timeout = match (is_busy, idle) {
                (true, _) => Duration::ZERO, // to hear of the group, and keep the place in it
                (_, true) => Duration::from_millis(POLL_MS),
                _ => left,
            };
            let room = self.options.max_records - self.records;
            let event = match self.processor.next(room, timeout) {
                Err(Error::OutOfRange { topic, partition, first, next, .. }) if behind.is_used() => {
                    let at = TopicPartition { topic: topic.as_str().into(), partition };
                    self.overtaken(&at, PartitionDescription { first, next }, behind, transform, metrics)?;
                    continue;
                }
                event => event?,
            };
            match event {
                Event::Batch(batch) => self.apply(&batch, transform, metrics)?,
                Event::Assigned(positions) => {
                    // What is pending belongs to other partitions.
                    self.commit(transform, metrics)?;
                    let live = self.stop_behind(positions, behind, transform, metrics)?;
                    self.rebuild(&live, transform)?;
                }
                Event::Revoked(partitions) => {
                    // What is pending may belong to them: the commit is refused if it does, and rolled back.
                    self.commit(transform, metrics)?;
                    for p in &partitions {
                        self.state.reset(p, transform);
                        behind.forget(p, metrics);
                    }
                }
                // Asked for as long as the oldest record may wait: that wait is over.
                Event::Idle if !idle && !is_busy => self.commit(transform, metrics)?,
                Event::Idle if !idle => {}
                Event::Idle => {
                    self.commit(transform, metrics)?;
                    self.pass_empty(false, metrics)?;
                }
            }
        }
    }

    fn apply(&mut self, batch: &Batch, transform: &mut dyn Transform, metrics: &Metrics) -> anyhow::Result<()> {
        let Some(next) = batch.next_offset() else { return Ok(()) };
        if self.pending.is_empty() {
            self.since = Instant::now();
            if self.counted.elapsed() > LOOK_FOR_PARTITIONS {
                self.emit.count_partitions(self.options.target.as_ref())?;
                self.counted = Instant::now();
            }
            for table in &mut self.tables {
                table.catch_up(REPLAY_RECORDS, |rows| transform.table(rows))?;
            }
        }
        transform.prepare(batch)?;
        let began = Instant::now();
        self.emit.begin(batch);
        transform.apply(batch, &mut self.emit).with_context(|| {
            let (topic, partition) = (batch.topic(), batch.partition());
            format!("cannot process {topic}/{partition} before offset {next}")
        })?;
        metrics.transform_seconds.observe(began.elapsed().as_secs_f64());
        let partition = batch.at();
        self.state.applied(&partition);
        let oldest_ms = batch.iter().map(|record| record.timestamp_ms).min().unwrap_or(i64::MAX);
        let pending = self.pending.entry(partition).or_insert(Pending { next_offset: next, oldest_ms });
        *pending = Pending { next_offset: next, oldest_ms: pending.oldest_ms.min(oldest_ms) };
        self.records += batch.len();
        Ok(())
    }

    /// Brings the transform's state to these positions, which takes until [`step_rebuild`](Self::step_rebuild) has done
    /// it: nothing is read from them before.
    fn rebuild(&mut self, positions: &[Position], transform: &mut dyn Transform) -> Result<(), Error> {
        assert!(self.pending.is_empty(), "pending outputs must not outlive the state they came from");
        let waiting = self.state.rebuild(positions, transform);
        if waiting.is_empty() { Ok(()) } else { self.processor.pause(&waiting) }
    }

    /// A step of what is being rebuilt. Returns whether there is more.
    fn step_rebuild(&mut self, transform: &mut dyn Transform, metrics: &Metrics) -> anyhow::Result<bool> {
        if !self.state.is_rebuilding() {
            return Ok(false);
        }
        if let Some(rebuilt) = self.state.step(transform, metrics)? {
            self.processor.read_from(&[rebuilt])?;
        }
        Ok(self.state.is_rebuilding())
    }
}
