//! Where topics resume: the end of their last object in the lake, which the log must still hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use contract::Topic;
use event_log::{Error, Log, PartitionDescription, TopicDescription};
use lake::{Lake, ObjectName};
use service::{Readiness, Waiting, retry_until};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Asks the lake and the log, and waits for them. Blocking.
pub(crate) struct Positions {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) lake: Lake,
    pub(crate) runtime: Handle,
    pub(crate) readiness: Readiness,
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
        let next = self.ask(cancel, async || self.lake.next_offsets(topic).await);
        let next = next.with_context(|| format!("cannot determine where to resume {topic}"))?;
        for gap in next.iter().flat_map(|next| &next.gaps) {
            tracing::warn!(
                "{gap}: these rows were removed from the lake {}, and are not written again",
                self.lake.url()
            );
        }
        Ok(next.map(|next| next.offsets))
    }

    /// Where a partition resumes after another sink has written this object. `None`: cancelled meanwhile.
    pub(crate) fn after(&self, object: &ObjectName) -> anyhow::Result<Option<u64>> {
        let ObjectName { topic, partition, .. } = object;
        let next = self.ask(&self.give_up, async || self.lake.next_offset_after(object).await);
        match next.with_context(|| format!("cannot determine where to resume {topic}/{partition}"))? {
            // It was compacted.
            Some(None) => Ok(self.in_lake(topic, &self.give_up)?.and_then(|next| next.get(partition).copied())),
            next => Ok(next.flatten()),
        }
    }

    fn ask<T>(
        &self,
        cancel: &CancellationToken,
        question: impl AsyncFn() -> Result<T, lake::Error>,
    ) -> Result<Option<T>, lake::Error> {
        let waiting = Waiting::new(format!("the lake {}", self.lake.url())).with_readiness(&self.readiness);
        let ask = || {
            let asked = async {
                tokio::select! {
                    answer = question() => answer.map(Some),
                    () = self.give_up.cancelled() => Ok(None),
                }
            };
            self.runtime.block_on(asked)
        };
        Ok(at_least_once(cancel, waiting, lake::Error::is_retriable, ask)?.flatten())
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
        let (cause, remedy) = if offset < first {
            let command = format!("carstream resume sink --log {log} --lake {lake} --topic {topic} --accept-gap");
            (
                format!("retention removed offsets {offset} to {} before they were written", first - 1),
                format!("To continue without them, which is recorded: {command}, and start the sink again"),
            )
        } else {
            let cause = "the topic was created again, or this lake belongs to another log";
            (cause.to_owned(), format!("Choose another lake, or move the objects of {topic} out of this one"))
        };
        format!(
            "{topic}/{partition} resumes at offset {offset} in the lake {lake}, but {log} holds {first} to {next}: \
             {cause}. {remedy}"
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
