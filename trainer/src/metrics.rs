//! What the trainer counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use service::Readiness;

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
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("carstream_trainer");
        registry.register("models", "Models trained", metrics.models.clone());
        registry.register("rows", "Readings in the ranges that models were trained on", metrics.rows.clone());
        registry.register("rows_available", "Readings found while waiting for enough", metrics.rows_available.clone());
        registry.register(
            "last_training_duration_seconds",
            "Duration of the last training, including reading",
            metrics.duration_seconds.clone(),
        );
        registry.register("last_model_auc", "AUC of the last model on the test cars", metrics.auc.clone());
        metrics
    }
}
