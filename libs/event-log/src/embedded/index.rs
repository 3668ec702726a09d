//! Where the blocks of a partition are.
//!
//! ```text
//! keyspace index        topic number (u32 BE) │ partition (u32 BE) │ first offset (u64 BE)
//!                         → block number (u64 LE) │ last - first offset (u32 LE) │ appended (i64 LE, ms of log time)
//! keyspace blocks/KIND  block number (u64 BE) → block
//! ```
//!
//! Block numbers only grow, over all partitions: a keyspace of blocks is written from front to back, so that its tables
//! never overlap and are never merged, and there are few of them, so that they are written in large pieces. Topics that
//! are kept equally long share one: when retention passes a table, it goes as a whole.

use std::ops::Range;

use fjall::{OwnedWriteBatch, UserValue};

use super::block::Block;
use super::disk::Disk;
use super::partition::Partition;
use crate::Error;

/// Where a block is, and what can be known without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The first offset that it holds, or held before compaction.
    pub(super) first: u64,
    /// The last offset.
    pub(super) last: u64,
    /// The block's number.
    pub(super) number: u64,
    /// When it was appended, in log time: see `time`.
    pub(super) appended_ms: i64,
}

impl Place {
    fn encode(&self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..12].copy_from_slice(&((self.last - self.first) as u32).to_le_bytes());
        bytes[12..].copy_from_slice(&self.appended_ms.to_le_bytes());
        bytes
    }

    fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let first = u64::from_be_bytes(*key.last_chunk::<8>()?);
        let (number, rest) = value.split_first_chunk::<8>()?;
        let (span, rest) = rest.split_first_chunk::<4>()?;
        let last = first.checked_add(u64::from(u32::from_le_bytes(*span)))?;
        let appended_ms = i64::from_le_bytes(rest.try_into().ok()?);
        Some(Self { first, last, number: u64::from_le_bytes(*number), appended_ms })
    }
}

impl Disk {
    /// Adds a block, or replaces the one with this number.
    pub(super) fn put_block(
        &self,
        batch: &mut OwnedWriteBatch,
        partition: &Partition,
        first: u64,
        number: u64,
        appended_ms: i64,
        block: Block,
    ) {
        let place = Place { first, last: first + block.span - 1, number, appended_ms };
        // The block before its place, so that whoever finds the place finds the block.
        batch.insert(&partition.blocks, number.to_be_bytes(), block.bytes);
        batch.insert(&self.index, partition.index_key(first), place.encode());
    }

    pub(super) fn remove_place(&self, batch: &mut OwnedWriteBatch, partition: &Partition, place: &Place) {
        batch.remove(&self.index, partition.index_key(place.first));
    }

    pub(super) fn remove_block(&self, batch: &mut OwnedWriteBatch, partition: &Partition, place: &Place) {
        self.remove_place(batch, partition, place);
        batch.remove(&partition.blocks, place.number.to_be_bytes());
    }

    /// The blocks that begin within `offsets`, in order.
    pub(super) fn places(
        &self,
        partition: &Partition,
        offsets: Range<u64>,
    ) -> impl Iterator<Item = Result<Place, Error>> {
        let keys = partition.index_key(offsets.start)..partition.index_key(offsets.end.max(offsets.start));
        self.index.range(keys).map(move |entry| self.place(partition, offsets.start, entry))
    }

    /// The last block that begins at or before `offset`.
    pub(super) fn place_before(&self, partition: &Partition, offset: u64) -> Result<Option<Place>, Error> {
        let keys = partition.index_key(0)..=partition.index_key(offset);
        self.index.range(keys).next_back().map(|entry| self.place(partition, offset, entry)).transpose()
    }

    fn place(&self, partition: &Partition, near: u64, entry: fjall::Guard) -> Result<Place, Error> {
        let (key, value) = entry.into_inner().map_err(|e| self.unreadable(partition.location(near), &e))?;
        Place::decode(&key, &value)
            .ok_or_else(|| self.corrupt(partition.location(near), "the position of a block cannot be read"))
    }

    /// The bytes of a block; none if retention or compaction has just removed it.
    pub(super) fn block(&self, partition: &Partition, place: &Place) -> Result<Option<UserValue>, Error> {
        let found = partition.blocks.get(place.number.to_be_bytes());
        let found = found.map_err(|e| self.unreadable(partition.location(place.first), &e))?;
        if found.is_none() && place.first >= partition.first() && !partition.compacted {
            return Err(self.corrupt(partition.location(place.first), "its block is missing"));
        }
        Ok(found)
    }
}
