//! The state of the partitions that are held: rebuilt, and put into snapshots.
//!
//! ```text
//!  source partition   ├─ removed by retention ─┼────────────┼─────────────────┤ committed
//!                                                        snapshot ──restore──►│ replay, emitting nothing
//!  state topic        … ─ newest whole snapshot not ahead of the committed position ─ …
//! ```
//!
//! A snapshot is a transaction of its own, right after the commit of the position that it belongs to, and it commits
//! that position again: an instance that has lost the partition is refused, as it is with outputs. It is only a
//! shortcut. Where there is none that can be used, the replay begins at the first record that is still held.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{Error, Log, Outputs, Position, Range, TopicDescription, TopicPartition, batches, progress};
use tokio_util::sync::CancellationToken;

use crate::gaps::{self, Decision, Place};
use crate::snapshot::{self, Finder, Found, MAX_SNAPSHOT_BYTES, SnapshotId, Unusable};
use crate::{Metrics, Options, REPLAY_RECORDS, Transform};

/// The longest time between a record and its first snapshot, however few records there are: well before any sensible
/// retention removes it.
const SNAPSHOT_AFTER: Duration = Duration::from_secs(600);

/// Records per read of the state topic; each may have half a megabyte.
const STATE_RECORDS: usize = 32;

/// The state of the partitions that this instance holds.
pub(crate) struct State {
    source: Arc<dyn Log>,
    target: Arc<dyn Log>,
    group: String,
    /// The topic of snapshots, and how many partitions it has.
    topic: Option<(Arc<str>, u32)>,
    /// Bytes of state per record of it.
    chunk_bytes: usize,
    /// The topic of decisions about gaps.
    gaps: Option<Arc<str>>,
    snapshot_records: u64,
    held: BTreeMap<TopicPartition, Held>,
}

/// A partition whose state is in the transform.
#[derive(Debug)]
struct Held {
    source_id: String,
    /// The committed position.
    position: u64,
    /// Where a replay would begin.
    replay_from: u64,
    /// When the first record that a replay would need was taken in.
    since: Option<Instant>,
    /// The state reaches further back than it could be rebuilt once more.
    irreplaceable: bool,
    /// So many keys of the state topic are taken by it.
    chunks: u32,
}

impl Held {
    fn is_due(&self, at_stop: bool, snapshot_records: u64, now: Instant) -> bool {
        let Some(since) = self.since else { return self.irreplaceable };
        self.irreplaceable
            || at_stop
            || self.position - self.replay_from >= snapshot_records
            || now.saturating_duration_since(since) >= SNAPSHOT_AFTER
    }
}

/// A snapshot to be committed.
pub(crate) struct Due {
    pub(crate) outputs: Outputs,
    pub(crate) position: Position,
    pub(crate) bytes: usize,
    chunks: u32,
}

impl State {
    pub(crate) fn open(options: &Options) -> Result<Self, Error> {
        let (mut topic, mut chunk_bytes) = (None, 0);
        if let Some(name) = &options.state {
            let described = options.target.describe(name)?;
            topic = Some((name.clone(), described.partitions.len() as u32));
            chunk_bytes = snapshot::chunk_bytes(described.max_record_bytes);
        }
        Ok(Self {
            source: options.source.clone(),
            target: options.target.clone(),
            group: options.group.clone(),
            topic,
            chunk_bytes,
            gaps: options.gaps.clone(),
            snapshot_records: options.snapshot_records,
            held: BTreeMap::new(),
        })
    }

    /// Notes that records of a partition have been applied.
    pub(crate) fn applied(&mut self, partition: &TopicPartition) {
        if let Some(held) = self.held.get_mut(partition) {
            held.since.get_or_insert_with(Instant::now);
        }
    }

    /// Notes positions that have been committed.
    pub(crate) fn committed(&mut self, positions: &[Position]) {
        for p in positions {
            if let Some(held) = self.held.get_mut(&p.at()) {
                held.position = p.offset;
            }
        }
    }

    /// The committed position of a partition whose state is in the transform.
    pub(crate) fn position(&self, of: &TopicPartition) -> Option<u64> {
        self.held.get(of).map(|held| held.position)
    }

    /// The committed positions of the partitions whose state is in the transform.
    pub(crate) fn positions(&self) -> Vec<Position> {
        let position = |(of, held): (&TopicPartition, &Held)| Position {
            topic: of.topic.clone(),
            partition: of.partition,
            offset: held.position,
        };
        self.held.iter().map(position).collect()
    }

    /// The partitions whose next snapshot should follow now: at most every [`Options::snapshot_records`], or, at a
    /// stop, of whatever is not in one. Nothing may be pending.
    pub(crate) fn due(&self, at_stop: bool) -> Vec<TopicPartition> {
        if self.topic.is_none() {
            return Vec::new();
        }
        let now = Instant::now();
        let due = self.held.iter().filter(|(_, held)| held.is_due(at_stop, self.snapshot_records, now));
        due.map(|(partition, _)| partition.clone()).collect()
    }

    /// Takes the snapshot of a partition. `None`: it is too large, or there is nowhere to put it.
    pub(crate) fn take(&mut self, of: &TopicPartition, transform: &dyn Transform) -> Option<Due> {
        let (topic, partitions) = self.topic.as_ref()?;
        let held = self.held.get_mut(of)?;
        let state = transform.snapshot(&of.topic, of.partition);
        let position = Position { topic: of.topic.clone(), partition: of.partition, offset: held.position };
        if state.len() > MAX_SNAPSHOT_BYTES {
            let (partition, mib) = (of.partition, state.len() >> 20);
            tracing::error!(topic = %of.topic, partition, "the state has {mib} MiB, more than a snapshot can hold: no \
                snapshot is written, and a restart replays all records that retention has kept; give the topic more \
                partitions");
            (held.replay_from, held.since, held.irreplaceable) = (held.position, None, false); // not at every commit
            return None;
        }
        let mut outputs = Outputs::default();
        let state_version = &*transform.state_version();
        let id = SnapshotId { group: &self.group, at: &position, state_version, source_id: &held.source_id };
        let to = (topic, of.partition % partitions);
        let chunks = snapshot::write(&mut outputs, to, id, &state, held.chunks, self.chunk_bytes);
        Some(Due { outputs, position, bytes: state.len(), chunks })
    }

    /// Notes that a snapshot has been committed.
    pub(crate) fn taken(&mut self, of: &TopicPartition, due: &Due) {
        if let Some(held) = self.held.get_mut(of) {
            (held.replay_from, held.since, held.irreplaceable) = (due.position.offset, None, false);
            held.chunks = due.chunks;
        }
    }

    /// Forgets a partition.
    pub(crate) fn reset(&mut self, of: &TopicPartition, transform: &mut dyn Transform) {
        self.held.remove(of);
        transform.reset(&of.topic, of.partition);
    }

    /// Forgets everything.
    pub(crate) fn reset_all(&mut self, transform: &mut dyn Transform) {
        for of in std::mem::take(&mut self.held).into_keys() {
            transform.reset(&of.topic, of.partition);
        }
    }

    /// Brings the transform's state to these positions. At a shutdown it leaves off, and holds nothing of a partition
    /// that is not rebuilt.
    pub(crate) fn rebuild(
        &mut self,
        positions: &[Position],
        transform: &mut dyn Transform,
        metrics: &Metrics,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        for p in positions {
            self.reset(&p.at(), transform);
        }
        if !transform.is_stateful() {
            return Ok(());
        }
        let began = Instant::now();
        let mut sources = HashMap::new();
        for p in positions {
            if !sources.contains_key(&p.topic) {
                sources.insert(p.topic.clone(), self.source.describe(&p.topic)?);
            }
        }
        let stop = || shutdown.is_cancelled();
        let found = self.find(positions, &sources, &transform.state_version(), &stop)?;
        for (until, found) in positions.iter().zip(found) {
            self.rebuild_one(until, found, &sources[&until.topic], transform, metrics, &stop)?;
        }
        metrics.rebuild_seconds.observe(began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Looks for snapshots of all these partitions, reading the state topic once.
    fn find(
        &self,
        positions: &[Position],
        sources: &HashMap<Arc<str>, TopicDescription>,
        state_version: &str,
        stop: &dyn Fn() -> bool,
    ) -> anyhow::Result<Vec<Found>> {
        let Some((topic, partitions)) = &self.topic else {
            return Ok(positions.iter().map(|_| Found::default()).collect());
        };
        let id_of = |at| SnapshotId { group: &self.group, at, state_version, source_id: &sources[&at.topic].id };
        let mut finders: Vec<_> =
            positions.iter().map(|at| (at.partition % partitions, Finder::new(id_of(at)))).collect();
        let wanted: BTreeSet<u32> = finders.iter().map(|(partition, _)| *partition).collect();
        let mut ranges = progress::held(topic, &self.target.describe(topic)?.partitions);
        ranges.retain(|range| wanted.contains(&range.partition));
        for batch in batches(&self.target, ranges, STATE_RECORDS)?.until(stop) {
            let batch = batch?;
            for (_, finder) in finders.iter_mut().filter(|(partition, _)| *partition == batch.partition()) {
                batch.iter().for_each(|record| finder.take(&record));
            }
        }
        Ok(finders.into_iter().map(|(_, finder)| finder.finish()).collect())
    }

    fn rebuild_one(
        &mut self,
        until: &Position,
        mut found: Found,
        source: &TopicDescription,
        transform: &mut dyn Transform,
        metrics: &Metrics,
        stop: &dyn Fn() -> bool,
    ) -> anyhow::Result<()> {
        let mut first = source.partitions[until.partition as usize].first;
        let (restored, replayed) = loop {
            let restored = restore(until, &mut found, transform);
            let start = restored.unwrap_or(0).max(first);
            match self.replay(until, start, transform, stop) {
                Ok(records) => break (restored, records),
                Err(error) if matches!(error.downcast_ref(), Some(Error::OutOfRange { .. })) => {
                    // Retention has overtaken the replay: once more from what is left.
                    first = self.source.describe(&until.topic)?.partitions[until.partition as usize].first;
                    if first <= start {
                        return Err(error);
                    }
                    transform.reset(&until.topic, until.partition);
                }
                Err(error) => return Err(error),
            }
        };
        if stop() {
            transform.reset(&until.topic, until.partition);
            return Ok(());
        }
        let missing = self.missing(until, &source.id, restored, found.unusable.as_ref(), first)?;
        report(until, restored, &found, replayed, missing.as_ref());
        metrics.replayed.inc_by(replayed);
        metrics.restored.inc_by(u64::from(restored.is_some()));
        metrics.state_gaps.inc_by(u64::from(missing.is_some()));
        let held = Held {
            source_id: source.id.clone(),
            position: until.offset,
            replay_from: restored.unwrap_or(first),
            since: (replayed > 0).then(Instant::now),
            irreplaceable: restored.unwrap_or(0) < first && (replayed > 0 || missing.is_some()),
            chunks: found.chunks,
        };
        self.held.insert(until.at(), held);
        Ok(())
    }

    /// Feeds the records from `start` to the transform. Returns how many those were.
    fn replay(
        &self,
        until: &Position,
        start: u64,
        transform: &mut dyn Transform,
        stop: &dyn Fn() -> bool,
    ) -> anyhow::Result<u64> {
        if start >= until.offset {
            return Ok(0);
        }
        let (topic, partition) = (until.topic.clone(), until.partition);
        let range = Range { topic, partition, start, end: Some(until.offset) };
        let mut records = 0;
        for batch in batches(&self.source, vec![range], REPLAY_RECORDS)?.until(stop) {
            let batch = batch?;
            records += batch.len() as u64;
            transform.prepare(&batch)?;
            transform.replay(&batch)?;
        }
        Ok(records)
    }

    /// The first records that the state should come from and that retention has removed. Those of an accepted gap were
    /// never processed: no state comes from them.
    fn missing(
        &self,
        until: &Position,
        source_id: &str,
        restored: Option<u64>,
        unusable: Option<&Unusable>,
        first: u64,
    ) -> Result<Option<std::ops::Range<u64>>, Error> {
        let from = match restored {
            Some(position) => position,
            // Another model, say: it begins with what is held, by design.
            None if unusable == Some(&Unusable::OtherVersion) => return Ok(None),
            None => 0,
        };
        let missing = from..first.min(until.offset);
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
        let mut missing = missing;
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
fn report(
    until: &Position,
    restored: Option<u64>,
    found: &Found,
    replayed: u64,
    missing: Option<&std::ops::Range<u64>>,
) {
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
    tracing::debug!(%topic, partition, replayed, "the state is rebuilt from {base} up to offset {}", until.offset);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_due_after_many_records_or_some_time_or_at_a_stop() {
        let now = Instant::now();
        let later = now + SNAPSHOT_AFTER;
        let held = |position, since, irreplaceable| Held {
            source_id: String::new(),
            position,
            replay_from: 1000,
            since,
            irreplaceable,
            chunks: 0,
        };
        let changed = |position| held(position, Some(now), false);
        for (held, at_stop, at, expected, when) in [
            (held(1000, None, false), true, later, false, "nothing has come since the last one"),
            (changed(1099), false, now, false, "little has"),
            (changed(1100), false, now, true, "many records have"),
            (changed(1001), false, later, true, "one has, some time ago"),
            (changed(1001), false, later - Duration::from_millis(1), false, "one has, not so long ago"),
            (changed(1001), true, now, true, "one has, at a stop"),
            (held(1000, None, true), false, now, true, "it could not be rebuilt again"),
        ] {
            assert_eq!(held.is_due(at_stop, 100, at), expected, "{when}");
        }
    }
}
