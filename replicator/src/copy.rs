//! The transform: a record as it is, with headers that say where it comes from.

use std::sync::Arc;

use anyhow::bail;
use event_log::{Batch, Record, RecordRef};
use pipeline::{Emit, Transform};

use crate::metrics::TopicMetrics;

/// The header with the name of the log that a record was copied from. A record that was copied twice has it twice.
pub const SOURCE_CLUSTER: &str = "source.cluster";
/// The header with the topic that it was copied from.
pub const SOURCE_TOPIC: &str = "source.topic";
/// The header with the partition, in decimal.
pub const SOURCE_PARTITION: &str = "source.partition";
/// The header with the offset, in decimal.
pub const SOURCE_OFFSET: &str = "source.offset";

/// Copies one topic. Makes no dead letters: there is no record that cannot be copied, so it needs no topic for them.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) topic: Arc<str>,
    pub(crate) source_name: String,
    pub(crate) target_name: String,
    pub(crate) metrics: TopicMetrics,
}

impl Transform for Copy {
    fn apply(&mut self, batch: &Batch, emit: &mut Emit) -> anyhow::Result<()> {
        let partition = batch.partition().to_string();
        for record in batch.iter() {
            if self.came_from_target(&record) {
                bail!(
                    "{}/{partition} offset {} has already come from {:?}: replicators copy topic {} in a circle, which \
                     would never end. Copying stops here. Choose: (1) leave the topic out of --topic of one of them; \
                     (2) if these are two logs that only have the same name, give this cloud another --cloud-name, \
                     here and where it is the --site",
                    batch.topic(),
                    record.offset,
                    self.target_name,
                    batch.topic()
                );
            }
            let offset = record.offset.to_string();
            let provenance: [(&str, &[u8]); 4] = [
                (SOURCE_CLUSTER, self.source_name.as_bytes()),
                (SOURCE_TOPIC, batch.topic().as_bytes()),
                (SOURCE_PARTITION, partition.as_bytes()),
                (SOURCE_OFFSET, offset.as_bytes()),
            ];
            let headers: Vec<_> = record.headers.chain(provenance).collect();
            let (key, value, timestamp_ms) = (record.key, record.value, record.timestamp_ms);
            emit.send_to(&self.topic, batch.partition(), &Record { key, value, headers: &headers, timestamp_ms });
        }
        emit.count(&self.metrics.copied, batch.len() as u64);
        emit.count(&self.metrics.copied_bytes, batch.bytes() as u64);
        Ok(())
    }
}

impl Copy {
    fn came_from_target(&self, record: &RecordRef<'_>) -> bool {
        let mut headers = record.headers;
        headers.any(|(name, value)| name == SOURCE_CLUSTER && value == self.target_name.as_bytes())
    }
}
