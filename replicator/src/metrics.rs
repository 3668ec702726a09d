//! What the replicator counts. Counters rise when copies are committed: what is rolled back, and copied again, counts
//! once.

use std::sync::atomic::AtomicU64;

use pipeline::Topic;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use service::Registrar;

/// Handles to the metrics of the replicator.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Those of the loop, over all topics.
    pub pipeline: pipeline::Metrics,
    /// Records copied.
    pub copied: Family<Topic, Counter>,
    /// Bytes of these: keys, values, headers.
    pub copied_bytes: Family<Topic, Counter>,
    /// Records in the source that are not in the target yet. On Kafka, markers of transactions among them count.
    pub lag_records: Family<Topic, Gauge>,
    /// The age of the oldest of them, by its timestamp; 0 if there is none.
    pub lag_seconds: Family<Topic, Seconds>,
    /// Until the source's retention removes the oldest of them, or what may come now; infinite without retention,
    /// and for an embedded source, whose retention waits for the replicator.
    pub expires_in_seconds: Family<Topic, Seconds>,
    /// Topics that stopped with an error.
    pub stopped_topics: Gauge,
}

/// A number of seconds.
pub type Seconds = Gauge<f64, AtomicU64>;

/// Those of one topic.
#[derive(Debug, Clone)]
pub(crate) struct TopicMetrics {
    pub(crate) copied: Counter,
    pub(crate) copied_bytes: Counter,
    pub(crate) lag_records: Gauge,
    pub(crate) lag_seconds: Seconds,
    pub(crate) expires_in_seconds: Seconds,
}

impl Metrics {
    /// Registers the metrics of the replicator as `carstream_replicator_…`.
    pub fn new(registry: &mut Registry) -> Self {
        let pipeline = pipeline::Metrics::new(registry, "replicator");
        let mut m = Registrar::new(registry, "replicator");
        Self {
            pipeline,
            copied: m.metric("copied_records", "Records copied"),
            copied_bytes: m.metric_in("copied", Unit::Bytes, "Records copied"),
            lag_records: m.metric("lag_records", "Records in the source and not in the target"),
            lag_seconds: m.metric_in("lag", Unit::Seconds, "Age of the oldest record not in the target"),
            expires_in_seconds: m.metric_in(
                "expires_in",
                Unit::Seconds,
                "Time until retention in the source starts to remove records that are not in the target",
            ),
            stopped_topics: m.metric("stopped_topics", "Topics stopped with an error"),
        }
    }

    pub(crate) fn topic(&self, topic: &str) -> TopicMetrics {
        let label = Topic::new(topic);
        // Until the first look, nothing is known to be in danger.
        self.expires_in_seconds.get_or_create(&label).set(f64::INFINITY);
        TopicMetrics {
            copied: self.copied.get_or_create_owned(&label),
            copied_bytes: self.copied_bytes.get_or_create_owned(&label),
            lag_records: self.lag_records.get_or_create_owned(&label),
            lag_seconds: self.lag_seconds.get_or_create_owned(&label),
            expires_in_seconds: self.expires_in_seconds.get_or_create_owned(&label),
        }
    }
}
