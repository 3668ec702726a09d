//! One reader's place in one partition.

use std::sync::Arc;

use super::block;
use super::disk::Disk;
use super::partition::Partition;
use crate::{Batch, Error};

/// A batch ends when its records pass this, however many records were asked for.
const MAX_BATCH_BYTES: usize = 16 << 20;

/// Reads a partition from a position on, up to an end if there is one.
pub(super) struct Cursor {
    pub(super) partition: Arc<Partition>,
    position: u64,
    end: Option<u64>,
    /// The block unpacked last, and its first record not given out yet.
    unpacked: Batch,
    index: usize,
    /// A position at which no block reaches over, so that the next one can be sought by it.
    boundary: Option<u64>,
}

impl Cursor {
    pub(super) fn new(partition: Arc<Partition>, position: u64, end: Option<u64>) -> Self {
        let unpacked = Batch::new(partition.topic.clone(), partition.index);
        Self { partition, position, end, unpacked, index: 0, boundary: None }
    }

    /// Goes on from `position`.
    pub(super) fn seek(&mut self, position: u64) {
        self.position = position;
        self.index = self.unpacked.len();
        self.boundary = None;
    }

    /// Whether the end has been reached.
    pub(super) fn is_done(&self) -> bool {
        self.end.is_some_and(|end| self.position >= end)
    }

    /// The next records, if there are any by now.
    pub(super) fn read(&mut self, disk: &Disk, max_records: usize) -> Result<Option<Batch>, Error> {
        if self.is_done() {
            return Ok(None);
        }
        let from = self.position;
        let next = self.partition.next();
        if from < self.partition.first() || from > next {
            return Err(self.partition.out_of_range(from));
        }
        let limit = self.end.map_or(next, |end| end.min(next));
        if from >= limit {
            return Ok(None);
        }
        let mut batch = Batch::new(self.partition.topic.clone(), self.partition.index);
        self.take(&mut batch, limit, max_records);
        if !is_full(&batch, max_records) && self.position < limit {
            self.read_blocks(disk, &mut batch, limit, max_records)?;
        }
        // Retention may have removed blocks while they were read; it moves the first offset before it does.
        if from < self.partition.first() {
            return Err(self.partition.out_of_range(from));
        }
        Ok(Some(batch).filter(|batch| !batch.is_empty()))
    }

    fn read_blocks(&mut self, disk: &Disk, batch: &mut Batch, limit: u64, max_records: usize) -> Result<(), Error> {
        let partition = self.partition.clone();
        let mut start = self.position;
        if self.boundary != Some(start)
            && let Some(before) = disk.place_before(&partition, start)?
        {
            // The block that holds the position begins at or before it.
            start = before.first;
        }
        for place in disk.places(&partition, start..limit) {
            let place = place?;
            let Some(bytes) = disk.block(&partition, &place)? else { continue };
            self.index = 0;
            if let Err(what) = block::unpack(place.first, &bytes, &mut self.unpacked) {
                self.unpacked.reset_columns();
                return Err(disk.corrupt(partition.location(place.first), what));
            }
            self.take(batch, limit, max_records);
            if is_full(batch, max_records) {
                return Ok(());
            }
        }
        // Nothing more below the limit: what is missing was compacted away.
        self.position = limit;
        self.boundary = Some(limit);
        Ok(())
    }

    /// Moves records from the unpacked block to `batch`, and the position behind them.
    fn take(&mut self, batch: &mut Batch, limit: u64, max_records: usize) {
        let (entries, _) = self.unpacked.columns();
        let rest = &entries[self.index.min(entries.len())..];
        let skipped = rest.partition_point(|e| e.offset < self.position);
        let below = rest.partition_point(|e| e.offset < limit);
        let from = self.index + skipped;
        let to = (self.index + below).min(from + max_records.saturating_sub(batch.len()));
        if from < to {
            batch.extend_from(&self.unpacked, from..to);
            self.position = self.unpacked.get(to - 1).offset + 1;
        }
        self.index = to.max(from);
        if self.index >= self.unpacked.len() {
            self.boundary = self.unpacked.next_offset();
        }
    }
}

fn is_full(batch: &Batch, max_records: usize) -> bool {
    batch.len() >= max_records || batch.bytes() >= MAX_BATCH_BYTES
}

/// Takes turns: the one after `last` that has records comes first, so that none is starved by its neighbours.
pub(super) fn read_in_turn<'c>(
    cursors: impl ExactSizeIterator<Item = &'c mut Cursor>,
    turn: &mut usize,
    disk: &Disk,
    max_records: usize,
) -> Result<Option<Batch>, Error> {
    let mut cursors: Vec<_> = cursors.collect();
    let len = cursors.len();
    for i in 0..len {
        let index = (*turn + i) % len;
        if let Some(batch) = cursors[index].read(disk, max_records.max(1))? {
            *turn = index + 1;
            return Ok(Some(batch));
        }
    }
    Ok(None)
}
