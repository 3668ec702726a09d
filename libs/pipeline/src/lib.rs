//! The loop of a stage: read, transform, commit.
//!
//! ```text
//!               prepare: what is not in the log, and not known yet
//!            ┌────────────────────── one transaction ──────────────────────┐
//!  source ──►│ batches ─► Transform::apply ─► Emit (outputs, dead letters) │──► target
//!            │                                 + positions                 │
//!            └─────────────────────────────────────────────────────────────┘
//!  now and then, and at a stop:  Transform::snapshot ─► state topic
//!  assigned, or rolled back:     reset ─► restore ─► replay up to the committed position, emitting nothing
//! ```
//!
//! The preprocessor, the replicator and the scorer share this one loop. It owns reading, transactions, commits and
//! recovery; a [`Transform`] is a pure synchronous function from batch to batch and does none of these.

mod ages;
mod args;
mod drain;
mod emit;
mod lag;
mod metrics;
mod snapshot;
mod stall;
mod state;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use event_log::{
    Batch, Error, Event, Log, Outcome, Outputs, Position, Processor, ProcessorOptions, Tail, TopicPartition,
};
use service::{Waiting, retry_until};
use tokio_util::sync::CancellationToken;

pub use ages::{ForgetAfter, RecordClock};
pub use args::{ForgetArgs, LoopArgs, SnapshotArgs};
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

    /// What a snapshot depends on besides the records: its format, and whatever else the same records would make other
    /// state with (a model). A snapshot of another version is not restored.
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
/// while the target takes no record of this size or time. Only these end the loop: a transform's error, being fenced, a
/// position that the log no longer holds.
pub fn run(
    options: Options,
    transform: &mut dyn Transform,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    options.topics.iter().for_each(|topic| metrics.begin(topic));
    let what = awaited(&options.topics);
    let mut stall = Stall::new(&what, &metrics.readiness);
    while !shutdown.is_cancelled() {
        let waiting = Waiting::new(&what).with_readiness(&metrics.readiness);
        let opened = retry_until(shutdown, waiting, is_waitable, || Stage::open(&options))
            .with_context(|| format!("cannot read {what} in {}", options.source.url()))?;
        let Some(mut stage) = opened else { break };
        metrics.readiness.available(&what);
        let ended = stage.run(transform, metrics, &mut stall, shutdown);
        stage.state.reset_all(transform);
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
        let (pending, since, counted) = (BTreeMap::new(), Instant::now(), Instant::now());
        Ok(Self { options, processor, tables, emit, state, pending, records: 0, since, committed: false, counted })
    }

    fn run(
        &mut self,
        transform: &mut dyn Transform,
        metrics: &Metrics,
        stall: &mut Stall,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        loop {
            if std::mem::take(&mut self.committed) {
                stall.over();
            }
            let idle = self.pending.is_empty();
            if shutdown.is_cancelled() {
                return self.stop(transform, metrics);
            }
            let left = self.options.max_wait.saturating_sub(self.since.elapsed());
            if !idle && (left.is_zero() || self.records >= self.options.max_records) {
                self.commit(transform, metrics)?;
                continue;
            }
            let timeout = if idle { Duration::from_millis(POLL_MS) } else { left };
            let room = self.options.max_records - self.records;
            match self.processor.next(room, timeout)? {
                Event::Batch(batch) => self.apply(&batch, transform, metrics)?,
                Event::Assigned(positions) => {
                    // What is pending belongs to other partitions.
                    self.commit(transform, metrics)?;
                    self.rebuild(&positions, transform, metrics, shutdown)?;
                }
                Event::Revoked(partitions) => {
                    // What is pending may belong to them: the commit is refused if it does, and rolled back.
                    self.commit(transform, metrics)?;
                    for p in &partitions {
                        self.state.reset(p, transform);
                    }
                }
                // Asked for as long as the oldest record may wait: that wait is over.
                Event::Idle => self.commit(transform, metrics)?,
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

    /// Commits what is pending, and then the snapshots that are due. What is rolled back is assigned again, at the
    /// positions that hold.
    fn commit(&mut self, transform: &mut dyn Transform, metrics: &Metrics) -> anyhow::Result<()> {
        match self.commit_pending(transform, metrics)? {
            Outcome::Committed => self.commit_snapshots(false, transform, metrics),
            Outcome::RolledBack => Ok(()),
        }
    }

    /// Commits what is pending and snapshots of all state. What is rolled back is left to the next start.
    fn stop(&mut self, transform: &mut dyn Transform, metrics: &Metrics) -> anyhow::Result<()> {
        match self.commit_pending(transform, metrics)? {
            Outcome::Committed => self.commit_snapshots(true, transform, metrics),
            Outcome::RolledBack => Ok(()),
        }
    }

    fn commit_pending(&mut self, transform: &mut dyn Transform, metrics: &Metrics) -> anyhow::Result<Outcome> {
        if self.pending.is_empty() {
            return Ok(Outcome::Committed);
        }
        let pending = std::mem::take(&mut self.pending);
        let position = |(p, of): (&TopicPartition, &Pending)| Position {
            topic: p.topic.clone(),
            partition: p.partition,
            offset: of.next_offset,
        };
        let positions: Vec<_> = pending.iter().map(position).collect();
        let records = std::mem::take(&mut self.records);
        let emitted = self.emit.take();
        let began = Instant::now();
        let outcome = self.commit_to_log(&emitted.outputs, &positions, transform, metrics)?;
        if outcome == Outcome::Committed {
            metrics.committed(records, &emitted, began.elapsed());
            let now_ms = service::now_ms();
            for (partition, of) in &pending {
                metrics.waited(&partition.topic, now_ms - of.oldest_ms);
            }
        }
        Ok(outcome)
    }

    /// Snapshots, each a transaction of its own; nothing is pending, so the state is that of the committed positions.
    fn commit_snapshots(
        &mut self,
        at_stop: bool,
        transform: &mut dyn Transform,
        metrics: &Metrics,
    ) -> anyhow::Result<()> {
        for of in self.state.due(at_stop) {
            let began = Instant::now();
            let Some(due) = self.state.take(&of, &*transform) else { continue };
            let position = std::slice::from_ref(&due.position);
            if self.commit_to_log(&due.outputs, position, transform, metrics)? == Outcome::RolledBack {
                return Ok(());
            }
            self.state.taken(&of, &due);
            metrics.snapshot(due.bytes, began.elapsed());
        }
        Ok(())
    }

    fn commit_to_log(
        &mut self,
        outputs: &Outputs,
        positions: &[Position],
        transform: &mut dyn Transform,
        metrics: &Metrics,
    ) -> anyhow::Result<Outcome> {
        let outcome = self.processor.commit(outputs, positions)?;
        match outcome {
            Outcome::Committed => {
                self.state.committed(positions);
                self.committed = true;
            }
            Outcome::RolledBack => {
                // It came from records that are read again.
                self.state.reset_all(transform);
                metrics.rollbacks.inc();
            }
        }
        Ok(outcome)
    }

    /// Brings the transform's state to these positions.
    fn rebuild(
        &mut self,
        positions: &[Position],
        transform: &mut dyn Transform,
        metrics: &Metrics,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        assert!(self.pending.is_empty(), "pending outputs must not outlive the state they came from");
        self.state.rebuild(positions, transform, metrics, shutdown)
    }
}
