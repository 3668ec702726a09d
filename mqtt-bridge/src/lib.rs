//! MQTT in, log out: cars' messages become records, and a PUBACK says that the log has committed.
//!
//! ```text
//!  car ── PUBLISH vehicles/{vin}/telemetry ──► connection ──► Appender ──► telemetry.raw   key = VIN, value = payload
//!      ◄─ PUBACK, in order, after the commit ─┘      ▲ ◄── completions ──┘ faults.raw       headers: received_ms,
//!                                                    │                     drivers                   mqtt_topic
//!      ◄─ PUBLISH vehicles/{vin}/alerts ─────────────┴──── follower ◄───── status.raw (wills too)
//!                                                                          alerts
//! ```
//!
//! The bridge terminates MQTT itself; there is no broker, and nothing is kept but what waits for the log. No commit, no
//! PUBACK: the car keeps the message and sends it again, so duplicates arise here, and the preprocessor removes them.
//! Payloads are neither read nor changed.
//!
//! What it deliberately does not do: QoS 2, retained messages, sessions that outlive a connection, subscriptions to
//! anything but a car's own alerts, and passwords: on the TLS port a car proves itself by its certificate, and the
//! other port is for trusted networks.
//!
//! At its bounds ([`Limits`]) it stops reading sockets, so that TCP pushes back to the cars. A QoS 0 message waits
//! there like any other; it is lost only with its connection.
//!
//! Where the standard leaves a choice (MQTT 3.1.1 has no refusing PUBACK, and a plain one would claim that the log has
//! the message, so the connection is closed):
//!
//! | what | MQTT 5 | MQTT 3.1.1 |
//! | --- | --- | --- |
//! | publish to a wrong topic, or for another car | PUBACK 0x90 or 0x87 in its turn (QoS 0: DISCONNECT) | close |
//! | QoS 2 | Maximum QoS 1 announced; DISCONNECT 0x9B | close |
//! | retain | not available announced; DISCONNECT 0x9A | the flag is ignored |
//! | too large a packet | Maximum Packet Size announced; DISCONNECT 0x95 | close |
//! | the log could not commit | DISCONNECT 0x80 | close |
//! | will delay | none: sessions end with the connection | – |
//! | the bridge stops | DISCONNECT 0x8B; wills are published | close; wills are published |

mod alerts;
mod args;
mod bridge;
mod clients;
mod close;
mod complaints;
mod connection;
mod input;
mod log_watch;
mod metrics;
mod session;
mod shared;
mod stamp;
mod tls;
mod topics;
mod transport;
mod window;
mod wire;

use tokio_util::sync::CancellationToken;

pub use args::{Args, ClientIdRule, Limits, Listen, TlsArgs};
pub use bridge::Bridge;
pub use metrics::Metrics;
pub use topics::is_vin;

/// What the binary runs: the bridge, and the admin port if one is asked for.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    service::stage(args, shutdown, Metrics::new, |metrics| &metrics.readiness, run_with).await
}

/// Runs the bridge until `shutdown`, and returns after a clean drain.
pub async fn run_with(args: Args, metrics: Metrics, shutdown: CancellationToken) -> anyhow::Result<()> {
    let bridge = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        bridge = Bridge::bind(args, metrics) => bridge?,
    };
    bridge.serve(shutdown).await
}
