//! What the replicator counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Handles to the metrics of the replicator.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Those of the loop, over all topics.
    pub pipeline: pipeline::Metrics,
    /// Bytes read to be copied; a transaction that is done again counts again.
    pub read_bytes: Family<Topic, Counter>,
    /// Records in the source that are not in the target yet.
    pub lag_records: Family<Topic, Gauge>,
    /// Topics that stopped with an error.
    pub stopped_topics: Gauge,
}

/// One of the topics that the replicator was asked to copy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Topic {
    /// Its name.
    pub topic: String,
}

impl Topic {
    /// The label of this topic.
    pub fn new(topic: &str) -> Self {
        Self { topic: topic.to_owned() }
    }
}

impl Metrics {
    /// Registers the metrics of the replicator as `carstream_replicator_…`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            pipeline: pipeline::Metrics::new(registry, "replicator"),
            read_bytes: Family::default(),
            lag_records: Family::default(),
            stopped_topics: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("carstream_replicator");
        registry.register_with_unit("read", "Records read to be copied", Unit::Bytes, metrics.read_bytes.clone());
        registry.register("lag_records", "Records in the source and not in the target", metrics.lag_records.clone());
        registry.register("stopped_topics", "Topics stopped with an error", metrics.stopped_topics.clone());
        metrics
    }
}
