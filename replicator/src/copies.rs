//! Where the copies of a source partition are in the target: by the headers that each copy carries.
//!
//! ```text
//! source   100 101  ·  103 104        · offsets without a record: Kafka's transaction markers, compaction
//!            │   │       │   │
//! target    70  71   ·  73  ·  75     in the same order: bisection finds the first copy at or after any offset
//! ```
//!
//! Between the copies there may be records of others: of another source, or of whoever else writes to the topic.

use std::sync::Arc;
use std::time::Duration;

use event_log::{Error, Log, Range, RecordRef, batches};

use crate::copy::{SOURCE_CLUSTER, SOURCE_OFFSET};

/// How long one reading may go without anything: on Kafka a reader connects first, and a broker may be restarting.
const READ_BUDGET: Duration = Duration::from_secs(30);
/// Records per read where all are wanted.
pub(crate) const READ_RECORDS: usize = 1000;
/// Records per read where the first copy is wanted, and as a rule the first record is one.
const FIRST_RECORDS: usize = 8;
/// The search for the last copy starts with this many offsets at the end, then widens.
const LAST_OFFSETS: u64 = 64;

/// One record in both logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CopyAt {
    pub(crate) source_offset: u64,
    pub(crate) target_offset: u64,
}

/// The copies of one partition, between two offsets of the target.
pub(crate) struct Copies<'l> {
    pub(crate) target: &'l Arc<dyn Log>,
    pub(crate) source_name: &'l str,
    pub(crate) topic: &'l Arc<str>,
    pub(crate) partition: u32,
    /// No copy is before this target offset.
    pub(crate) from: u64,
    /// The target offset to look up to.
    pub(crate) end: u64,
}

impl Copies<'_> {
    /// The first copy of a record whose source offset is `source_offset` or greater.
    pub(crate) fn of_source(&self, source_offset: u64) -> Result<Option<CopyAt>, Error> {
        let (mut low, mut high, mut found) = (self.from, self.end, None);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.first(middle, high)? {
                Some(copy) if copy.source_offset < source_offset => low = copy.target_offset + 1,
                Some(copy) => (high, found) = (middle, Some(copy)),
                None => high = middle,
            }
        }
        Ok(found)
    }

    /// The first copy at or behind this target offset.
    pub(crate) fn at_target(&self, target_offset: u64) -> Result<Option<CopyAt>, Error> {
        self.first(target_offset.max(self.from), self.end)
    }

    /// The last copy.
    pub(crate) fn last(&self) -> Result<Option<CopyAt>, Error> {
        let (mut high, mut width) = (self.end, LAST_OFFSETS);
        while high > self.from {
            let low = high.saturating_sub(width).max(self.from);
            let mut last = None;
            visit(self.target, self.range(low, high), READ_RECORDS, |record| {
                last = self.copy(record).or(last);
                None::<()>
            })?;
            if last.is_some() {
                return Ok(last);
            }
            (high, width) = (low, width.saturating_mul(4));
        }
        Ok(None)
    }

    fn first(&self, from: u64, to: u64) -> Result<Option<CopyAt>, Error> {
        visit(self.target, self.range(from, to), FIRST_RECORDS, |record| self.copy(record))
    }

    fn range(&self, start: u64, end: u64) -> Range {
        Range { topic: self.topic.clone(), partition: self.partition, start, end: Some(end) }
    }

    /// A record that was copied twice carries the headers twice: those of the last time count.
    fn copy(&self, record: &RecordRef<'_>) -> Option<CopyAt> {
        if record.headers.get(SOURCE_CLUSTER) != Some(self.source_name.as_bytes()) {
            return None;
        }
        let source_offset = std::str::from_utf8(record.headers.get(SOURCE_OFFSET)?).ok()?.parse().ok()?;
        Some(CopyAt { source_offset, target_offset: record.offset })
    }
}

/// Reads a range that ends, until `found` gives something.
pub(crate) fn visit<T>(
    log: &Arc<dyn Log>,
    range: Range,
    max_records: usize,
    mut found: impl FnMut(&RecordRef<'_>) -> Option<T>,
) -> Result<Option<T>, Error> {
    if range.end.is_some_and(|end| end <= range.start) {
        return Ok(None);
    }
    for batch in batches(log, vec![range], max_records)?.patience(READ_BUDGET) {
        if let Some(found) = batch?.iter().find_map(|record| found(&record)) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
