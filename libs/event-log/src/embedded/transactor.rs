//! The committing half of a processor: outputs and positions in one write.

use std::sync::Arc;

use super::Embedded;
use super::block::MAX_RECORD_BYTES;
use super::block::pack_new;
use super::commit::Request;
use super::positions::key_of;
use crate::{Batch, Error, Membership, Outcome, Outputs, Position, ProcessorOptions, TopicPartition, Transactor};

pub(super) struct EmbeddedTransactor {
    group: Arc<str>,
    log: Arc<Embedded>,
}

impl EmbeddedTransactor {
    pub(super) fn new(log: Arc<Embedded>, options: &ProcessorOptions) -> Result<Self, Error> {
        let group = &options.group;
        if group.is_empty() || group.contains('\0') {
            return Err(log.store.disk.refused("join a group", format!("{group:?} is not a valid group name")));
        }
        Ok(Self { group: group.as_str().into(), log })
    }

    fn check_sizes(&self, batch: &Batch) -> Result<(), Error> {
        let (entries, _) = batch.columns();
        match entries.iter().map(|e| (e.headers_end - e.start) as usize).find(|bytes| *bytes > MAX_RECORD_BYTES) {
            None => Ok(()),
            Some(bytes) => Err(self.log.store.disk.too_large(batch.topic(), bytes)),
        }
    }
}

impl Transactor for EmbeddedTransactor {
    fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, Error> {
        let committed = |p: &TopicPartition| self.log.store.positions.committed(&self.group, &p.topic, [p.partition]);
        Ok(partitions.iter().flat_map(committed).collect())
    }

    /// A write is whole or it is not, and a failed one ends the log: there is no unknown outcome, so never
    /// [`Outcome::RolledBack`].
    fn commit(&mut self, outputs: &Outputs, positions: &[Position], _: &Membership) -> Result<Outcome, Error> {
        let store = &self.log.store;
        let mut packed = Vec::new();
        for batch in outputs.batches() {
            let topic = store.topic(batch.topic())?;
            let partition = topic.partitions.get(batch.partition() as usize).ok_or_else(|| {
                store.disk.refused("commit", format!("topic {} has no partition {}", topic.name, batch.partition()))
            })?;
            self.check_sizes(batch)?;
            packed.push((partition.clone(), pack_new(batch)));
        }
        let positions = positions.iter().map(|p| key_of(&self.group, p)).collect();
        store.commit(Request { outputs: packed, positions })?;
        Ok(Outcome::Committed)
    }
}
