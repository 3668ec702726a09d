//! What the sink counts.

use std::sync::Arc;

use lake::Object;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use service::{Histograms, Readiness, Registrar};

/// From a small `--max-age` to what half a day without a store adds.
const LATENCY_BUCKETS_S: [f64; 13] =
    [0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 7200.0, 43_200.0];

/// Handles to the metrics of the sink.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Rows that are in the lake, by topic, counted as they are stored.
    pub rows: Family<Topic, Counter>,
    /// Objects stored.
    pub objects: Family<Topic, Counter>,
    /// Bytes of Parquet stored.
    pub stored_bytes: Family<Topic, Counter>,
    /// Records in the log that are not in the lake yet.
    pub lag_records: Family<Topic, Gauge>,
    /// Records set aside under `_undecodable/`.
    pub undecodable: Family<Topic, Counter>,
    /// Uploads that were tried again.
    pub retries: Counter,
    /// Objects that another sink stored first.
    pub conflicts: Counter,
    /// Bytes of records in memory.
    pub buffered_bytes: Gauge,
    /// Topics that stopped with an error.
    pub stopped_topics: Gauge,
    /// From a record's timestamp to its object in the store; the oldest record of each object.
    pub latency_seconds: Histograms<Topic>,
    /// What the sink waits for.
    pub readiness: Readiness,
}

/// One of the topics that the sink was asked to write.
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
    /// Registers the metrics of the sink as `carstream_sink_…`.
    pub fn new(registry: &mut Registry) -> Self {
        let mut m = Registrar::new(registry, "sink");
        Self {
            rows: m.metric("rows", "Rows stored"),
            objects: m.metric("objects", "Objects stored"),
            stored_bytes: m.metric_in("stored", Unit::Bytes, "Parquet stored"),
            lag_records: m.metric("lag_records", "Records in the log and not in the lake"),
            undecodable: m.metric("undecodable", "Records set aside"),
            retries: m.metric("retries", "Uploads retried"),
            conflicts: m.metric("conflicts", "Objects that another sink stored first"),
            buffered_bytes: m.metric_in("buffered", Unit::Bytes, "Records in memory"),
            stopped_topics: m.metric("stopped_topics", "Topics stopped with an error"),
            latency_seconds: m.existing(
                "latency_seconds",
                "From a record's timestamp to its object in the store; the oldest record of each object",
                Histograms::new_with_constructor(|| Histogram::new(LATENCY_BUCKETS_S)),
            ),
            readiness: Readiness::default(),
        }
    }

    /// How many rows of a topic were stored so far.
    pub fn rows(&self, topic: &str) -> u64 {
        self.rows.get_or_create(&Topic::new(topic)).get()
    }

    /// Shows the metrics of a topic before there is anything to count.
    pub(crate) fn begin(&self, topic: &str) {
        let topic = Topic::new(topic);
        for counters in [&self.rows, &self.objects, &self.stored_bytes, &self.undecodable] {
            drop(counters.get_or_create(&topic));
        }
        drop(self.latency_seconds.get_or_create(&topic));
    }

    pub(crate) fn stored(&self, topic: &Arc<str>, object: &Object, undecodable: usize, waited_ms: i64) {
        let topic = Topic::new(topic);
        self.latency_seconds.get_or_create(&topic).observe(waited_ms.max(0) as f64 / 1000.0);
        self.rows.get_or_create(&topic).inc_by(object.footer.rows);
        self.objects.get_or_create(&topic).inc();
        self.stored_bytes.get_or_create(&topic).inc_by(object.bytes.len() as u64);
        self.undecodable.get_or_create(&topic).inc_by(undecodable as u64);
    }
}
