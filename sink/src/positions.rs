//! Where topics resume: the end of their last object in the lake, which the log must still hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use contract::Topic;
use event_log::{Error, Log, PartitionDescription, TopicDescription};
use lake::Lake;
use service::{Readiness, Waiting, retry_until};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Asks the lake and the log, and waits for them. Blocking.
pub(crate) struct Positions {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) lake: Lake,
    pub(crate) runtime: Handle,
    pub(crate) readiness: Readiness,
    /// For one request to the lake.
    pub(crate) timeout: Duration,
    /// Ends a request to the lake at once.
    pub(crate) give_up: CancellationToken,
}

impl Positions {
    /// The next offset of each partition that the lake has objects of. `None`: cancelled meanwhile.
    pub(crate) fn in_lake(
        &self,
        topic: &str,
        cancel: &CancellationToken,
    ) -> anyhow::Result<Option<BTreeMap<u32, u64>>> {
        let waiting = Waiting::new(format!("the lake {}", self.lake.url())).with_readiness(&self.readiness);
        let timed_out = || lake::Error::TimedOut {
            operation: "list",
            lake: self.lake.url().to_string(),
            object: topic.to_owned(),
            after: self.timeout,
        };
        let ask = || {
            let listed = async {
                tokio::select! {
                    listed = tokio::time::timeout(self.timeout, self.lake.next_offsets(topic)) => listed.ok(),
                    () = self.give_up.cancelled() => None,
                }
            };
            self.runtime.block_on(listed).unwrap_or_else(|| Err(timed_out()))
        };
        let next = at_least_once(cancel, waiting, lake::Error::is_retriable, ask);
        next.with_context(|| format!("cannot determine where to resume {topic}"))
    }

    /// What the log holds of a topic, which is created if there is none. `None`: cancelled meanwhile.
    pub(crate) fn in_log(&self, topic: &Topic, cancel: &CancellationToken) -> Result<Option<TopicDescription>, Error> {
        let waiting =
            Waiting::new(format!("topic {} in {}", topic.name, self.log.url())).with_readiness(&self.readiness);
        let describe = || match self.log.describe(&topic.name) {
            Err(Error::UnknownTopic { .. }) => {
                self.log.ensure_topic(&topics::spec(topic))?;
                self.log.describe(&topic.name)
            }
            described => described,
        };
        at_least_once(cancel, waiting, Error::is_retriable, describe)
    }

    /// Why a partition cannot resume at `offset`, which the log does not hold, and the remedy.
    pub(crate) fn lost(&self, topic: &str, partition: u32, offset: u64, bounds: PartitionDescription) -> String {
        let (lake, log) = (self.lake.url(), self.log.url());
        let PartitionDescription { first, next } = bounds;
        let cause = if offset < first {
            format!("offsets {offset} to {first} were removed by retention before they were written")
        } else {
            "the topic was created again, or this lake belongs to another log".to_owned()
        };
        format!(
            "{topic}/{partition} resumes at offset {offset} in the lake {lake}, but {log} holds {first} to {next}: \
             {cause}. To start over, choose another lake, or move the objects of {topic} out of this one"
        )
    }
}

/// Like [`retry_until`], but tries once even after `cancel`: a sink that is stopped during its start still drains.
fn at_least_once<T, E: std::error::Error>(
    cancel: &CancellationToken,
    waiting: Waiting,
    is_retriable: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<Option<T>, E> {
    match attempt() {
        Err(error) if is_retriable(&error) => retry_until(cancel, waiting, is_retriable, attempt),
        result => result.map(Some),
    }
}
