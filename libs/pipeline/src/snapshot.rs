//! Snapshots in the state topic: how one is cut into records, and found again among others.
//!
//! ```text
//!  key      group/topic/partition/0   …/1   …/2          one per chunk: a newer snapshot takes an older one's place,
//!  value    ├──── 512 KB ────┤├── 512 KB ──┤├ rest ┤     and tombstones what it is shorter by
//!  headers  position, state version, source's id, chunks, bytes, SHA-256: the same in all of them
//! ```
//!
//! All records of a snapshot are written in one transaction, but compaction removes the records of an older one one by
//! one, and a topic may hold records of other writers. So a snapshot is rejected unless it is whole, belongs to the
//! source, and matches its hash.

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

/// No larger snapshot is written: it is held in memory twice, and is one transaction.
pub(crate) const MAX_SNAPSHOT_BYTES: usize = 1 << 30;

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

/// Adds the records of a snapshot for partition `to` of the state topic. It takes the place of one of `chunks_before`
/// chunks. Returns how many it has.
pub(crate) fn write(
    outputs: &mut Outputs,
    (topic, partition): (&Arc<str>, u32),
    id: SnapshotId<'_>,
    state: &[u8],
    chunks_before: u32,
    chunk_bytes: usize,
) -> u32 {
    let chunks = state.len().div_ceil(chunk_bytes).max(1) as u32;
    let (position, count, bytes) = (id.at.offset.to_string(), chunks.to_string(), state.len().to_string());
    let sha256 = hex::encode(Sha256::digest(state));
    let headers: [(&str, &[u8]); 6] = [
        (POSITION, position.as_bytes()),
        (STATE_VERSION, id.state_version.as_bytes()),
        (SOURCE_ID, id.source_id.as_bytes()),
        (CHUNKS, count.as_bytes()),
        (BYTES, bytes.as_bytes()),
        (SHA256, sha256.as_bytes()),
    ];
    let timestamp_ms = service::now_ms();
    let prefix = key_prefix(id);
    for chunk in 0..chunks.max(chunks_before) {
        let start = chunk as usize * chunk_bytes;
        let value = (chunk < chunks).then(|| &state[start..state.len().min(start + chunk_bytes)]);
        let headers = if value.is_some() { &headers[..] } else { &[] };
        let key = format!("{prefix}{chunk}");
        outputs.push(topic, partition, &Record { key: key.as_bytes(), value, headers, timestamp_ms });
    }
    chunks
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
    /// So many keys are taken, which the next snapshot replaces.
    pub(crate) chunks: u32,
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
    #[error("some of its records are missing")]
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
    partial: Option<(Label, u32, Vec<u8>)>,
    taken: BTreeSet<u32>,
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
            partial: None,
            taken: BTreeSet::new(),
            snapshot: None,
            unusable: None,
        }
    }

    /// Takes the next record of the state topic; those of other partitions are passed over.
    pub(crate) fn take(&mut self, record: &RecordRef<'_>) {
        let Some(chunk) = record.key.strip_prefix(self.prefix.as_bytes()).and_then(number::<u32>) else { return };
        let Some(value) = record.value else {
            self.taken.remove(&chunk);
            return;
        };
        self.taken.insert(chunk);
        match self.add(chunk, value, record.headers) {
            Ok(None) => self.unusable = Some(Unusable::Torn), // so far
            Ok(Some(snapshot)) => (self.snapshot, self.unusable) = (Some(snapshot), None),
            Err(why) => (self.partial, self.unusable) = (None, Some(why)),
        }
    }

    /// The snapshot, if it is whole with this chunk.
    fn add(&mut self, chunk: u32, value: &[u8], headers: Headers<'_>) -> Result<Option<Snapshot>, Unusable> {
        let label = Label::read(headers).ok_or(Unusable::NoHeaders)?;
        self.check(&label)?;
        let (label, next, mut state) = match self.partial.take() {
            Some((begun, next, state)) if next == chunk && begun == label => (begun, next + 1, state),
            _ if chunk == 0 => {
                let room = label.bytes.min(MAX_SNAPSHOT_BYTES).min(label.chunks as usize * CHUNK_BYTES);
                (label, 1, Vec::with_capacity(room))
            }
            _ => return Err(Unusable::Torn),
        };
        state.extend_from_slice(value);
        if next < label.chunks {
            self.partial = Some((label, next, state));
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
        let chunks = self.taken.last().map_or(0, |last| last + 1);
        Found { snapshot: self.snapshot, chunks, unusable: self.unusable }
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

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use event_log::Batch;

    use super::*;

    const VERSION: &str = "v1";
    const SOURCE: &str = "id";

    fn at(offset: u64) -> Position {
        Position { topic: "in".into(), partition: 2, offset }
    }

    fn state(seed: u8, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| seed.wrapping_add((i % 251) as u8)).collect()
    }

    /// The records of snapshots, as they would lie in the topic.
    struct Topic {
        records: Batch,
        chunks: u32,
    }

    impl Topic {
        fn new() -> Self {
            Self { records: Batch::new("state".into(), 0), chunks: 0 }
        }

        fn write(&mut self, offset: u64, state: &[u8], version: &str, source: &str) {
            let mut outputs = Outputs::default();
            let id = SnapshotId { group: "g", at: &at(offset), state_version: version, source_id: source };
            self.chunks = write(&mut outputs, (&"state".into(), 0), id, state, self.chunks, CHUNK_BYTES);
            for record in outputs.batches().flat_map(Batch::iter) {
                let offset = self.records.next_offset().unwrap_or(0);
                self.records.push(offset, record.timestamp_ms, record.key, record.value, record.headers);
            }
        }

        /// What is found without the records that `lost` names by place.
        fn find(&self, until: u64, lost: &[usize]) -> Found {
            let mut finder = finder("g", &at(until));
            for (_, record) in self.records.iter().enumerate().filter(|(i, _)| !lost.contains(i)) {
                finder.take(&record);
            }
            finder.finish()
        }
    }

    fn finder(group: &str, at: &Position) -> Finder {
        Finder::new(SnapshotId { group, at, state_version: VERSION, source_id: SOURCE })
    }

    fn found(found: Found) -> Option<(u64, Vec<u8>)> {
        found.snapshot.map(|s| (s.position, s.state))
    }

    #[test]
    fn the_newest_whole_one_up_to_the_position_is_found() {
        let mut topic = Topic::new();
        let states: Vec<_> = [3 * CHUNK_BYTES, 0, CHUNK_BYTES, CHUNK_BYTES + 1].map(|n| state(n as u8, n)).into();
        for (i, state) in states.iter().enumerate() {
            topic.write(10 * i as u64, state, VERSION, SOURCE);
        }
        let all = topic.find(1000, &[]);
        assert_eq!((all.chunks, all.unusable.clone()), (2, None));
        assert!(found(all) == Some((30, states[3].clone())));
        let before = topic.find(29, &[]);
        assert_eq!(before.unusable, Some(Unusable::Ahead(30)));
        assert!(found(before) == Some((20, states[2].clone())));
        assert!(found(topic.find(19, &[])) == Some((10, Vec::new())), "an empty state is one, too");
    }

    /// Whatever is lost of it, nothing is found but a snapshot that was written.
    #[test]
    fn what_is_not_whole_is_not_found() {
        let (mut topic, old, new) = (Topic::new(), state(1, 2 * CHUNK_BYTES), state(2, 3 * CHUNK_BYTES - 7));
        topic.write(5, &old, VERSION, SOURCE);
        topic.write(9, &new, VERSION, SOURCE);
        assert_eq!(topic.records.len(), 5);
        for lost in 0u32..32 {
            let lost: Vec<_> = (0..5).filter(|i| lost & (1 << i) != 0).collect();
            let expected = match (lost.iter().any(|i| *i >= 2), lost.iter().any(|i| *i < 2)) {
                (false, _) => Some((9, &new)),
                (true, false) => Some((5, &old)),
                (true, true) => None,
            };
            assert!(found(topic.find(1000, &lost)) == expected.map(|(at, s)| (at, s.clone())), "without {lost:?}");
        }
        assert_eq!(topic.find(1000, &[4]).unusable, Some(Unusable::Torn));
    }

    #[test]
    fn what_is_anothers_is_not_found() {
        for (version, source, why) in
            [("v2", SOURCE, Unusable::OtherVersion), (VERSION, "id before", Unusable::OtherSource)]
        {
            let mut topic = Topic::new();
            topic.write(5, b"state", version, source);
            let nothing = topic.find(1000, &[]);
            assert_eq!((nothing.chunks, nothing.unusable.clone()), (1, Some(why)));
            assert!(found(nothing).is_none());
        }
        let mut topic = Topic::new();
        topic.write(5, b"state", VERSION, SOURCE);
        for (group, of) in [("g2", at(9)), ("g", Position { partition: 22, ..at(9) })] {
            let mut finder = finder(group, &of);
            topic.records.iter().for_each(|record| finder.take(&record));
            assert!(found(finder.finish()).is_none(), "{group} {of:?}");
        }
    }

    #[test]
    fn bytes_that_changed_are_not_believed() {
        let (mut topic, state) = (Topic::new(), state(1, 1000));
        topic.write(5, &state, VERSION, SOURCE);
        let good = topic.records.get(0);
        for (value, headers, why) in [
            (&state[..999], good.headers, Unusable::Damaged),
            (&[&state[1..], &state[..1]].concat()[..], good.headers, Unusable::Damaged),
            (&state[..], Headers::default(), Unusable::NoHeaders),
        ] {
            let mut finder = finder("g", &at(9));
            finder.take(&RecordRef { value: Some(value), headers, ..good });
            let nothing = finder.finish();
            assert_eq!(nothing.unusable, Some(why));
            assert!(found(nothing).is_none());
        }
    }
}
