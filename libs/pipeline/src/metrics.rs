//! What the loop counts: commits, and what was committed. What is rolled back, and done again, counts once.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use service::{Histograms, Readiness, Registrar};

use crate::emit::Emitted;

/// From what one commit takes, to what a day without the log adds.
const LATENCY_BUCKETS_S: [f64; 17] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 43_200.0];

/// Handles to the metrics of one loop.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Records that were read and committed.
    pub records_in: Counter,
    /// Records that were written, dead letters included.
    pub records_out: Counter,
    /// Records set aside, by reason.
    pub dead_letters: Family<Reason, Counter>,
    /// Transactions committed.
    pub commits: Counter,
    /// Transactions rolled back.
    pub rollbacks: Counter,
    /// Times that the loop started over because the log did not answer.
    pub restarts: Counter,
    /// Partitions whose state was taken from a snapshot.
    pub restored: Counter,
    /// Records replayed to rebuild or to prepare state.
    pub replayed: Counter,
    /// Partitions whose state is not exact, since records that it should come from are gone.
    pub state_gaps: Counter,
    /// Records that are left of the partition whose successor is prepared.
    pub preparing_records: Gauge,
    /// Partitions whose state was replaced by one that was prepared beside it.
    pub states_replaced: Counter,
    /// Snapshots of state written.
    pub snapshots: Counter,
    /// Bytes of these.
    pub snapshot_bytes: Counter,
    /// How long one batch took to transform.
    pub transform_seconds: Histogram,
    /// How long one commit took.
    pub commit_seconds: Histogram,
    /// How long one snapshot took, with its commit.
    pub snapshot_seconds: Histogram,
    /// How long it took to rebuild the state of the partitions that were assigned together.
    pub rebuild_seconds: Histogram,
    /// From a record's timestamp to the commit of its outputs; the oldest record of each partition in a transaction.
    pub latency_seconds: Histograms<Topic>,
    /// Partitions that have stopped because their position is no longer in the log, by topic.
    pub stopped_partitions: Family<Topic, Gauge>,
    /// The name of the stage.
    pub(crate) stage: String,
    /// What the stage waits for.
    pub readiness: Readiness,
}

/// The topic that records were read from.
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

/// The reason of a dead letter: one of a fixed set of words.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// The word.
    pub reason: &'static str,
}

impl Metrics {
    /// Registers the metrics of the loop as `carstream_{stage}_…`.
    pub fn new(registry: &mut Registry, stage: &str) -> Self {
        let mut m = Registrar::new(registry, stage);
        let seconds = || Histogram::new(exponential_buckets(0.000_1, 2.0, 16));
        Self {
            records_in: m.metric("records_in", "Records read and committed"),
            records_out: m.metric("records_out", "Records written, dead letters included"),
            dead_letters: m.metric("dead_letters", "Records set aside, by reason"),
            commits: m.metric("commits", "Transactions committed"),
            rollbacks: m.metric("rollbacks", "Transactions rolled back"),
            restarts: m.metric("restarts", "Restarts from the last commit because the log did not answer"),
            restored: m.metric("restored", "Partitions whose state was taken from a snapshot"),
            replayed: m.metric("replayed", "Records replayed to rebuild or to prepare state"),
            state_gaps: m.metric(
                "state_gaps",
                "Partitions whose state is not exact: retention had removed records before they were replayed",
            ),
            preparing_records: m.metric(
                "preparing_records",
                "Records left of the partition for which another state is prepared; 0 while none is",
            ),
            states_replaced: m
                .metric("states_replaced", "Partitions whose state was replaced by one that was prepared beside it"),
            snapshots: m.metric("snapshots", "Snapshots of state written"),
            snapshot_bytes: m.metric("snapshot_bytes", "Bytes of snapshots written"),
            transform_seconds: m.existing("transform_seconds", "Time to transform a batch", seconds()),
            commit_seconds: m.existing("commit_seconds", "Time to commit a transaction", seconds()),
            snapshot_seconds: m.existing("snapshot_seconds", "Time to write a snapshot", seconds()),
            rebuild_seconds: m.existing(
                "rebuild_seconds",
                "Time to rebuild state",
                // Up to half a minute: without a snapshot all that is held is replayed.
                Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            ),
            latency_seconds: m.existing(
                "latency_seconds",
                "From a record's timestamp to the commit of its outputs; the oldest record of each partition and \
             transaction",
                Histograms::new_with_constructor(|| Histogram::new(LATENCY_BUCKETS_S)),
            ),
            stopped_partitions: m.metric(
                "stopped_partitions",
                "Partitions that have stopped because retention has removed records before they were processed",
            ),
            stage: stage.to_owned(),
            readiness: Readiness::default(),
        }
    }

    /// Shows the dead letters of these reasons before there are any.
    #[must_use]
    pub fn with_reasons(self, reasons: impl IntoIterator<Item = &'static str>) -> Self {
        for reason in reasons {
            drop(self.dead_letters.get_or_create(&Reason { reason }));
        }
        self
    }

    pub(crate) fn snapshot(&self, bytes: usize, took: Duration) {
        self.snapshots.inc();
        self.snapshot_bytes.inc_by(bytes as u64);
        self.snapshot_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn committed(&self, records: usize, emitted: &Emitted, took: Duration) {
        self.records_in.inc_by(records as u64);
        self.records_out.inc_by(emitted.outputs.len() as u64);
        self.commits.inc();
        self.commit_seconds.observe(took.as_secs_f64());
        for (reason, count) in &emitted.dead_letters {
            self.dead_letters.get_or_create(&Reason { reason }).inc_by(*count);
        }
        for (counter, by) in &emitted.counts {
            counter.inc_by(*by);
        }
        for (histogram, values) in &emitted.observations {
            values.iter().for_each(|value| histogram.observe(*value));
        }
    }

    /// Shows the latency and the stopped partitions of a topic before there is any: without a first value of 0,
    /// Prometheus sees no increase where all comes at once. The loop does it, too; a stage that waits before its loop
    /// does it at its start.
    pub fn begin(&self, topic: &str) {
        drop(self.latency_seconds.get_or_create(&Topic::new(topic)));
        drop(self.stopped_partitions.get_or_create(&Topic::new(topic)));
    }

    pub(crate) fn waited(&self, topic: &str, waited_ms: i64) {
        self.latency_seconds.get_or_create(&Topic::new(topic)).observe(waited_ms.max(0) as f64 / 1000.0);
    }
}
