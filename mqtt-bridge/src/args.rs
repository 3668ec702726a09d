//! The settings of the bridge.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use event_log::LogArgs;
use service::{ConfigError, ContractArgs, DrainArgs, HostPort, ServiceArgs, settings, values};

use crate::input::READ_BYTES;

/// Append cars' MQTT messages (3.1.1 and 5) to the log.
///
/// A car publishes to vehicles/{vin}/LEVEL with QoS 0 or 1: telemetry, faults, drivers, status, and what else the
/// site's contract has. A QoS 1 publish is acknowledged when the log has committed it, never before. A car that
/// subscribes to vehicles/{vin}/alerts receives its alerts. Try it with: mosquitto_pub -q 1 -t
/// vehicles/WVWZZZ1JZXW000001/telemetry -m '{}'
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "mqtt-bridge", version, after_help = TLS_HELP)]
pub struct Args {
    /// Accept MQTT without TLS at this address: for this machine and trusted networks; `none`: only with TLS.
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
    /// Let a client without a certificate publish for any car, or only for the VIN that is its client identifier.
    #[arg(long, env = "CARSTREAM_MQTT_CLIENT_ID", value_enum, default_value_t)]
    pub client_id: ClientIdRule,
    /// Read the site's secret key for pseudonyms from this file, at least 16 bytes; a site has one key.
    #[arg(long, env = "CARSTREAM_PSEUDONYM_KEY_FILE", value_name = "FILE")]
    pub pseudonym_key_file: Option<PathBuf>,
    /// Send no alerts to cars; then no key is needed.
    #[arg(long, env = "CARSTREAM_MQTT_NO_ALERTS")]
    pub no_alerts: bool,
    /// The bounds.
    #[command(flatten)]
    pub limits: Limits,
    /// Logging and the admin port.
    #[command(flatten)]
    pub service: ServiceArgs,
}

const TLS_HELP: &str = "TLS with certificates made by `carstream secrets`:
  carstream secrets --dir secrets --server-name bridge.example --car WVWZZZ1JZXW000001
  mqtt-bridge --listen none --tls-listen 0.0.0.0:8883 --tls-cert secrets/mqtt-bridge.crt \\
      --tls-key secrets/mqtt-bridge.key --tls-client-ca secrets/ca.crt …
  mosquitto_pub -h bridge.example -p 8883 --cafile secrets/ca.crt --cert secrets/WVWZZZ1JZXW000001.crt \\
      --key secrets/WVWZZZ1JZXW000001.key -q 1 -t vehicles/WVWZZZ1JZXW000001/telemetry -m '{}'

TLS with the site's own CA: let it sign a server certificate for the name that cars connect to, and for each car a
client certificate whose subject has one CN, the VIN. --tls-cert is the server's certificate with its intermediates,
--tls-client-ca the CA that signs for cars. It must sign for cars only: any certificate it signs is accepted as the car
it names.";

/// Where to listen, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// At this address.
    At(HostPort),
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
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" { Ok(Self::Nowhere) } else { text.parse().map(Self::At) }
    }
}

/// MQTT with TLS, on a port of its own.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct TlsArgs {
    /// Listen for MQTT with TLS (1.2 and 1.3) at this address, usually at port 8883.
    ///
    /// Clients must present a certificate signed by --tls-client-ca. The common name (CN) of its subject is the VIN
    /// that they may publish and subscribe for, whatever their client identifier.
    #[arg(long, env = "CARSTREAM_MQTT_TLS_LISTEN", value_name = "HOST:PORT")]
    pub tls_listen: Option<HostPort>,
    /// Present this certificate to clients, with its intermediates, in PEM.
    ///
    /// The file is read again when it changes, as are --tls-key and --tls-client-ca: new connections get the new ones,
    /// existing ones stay.
    #[arg(long, env = "CARSTREAM_MQTT_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Use this private key of --tls-cert, in PEM.
    #[arg(long, env = "CARSTREAM_MQTT_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Accept clients whose certificate is signed by one of the authorities in this file, in PEM.
    #[arg(long, env = "CARSTREAM_MQTT_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Check this often whether the files of the certificates have changed.
    #[arg(long, env = "CARSTREAM_MQTT_TLS_CHECK", value_name = "DURATION", default_value = "5s",
        value_parser = values::positive_duration)]
    pub tls_check: Duration,
}

impl Default for TlsArgs {
    fn default() -> Self {
        settings::defaults(&[])
    }
}

impl TlsArgs {
    fn problems(&self, listen: &Listen) -> Vec<String> {
        let files =
            [("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key), ("--tls-client-ca", &self.tls_client_ca)];
        let mut problems = Vec::new();
        for (name, file) in files {
            match (&self.tls_listen, file) {
                (Some(_), None) => problems.push(format!(
                    "{name} FILE is missing: --tls-listen needs it (`carstream secrets --dir DIR` makes one)"
                )),
                (None, Some(_)) => problems.push(format!("{name} has no effect without --tls-listen HOST:PORT")),
                _ => {}
            }
        }
        if *listen == Listen::Nowhere && self.tls_listen.is_none() {
            problems.push("--listen none needs --tls-listen HOST:PORT: without it no port is left".to_owned());
        }
        problems
    }
}

impl Args {
    /// Settings with defaults for everything else. Without a key file no alerts are sent.
    pub fn new(listen: SocketAddr, log: LogArgs, pseudonym_key_file: Option<PathBuf>) -> Self {
        Self {
            service: ServiceArgs::default(),
            listen: Listen::At(listen.into()),
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
        ConfigError::check(self.problems())
    }

    /// What of the settings cannot work.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = [self.log.problems(), self.limits.problems()].concat();
        problems.extend(self.tls.problems(&self.listen));
        if self.pseudonym_key_file.is_none() && !self.no_alerts {
            problems.push(
                "--pseudonym-key-file is missing: alerts can't find their cars without the key \
                 (or --no-alerts, to send none)"
                    .to_owned(),
            );
        }
        problems
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
    /// Serve at most this many connections at a time, TLS handshakes included; answer "server busy" to more.
    ///
    /// Each needs an open file (ulimit -n).
    #[arg(long, env = "CARSTREAM_MQTT_MAX_CONNECTIONS", value_name = "CONNECTIONS", default_value_t = 20_000)]
    pub max_connections: usize,
    /// Serve at most this many connections with the certificate of one car; answer "quota exceeded" to more.
    #[arg(long, env = "CARSTREAM_MQTT_MAX_CONNECTIONS_PER_CAR", value_name = "CONNECTIONS", default_value_t = 4)]
    pub max_connections_per_car: usize,
    /// Disconnect a client that sends a larger MQTT packet (MQTT 5: reason 0x95).
    #[arg(long, env = "CARSTREAM_MQTT_MAX_PACKET_BYTES", value_name = "SIZE", default_value = "256KiB",
        value_parser = values::size::<u32>)]
    pub max_packet_bytes: u32,
    /// Stop reading a connection at this many unacknowledged publishes (MQTT 5's Receive Maximum).
    #[arg(long, env = "CARSTREAM_MQTT_MAX_IN_FLIGHT", value_name = "PUBLISHES", default_value_t = 64)]
    pub max_in_flight: u16,
    /// Stop reading all connections at this size of unacknowledged publishes and incomplete packets.
    ///
    /// Incomplete packets may have half of it: past that, their connections are not read until others have ended, and
    /// closed after 5 s.
    ///
    /// Each TLS connection may hold an incomplete record besides, of at most 18 KB (64 KB during its handshake).
    #[arg(long, env = "CARSTREAM_MQTT_MAX_UNACKNOWLEDGED_BYTES", value_name = "SIZE",
        default_value = "64MiB", value_parser = values::size::<u32>)]
    pub max_unacknowledged_bytes: u32,
    /// Keep at most this many undelivered alerts of a car; drop the oldest one beyond.
    #[arg(long, env = "CARSTREAM_MQTT_MAX_ALERTS", value_name = "ALERTS", default_value_t = 16)]
    pub max_alerts: usize,
    /// Close a connection without a CONNECT packet after this time, TLS handshake included.
    #[arg(long, env = "CARSTREAM_MQTT_CONNECT_TIMEOUT", value_name = "DURATION", default_value = "10s",
        value_parser = values::positive_duration)]
    pub connect_timeout: Duration,
    /// Close a connection that has not sent a packet whole this long after its first byte.
    #[arg(long, env = "CARSTREAM_MQTT_PACKET_TIMEOUT", value_name = "DURATION", default_value = "30s",
        value_parser = values::positive_duration)]
    pub packet_timeout: Duration,
    /// Shorten a longer keep-alive, or none, to this; close a connection that is silent for 1.5 times its keep-alive.
    #[arg(long, env = "CARSTREAM_MQTT_MAX_KEEP_ALIVE", value_name = "DURATION", default_value = "1h",
        value_parser = values::duration)]
    pub max_keep_alive: Duration,
    /// Close a connection that has not been read for this long because a bound above was reached.
    #[arg(long, env = "CARSTREAM_MQTT_MAX_PAUSE", value_name = "DURATION", default_value = "60s",
        value_parser = values::positive_duration)]
    pub max_pause: Duration,
    /// The work of a stopping bridge: wait for the log, so that accepted messages are acknowledged.
    #[command(flatten)]
    pub drain: DrainArgs,
}

impl Default for Limits {
    fn default() -> Self {
        settings::defaults(&[])
    }
}

/// MQTT's own limit: four length bytes of seven bits, and the header.
const MQTT_MAX_PACKET_BYTES: u32 = 268_435_455 + 5;

/// The smallest packets that readings fit in, with room.
const MIN_MAX_PACKET_BYTES: u32 = 1_024;

/// Slots are the upper half of a completion token.
const MAX_CONNECTIONS: usize = 10_000_000;

impl Limits {
    /// The longest keep-alive as MQTT writes it: [`problems`](Self::problems) has checked that it can be.
    pub(crate) fn max_keep_alive_s(&self) -> u16 {
        u16::try_from(self.max_keep_alive.as_secs()).unwrap_or(u16::MAX)
    }

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
                "--max-packet-bytes {}B is not in {MIN_MAX_PACKET_BYTES}B to {MQTT_MAX_PACKET_BYTES}B",
                self.max_packet_bytes
            ),
        );
        let least = u64::from(self.max_packet_bytes.max(READ_BYTES)) * 4;
        need(
            u64::from(self.max_unacknowledged_bytes) >= least,
            format!(
                "--max-unacknowledged-bytes {}B has no room for four packets and reads: at least {least}B",
                self.max_unacknowledged_bytes
            ),
        );
        need(self.max_connections_per_car > 0, "--max-connections-per-car must be at least 1".to_owned());
        need(self.max_in_flight > 0, "--max-in-flight must be at least 1".to_owned());
        need(
            (1..=u64::from(u16::MAX)).contains(&self.max_keep_alive.as_secs())
                && self.max_keep_alive.subsec_nanos() == 0,
            format!("--max-keep-alive {:?} is not in 1s to 65535s, in whole seconds", self.max_keep_alive),
        );
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
            "--max-packet-bytes=100000B",
            "--max-unacknowledged-bytes=1000B",
            "--max-in-flight=0",
            "--max-keep-alive=1d",
        ])
        .expect("valid for clap");
        let problems = args.check().expect_err("five settings and the key").0;
        assert_eq!(problems.len(), 5, "{problems:?}");
        assert!(problems.iter().any(|p| p.contains("--pseudonym-key-file")), "{problems:?}");
    }
}
