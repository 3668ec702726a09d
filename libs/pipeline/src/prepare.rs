//! A second state of a partition, prepared beside the one in force, which it then replaces.
//!
//! ```text
//!  records    ├─ held ──────────────────────┬─────────────┬──┤ committed position, moves on
//!  in force   … ─ apply ─ apply ─ apply ─ apply ─ apply ─ apply┤ reset
//!  successor  ├──────────── round 1 ───────►├─ round 2 ──►├─►│ snapshot ─► restored in its place ─► apply …
//! ```
//!
//! One partition at a time, one read between two batches. A round ends at the committed position as of its beginning;
//! the last one is short, and nothing is applied meanwhile.
//!
//! The last transaction of its snapshot is the switch: until then the newest whole snapshot is one of the state in
//! force, and from then on that of the successor, at the committed position. Whoever restores it later continues with
//! the state that took over here.
//!
//! A preparation that ends early leaves nothing behind; the next one begins anew. It ends with the state in force, when
//! the partition is revoked or its transaction rolled back: another instance may replace that state meanwhile.

use std::time::{Duration, Instant};

use event_log::{Error, Outcome, Position, Range, Read, Reader, TopicPartition};

use crate::{Metrics, REPLAY_RECORDS, Stage, Transform};

/// Offsets that the last round may have: nothing is applied meanwhile.
const LAST_ROUND: u64 = 32_768;
/// How long the last round may take: a log that has just answered may be gone.
const LAST_ROUND_BUDGET: Duration = Duration::from_secs(5);
/// The longest wait for records in the last round.
const WAIT: Duration = Duration::from_millis(50);
/// The next attempt after a read that has failed.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// What a loop prepares.
#[derive(Default)]
pub(crate) struct Prepare {
    current: Option<Successor>,
    /// Nothing is read before this time.
    not_before: Option<Instant>,
}

impl Prepare {
    /// The state in force is no more.
    pub(crate) fn forget(&mut self, of: &TopicPartition) {
        self.current.take_if(|successor| successor.of == *of);
    }

    fn is_postponed(&self) -> bool {
        self.not_before.is_some_and(|time| Instant::now() < time)
    }
}

/// The second state of one partition.
struct Successor {
    of: TopicPartition,
    transform: Box<dyn Transform>,
    /// None before the first read of a round, and after a failure.
    reader: Option<Box<dyn Reader>>,
    /// Its state is that of this position.
    at: u64,
    /// The end of the round.
    until: u64,
    replayed: u64,
}

/// What follows a step.
#[derive(PartialEq)]
enum Next {
    /// Another one.
    Step,
    /// Another one, but nothing is there for it yet.
    Later,
    /// This successor is no more.
    Nothing,
}

impl Stage<'_> {
    /// The next step towards a successor, if the state of a partition is outdated. Returns whether another one can
    /// follow at once. No partition may be being rebuilt.
    pub(crate) fn step_prepare(&mut self, transform: &mut dyn Transform, metrics: &Metrics) -> anyhow::Result<bool> {
        // Without a topic for it no switch would last.
        if self.options.state.is_none() || self.state.prepare.is_postponed() {
            return Ok(false);
        }
        let current = match self.state.prepare.current.take() {
            None => self.begin(transform)?,
            current => current,
        };
        let Some(mut successor) = current else {
            metrics.preparing_records.set(0);
            return Ok(false);
        };
        let next = self.advance(&mut successor, transform, metrics);
        let position = self.state.position(&successor.of).filter(|_| !matches!(next, Ok(Next::Nothing)));
        metrics.preparing_records.set(position.map_or(0, |position| position - successor.at) as i64);
        self.state.prepare.current = position.map(|_| successor);
        Ok(next? != Next::Later)
    }

    /// Begins with the first partition whose state is outdated.
    fn begin(&self, transform: &dyn Transform) -> anyhow::Result<Option<Successor>> {
        let outdated = |p: &Position| transform.is_outdated(&p.topic, p.partition);
        let Some(position) = self.state.positions().into_iter().find(outdated) else { return Ok(None) };
        let (topic, partition, until) = (&position.topic, position.partition, position.offset);
        let at = self.options.source.bounds(topic, partition)?.first.min(until);
        let transform = transform.successor(topic, partition)?;
        tracing::info!(%topic, partition, "preparing another state beside the one in force: {} offsets to replay, from \
            offset {at}", until - at);
        Ok(Some(Successor { of: position.at(), transform, reader: None, at, until, replayed: 0 }))
    }

    fn advance(
        &mut self,
        successor: &mut Successor,
        transform: &mut dyn Transform,
        metrics: &Metrics,
    ) -> anyhow::Result<Next> {
        let (topic, partition) = (successor.of.topic.clone(), successor.of.partition);
        let Some(position) = self.state.position(&successor.of) else { return Ok(Next::Nothing) };
        if !transform.is_outdated(&topic, partition) {
            tracing::info!(%topic, partition, "the state in force stays: it is no longer outdated");
            return Ok(Next::Nothing);
        }
        if successor.at == successor.until {
            if position - successor.at <= LAST_ROUND {
                return self.take_over(successor, transform, metrics);
            }
            successor.until = position;
        }
        self.read(successor, Duration::ZERO, metrics)
    }

    /// Replays the next records of the round. A log that does not answer delays the successor, and nothing else.
    fn read(&mut self, successor: &mut Successor, wait: Duration, metrics: &Metrics) -> anyhow::Result<Next> {
        let read = successor.read(self.options, wait, metrics);
        let Some(error) = read.as_ref().err().filter(|error| error.is::<Error>()) else { return read };
        let (topic, partition, seconds) = (&successor.of.topic, successor.of.partition, RETRY_AFTER.as_secs());
        tracing::warn!(%topic, partition, "cannot prepare another state; trying again in {seconds} s, and continuing \
            with the one in force: {error:#}");
        successor.reader = None;
        self.state.prepare.not_before = Some(Instant::now() + RETRY_AFTER);
        Ok(Next::Later)
    }

    /// The last round, and the switch.
    fn take_over(
        &mut self,
        successor: &mut Successor,
        transform: &mut dyn Transform,
        metrics: &Metrics,
    ) -> anyhow::Result<Next> {
        if !self.state.may_write() {
            return Ok(Next::Later);
        }
        if self.commit_pending(transform, metrics)? == Outcome::RolledBack {
            return Ok(Next::Later);
        }
        let Some(position) = self.state.position(&successor.of) else { return Ok(Next::Nothing) };
        let deadline = Instant::now() + LAST_ROUND_BUDGET;
        successor.until = position;
        while successor.at < position {
            let is_late = self.read(successor, WAIT, metrics)? == Next::Later && Instant::now() > deadline;
            if is_late || self.state.prepare.is_postponed() {
                return Ok(Next::Later);
            }
        }
        let (topic, partition) = (&successor.of.topic, successor.of.partition);
        let snapshot = || successor.transform.snapshot(topic, partition);
        self.state.begin_snapshot(&successor.of, &transform.state_version(), snapshot());
        if self.commit_snapshot(transform, metrics)? == Outcome::RolledBack {
            return Ok(Next::Later);
        }
        transform.reset(topic, partition);
        transform.restore(topic, partition, &snapshot())?;
        metrics.states_replaced.inc();
        tracing::info!(%topic, partition, replayed = successor.replayed, "the state that was prepared takes over at \
            offset {position}");
        Ok(Next::Nothing)
    }
}

impl Successor {
    fn read(&mut self, options: &crate::Options, wait: Duration, metrics: &Metrics) -> anyhow::Result<Next> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            none => {
                let TopicPartition { topic, partition } = self.of.clone();
                let round = Range { topic, partition, start: self.at, end: Some(self.until) };
                none.insert(options.source.clone().reader(vec![round])?)
            }
        };
        match reader.next(REPLAY_RECORDS, wait) {
            Ok(Read::Batch(batch)) => {
                self.transform.prepare(&batch)?;
                self.transform.replay(&batch)?;
                self.at = batch.next_offset().unwrap_or(self.at);
                self.replayed += batch.len() as u64;
                metrics.replayed.inc_by(batch.len() as u64);
            }
            Ok(Read::Idle) => return Ok(Next::Later),
            // Behind the last record there may be offsets without one.
            Ok(Read::End) => self.at = self.until,
            // Retention was faster: a successor comes from what is held.
            Err(Error::OutOfRange { first, .. }) if first > self.at => {
                (self.at, self.reader) = (first.min(self.until), None);
            }
            Err(error) => return Err(error.into()),
        }
        if self.at == self.until {
            self.reader = None;
        }
        Ok(Next::Step)
    }
}
