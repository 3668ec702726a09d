//! What a fleet counts.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use service::{Readiness, Registrar};

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
        let mut m = Registrar::new(registry, "simulator");
        Self {
            cars_connected: m.metric("cars_connected", "Cars with an accepted connection"),
            event_time_seconds: m.metric("event_time_seconds", "Event time of the fleet, in seconds since 1970"),
            readings: m.metric("readings", "Readings taken"),
            sent: m.metric("readings_sent", "Readings sent for the first time"),
            acknowledged: m.metric("readings_acknowledged", "Readings acknowledged"),
            dropped: m.metric("readings_dropped", "Readings dropped because a buffer was full"),
            repeated: m.metric("publishes_repeated", "Publishes repeated after a lost connection"),
            in_flight: m.metric("publishes_in_flight", "Publishes without an acknowledgement yet"),
            buffered: m.metric("readings_buffered", "Readings that cars hold"),
            reconnects: m.metric("reconnects", "Connections after the first of a car"),
            alerts: m.metric("alerts_received", "Alerts received"),
            readiness: Readiness::default(),
        }
    }
}
