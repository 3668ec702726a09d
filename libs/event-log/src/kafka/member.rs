//! A consumer's place in its group, as the transactor needs it.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerGroupMetadata};
use rdkafka::error::RDKafkaErrorCode;

use super::rebalances::Rebalances;

/// An answer to a heartbeat takes no longer, unless the broker is away.
const HEARTBEAT_ANSWER: Duration = Duration::from_secs(2);
/// How often to look whether the fatal error has come.
const FATAL_POLL: Duration = Duration::from_millis(20);

/// A consumer's place in its group, and the cluster that the group is on.
pub(crate) struct GroupMember {
    pub(super) cluster: String,
    pub(super) metadata: Arc<ConsumerGroupMetadata>,
    pub(super) client: Arc<BaseConsumer<Rebalances>>,
    pub(super) heartbeat: Duration,
}

impl GroupMember {
    /// Whether another process has taken this one's place in the group. Waits until the next heartbeat has told.
    pub(super) fn is_replaced(&self) -> bool {
        let deadline = Instant::now() + self.heartbeat + HEARTBEAT_ANSWER;
        while Instant::now() < deadline {
            if fatal_error(&self.client).is_some_and(|(code, _)| is_fencing(code)) {
                return true;
            }
            thread::sleep(FATAL_POLL);
        }
        false
    }
}

/// The error after which librdkafka does nothing more, if there was one.
pub(super) fn fatal_error(client: &BaseConsumer<Rebalances>) -> Option<(RDKafkaErrorCode, String)> {
    client.client().fatal_error()
}

/// Whether it says that another process has taken the place.
pub(super) fn is_fencing(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::FencedInstanceId | RDKafkaErrorCode::Fenced)
}
