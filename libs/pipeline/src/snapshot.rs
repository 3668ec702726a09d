//! Snapshots in the state topic: how one is cut into records, and found again among others.
//!
//! ```text
//!  key      group/topic/partition/0   …/1   …/2         one per chunk: a snapshot takes the place of the last but one,
//!           group/topic/partition/b0  …/b1  …           whose keys are other ones than the last one's
//!  value    ├──── 512 KB ────┤├── 512 KB ──┤├ rest ┤
//!  headers  position, state version, source's id, chunks, bytes, SHA-256: the same in all of them
//! ```
//!
//! A snapshot may be any size, so it is written in pieces, each a transaction; the last one also removes the snapshot
//! before it. Until then that one is whole: a snapshot that was not finished costs nothing but its space.
//!
//! Compaction removes the records of a snapshot one by one, and a topic may hold records of other writers. So a
//! snapshot is rejected unless it is whole, belongs to the source, and matches its hash.

use std::collections::BTreeSet;
use std::sync::Arc;

use event_log::{Headers, Outputs, Position, Record, RecordRef};
use sha2::{Digest, Sha256};

/// Bytes of state per record: with key and headers well below the 1,000,000 bytes that a Kafka topic takes by default.
const CHUNK_BYTES: usize = 512 * 1024;

/// More than key and headers of a record take.
const LABEL_BYTES: usize = 2048;

/// Bytes of state per record of a topic that takes records of `max_record_bytes`.
pub(crate) fn chunk_bytes(max_record_bytes: usize) -> usize {
    max_record_bytes.saturating_sub(LABEL_BYTES).clamp(1, CHUNK_BYTES)
}

/// Bytes of state per transaction: a broker that takes 1 MB/s has long taken it before the transaction times out.
pub(crate) const PIECE_BYTES: usize = 8 << 20;

/// No header is believed that claims more: memory for the state is reserved at once up to here.
const MAX_RESERVED_BYTES: usize = 1 << 30;

const POSITION: &str = "snapshot.position";
const STATE_VERSION: &str = "snapshot.state_version";
const SOURCE_ID: &str = "snapshot.source_id";
const CHUNKS: &str = "snapshot.chunks";
const BYTES: &str = "snapshot.bytes";
const SHA256: &str = "snapshot.sha256";

/// Whose state, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SnapshotId<'a> {
    pub(crate) group: &'a str,
    /// The partition, and how far its records have been taken in.
    pub(crate) at: &'a Position,
    /// See [`crate::Transform::state_version`].
    pub(crate) state_version: &'a str,
    /// The identity of the source topic: one that was created again has other records.
    pub(crate) source_id: &'a str,
}

/// What the headers of all records of a snapshot say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Label {
    position: u64,
    state_version: String,
    source_id: String,
    chunks: u32,
    bytes: usize,
    sha256: String,
}

/// The two sets of keys that snapshots of a partition take in turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Slots {
    /// Which one holds the newest snapshot.
    newest: usize,
    /// How many keys of each are taken.
    taken: [u32; 2],
}

/// What the keys of each slot have before the number of the chunk.
const SLOTS: [&str; 2] = ["", "b"];

/// A snapshot that is being written.
pub(crate) struct Writing {
    label: Label,
    /// Of its keys, without the slot.
    prefix: String,
    slots: Slots,
    state: Vec<u8>,
    chunk_bytes: usize,
    /// So many chunks are in the topic.
    written: u32,
}

impl Writing {
    pub(crate) fn new(id: SnapshotId<'_>, state: Vec<u8>, slots: Slots, chunk_bytes: usize) -> Self {
        let label = Label {
            position: id.at.offset,
            state_version: id.state_version.to_owned(),
            source_id: id.source_id.to_owned(),
            chunks: state.len().div_ceil(chunk_bytes).max(1) as u32,
            bytes: state.len(),
            sha256: hex::encode(Sha256::digest(&state)),
        };
        Self { label, prefix: key_prefix(id), slots, state, chunk_bytes, written: 0 }
    }

    pub(crate) fn position(&self) -> u64 {
        self.label.position
    }

    pub(crate) fn bytes(&self) -> usize {
        self.label.bytes
    }

    /// Whether all of it is in the topic.
    pub(crate) fn is_whole(&self) -> bool {
        self.written == self.label.chunks
    }

    /// The keys that it leaves taken, as far as it is written.
    pub(crate) fn slots(&self) -> Slots {
        let (mut slots, to) = (self.slots, 1 - self.slots.newest);
        if self.is_whole() {
            (slots.newest, slots.taken) = (to, [0; 2]);
        }
        slots.taken[to] = slots.taken[to].max(self.written);
        slots
    }

    /// Adds the next piece for partition `partition` of the state topic. Returns how many chunks are written once that
    /// is committed.
    pub(crate) fn piece(&self, outputs: &mut Outputs, topic: &Arc<str>, partition: u32) -> u32 {
        let (position, chunks, bytes) =
            (self.label.position.to_string(), self.label.chunks.to_string(), self.label.bytes.to_string());
        let headers: [(&str, &[u8]); 6] = [
            (POSITION, position.as_bytes()),
            (STATE_VERSION, self.label.state_version.as_bytes()),
            (SOURCE_ID, self.label.source_id.as_bytes()),
            (CHUNKS, chunks.as_bytes()),
            (BYTES, bytes.as_bytes()),
            (SHA256, self.label.sha256.as_bytes()),
        ];
        let timestamp_ms = service::now_ms();
        let mut put = |slot: usize, chunk: u32, value: Option<&[u8]>| {
            let key = format!("{}{}{chunk}", self.prefix, SLOTS[slot]);
            let headers = if value.is_some() { &headers[..] } else { &[] };
            outputs.push(topic, partition, &Record { key: key.as_bytes(), value, headers, timestamp_ms });
        };
        let (before, to) = (self.slots.newest, 1 - self.slots.newest);
        let most = (PIECE_BYTES / self.chunk_bytes).max(1) as u32;
        let written = self.label.chunks.min(self.written.saturating_add(most));
        for chunk in self.written..written {
            let start = chunk as usize * self.chunk_bytes;
            put(to, chunk, Some(&self.state[start..self.state.len().min(start + self.chunk_bytes)]));
        }
        if written == self.label.chunks {
            (written..self.slots.taken[to]).for_each(|chunk| put(to, chunk, None));
            (0..self.slots.taken[before]).for_each(|chunk| put(before, chunk, None));
        }
        written
    }

    /// Notes that a piece is committed.
    pub(crate) fn committed(&mut self, written: u32) {
        self.written = written;
    }
}

/// No topic has a slash in its name, so that no two partitions share a prefix, whatever the group is called.
fn key_prefix(id: SnapshotId<'_>) -> String {
    format!("{}/{}/{}/", id.group, id.at.topic, id.at.partition)
}

/// What the state topic holds for one partition.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The newest snapshot that can be used.
    pub(crate) snapshot: Option<Snapshot>,
    /// The keys that are taken.
    pub(crate) slots: Slots,
    /// Why the last snapshot cannot be used.
    pub(crate) unusable: Option<Unusable>,
}

/// A snapshot, whole and checked.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) position: u64,
    pub(crate) state: Vec<u8>,
}

/// Why a snapshot is passed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("it has another state version")]
    OtherVersion,
    #[error("it belongs to an earlier topic of this name")]
    OtherSource,
    #[error("it is of position {0}, ahead of the committed one")]
    Ahead(u64),
    #[error("it was not finished, or some of its records are missing")]
    Torn,
    #[error("its bytes differ from those that were written")]
    Damaged,
    #[error("its headers are not those of a snapshot")]
    NoHeaders,
}

/// Puts the snapshot of one partition together from the records of the state topic, which come in offset order.
pub(crate) struct Finder {
    prefix: String,
    /// The committed position.
    until: u64,
    state_version: String,
    source_id: String,
    /// By slot.
    partial: [Option<(Label, u32, Vec<u8>)>; 2],
    taken: [BTreeSet<u32>; 2],
    /// The slot of the snapshot; without one, that of the last record.
    newest: usize,
    snapshot: Option<Snapshot>,
    unusable: Option<Unusable>,
}

impl Finder {
    /// Looks for the newest snapshot up to the position of `id`.
    pub(crate) fn new(id: SnapshotId<'_>) -> Self {
        Self {
            prefix: key_prefix(id),
            until: id.at.offset,
            state_version: id.state_version.to_owned(),
            source_id: id.source_id.to_owned(),
            partial: [None, None],
            taken: Default::default(),
            newest: 1,
            snapshot: None,
            unusable: None,
        }
    }

    /// Takes the next record of the state topic; those of other partitions are passed over.
    pub(crate) fn take(&mut self, record: &RecordRef<'_>) {
        let Some((slot, chunk)) = record.key.strip_prefix(self.prefix.as_bytes()).and_then(place) else { return };
        let Some(value) = record.value else {
            self.taken[slot].remove(&chunk);
            return;
        };
        self.taken[slot].insert(chunk);
        match self.add(slot, chunk, value, record.headers) {
            Ok(None) => self.unusable = Some(Unusable::Torn), // so far
            Ok(Some(snapshot)) => (self.snapshot, self.newest, self.unusable) = (Some(snapshot), slot, None),
            Err(why) => (self.partial[slot], self.unusable) = (None, Some(why)),
        }
        if self.snapshot.is_none() {
            self.newest = slot;
        }
    }

    /// The snapshot, if it is whole with this chunk.
    fn add(
        &mut self,
        slot: usize,
        chunk: u32,
        value: &[u8],
        headers: Headers<'_>,
    ) -> Result<Option<Snapshot>, Unusable> {
        let label = Label::read(headers).ok_or(Unusable::NoHeaders)?;
        self.check(&label)?;
        let (label, next, mut state) = match self.partial[slot].take() {
            Some((begun, next, state)) if next == chunk && begun == label => (begun, next + 1, state),
            _ if chunk == 0 => {
                let room = label.bytes.min(MAX_RESERVED_BYTES).min(label.chunks as usize * CHUNK_BYTES);
                (label, 1, Vec::with_capacity(room))
            }
            _ => return Err(Unusable::Torn),
        };
        state.extend_from_slice(value);
        if next < label.chunks {
            self.partial[slot] = Some((label, next, state));
            return Ok(None);
        }
        if state.len() != label.bytes || hex::encode(Sha256::digest(&state)) != label.sha256 {
            return Err(Unusable::Damaged);
        }
        Ok(Some(Snapshot { position: label.position, state }))
    }

    fn check(&self, label: &Label) -> Result<(), Unusable> {
        match () {
            () if label.source_id != self.source_id => Err(Unusable::OtherSource),
            () if label.state_version != self.state_version => Err(Unusable::OtherVersion),
            () if label.position > self.until => Err(Unusable::Ahead(label.position)),
            () => Ok(()),
        }
    }

    pub(crate) fn finish(self) -> Found {
        let taken = self.taken.map(|chunks| chunks.last().map_or(0, |last| last + 1));
        let slots = Slots { newest: self.newest, taken };
        Found { snapshot: self.snapshot, slots, unusable: self.unusable }
    }
}

impl Label {
    fn read(headers: Headers<'_>) -> Option<Self> {
        let text = |name| Some(std::str::from_utf8(headers.get(name)?).ok()?.to_owned());
        Some(Self {
            position: number(headers.get(POSITION)?)?,
            state_version: text(STATE_VERSION)?,
            source_id: text(SOURCE_ID)?,
            chunks: number(headers.get(CHUNKS)?)?,
            bytes: number(headers.get(BYTES)?)?,
            sha256: text(SHA256)?,
        })
    }
}

/// The slot and the number of a chunk, from the end of its key.
fn place(text: &[u8]) -> Option<(usize, u32)> {
    match text.strip_prefix(SLOTS[1].as_bytes()) {
        Some(rest) => Some((1, number(rest)?)),
        None => Some((0, number(text)?)),
    }
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
