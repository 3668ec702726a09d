//! What a fleet counts.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use service::Readiness;

/// Handles to the metrics of a fleet; cars add to them once a batch.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Cars with an accepted connection.
    pub cars_connected: Gauge<i64, AtomicI64>,
    /// Event time of the fleet, in seconds since 1970: where the run has got.
    pub event_time_seconds: Gauge<f64, AtomicU64>,
    /// Readings taken.
    pub readings: Counter,
    /// Readings sent for the first time.
    pub sent: Counter,
    /// Readings acknowledged.
    pub acknowledged: Counter,
    /// Readings dropped, because a car's buffer was full.
    pub dropped: Counter,
    /// Publishes repeated after a lost connection.
    pub repeated: Counter,
    /// Publishes that wait for their acknowledgement.
    pub in_flight: Gauge<i64, AtomicI64>,
    /// Readings and findings that cars hold, in flight or not yet sent.
    pub buffered: Gauge<i64, AtomicI64>,
    /// Connections that were accepted after the first of a car.
    pub reconnects: Counter,
    /// Alerts received.
    pub alerts: Counter,
    /// What the cars wait for.
    pub readiness: Readiness,
}

impl Metrics {
    /// Registers the metrics as `carstream_simulator_…`.
    pub fn new(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("carstream_simulator");
        let metrics = Self {
            cars_connected: Gauge::default(),
            event_time_seconds: Gauge::default(),
            readings: Counter::default(),
            sent: Counter::default(),
            acknowledged: Counter::default(),
            dropped: Counter::default(),
            repeated: Counter::default(),
            in_flight: Gauge::default(),
            buffered: Gauge::default(),
            reconnects: Counter::default(),
            alerts: Counter::default(),
            readiness: Readiness::default(),
        };
        registry.register("cars_connected", "Cars with an accepted connection", metrics.cars_connected.clone());
        let event_time = "Event time of the fleet, in seconds since 1970";
        registry.register("event_time_seconds", event_time, metrics.event_time_seconds.clone());
        registry.register("readings", "Readings taken", metrics.readings.clone());
        registry.register("readings_sent", "Readings sent for the first time", metrics.sent.clone());
        registry.register("readings_acknowledged", "Readings acknowledged", metrics.acknowledged.clone());
        registry.register("readings_dropped", "Readings dropped because a buffer was full", metrics.dropped.clone());
        registry.register("publishes_repeated", "Publishes repeated after a lost connection", metrics.repeated.clone());
        registry.register("publishes_in_flight", "Publishes without an acknowledgement yet", metrics.in_flight.clone());
        registry.register("readings_buffered", "Readings that cars hold", metrics.buffered.clone());
        registry.register("reconnects", "Connections after the first of a car", metrics.reconnects.clone());
        registry.register("alerts_received", "Alerts received", metrics.alerts.clone());
        metrics
    }
}
