//! Rebuilds state, a step at a time, so that the loop keeps its place in the group, processes other partitions, and
//! notices a shutdown.
//!
//! ```text
//!  begin ─► find: reads the state topic once for all that wait ─► restore ─► replay ─► rebuilt
//!                                                                   └─ snapshots on the way: saved
//! ```
//!
//! A replay that ends early, with the process or with the assignment, resumes from its last snapshot.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range as Offsets;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{Batch, Error, Log, Position, Range, Read, Reader, TopicPartition, progress};

use crate::gaps::{self, Decision, Place};
use crate::snapshot::{Finder, Found, Slots, SnapshotId, Unusable};
use crate::state::Held;
use crate::{Metrics, Options, REPLAY_RECORDS, SNAPSHOT_RECORDS, Transform};

/// Records per read of the state topic; each may have half a megabyte.
const STATE_RECORDS: usize = 32;
/// The longest wait for records in one step.
const WAIT: Duration = Duration::from_millis(50);
/// Snapshots while state is rebuilt are so much rarer than else: only a replay that ends early needs them.
const RARER: u64 = 20;

/// The partitions whose state is being rebuilt.
pub(crate) struct Rebuild {
    source: Arc<dyn Log>,
    target: Arc<dyn Log>,
    group: String,
    /// The topic of snapshots, and how many partitions it has.
    topic: Option<(Arc<str>, u32)>,
    /// The topic of decisions about gaps.
    gaps: Option<Arc<str>>,
    /// Snapshots of these are still to be looked for.
    begun: Vec<Position>,
    finding: Option<Finding>,
    found: VecDeque<(Position, Found)>,
    replay: Option<Replay>,
    since: Option<Instant>,
}

/// The state topic is being read.
struct Finding {
    reader: Box<dyn Reader>,
    /// With the partition of the state topic that each looks at.
    finders: Vec<(Position, u32, Finder)>,
}

/// Records are being replayed.
struct Replay {
    until: Position,
    source_id: String,
    /// None before the first read, and after retention has overtaken it.
    reader: Option<Box<dyn Reader>>,
    /// The state is that of this position.
    at: u64,
    /// The position of the last snapshot; none: it begins with what the log holds.
    saved: Option<u64>,
    /// The first offset that the log held.
    first: u64,
    replayed: u64,
    /// It begins with what the log holds, whatever came before.
    is_new: bool,
    /// Records are missing that it should come from.
    is_inexact: bool,
    slots: Slots,
}

/// A partition whose state is at its position.
pub(crate) struct Rebuilt {
    pub(crate) until: Position,
    pub(crate) held: Held,
}

impl Rebuild {
    pub(crate) fn new(options: &Options, topic: Option<(Arc<str>, u32)>) -> Self {
        Self {
            source: options.source.clone(),
            target: options.target.clone(),
            group: options.group.clone(),
            topic,
            gaps: options.gaps.clone(),
            begun: Vec::new(),
            finding: None,
            found: VecDeque::new(),
            replay: None,
            since: None,
        }
    }

    /// The transform knows nothing of this partition.
    pub(crate) fn begin(&mut self, until: Position) {
        self.since.get_or_insert_with(Instant::now);
        self.begun.push(until);
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.positions().next().is_some()
    }

    /// Whether this partition is being rebuilt up to this position.
    pub(crate) fn is_of(&self, position: &Position) -> bool {
        self.positions().any(|until| until == position)
    }

    pub(crate) fn partitions(&self) -> Vec<TopicPartition> {
        self.positions().map(Position::at).collect()
    }

    /// The committed position of a partition that is being rebuilt.
    pub(crate) fn until(&self, of: &TopicPartition) -> Option<u64> {
        self.positions().find(|until| until.at() == *of).map(|until| until.offset)
    }

    fn positions(&self) -> impl Iterator<Item = &Position> {
        let finding = self.finding.iter().flat_map(|finding| &finding.finders).map(|(until, ..)| until);
        let found = self.found.iter().map(|(until, _)| until);
        self.begun.iter().chain(finding).chain(found).chain(self.replay.iter().map(|replay| &replay.until))
    }

    pub(crate) fn forget(&mut self, of: &TopicPartition) {
        self.begun.retain(|until| until.at() != *of);
        self.found.retain(|(until, _)| until.at() != *of);
        if let Some(finding) = &mut self.finding {
            finding.finders.retain(|(until, ..)| until.at() != *of);
        }
        self.replay.take_if(|replay| replay.until.at() == *of);
        if !self.is_under_way() {
            self.since = None;
        }
    }

    /// The partition whose replay is worth a snapshot now.
    pub(crate) fn due(&self, at_stop: bool, snapshot_records: u64) -> Option<TopicPartition> {
        let every = if at_stop { 1 } else { snapshot_records.saturating_mul(RARER) };
        let is_due = |replay: &&Replay| replay.replayed > 0 && replay.at - replay.replays_from() >= every;
        self.replay.as_ref().filter(is_due).map(|replay| replay.until.at())
    }

    /// Of the partition that is being replayed: the position of its state, its source, and its keys in the state topic.
    pub(crate) fn state_of(&self, of: &TopicPartition) -> Option<(u64, String, Slots)> {
        let replay = self.replay.as_ref().filter(|replay| replay.until.at() == *of)?;
        Some((replay.at, replay.source_id.clone(), replay.slots))
    }

    /// Notes that a snapshot of this position has been written.
    pub(crate) fn saved(&mut self, of: &TopicPartition, position: u64, slots: Slots) {
        if let Some(replay) = self.replay.as_mut().filter(|replay| replay.until.at() == *of) {
            (replay.saved, replay.slots) = (Some(position), slots);
        }
    }

    /// Notes that a snapshot was left unfinished.
    pub(crate) fn left(&mut self, of: &TopicPartition, slots: Slots) {
        if let Some(replay) = self.replay.as_mut().filter(|replay| replay.until.at() == *of) {
            replay.slots = slots;
        }
    }

    /// The next step. Returns a partition that is rebuilt with it.
    pub(crate) fn step(&mut self, transform: &mut dyn Transform, metrics: &Metrics) -> anyhow::Result<Option<Rebuilt>> {
        if self.replay.as_ref().is_some_and(|replay| replay.at >= replay.until.offset) {
            return Ok(self.replay.take().map(|replay| self.finish(replay, metrics)));
        }
        if let Some(replay) = &mut self.replay {
            let reader = match &mut replay.reader {
                Some(reader) => reader,
                none => {
                    let Position { topic, partition, offset } = replay.until.clone();
                    let rest = Range { topic, partition, start: replay.at, end: Some(offset) };
                    none.insert(self.source.clone().reader(vec![rest])?)
                }
            };
            match reader.next(REPLAY_RECORDS, WAIT) {
                Ok(Read::Batch(batch)) => replay.take(&batch, transform, metrics)?,
                Ok(Read::Idle) => {}
                // Behind the last record there may be offsets without one.
                Ok(Read::End) => replay.at = replay.until.offset,
                Err(Error::OutOfRange { first, .. }) if first > replay.at => replay.overtaken(first, metrics),
                Err(error) => return Err(error.into()),
            }
        } else if let Some((until, found)) = self.found.pop_front() {
            self.replay = Some(self.restore(until, found, transform, metrics)?);
        } else if let Some(finding) = &mut self.finding {
            match finding.reader.next(STATE_RECORDS, WAIT)? {
                Read::Batch(batch) => {
                    let of_this = finding.finders.iter_mut().filter(|(_, at, _)| *at == batch.partition());
                    of_this.for_each(|(.., finder)| batch.iter().for_each(|record| finder.take(&record)));
                }
                Read::Idle => {}
                Read::End => {
                    let finders = self.finding.take().into_iter().flat_map(|finding| finding.finders);
                    self.found.extend(finders.map(|(until, _, finder)| (until, finder.finish())));
                }
            }
        } else if !self.begun.is_empty() {
            self.find(&transform.state_version())?;
        }
        Ok(None)
    }

    /// Begins to look for snapshots of all that wait, reading the state topic once.
    fn find(&mut self, state_version: &str) -> Result<(), Error> {
        let Some((topic, partitions)) = &self.topic else {
            self.found.extend(self.begun.drain(..).map(|until| (until, Found::default())));
            return Ok(());
        };
        let mut sources = HashMap::new();
        for until in &self.begun {
            if !sources.contains_key(&until.topic) {
                sources.insert(until.topic.clone(), self.source.describe(&until.topic)?.id);
            }
        }
        let finder = |until: &Position| {
            let source_id = &sources[&until.topic];
            let id = SnapshotId { group: &self.group, at: until, state_version, source_id };
            (until.clone(), until.partition % partitions, Finder::new(id))
        };
        let finders: Vec<_> = self.begun.iter().map(finder).collect();
        let wanted: BTreeSet<u32> = finders.iter().map(|(_, partition, _)| *partition).collect();
        let mut ranges = progress::held(topic, &self.target.describe(topic)?.partitions);
        ranges.retain(|range| wanted.contains(&range.partition));
        self.finding = Some(Finding { reader: self.target.clone().reader(ranges)?, finders });
        self.begun.clear();
        Ok(())
    }

    /// Restores what was found, and begins the replay of what follows.
    fn restore(
        &self,
        until: Position,
        mut found: Found,
        transform: &mut dyn Transform,
        metrics: &Metrics,
    ) -> anyhow::Result<Replay> {
        let first = self.source.bounds(&until.topic, until.partition)?.first.min(until.offset);
        let source_id = self.source.describe(&until.topic)?.id;
        let restored = restore(&until, &mut found, transform);
        let at = restored.unwrap_or(0).max(first);
        // Other rules: it begins with what is held, by design.
        let is_new = restored.is_none() && found.unusable == Some(Unusable::OtherVersion);
        let missing = if is_new { None } else { self.missing(&until, &source_id, restored.unwrap_or(0)..first)? };
        report(&until, restored, &found, until.offset - at, missing.as_ref());
        metrics.restored.inc_by(u64::from(restored.is_some()));
        metrics.state_gaps.inc_by(u64::from(missing.is_some()));
        Ok(Replay {
            reader: None,
            until,
            source_id,
            at,
            saved: restored,
            first,
            replayed: 0,
            is_new,
            is_inexact: missing.is_some(),
            slots: found.slots,
        })
    }

    /// The first records that the state should come from and that retention has removed. Those of an accepted gap were
    /// never processed: no state comes from them.
    fn missing(
        &self,
        until: &Position,
        source_id: &str,
        mut missing: Offsets<u64>,
    ) -> Result<Option<Offsets<u64>>, Error> {
        if missing.is_empty() {
            return Ok(None);
        }
        // A group that has not committed anything yet begins here, and misses nothing.
        let committed = self.target.committed(&self.group, &until.topic)?;
        if committed.get(until.partition as usize).copied().flatten().is_none() {
            return Ok(None);
        }
        let Some(gaps) = &self.gaps else { return Ok(Some(missing)) };
        let decisions = gaps::load(&self.target, gaps, &self.group, &until.topic)?;
        let of_this = |(place, decision): &(&Place, &Decision)| {
            place.partition == until.partition && decision.topic_id == source_id
        };
        for (place, decision) in decisions.iter().filter(of_this) {
            // In the order of their positions.
            let Some(skipped) = decision.skipped(place.from) else { continue };
            if skipped.start <= missing.start {
                missing.start = missing.start.max(skipped.end);
            } else if skipped.end >= missing.end {
                missing.end = missing.end.min(skipped.start);
            }
        }
        Ok(Some(missing).filter(|missing| !missing.is_empty()))
    }

    fn finish(&mut self, replay: Replay, metrics: &Metrics) -> Rebuilt {
        let (topic, partition, replayed) = (&replay.until.topic, replay.until.partition, replay.replayed);
        tracing::debug!(%topic, partition, replayed, "the state is rebuilt up to offset {}", replay.until.offset);
        if !self.is_under_way()
            && let Some(since) = self.since.take()
        {
            metrics.rebuild_seconds.observe(since.elapsed().as_secs_f64());
        }
        let replay_from = replay.replays_from();
        let is_covered = replay.saved.is_some_and(|saved| saved >= replay.first);
        let held = Held {
            position: replay.until.offset,
            is_ahead: false,
            replay_from,
            since: (replayed > 0 && replay.until.offset > replay_from).then(Instant::now),
            irreplaceable: !is_covered && replay.first > 0 && (replayed > 0 || replay.is_inexact),
            slots: replay.slots,
            source_id: replay.source_id,
        };
        Rebuilt { until: replay.until, held }
    }
}

impl Replay {
    fn take(&mut self, batch: &Batch, transform: &mut dyn Transform, metrics: &Metrics) -> anyhow::Result<()> {
        transform.prepare(batch)?;
        transform.replay(batch)?;
        self.at = batch.next_offset().unwrap_or(self.at);
        self.replayed += batch.len() as u64;
        metrics.replayed.inc_by(batch.len() as u64);
        Ok(())
    }

    /// Retention has removed the next records, and the replay continues with what is left.
    fn overtaken(&mut self, first: u64, metrics: &Metrics) {
        let to = first.min(self.until.offset);
        if !self.is_new {
            let (topic, partition, from) = (&self.until.topic, self.until.partition, self.at);
            tracing::error!(%topic, partition, "the state is not exact: retention has removed offsets {from} to {} \
                before they were replayed", to - 1);
            metrics.state_gaps.inc();
            self.is_inexact = true;
        }
        (self.at, self.first, self.reader) = (to, to, None);
    }

    /// Where a replay would begin.
    fn replays_from(&self) -> u64 {
        self.saved.unwrap_or(self.first)
    }
}

/// Restores what was found, if it can be. Returns its position.
fn restore(until: &Position, found: &mut Found, transform: &mut dyn Transform) -> Option<u64> {
    let snapshot = found.snapshot.as_ref()?;
    let (topic, partition) = (&until.topic, until.partition);
    match transform.restore(topic, partition, &snapshot.state) {
        Ok(()) => Some(snapshot.position),
        Err(error) => {
            let offset = snapshot.position;
            tracing::warn!(%topic, partition, offset, "cannot restore a snapshot of the state: {error:#}");
            transform.reset(topic, partition);
            found.snapshot = None;
            None
        }
    }
}

/// Says what the state comes from.
fn report(until: &Position, restored: Option<u64>, found: &Found, records: u64, missing: Option<&Offsets<u64>>) {
    let (topic, partition) = (&until.topic, until.partition);
    let base = restored.map_or("no snapshot".to_owned(), |position| format!("the snapshot at offset {position}"));
    match &found.unusable {
        None => {}
        Some(Unusable::OtherVersion) => {
            tracing::info!(%topic, partition, "the newest snapshot has another state version: rebuilding from {base}");
        }
        Some(why) => {
            tracing::warn!(%topic, partition, "skipping the newest snapshot, {why}: rebuilding from {base}");
        }
    }
    if let Some(missing) = missing {
        let (from, to) = (missing.start, missing.end - 1);
        tracing::error!(%topic, partition, "the state is not exact: it is rebuilt from {base}, but retention has \
            removed the next records, offsets {from} to {to}; to prevent this, keep records longer than this stage is \
            ever down");
    }
    if records > SNAPSHOT_RECORDS {
        tracing::info!(%topic, partition, "rebuilding the state from {base}: {records} offsets to replay, up to offset \
            {}", until.offset);
    }
}
