//! What the preprocessor counts, by stream.
//!
//! Counters of records rise when their batch is committed: what is rolled back, and processed again, counts once.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use service::Registrar;

use crate::reason;

/// Handles to the preprocessor's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// The loops', all streams together.
    pub pipeline: pipeline::Metrics,
    /// How far each stream is behind.
    pub lag: pipeline::Lag,
    /// Records let through.
    pub clean: Family<Stream, Counter>,
    /// Records left out because they had been let through before.
    pub duplicates: Family<Stream, Counter>,
    /// Records left out by WHERE, or by an inner join.
    pub filtered: Family<Stream, Counter>,
    /// Cars that duplicates are looked for of.
    pub cars: Family<Stream, Gauge>,
    /// Cars that were forgotten: silent for long, or on request.
    pub cars_forgotten: Family<Stream, Counter>,
    /// Rows of reference tables.
    pub table_rows: Family<Table, Gauge>,
    /// Rows of reference tables that could not be used.
    pub bad_table_rows: Family<Table, Counter>,
}

/// A stream, by its name in the definitions.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Stream {
    /// The name.
    pub stream: String,
}

/// A reference table of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Table {
    /// The stream's name.
    pub stream: String,
    /// The table's name.
    pub table: String,
}

impl Metrics {
    /// Registers the metrics as `carstream_preprocessor_…`.
    pub fn new(registry: &mut Registry) -> Self {
        let reasons = telemetry::json::REASONS.into_iter().chain(reason::ALL);
        let pipeline = pipeline::Metrics::new(registry, "preprocessor").with_reasons(reasons);
        let lag = pipeline::Lag::new(registry, "preprocessor");
        let mut m = Registrar::new(registry, "preprocessor");
        Self {
            pipeline,
            lag,
            clean: m.metric("clean", "Records let through"),
            duplicates: m.metric("duplicates_removed", "Records that had been let through before"),
            filtered: m.metric("filtered", "Records filtered out by the SQL"),
            cars: m.metric("cars", "Cars tracked for duplicate detection"),
            cars_forgotten: m.metric("cars_forgotten", "Cars forgotten: silent for long, or on request"),
            table_rows: m.metric("table_rows", "Rows of reference tables"),
            bad_table_rows: m.metric("bad_table_rows", "Table rows that could not be used"),
        }
    }
}
