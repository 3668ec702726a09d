//! What the group decides, noted for the consumer that has yet to hear of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;

use super::clients::Diagnostics;

/// Notes what the group decides. Runs within [`BaseConsumer::poll`].
#[derive(Default)]
pub(super) struct Rebalances {
    pub(super) group: Mutex<Group>,
    /// Nobody polls any more.
    pub(super) closing: AtomicBool,
    pub(super) diagnostics: Diagnostics,
}

/// What the group has decided, and the caller does not know yet.
#[derive(Default)]
pub(super) struct Group {
    pub(super) revoked: Vec<(String, u32)>,
    /// Not assigned to the client before the caller says from where.
    pub(super) assigned: Option<Assigned>,
    /// An assignment was over before this instance heard of it.
    pub(super) overtaken: bool,
}

pub(super) struct Assigned {
    pub(super) partitions: Vec<(String, u32)>,
    /// This instance in the group as of this assignment.
    pub(super) member: Option<Arc<ConsumerGroupMetadata>>,
}

impl ClientContext for Rebalances {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.diagnostics.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.diagnostics.error(error, reason);
    }

    fn stats(&self, _: Statistics) {}

    fn stats_raw(&self, statistics: &[u8]) {
        self.diagnostics.stats_raw(statistics);
    }
}

impl ConsumerContext for Rebalances {
    fn rebalance(&self, client: &BaseConsumer<Self>, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions =
            list.elements().iter().map(|p| (p.topic().to_owned(), p.partition() as u32)).collect::<Vec<_>>();
        if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            return self.assign(client, partitions);
        }
        let mut group = self.group.lock();
        // If the caller has not heard of the assignment, it need not hear of its end.
        let heard = group.assigned.take().is_none() && !partitions.is_empty();
        if heard && !self.closing.load(Ordering::Acquire) {
            group.revoked.extend(partitions);
            return;
        }
        drop(group);
        if let Err(error) = client.unassign() {
            tracing::warn!(%error, "partitions were not released");
        }
    }
}

impl Rebalances {
    pub(super) fn assign(&self, client: &BaseConsumer<Self>, partitions: Vec<(String, u32)>) {
        if self.closing.load(Ordering::Acquire) {
            // No consumer is left to choose the offsets, and librdkafka does not close before it gets an answer.
            let _ = client.unassign();
            return;
        }
        let member = client.group_metadata().map(Arc::new);
        // After a long pause this assignment may be over, and the place in the group be that of the next one: with it,
        // the broker would accept positions of partitions that are no longer ours. librdkafka marks an assignment as
        // lost before it joins again; so one that is not marked now was not lost when we asked for the place.
        let mut group = self.group.lock();
        group.overtaken |= client.assignment_lost();
        group.assigned = Some(Assigned { partitions, member });
    }
}
