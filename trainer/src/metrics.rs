//! What the trainer counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use service::{Readiness, Registrar};

/// Handles of the trainer's metrics.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Models trained.
    pub models: Counter,
    /// Readings of the ranges that models were trained on.
    pub rows: Counter,
    /// Readings found while the trainer waits for enough.
    pub rows_available: Gauge,
    /// How long the last training took, reading included.
    pub duration_seconds: Gauge<f64, AtomicU64>,
    /// Area under the ROC curve of the last model, on the test cars.
    pub auc: Gauge<f64, AtomicU64>,
    /// What the trainer waits for. Looking for enough readings is its work.
    pub readiness: Readiness,
}

impl Metrics {
    /// Registers the metrics as `carstream_trainer_…`.
    pub fn new(registry: &mut Registry) -> Self {
        let mut m = Registrar::new(registry, "trainer");
        Self {
            models: m.metric("models", "Models trained"),
            rows: m.metric("rows", "Readings in the ranges that models were trained on"),
            rows_available: m.metric("rows_available", "Readings found while waiting for enough"),
            duration_seconds: m
                .metric("last_training_duration_seconds", "Duration of the last training, including reading"),
            auc: m.metric("last_model_auc", "AUC of the last model on the test cars"),
            readiness: Readiness::default(),
        }
    }
}
