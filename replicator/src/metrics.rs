//! What the replicator counts. Counters rise when copies are committed: what is rolled back, and copied again, counts
//! once.

use std::sync::atomic::AtomicU64;

use pipeline::Topic;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

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
    /// Until the source's retention removes the oldest of them, or what may come now; infinite without retention.
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
        let metrics = Self {
            pipeline: pipeline::Metrics::new(registry, "replicator"),
            copied: Family::default(),
            copied_bytes: Family::default(),
            lag_records: Family::default(),
            lag_seconds: Family::default(),
            expires_in_seconds: Family::default(),
            stopped_topics: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("carstream_replicator");
        registry.register("copied_records", "Records copied", metrics.copied.clone());
        registry.register_with_unit("copied", "Records copied", Unit::Bytes, metrics.copied_bytes.clone());
        registry.register("lag_records", "Records in the source and not in the target", metrics.lag_records.clone());
        let (lag, expires_in) = (metrics.lag_seconds.clone(), metrics.expires_in_seconds.clone());
        registry.register_with_unit("lag", "Age of the oldest record not in the target", Unit::Seconds, lag);
        let help = "Time until retention in the source starts to remove records that are not in the target";
        registry.register_with_unit("expires_in", help, Unit::Seconds, expires_in);
        registry.register("stopped_topics", "Topics stopped with an error", metrics.stopped_topics.clone());
        metrics
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
