//! What the scorer counts, and which model it scores with.
//!
//! Counters and histograms rise when scores are committed: what is rolled back, and scored again, counts once. Gauges
//! tell how it stands now.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use service::Registrar;
use tokio::sync::watch;

const SECONDS_PER_DAY: f64 = 86_400.0;

/// Handles to the scorer's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// The loop's.
    pub pipeline: pipeline::Metrics,
    /// Readings scored.
    pub scored: Counter,
    /// Readings whose score was above the threshold.
    pub anomalous: Counter,
    /// Of these, readings that were not newer than the newest of their car.
    pub late: Counter,
    /// Alerts opened.
    pub alerts_opened: Counter,
    /// Alerts closed.
    pub alerts_closed: Counter,
    /// Cars of this instance's partitions with an open alert.
    pub open_alerts: Gauge,
    /// Cars of this instance's partitions.
    pub cars: Gauge,
    /// Cars that were forgotten: silent for long, or on request.
    pub cars_forgotten: Counter,
    /// Event time of the newest reading in the last batch, since the epoch: how far scoring has come.
    pub event_time_seconds: Gauge<f64, AtomicU64>,
    /// How far the group is behind.
    pub lag: pipeline::Lag,
    /// Announced models that were not taken.
    pub models_refused: Counter,
    /// Scores of readings that were judged, in thresholds: 1 is the threshold.
    pub score_ratio: Histogram,
    model_info: Family<ModelLabels, Gauge>,
    model_trained_until_seconds: Gauge<f64, AtomicU64>,
    model_wanted_false_alarms: Gauge<f64, AtomicU64>,
    in_force: Arc<watch::Sender<Option<ModelInForce>>>,
}

/// The model that readings are scored with.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInForce {
    /// Its version, as in each score.
    pub version: String,
    /// Its threshold.
    pub threshold: f32,
    /// Since when, in milliseconds since the epoch.
    pub since_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    version: String,
}

impl Metrics {
    /// Registers the metrics as `carstream_scorer_…`.
    pub fn new(registry: &mut Registry) -> Self {
        let pipeline = pipeline::Metrics::new(registry, "scorer").with_reasons(telemetry::avro::REASONS);
        let lag = pipeline::Lag::new(registry, "scorer");
        let mut m = Registrar::new(registry, "scorer");
        Self {
            pipeline,
            lag,
            scored: m.metric("scored", "Readings scored"),
            late: m.metric(
                "late",
                "Readings that were not newer than the newest of their car: judged, and not learnt from",
            ),
            anomalous: m.metric("anomalous", "Readings whose score was above the threshold"),
            alerts_opened: m.metric("alerts_opened", "Alerts opened"),
            alerts_closed: m.metric("alerts_closed", "Alerts closed"),
            open_alerts: m.metric("open_alerts", "Cars with an open alert"),
            cars: m.metric("cars", "Cars that have been scored"),
            cars_forgotten: m.metric("cars_forgotten", "Cars forgotten: silent for long, or on request"),
            event_time_seconds: m.metric("event_time_seconds", "Median event time of the last batch, since the epoch"),
            models_refused: m.metric("models_refused", "Announced models that were refused"),
            score_ratio: m.existing(
                "score_ratio",
                "Scores of judged readings, in multiples of the threshold",
                Histogram::new([0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 4.0, 8.0]),
            ),
            model_info: m.metric("model_info", "The model in force: 1"),
            model_trained_until_seconds: m.metric(
                "model_trained_until_seconds",
                "Event time of the newest reading that the model in force was trained on, since the epoch; 0 without a \
             model",
            ),
            model_wanted_false_alarms: m.metric(
                "model_wanted_false_alarms_per_car_second",
                "False alarms that the threshold of the model in force was set for, per second of a car's time",
            ),
            in_force: Arc::new(watch::Sender::new(None)),
        }
    }

    /// Which model is in force for all partitions of this instance, and since when; `None` before the first. While
    /// partitions change from one to another, it is the one before.
    pub fn model_in_force(&self) -> watch::Receiver<Option<ModelInForce>> {
        self.in_force.subscribe()
    }

    /// Shows this model, and logs it, unless it is shown already.
    pub(crate) fn set_model(&self, model: &model::Model) {
        let manifest = model.manifest();
        let is_it = |shown: &ModelInForce| shown.version == manifest.version && shown.threshold == manifest.threshold;
        if self.in_force.borrow().as_ref().is_some_and(is_it) {
            return;
        }
        tracing::info!("scoring with model {}, threshold {}", manifest.version, manifest.threshold);
        self.model_trained_until_seconds.set(manifest.training.event_time_ms[1] as f64 / 1000.0);
        self.model_wanted_false_alarms.set(manifest.metrics.wanted_alarms_per_car_day / SECONDS_PER_DAY);
        self.model_info.clear();
        self.model_info.get_or_create(&ModelLabels { version: manifest.version.clone() }).set(1);
        self.in_force.send_replace(Some(ModelInForce {
            version: manifest.version.clone(),
            threshold: manifest.threshold,
            since_ms: service::now_ms(),
        }));
    }
}
