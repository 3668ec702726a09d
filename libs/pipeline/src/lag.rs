//! How far a group is behind, looked at from beside the loop.
//!
//! The loop itself only reads records from its log: a slow answer here must not delay it. And the lag matters most when
//! the loop is stalled.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use event_log::{Error, Log, progress};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use service::{Periodic, Readiness, Registrar, Waiting};

use crate::metrics::Topic;

/// Twice in a scrape interval of ten seconds. On Kafka a look is about ten small requests.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The metric `carstream_{stage}_lag_records`, by topic.
///
/// It is the whole group's, and every instance tells the same: take the largest, not the sum. On Kafka the markers of
/// transactions count, so that it need not come down to 0 where a transactional producer writes.
#[derive(Debug, Clone)]
pub struct Lag(Family<Topic, Gauge>);

impl Lag {
    /// Registers it.
    pub fn new(registry: &mut Registry, stage: &str) -> Self {
        let help = "Records between the group's committed positions and the end of the topic";
        Self(Registrar::new(registry, stage).metric("lag_records", help))
    }

    /// Keeps it up to date until the watch is dropped. Topic and positions are of one log.
    ///
    /// A log that does not answer is also what `readiness` waits for: an idle loop would not notice.
    pub fn watch(
        &self,
        log: &Arc<dyn Log>,
        group: &str,
        topic: &Arc<str>,
        readiness: &Readiness,
    ) -> std::io::Result<Periodic> {
        let gauge = self.0.get_or_create_owned(&Topic::new(topic));
        let mut waiting = Waiting::new(format!("the log {}", log.url())).with_readiness(readiness);
        // The watch is not to keep open a log that nobody works on any more.
        let (log, group, topic) = (Arc::downgrade(log), group.to_owned(), topic.clone());
        Periodic::start("lag", LOOK_EVERY, move || {
            let Some(log) = log.upgrade() else { return ControlFlow::Break(()) };
            match progress::lag(log.as_ref(), log.as_ref(), &group, &topic) {
                Ok(lag) => {
                    waiting.resolved();
                    gauge.set(i64::try_from(lag).unwrap_or(i64::MAX));
                }
                // Not there yet: the loop waits for it.
                Err(Error::UnknownTopic { .. }) => {}
                Err(error) => waiting.note(&error),
            }
            ControlFlow::Continue(())
        })
    }
}
