//! The committed positions of groups, in memory and as stored.
//!
//! ```text
//! keyspace positions   group NUL topic NUL partition (u32 BE)  → next offset (u64 LE)
//! ```

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use fjall::OwnedWriteBatch;
use parking_lot::{RwLock, RwLockWriteGuard};

use super::disk::Disk;
use crate::{Error, Position};

/// Group, topic, partition.
pub(super) type PositionKey = (Arc<str>, Arc<str>, u32);

/// The positions that others may see.
pub(super) struct Positions(RwLock<HashMap<PositionKey, u64>>);

impl Positions {
    /// The positions that the database holds.
    pub(super) fn load(disk: &Disk) -> Result<Self, Error> {
        let mut positions = HashMap::new();
        for entry in disk.positions.iter() {
            let (key, value) = entry.into_inner().map_err(|e| disk.unopened(e))?;
            let parsed = parse_key(&key).zip(value.first_chunk::<8>().map(|o| u64::from_le_bytes(*o)));
            let (key, offset) =
                parsed.ok_or_else(|| disk.corrupt("a committed position".into(), "it cannot be read"))?;
            positions.insert(key, offset);
        }
        Ok(Self(positions.into()))
    }

    /// The committed positions of `group` in these partitions of `topic`.
    pub(super) fn committed(
        &self,
        group: &str,
        topic: &str,
        partitions: impl IntoIterator<Item = u32>,
    ) -> Vec<Option<u64>> {
        let (group, topic): (Arc<str>, Arc<str>) = (group.into(), topic.into());
        let positions = self.0.read();
        partitions.into_iter().map(|p| positions.get(&(group.clone(), topic.clone(), p)).copied()).collect()
    }

    /// The groups with a position in `topic`.
    pub(super) fn groups(&self, topic: &str) -> BTreeSet<Arc<str>> {
        let positions = self.0.read();
        positions.keys().filter(|(_, of, _)| &**of == topic).map(|(group, ..)| group.clone()).collect()
    }

    /// Adds the removal of all positions of `group` to what is about to be written. Returns whether there are any.
    pub(super) fn remove(&self, disk: &Disk, batch: &mut OwnedWriteBatch, group: &str) -> bool {
        let positions = self.0.read();
        let mut found = false;
        for key in positions.keys().filter(|(of, ..)| &**of == group) {
            batch.remove(&disk.positions, stored_key(key));
            found = true;
        }
        found
    }

    /// To show others what is durable.
    pub(super) fn write(&self) -> RwLockWriteGuard<'_, HashMap<PositionKey, u64>> {
        self.0.write()
    }
}

/// Adds a position to what is about to be written.
pub(super) fn put(disk: &Disk, batch: &mut OwnedWriteBatch, key: &PositionKey, offset: u64) {
    batch.insert(&disk.positions, stored_key(key), offset.to_le_bytes());
}

/// A position of `group` as the key under which it is kept.
pub(super) fn key_of(group: &Arc<str>, position: &Position) -> (PositionKey, u64) {
    ((group.clone(), position.topic.clone(), position.partition), position.offset)
}

/// Neither name has a NUL.
fn stored_key((group, topic, partition): &PositionKey) -> Vec<u8> {
    [group.as_bytes(), &[0], topic.as_bytes(), &[0], &partition.to_be_bytes()].concat()
}

fn parse_key(key: &[u8]) -> Option<PositionKey> {
    let (names, partition) = key.split_last_chunk::<4>()?;
    let names = std::str::from_utf8(names.strip_suffix(&[0])?).ok()?;
    let (group, topic) = names.split_once('\0')?;
    Some((group.into(), topic.into(), u32::from_be_bytes(*partition)))
}
