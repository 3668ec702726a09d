//! The state of the partitions that are held: rebuilt, and put into snapshots.
//!
//! ```text
//!  source partition   ├─ removed by retention ─┼────────────┼─────────────────┤ committed
//!                                                        snapshot ──restore──►│ replay, emitting nothing: rebuild.rs
//!  state topic        … ─ newest whole snapshot not ahead of the committed position ─ …
//! ```
//!
//! A snapshot is the state at a committed position, or, of a partition that is being rebuilt, at a position before it.
//! It is written in pieces, each a transaction of its own in which nothing is pending, and which commits the committed
//! position again: an instance that has lost the partition is refused, as it is with outputs. It is only a shortcut.
//! Where there is none that can be used, the replay begins at the first record that is still held; and if one cannot be
//! written, the state stays, and the next attempt waits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{Error, Outputs, Position, TopicPartition};

use crate::prepare::Prepare;
use crate::rebuild::{Rebuild, Rebuilt};
use crate::snapshot::{self, Slots, SnapshotId, Writing};
use crate::{Metrics, Options, Transform};

/// The longest time between a record and its first snapshot, however few records there are: well before any sensible
/// retention removes it.
const SNAPSHOT_AFTER: Duration = Duration::from_secs(600);
/// The next attempt after a snapshot that could not be written; twice as long after each further one, up to
/// [`SNAPSHOT_AFTER`].
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// The state of the partitions that this instance holds.
pub(crate) struct State {
    group: String,
    /// The topic of snapshots, and how many partitions it has.
    topic: Option<(Arc<str>, u32)>,
    /// Bytes of state per record of it.
    chunk_bytes: usize,
    snapshot_records: u64,
    held: BTreeMap<TopicPartition, Held>,
    rebuild: Rebuild,
    pub(crate) prepare: Prepare,
    writing: Option<(TopicPartition, Writing)>,
    /// How long the snapshot has taken so far, without the time between its pieces.
    spent: Duration,
    /// Not before this time, after so long a pause.
    retry: Option<(Instant, Duration)>,
}

/// A partition whose state is in the transform.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) source_id: String,
    /// The committed position.
    pub(crate) position: u64,
    /// The state is that of a position after it.
    pub(crate) is_ahead: bool,
    /// Where a replay would begin.
    pub(crate) replay_from: u64,
    /// When the first record that a replay would need was taken in.
    pub(crate) since: Option<Instant>,
    /// The state reaches further back than it could be rebuilt once more.
    pub(crate) irreplaceable: bool,
    /// The keys of the state topic that its snapshots have taken.
    pub(crate) slots: Slots,
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

/// A part of a snapshot to be committed.
pub(crate) struct Piece {
    pub(crate) outputs: Outputs,
    /// The committed position of the partition.
    pub(crate) position: Position,
    began: Instant,
    written: u32,
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
            group: options.group.clone(),
            rebuild: Rebuild::new(options, topic.clone()),
            prepare: Prepare::default(),
            topic,
            chunk_bytes,
            snapshot_records: options.snapshot_records,
            held: BTreeMap::new(),
            writing: None,
            spent: Duration::ZERO,
            retry: None,
        })
    }

    /// Notes that records of a partition have been applied.
    pub(crate) fn applied(&mut self, partition: &TopicPartition) {
        if let Some(held) = self.held.get_mut(partition) {
            held.since.get_or_insert_with(Instant::now);
            held.is_ahead = true;
        }
    }

    /// Notes positions that have been committed, with all that was applied before them.
    pub(crate) fn committed(&mut self, positions: &[Position]) {
        for p in positions {
            if let Some(held) = self.held.get_mut(&p.at()) {
                (held.position, held.is_ahead) = (p.offset, false);
            }
        }
    }

    /// The committed position of a partition whose state is in the transform.
    pub(crate) fn position(&self, of: &TopicPartition) -> Option<u64> {
        self.held.get(of).map(|held| held.position)
    }

    /// The committed positions of the partitions whose state is in the transform.
    pub(crate) fn positions(&self) -> Vec<Position> {
        self.held.iter().map(|(of, held)| at(of, held.position)).collect()
    }

    /// Forgets a partition.
    pub(crate) fn reset(&mut self, of: &TopicPartition, transform: &mut dyn Transform) {
        self.held.remove(of);
        self.rebuild.forget(of);
        self.prepare.forget(of);
        self.writing.take_if(|(writing, _)| writing == of);
        transform.reset(&of.topic, of.partition);
    }

    /// Forgets everything.
    pub(crate) fn reset_all(&mut self, transform: &mut dyn Transform) {
        let all: Vec<_> = self.held.keys().cloned().chain(self.rebuild.partitions()).collect();
        all.iter().for_each(|of| self.reset(of, transform));
    }

    /// Brings the transform's state to these positions, in steps. Returns the partitions that have to wait for it: not
    /// those whose state is there already, since what was rolled back was not theirs.
    pub(crate) fn rebuild(&mut self, positions: &[Position], transform: &mut dyn Transform) -> Vec<TopicPartition> {
        if !transform.is_stateful() {
            return Vec::new();
        }
        let mut waiting = Vec::new();
        for p in positions {
            let of = p.at();
            if self.held.get(&of).is_some_and(|held| held.position == p.offset && !held.is_ahead) {
                continue;
            }
            if !self.rebuild.is_of(p) {
                self.reset(&of, transform);
                self.rebuild.begin(p.clone());
            }
            waiting.push(of);
        }
        waiting
    }

    pub(crate) fn is_rebuilding(&self) -> bool {
        self.rebuild.is_under_way()
    }

    /// The next step of the rebuilding: short, unless the log does not answer. Returns the position of a partition
    /// whose state is there now.
    pub(crate) fn step(
        &mut self,
        transform: &mut dyn Transform,
        metrics: &Metrics,
    ) -> anyhow::Result<Option<Position>> {
        let Some(Rebuilt { until, held }) = self.rebuild.step(transform, metrics)? else { return Ok(None) };
        self.held.insert(until.at(), held);
        Ok(Some(until))
    }

    /// Whether the last attempt to write a snapshot has not just failed.
    pub(crate) fn may_write(&self) -> bool {
        self.retry.is_none_or(|(not_before, _)| Instant::now() >= not_before)
    }

    /// The partition whose next snapshot should follow now: at most every [`Options::snapshot_records`], or, at a stop,
    /// if anything of it is not in one.
    fn due(&self, at_stop: bool) -> Option<TopicPartition> {
        let now = Instant::now();
        if !at_stop && !self.may_write() {
            return None;
        }
        let is_due = |held: &Held| !held.is_ahead && held.is_due(at_stop, self.snapshot_records, now);
        let due = self.held.iter().find(|(_, held)| is_due(held)).map(|(of, _)| of.clone());
        due.or_else(|| self.rebuild.due(at_stop, self.snapshot_records))
    }

    /// Begins a snapshot of another state of this partition, at its committed position. One that is under way is left.
    pub(crate) fn begin_snapshot(&mut self, of: &TopicPartition, state_version: &str, state: Vec<u8>) {
        self.abandon();
        if let Some(held) = self.held.get(of) {
            let (at, source_id) = (at(of, held.position), &*held.source_id);
            let id = SnapshotId { group: &self.group, at: &at, state_version, source_id };
            self.writing = Some((of.clone(), Writing::new(id, state, held.slots, self.chunk_bytes)));
            self.spent = Duration::ZERO;
        }
    }

    /// Whether there are pieces left of a snapshot.
    pub(crate) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// The next piece of a snapshot, if one is due or under way. Nothing may be pending.
    pub(crate) fn next_piece(&mut self, at_stop: bool, transform: &dyn Transform) -> Option<Piece> {
        let (topic, partitions) = self.topic.clone()?;
        let began = Instant::now();
        if at_stop {
            // It is older than what is due now.
            let is_old = |of: &TopicPartition, writing: &Writing| self.position(of) != Some(writing.position());
            if self.writing.as_ref().is_some_and(|(of, writing)| is_old(of, writing)) {
                self.abandon();
            }
        }
        if self.writing.is_none() {
            let of = self.due(at_stop)?;
            let (state_at, source_id, slots) = match self.held.get(&of) {
                Some(held) => (held.position, held.source_id.clone(), held.slots),
                None => self.rebuild.state_of(&of)?,
            };
            let state = transform.snapshot(&of.topic, of.partition);
            let (state_version, state_at) = (&*transform.state_version(), at(&of, state_at));
            let id = SnapshotId { group: &self.group, at: &state_at, state_version, source_id: &source_id };
            self.writing = Some((of, Writing::new(id, state, slots, self.chunk_bytes)));
            self.spent = Duration::ZERO;
        }
        let (of, writing) = self.writing.as_ref()?;
        let position = self.position(of).or_else(|| self.rebuild.until(of))?;
        let mut outputs = Outputs::default();
        let written = writing.piece(&mut outputs, &topic, of.partition % partitions);
        Some(Piece { outputs, position: at(of, position), began, written })
    }

    /// Notes that a piece has been committed.
    pub(crate) fn wrote(&mut self, piece: &Piece, metrics: &Metrics) {
        let Some((of, mut writing)) = self.writing.take() else { return };
        self.spent += piece.began.elapsed();
        writing.committed(piece.written);
        if !writing.is_whole() {
            self.writing = Some((of, writing));
            return;
        }
        self.retry = None;
        metrics.snapshot(writing.bytes(), self.spent);
        let (position, slots) = (writing.position(), writing.slots());
        match self.held.get_mut(&of) {
            Some(held) => {
                let more = held.is_ahead || held.position > position;
                (held.replay_from, held.irreplaceable, held.slots) = (position, false, slots);
                held.since = more.then_some(piece.began);
            }
            None => self.rebuild.saved(&of, position, slots),
        }
    }

    /// Notes that a piece could not be committed. The state is as good as before.
    pub(crate) fn failed(&mut self) {
        let pause = self.retry.map_or(RETRY_AFTER, |(_, pause)| (2 * pause).min(SNAPSHOT_AFTER));
        self.retry = Some((Instant::now() + pause, pause));
        if let Some((of, _)) = &self.writing {
            let (topic, partition) = (&of.topic, of.partition);
            tracing::warn!(%topic, partition, "a snapshot of the state was not written; trying again in {} s, and \
                continuing without it", pause.as_secs());
        }
        self.abandon();
    }

    /// Leaves a snapshot unfinished. The next one has to know of its keys.
    fn abandon(&mut self) {
        let Some((of, writing)) = self.writing.take() else { return };
        match self.held.get_mut(&of) {
            Some(held) => held.slots = writing.slots(),
            None => self.rebuild.left(&of, writing.slots()),
        }
    }
}

fn at(of: &TopicPartition, offset: u64) -> Position {
    Position { topic: of.topic.clone(), partition: of.partition, offset }
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
            is_ahead: false,
            replay_from: 1000,
            since,
            irreplaceable,
            slots: Slots::default(),
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
