//! The settings of the bridge.

use std::fmt;
use std::net::{AddrParseError, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use event_log::LogArgs;
use service::{ConfigError, ContractArgs, ServiceArgs};

use crate::input::READ_BYTES;

/// Takes cars' MQTT messages (3.1.1 and 5) into the log.
///
/// A car publishes to vehicles/{vin}/LEVEL with QoS 0 or 1: telemetry, faults, drivers, status, and what else the
/// site's contract has. A QoS 1 publish is
/// acknowledged when the log has committed it, never before. A car subscribed to vehicles/{vin}/alerts is sent its
/// alerts. Try it with: mosquitto_pub -q 1 -t vehicles/WVWZZZ1JZXW000001/telemetry -m '{}'
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "mqtt-bridge", version, after_help = TLS_HELP)]
pub struct Args {
    /// Logging and the admin port.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Where to listen for MQTT connections without TLS, for this machine and trusted networks; or none, which leaves
    /// --tls-listen.
    #[arg(long, env = "CARSTREAM_MQTT_LISTEN", value_name = "HOST:PORT|none", default_value_t)]
    pub listen: Listen,
    /// TLS.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Where the readings go.
    #[command(flatten)]
    pub log: LogArgs,
    /// What cars may publish, and into which topics.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// Which cars a client without a certificate may publish for.
    #[arg(long, env = "CARSTREAM_MQTT_CLIENT_ID", value_enum, default_value_t)]
    pub client_id: ClientIdRule,
    /// The file with the site's secret key for pseudonyms (at least 16 bytes); finds the car that an alert is for.
    #[arg(long, env = "CARSTREAM_PSEUDONYM_KEY_FILE", value_name = "FILE")]
    pub pseudonym_key_file: Option<PathBuf>,
    /// Send no alerts to cars, and need no key.
    #[arg(long, env = "CARSTREAM_MQTT_NO_ALERTS")]
    pub no_alerts: bool,
    /// The bounds.
    #[command(flatten)]
    pub limits: Limits,
}

const TLS_HELP: &str = "TLS with certificates of this site's own, made by `carstream secrets`:
  carstream secrets --dir secrets --server-name bridge.example --car WVWZZZ1JZXW000001
  mqtt-bridge --listen none --tls-listen 0.0.0.0:8883 --tls-cert secrets/mqtt-bridge.crt \\
      --tls-key secrets/mqtt-bridge.key --tls-client-ca secrets/ca.crt …
  mosquitto_pub -h bridge.example -p 8883 --cafile secrets/ca.crt --cert secrets/WVWZZZ1JZXW000001.crt \\
      --key secrets/WVWZZZ1JZXW000001.key -q 1 -t vehicles/WVWZZZ1JZXW000001/telemetry -m '{}'

TLS with a CA that the site has: let it sign a server certificate for the name that cars connect to, and for each car a
client certificate whose subject has one CN, the VIN. --tls-cert is the server's certificate with its intermediates,
--tls-client-ca the CA that signs for cars, and for nobody else: whoever has a certificate of it is the car it names.";

/// Where to listen, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// At this address.
    At(SocketAddr),
    /// Not at all.
    Nowhere,
}

impl Default for Listen {
    fn default() -> Self {
        Self::At((Ipv4Addr::LOCALHOST, 1883).into())
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Nowhere => f.write_str("none"),
        }
    }
}

impl FromStr for Listen {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" { Ok(Self::Nowhere) } else { text.parse().map(Self::At) }
    }
}

/// MQTT with TLS, on a port of its own.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct TlsArgs {
    /// Where to listen for MQTT connections with TLS (1.2 and 1.3), usually at port 8883. Every client needs a
    /// certificate of --tls-client-ca, and is the car whose VIN is the common name (CN) of its subject: it publishes and
    /// subscribes for this car only, whatever its client identifier.
    #[arg(long, env = "CARSTREAM_MQTT_TLS_LISTEN", value_name = "HOST:PORT")]
    pub tls_listen: Option<SocketAddr>,
    /// The bridge's certificate, and its intermediates, in PEM. It is read again when it changes, as are the next two:
    /// new connections get the new ones, and others stay.
    #[arg(long, env = "CARSTREAM_MQTT_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, in PEM.
    #[arg(long, env = "CARSTREAM_MQTT_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Who signs for cars: one certificate or more, in PEM. Two of them while one is being replaced.
    #[arg(long, env = "CARSTREAM_MQTT_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// How often to look whether these files have changed.
    #[arg(long, env = "CARSTREAM_MQTT_TLS_CHECK", value_name = "SECONDS", default_value = "5", value_parser = service::seconds)]
    pub tls_check: Duration,
}

impl Default for TlsArgs {
    fn default() -> Self {
        Self { tls_listen: None, tls_cert: None, tls_key: None, tls_client_ca: None, tls_check: Duration::from_secs(5) }
    }
}

impl TlsArgs {
    fn problems(&self, listen: Listen) -> Vec<String> {
        let files =
            [("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key), ("--tls-client-ca", &self.tls_client_ca)];
        let mut problems = Vec::new();
        for (name, file) in files {
            match (self.tls_listen, file) {
                (Some(_), None) => problems.push(format!(
                    "{name} FILE is missing: --tls-listen needs it (`carstream secrets --dir DIR` makes one)"
                )),
                (None, Some(_)) => problems.push(format!("{name} has no effect without --tls-listen HOST:PORT")),
                _ => {}
            }
        }
        if listen == Listen::Nowhere && self.tls_listen.is_none() {
            problems.push("--listen none leaves nothing to listen at without --tls-listen HOST:PORT".to_owned());
        }
        if self.tls_check.is_zero() {
            problems.push("--tls-check 0: must be above 0".to_owned());
        }
        problems
    }
}

impl Args {
    /// Settings with defaults for everything else. Without a key file no alerts are sent.
    pub fn new(listen: SocketAddr, log: LogArgs, pseudonym_key_file: Option<PathBuf>) -> Self {
        Self {
            service: ServiceArgs::default(),
            listen: Listen::At(listen),
            tls: TlsArgs::default(),
            log,
            contract: ContractArgs::default(),
            client_id: ClientIdRule::default(),
            no_alerts: pseudonym_key_file.is_none(),
            pseudonym_key_file,
            limits: Limits::default(),
        }
    }

    /// All that cannot work, together.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let mut problems = self.limits.problems();
        problems.extend(self.tls.problems(self.listen));
        if self.pseudonym_key_file.is_none() && !self.no_alerts {
            problems.push(
                "--pseudonym-key-file is missing: alerts can't find their cars without the key \
                 (or --no-alerts, to send none)"
                    .to_owned(),
            );
        }
        ConfigError::check(problems)
    }
}

impl AsRef<ServiceArgs> for Args {
    fn as_ref(&self) -> &ServiceArgs {
        &self.service
    }
}

/// Which cars a client may publish for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ClientIdRule {
    /// For any car, whatever its client identifier is: for trying things out, and for gateways in a trusted network.
    #[default]
    Any,
    /// Only for the car whose VIN is the client identifier: for fleets.
    Vin,
}

/// The bounds of the bridge, and what happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct Limits {
    /// Connections at a time, TLS handshakes included; more are answered "server busy". Each needs an open file
    /// (ulimit -n).
    #[arg(long, env = "CARSTREAM_MQTT_MAX_CONNECTIONS", value_name = "N", default_value_t = Limits::default().max_connections)]
    pub max_connections: usize,
    /// The largest MQTT packet; a client that sends a larger one is disconnected (MQTT 5: reason 0x95).
    #[arg(long, env = "CARSTREAM_MQTT_MAX_PACKET_BYTES", value_name = "BYTES", default_value_t = Limits::default().max_packet_bytes)]
    pub max_packet_bytes: u32,
    /// Unacknowledged publishes of one connection (MQTT 5's Receive Maximum); then its socket is not read.
    #[arg(long, env = "CARSTREAM_MQTT_MAX_IN_FLIGHT", value_name = "N", default_value_t = Limits::default().max_in_flight)]
    pub max_in_flight: u16,
    /// Bytes of unacknowledged publishes and incomplete packets of all connections; then no socket is read. Beside it
    /// each TLS connection may hold an incomplete record, of 18 KB at most (64 KB during its handshake).
    #[arg(long, env = "CARSTREAM_MQTT_MAX_UNACKNOWLEDGED_BYTES", value_name = "BYTES", default_value_t = Limits::default().max_unacknowledged_bytes)]
    pub max_unacknowledged_bytes: u32,
    /// Alerts that wait for one car; then the oldest one is dropped.
    #[arg(long, env = "CARSTREAM_MQTT_MAX_ALERTS", value_name = "N", default_value_t = Limits::default().max_alerts)]
    pub max_alerts: usize,
    /// Seconds from the TCP connection to the CONNECT packet, with the TLS handshake.
    #[arg(long, env = "CARSTREAM_MQTT_CONNECT_TIMEOUT_S", value_name = "S", default_value_t = Limits::default().connect_timeout_s)]
    pub connect_timeout_s: u16,
    /// The longest keep-alive; also of a client that wants none. One that is silent for 1.5 times as long is closed.
    #[arg(long, env = "CARSTREAM_MQTT_MAX_KEEP_ALIVE_S", value_name = "S", default_value_t = Limits::default().max_keep_alive_s)]
    pub max_keep_alive_s: u16,
    /// Seconds that a socket may go unread because a bound is reached; then the connection is closed.
    #[arg(long, env = "CARSTREAM_MQTT_MAX_PAUSE_S", value_name = "S", default_value_t = Limits::default().max_pause_s)]
    pub max_pause_s: u16,
    /// Seconds to wait for the log at shutdown, so that what was accepted is acknowledged.
    #[arg(long, env = "CARSTREAM_MQTT_DRAIN_TIMEOUT_S", value_name = "S", default_value_t = Limits::default().drain_timeout_s)]
    pub drain_timeout_s: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 20_000,
            max_packet_bytes: 256 * 1024,
            max_in_flight: 64,
            max_unacknowledged_bytes: 64 * 1024 * 1024,
            max_alerts: 16,
            connect_timeout_s: 10,
            max_keep_alive_s: 3_600,
            max_pause_s: 60,
            drain_timeout_s: 10,
        }
    }
}

/// MQTT's own limit: four length bytes of seven bits, and the header.
const MQTT_MAX_PACKET_BYTES: u32 = 268_435_455 + 5;

/// The smallest packets that readings fit in, with room.
const MIN_MAX_PACKET_BYTES: u32 = 1_024;

/// Slots are the upper half of a completion token.
const MAX_CONNECTIONS: usize = 10_000_000;

impl Limits {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut need = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        need(
            (1..=MAX_CONNECTIONS).contains(&self.max_connections),
            format!("--max-connections {} is not in 1 to {MAX_CONNECTIONS}", self.max_connections),
        );
        need(
            (MIN_MAX_PACKET_BYTES..=MQTT_MAX_PACKET_BYTES).contains(&self.max_packet_bytes),
            format!(
                "--max-packet-bytes {} is not in {MIN_MAX_PACKET_BYTES} to {MQTT_MAX_PACKET_BYTES}",
                self.max_packet_bytes
            ),
        );
        let least = u64::from(self.max_packet_bytes.max(READ_BYTES)) * 4;
        need(
            u64::from(self.max_unacknowledged_bytes) >= least,
            format!(
                "--max-unacknowledged-bytes {} has no room for four packets and reads: at least {least}",
                self.max_unacknowledged_bytes
            ),
        );
        for (name, value) in [
            ("--max-in-flight", self.max_in_flight),
            ("--connect-timeout-s", self.connect_timeout_s),
            ("--max-keep-alive-s", self.max_keep_alive_s),
            ("--max-pause-s", self.max_pause_s),
        ] {
            need(value > 0, format!("{name} must be at least 1"));
        }
        need(self.max_alerts > 0, "--max-alerts must be at least 1 (--no-alerts sends none)".to_owned());
        problems
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_defaults_work_but_for_the_key() {
        Args::command().debug_assert();
        let args = Args::try_parse_from(["mqtt-bridge", "--no-alerts"]).expect("valid");
        assert!(args.check().is_ok());
        assert_eq!((args.limits, args.tls, args.listen), (Limits::default(), TlsArgs::default(), Listen::default()));
    }

    #[test]
    fn tls_needs_its_files_and_somebody_has_to_listen() {
        let problems = |settings: &[&str]| {
            let args = [&["mqtt-bridge", "--no-alerts"], settings].concat();
            Args::try_parse_from(args).expect("valid for clap").check().err().map_or(0, |error| error.0.len())
        };
        let files = ["--tls-cert=c", "--tls-key=k", "--tls-client-ca=a"];
        assert_eq!(problems(&["--listen=none"]), 1);
        assert_eq!(problems(&["--tls-listen=[::]:8883"]), 3);
        assert_eq!(problems(&files), 3);
        assert_eq!(problems(&[&files[..], &["--tls-listen=[::]:8883", "--listen=none"]].concat()), 0);
    }

    #[test]
    fn bad_settings_are_reported_together() {
        let args = Args::try_parse_from([
            "mqtt-bridge",
            "--max-connections=0",
            "--max-packet-bytes=100000",
            "--max-unacknowledged-bytes=1000",
            "--max-in-flight=0",
        ])
        .expect("valid for clap");
        let problems = args.check().expect_err("four settings and the key").0;
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(problems.iter().any(|p| p.contains("--pseudonym-key-file")), "{problems:?}");
    }
}
