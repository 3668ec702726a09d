//! A reference table: a compacted topic, read up to its end before each transaction.

use std::sync::Arc;
use std::time::Duration;

use event_log::{Error, Log, Range, Read};

use crate::{POLL_MS, REPLAY_RECORDS, Transform};

pub(crate) struct Table {
    log: Arc<dyn Log>,
    topic: Arc<str>,
    /// The next offset of each partition.
    positions: Vec<u64>,
}

impl Table {
    pub(crate) fn new(log: Arc<dyn Log>, topic: Arc<str>) -> Self {
        Self { log, topic, positions: Vec::new() }
    }

    /// Feeds what has been added since the last call.
    pub(crate) fn read_to_end(&mut self, transform: &mut dyn Transform) -> anyhow::Result<()> {
        let partitions = self.log.describe(&self.topic)?.partitions;
        self.positions.resize(partitions.len(), 0);
        let ranges: Vec<_> = partitions
            .iter()
            .zip(&self.positions)
            .enumerate()
            .filter(|(_, (bounds, position))| bounds.next > **position)
            .map(|(partition, (bounds, position))| Range {
                topic: self.topic.clone(),
                partition: partition as u32,
                // Compaction may have removed the records between: the last row of each key is still to come.
                start: (*position).max(bounds.first),
                end: Some(bounds.next),
            })
            .collect();
        if ranges.is_empty() {
            return Ok(());
        }
        let mut reader = self.log.clone().reader(ranges)?;
        loop {
            match reader.next(REPLAY_RECORDS, Duration::from_millis(POLL_MS)) {
                Ok(Read::Batch(batch)) => transform.table(&batch)?,
                Ok(Read::Idle) => {}
                Ok(Read::End) => break,
                // Compaction went on meanwhile: the next transaction reads from the new beginning.
                Err(Error::OutOfRange { .. }) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        for (position, bounds) in self.positions.iter_mut().zip(&partitions) {
            *position = bounds.next;
        }
        Ok(())
    }
}
