//! How far a group has come in a topic, and whether any record is left.
//!
//! ```text
//!               first held   committed position        end
//!  partition   ─────┴────────────────┴──── … ── M ──────┴──►     lag: the offsets between position and end
//!                                          └ no record: a transaction marker, a rolled back or compacted record
//! ```
//!
//! Not every offset has a record, and no position passes the offsets behind the last one. So a lag need not come down
//! to 0: whether any record is left, only a read tells ([`is_drained`]).

use std::sync::Arc;
use std::time::Duration;

use crate::{Error, Log, PartitionDescription, Range, Read};

/// How long [`is_drained`] may take: on Kafka a reader connects first.
const LOOK: Duration = Duration::from_secs(2);

/// Where each partition of a topic ends now.
pub fn ends(log: &dyn Log, topic: &str) -> Result<Vec<u64>, Error> {
    Ok(log.describe(topic)?.partitions.iter().map(|bounds| bounds.next).collect())
}

/// All that these partitions hold.
pub fn held(topic: &str, partitions: &[PartitionDescription]) -> Vec<Range> {
    behind(topic, partitions, &[])
}

/// What these partitions hold behind the positions; all of a partition without one. Partitions of which that is nothing
/// have no range.
pub fn behind(topic: &str, partitions: &[PartitionDescription], positions: &[Option<u64>]) -> Vec<Range> {
    let topic: Arc<str> = topic.into();
    let range = |(partition, bounds): (usize, &PartitionDescription)| {
        let position = positions.get(partition).copied().flatten().unwrap_or(bounds.first);
        let (start, end) = (position.max(bounds.first), bounds.next);
        (start < end).then(|| Range { topic: topic.clone(), partition: partition as u32, start, end: Some(end) })
    };
    partitions.iter().enumerate().filter_map(range).collect()
}

/// How many offsets ranges with an end have together.
pub fn offsets(ranges: &[Range]) -> u64 {
    ranges.iter().filter_map(|range| Some(range.end?.saturating_sub(range.start))).sum()
}

/// The offsets of `topic` in `source` that `group` has not committed. Its positions are in `target`, the log of its
/// outputs.
pub fn lag(source: &dyn Log, target: &dyn Log, group: &str, topic: &str) -> Result<u64, Error> {
    // Positions first: records that come in between count as not committed.
    let positions = target.committed(group, topic)?;
    let partitions = source.describe(topic)?.partitions;
    Ok(offsets(&behind(topic, &partitions, &positions)))
}

/// What `group` has not committed of `topic` before `ends`.
pub fn left(source: &dyn Log, target: &dyn Log, group: &str, topic: &str, ends: &[u64]) -> Result<Vec<Range>, Error> {
    between(source, topic, &target.committed(group, topic)?, ends)
}

/// What `topic` holds between the positions and `ends`.
pub fn between(log: &dyn Log, topic: &str, positions: &[Option<u64>], ends: &[u64]) -> Result<Vec<Range>, Error> {
    let mut partitions = log.describe(topic)?.partitions;
    partitions.truncate(ends.len());
    for (bounds, end) in partitions.iter_mut().zip(ends) {
        bounds.next = bounds.next.min(*end);
    }
    Ok(behind(topic, &partitions, positions))
}

/// Whether these ranges hold no record. `false` also if that is not known yet, because the log was slow to answer or
/// retention was at work meanwhile: ask again.
pub fn is_drained(log: &Arc<dyn Log>, ranges: &[Range]) -> Result<bool, Error> {
    if ranges.is_empty() {
        return Ok(true);
    }
    match log.clone().reader(ranges.to_vec())?.next(1, LOOK) {
        Ok(Read::End) => Ok(true),
        Ok(Read::Batch(_) | Read::Idle) | Err(Error::OutOfRange { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_behind_positions_is_within_the_bounds() {
        let bounds = |first, next| PartitionDescription { first, next };
        let partitions = [bounds(0, 10), bounds(4, 9), bounds(4, 9), bounds(0, 0), bounds(0, 5), bounds(2, 3)];
        // No position, one before what is held, one within, nothing held, one beyond the end, none in the list.
        let positions = [None, Some(1), Some(8), None, Some(7)];
        let ranges = behind("t", &partitions, &positions);
        let found: Vec<_> = ranges.iter().map(|r| (r.partition, r.start, r.end)).collect();
        assert_eq!(found, [(0, 0, Some(10)), (1, 4, Some(9)), (2, 8, Some(9)), (5, 2, Some(3))]);
        assert_eq!(offsets(&ranges), 10 + 5 + 1 + 1);
        assert_eq!(offsets(&held("t", &partitions)), 10 + 5 + 5 + 5 + 1);
    }
}
