//! Reading ranges.

use std::sync::Arc;
use std::time::Duration;

use super::Embedded;
use super::cursor::{Cursor, read_in_turn};
use super::store::deadline;
use crate::{Error, Range, Read, Reader};

pub(super) struct EmbeddedReader {
    cursors: Vec<Cursor>,
    turn: usize,
    log: Arc<Embedded>,
}

impl EmbeddedReader {
    pub(super) fn new(log: Arc<Embedded>, ranges: Vec<Range>) -> Result<Self, Error> {
        let cursor = |range: Range| {
            let topic = log.store.topic(&range.topic)?;
            let partition = topic.partitions.get(range.partition as usize).ok_or_else(|| {
                let (topic, partition) = (&range.topic, range.partition);
                log.store.disk.refused("read", format!("topic {topic} has no partition {partition}"))
            })?;
            Ok(Cursor::new(partition.clone(), range.start, range.end))
        };
        let cursors = ranges.into_iter().map(cursor).collect::<Result<_, Error>>()?;
        Ok(Self { cursors, turn: 0, log })
    }
}

impl Reader for EmbeddedReader {
    fn next(&mut self, max_records: usize, timeout: Duration) -> Result<Read, Error> {
        let deadline = deadline(timeout);
        loop {
            let seen = self.log.store.publications();
            if let Some(batch) =
                read_in_turn(self.cursors.iter_mut(), &mut self.turn, &self.log.store.disk, max_records)?
            {
                return Ok(Read::Batch(batch));
            }
            if self.cursors.iter().all(Cursor::is_done) {
                return Ok(Read::End);
            }
            if !self.log.store.wait_for_more(seen, deadline) {
                return Ok(Read::Idle);
            }
        }
    }
}
