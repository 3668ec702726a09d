//! What the bridge counts. Labels are kinds and reasons, never a car.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use service::{Readiness, Registrar};

use crate::close::{Close, Refusal};

/// The handles of all metrics; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) connections: Gauge,
    pub(crate) connects: Family<Version, Counter>,
    pub(crate) connect_refusals: Family<Reason, Counter>,
    pub(crate) closes: Family<Reason, Counter>,
    pub(crate) publishes: Family<KindLabel, Counter>,
    pub(crate) publish_bytes: Counter,
    pub(crate) publish_refusals: Family<Reason, Counter>,
    pub(crate) pubacks: Counter,
    pub(crate) in_flight: Gauge,
    pub(crate) append_seconds: Histogram,
    pub(crate) paused: Gauge,
    pub(crate) takeovers: Counter,
    pub(crate) wills: Counter,
    pub(crate) alerts_read: Counter,
    pub(crate) alerts_delivered: Counter,
    pub(crate) alerts_dropped: Counter,
    pub(crate) handshakes: Gauge,
    pub(crate) certificate_expiry: Family<CertificateLabel, Gauge>,
    pub(crate) tls_reloads: Counter,
    pub(crate) tls_files_unusable: Gauge,
    /// What the bridge waits for before it listens.
    pub readiness: Readiness,
}

/// Whose certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CertificateLabel {
    pub(crate) certificate: &'static str,
}

/// Why.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Reason {
    pub(crate) reason: &'static str,
}

/// Which MQTT.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Version {
    pub(crate) version: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct KindLabel {
    pub(crate) kind: String,
}

/// From an embedded log's commit (about 1 ms) to a broker that is away for a minute.
const APPEND_BUCKETS_S: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 10.0, 60.0];

impl Metrics {
    /// Registers the metrics as `carstream_mqtt_bridge_…`.
    pub fn new(registry: &mut Registry) -> Self {
        let mut m = Registrar::new(registry, "mqtt_bridge");
        let metrics = Self {
            connections: m.metric("connections", "Open connections"),
            connects: m.metric("connects", "Clients accepted, by MQTT version"),
            connect_refusals: m.metric("connect_refusals", "Clients refused, by reason"),
            closes: m.metric("closes", "Connections that ended, by reason"),
            publishes: m.metric("publishes", "Messages appended to the log, by kind"),
            publish_bytes: m.metric_in("publish", Unit::Bytes, "Payload appended to the log"),
            publish_refusals: m.metric("publish_refusals", "Publishes refused, by reason"),
            pubacks: m.metric("pubacks", "Publishes acknowledged after the log had committed them"),
            in_flight: m.metric("in_flight", "Messages that wait for their commit"),
            append_seconds: m.existing_in(
                "append",
                Unit::Seconds,
                "From the arrival of a message to its commit; the oldest message of each batch of a connection",
                Histogram::new(APPEND_BUCKETS_S),
            ),
            paused: m.metric("paused", "Sockets that are not read because a bound is reached"),
            takeovers: m.metric("takeovers", "Clients that replaced one with the same identifier"),
            wills: m.metric("wills", "Wills appended to the log"),
            alerts_read: m.metric("alerts_read", "Alerts read from the log"),
            alerts_delivered: m
                .metric("alerts_delivered", "Alerts that reached their car: acknowledged (QoS 1) or sent (QoS 0)"),
            alerts_dropped: m.metric(
                "alerts_dropped",
                "Alerts dropped: queue full, too large for the client, or not acknowledged when the car left",
            ),
            handshakes: m.metric("tls_handshakes", "TLS handshakes in progress"),
            certificate_expiry: m.metric_in(
                "certificate_expiry_timestamp",
                Unit::Seconds,
                "When a certificate in use expires, since 1970: the bridge's own, and the first of the clients' \
             authorities",
            ),
            tls_reloads: m.metric("tls_reloads", "Reloads of changed TLS files"),
            tls_files_unusable: m.metric(
                "tls_files_unusable",
                "1 while changed TLS files cannot be used, and the previous ones stay in use",
            ),
            readiness: Readiness::default(),
        };
        metrics.show_zeros();
        metrics
    }

    /// Metrics exist before the first event, with value 0, so that an operator finds them.
    fn show_zeros(&self) {
        for version in ["3.1.1", "5"] {
            drop(self.connects.get_or_create(&Version { version }));
        }
        for close in [Close::Goodbye, Close::Lost, Close::KeepAlive, Close::PausedTooLong, Close::NotDurable] {
            drop(self.closes.get_or_create(&Reason { reason: close.label() }));
        }
        for close in [Close::TopicInvalid, Close::NotAuthorized] {
            drop(self.publish_refusals.get_or_create(&Reason { reason: close.label() }));
        }
        drop(self.connect_refusals.get_or_create(&Reason { reason: Refusal::Busy.label() }));
    }

    /// Publishes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.pubacks.get()
    }

    /// Open connections now.
    pub fn connections(&self) -> u64 {
        self.connections.get().try_into().unwrap_or(0)
    }

    /// Messages that the log has not decided on, now.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.get().try_into().unwrap_or(0)
    }

    /// Alerts that reached their cars so far.
    pub fn alerts_delivered(&self) -> u64 {
        self.alerts_delivered.get()
    }

    pub(crate) fn refused_connect(&self, reason: &'static str) {
        self.connect_refusals.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn refused_publish(&self, reason: &'static str) {
        self.publish_refusals.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn closed(&self, reason: &'static str) {
        self.closes.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn connected(&self, version: &'static str) {
        self.connects.get_or_create(&Version { version }).inc();
    }
}
