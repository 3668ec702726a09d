//! The settings: which fleet, how it sends, what it writes.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use service::{ContractArgs, DrainArgs, HostPort, ServiceArgs, settings, values};

use crate::car::{FleetSpec, MAX_CARS};
use crate::start::START_MS;

/// The most seconds of a car's life in one second of the clock.
pub const MAX_SPEEDUP: u32 = 1_000_000;

/// Enough for 16 hours of driving at the default interval.
const BUFFER_READINGS: usize = 2_000;

/// Enough to keep a car busy over a round trip of half a second at a speed-up of 1,000.
const IN_FLIGHT: usize = 16;

/// Simulate a fleet of cars: they make trips, meet tunnels and garages, break down and are repaired, and send their
/// measurements over MQTT 3.1.1, QoS 1.
///
/// Car i of seed s is the same car in any process: the same VIN, driver, trips, faults and readings.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    name = "simulator",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  simulator --cars 100 --mqtt localhost:1883                  a hundred cars, in real time, until Ctrl-C
  simulator --cars 500 --speedup 1200 --duration 60s          twenty hours in a minute, the last ones
  simulator --cars 15000 --first-car 15000 --ramp 30s         the second part of a larger fleet
  simulator --cars 50 --duration 1h --ledger l.csv --resume   what became of each reading; resumes after kill -9
  simulator --mqtt mqtts://localhost:8883 --tls-ca secrets/ca.crt --tls-ca-key secrets/ca.key
                                                              over TLS, each car with a certificate of its own
  simulator generate --cars 10 --duration 20h > readings.json the same cars, without a network

Exit codes: 0 everything was acknowledged, or the run was stopped by a signal; 1 the span is over and something was not
acknowledged within --drain-timeout, or the run failed; 64 bad settings; 130 a second signal."
)]
pub struct Args {
    /// What to do; without a command: run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The settings of a run without a command.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What the simulator does.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Drive the fleet and send over MQTT (the default).
    Run(RunArgs),
    /// Write the readings of the same cars as NDJSON or Parquet, without any network.
    Generate(GenerateArgs),
}

/// Which cars, and for how long. The same for `run` and `generate`, so that the same flags give the same readings.
#[derive(Debug, Clone, clap::Args)]
pub struct FleetArgs {
    /// Derive everything random from this.
    #[arg(long, env = "CARSTREAM_SIMULATOR_SEED", value_name = "SEED", default_value_t = 1)]
    pub seed: u64,
    /// Simulate this many cars.
    #[arg(long, env = "CARSTREAM_SIMULATOR_CARS", value_name = "CARS", default_value_t = 100)]
    pub cars: u32,
    /// Begin with the car of this number, where several processes share a fleet.
    #[arg(long, env = "CARSTREAM_SIMULATOR_FIRST_CAR", value_name = "CAR", default_value_t = 0)]
    pub first_car: u32,
    /// Send for this long, in wall-clock time; without it, until stopped.
    ///
    /// The readings span this times --speedup of event time.
    #[arg(long, env = "CARSTREAM_SIMULATOR_DURATION", value_name = "DURATION", value_parser = values::duration)]
    pub duration: Option<Duration>,
    /// Let this many seconds of a car's life pass in one second of the clock.
    #[arg(long, env = "CARSTREAM_SIMULATOR_SPEEDUP", value_name = "FACTOR", default_value_t = 1.0)]
    pub speedup: f64,
    /// Measure this often while a car drives, in its own time; a parked car sends every tenth reading.
    #[arg(long, env = "CARSTREAM_SIMULATOR_INTERVAL",
        value_name = "DURATION", default_value = "30s", value_parser = values::positive_duration)]
    pub interval: Duration,
    /// Begin at this event time: 2026-11-21T08:15:00Z, 2026-11-21, or an age such as 6h; also in ms since 1970.
    ///
    /// By default a Monday, 05:00 UTC, so that the same seed gives the same readings, apart from whole weeks: the last
    /// one from which the span ends in the past; for a fleet without an end that lives faster than the clock, one at
    /// least two weeks ago; for --resume, that of the ledger; for generate, 2026-06-01.
    #[arg(long, env = "CARSTREAM_SIMULATOR_START_TIME", value_name = "TIME", value_parser = start_time_ms)]
    pub start_time: Option<i64>,
    /// Take this share of the readings while something in the car is broken.
    #[arg(long, env = "CARSTREAM_SIMULATOR_FAULT_SHARE", value_name = "SHARE", default_value_t = 0.005)]
    pub fault_share: f64,
    /// Let this share of the cars send the newer schema, with the outside temperature.
    #[arg(long, env = "CARSTREAM_SIMULATOR_NEWER_SCHEMA_SHARE", value_name = "SHARE", default_value_t = 0.0)]
    pub newer_schema_share: f64,
    /// Send this share of the readings broken: malformed JSON, wrong types, values out of range, unknown fields, no
    /// text, another car's VIN, oversized.
    #[arg(long, env = "CARSTREAM_SIMULATOR_BROKEN_SHARE", value_name = "SHARE", default_value_t = 0.0)]
    pub broken_share: f64,
    /// Give an oversized broken payload this size, at most 1MiB.
    #[arg(long, env = "CARSTREAM_SIMULATOR_BROKEN_BYTES",
        value_name = "SIZE", default_value = "80KiB", value_parser = values::size::<usize>)]
    pub broken_bytes: usize,
}

/// How the fleet sends.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// Which cars.
    #[command(flatten)]
    pub fleet: FleetArgs,
    /// Send to this MQTT bridge, or any MQTT 3.1.1 server; mqtts:// means TLS (1.2 and 1.3).
    #[arg(long, env = "CARSTREAM_MQTT", value_name = "[mqtts://]HOST:PORT", default_value = "localhost:1883")]
    pub mqtt: String,
    /// Accept a server whose certificate is signed by an authority in this file, in PEM; TLS needs it.
    #[arg(long, env = "CARSTREAM_MQTT_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Sign a certificate for each car with this private key of an authority in --tls-ca; without it cars have none.
    ///
    /// Where your CA keeps its key to itself, make an authority for simulated cars (carstream secrets), and name both
    /// in --tls-ca here and in the bridge's --tls-client-ca.
    #[arg(long, env = "CARSTREAM_MQTT_TLS_CA_KEY", value_name = "FILE")]
    pub tls_ca_key: Option<PathBuf>,
    /// Spread the first connects over this time.
    #[arg(long, env = "CARSTREAM_SIMULATOR_RAMP",
        value_name = "DURATION", default_value = "1s", value_parser = values::duration)]
    pub ramp: Duration,
    /// Connect from this local address; may be repeated, and then they are taken in turn.
    ///
    /// Each has about 28,000 ports. Linux has all of 127.0.0.0/8.
    #[arg(long = "source-address", env = "CARSTREAM_SIMULATOR_SOURCE_ADDRESSES", value_name = "IP")]
    pub source_addresses: Vec<IpAddr>,
    /// Keep at most this many readings of a car that cannot send; drop and count the oldest one beyond.
    #[arg(long, env = "CARSTREAM_SIMULATOR_BUFFER", value_name = "READINGS", default_value_t = BUFFER_READINGS)]
    pub buffer: usize,
    /// Send at most this many unacknowledged publishes of a car at a time.
    #[arg(long, env = "CARSTREAM_SIMULATOR_IN_FLIGHT", value_name = "PUBLISHES", default_value_t = IN_FLIGHT)]
    pub in_flight: usize,
    /// Waits for the last acknowledgements.
    #[command(flatten)]
    pub drain: DrainArgs,
    /// Stay connected this long after the last acknowledgement, for alerts; a signal ends it.
    #[arg(long, env = "CARSTREAM_SIMULATOR_LINGER",
        value_name = "DURATION", default_value = "0s", value_parser = values::duration)]
    pub linger: Duration,
    /// Write the fate of each reading to this file, as CSV, and beside it FILE.run, which says of which fleet it is.
    #[arg(long, env = "CARSTREAM_SIMULATOR_LEDGER", value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// Continue the run that wrote --ledger, however it ended; begin a new run if the file does not exist.
    ///
    /// The same cars send again every reading without an acknowledgement in the ledger. Event time continues from the
    /// newest row to the end of --duration. Works also after kill -9.
    #[arg(long, env = "CARSTREAM_SIMULATOR_RESUME", requires = "ledger")]
    pub resume: bool,
    /// Streams of the site: cars send the sample readings of those that are not the simulator's own.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// Logging and metrics.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// What `generate` writes.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct GenerateArgs {
    /// Which cars.
    #[command(flatten)]
    pub fleet: FleetArgs,
    /// Write NDJSON, the payloads as they would be sent, or Parquet, the columns of schemas/telemetry_raw.avsc.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Write to this file; without it NDJSON goes to standard output.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write the workshop's findings to this file, as NDJSON.
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,
    /// Logging.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// How readings are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A JSON record a line.
    #[default]
    Ndjson,
    /// Apache Parquet.
    Parquet,
}

/// A time, or milliseconds since 1970.
fn start_time_ms(text: &str) -> Result<i64, String> {
    text.parse().or_else(|_| values::time_ms(text))
}

impl Default for FleetArgs {
    fn default() -> Self {
        settings::defaults(&[])
    }
}

impl Default for RunArgs {
    fn default() -> Self {
        settings::defaults(&[])
    }
}

impl AsRef<ServiceArgs> for Args {
    fn as_ref(&self) -> &ServiceArgs {
        match &self.command {
            Some(Command::Run(args)) => &args.service,
            Some(Command::Generate(args)) => &args.service,
            None => &self.run.service,
        }
    }
}

impl FleetArgs {
    /// What all cars of the fleet share.
    pub fn spec(&self) -> FleetSpec {
        FleetSpec {
            seed: self.seed,
            interval_ms: (self.interval.as_millis() as i64).max(1),
            start_ms: self.start_ms(),
            fault_share: self.fault_share,
            newer_schema_share: self.newer_schema_share,
        }
    }

    /// The earliest event time of the schema: 2000-01-01. The latest is in the year 2100.
    pub(crate) const EARLIEST_MS: i64 = 946_684_800_000;

    /// Event time at which the fleet begins.
    pub fn start_ms(&self) -> i64 {
        self.start_time.unwrap_or(START_MS)
    }

    /// Event time at which the run ends; `None`: never.
    pub fn end_ms(&self) -> Option<i64> {
        self.duration.map(|duration| self.start_ms() + (duration.as_secs_f64() * self.speedup * 1_000.0) as i64)
    }

    /// All that is wrong with the settings.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.cars == 0 {
            problems.push("--cars 0: a fleet has at least one car".to_owned());
        }
        if self.first_car.saturating_add(self.cars) > MAX_CARS {
            problems.push(format!("--first-car + --cars: a fleet has at most {MAX_CARS} cars"));
        }
        if !(self.speedup > 0.0 && self.speedup <= f64::from(MAX_SPEEDUP)) {
            problems.push(format!("--speedup {}: must be above 0 and at most {MAX_SPEEDUP}", self.speedup));
        }
        if !(Self::EARLIEST_MS..=4_102_444_800_000).contains(&self.start_ms()) {
            problems.push(format!("--start-time {}: must be within the years 2000 to 2099", self.start_ms()));
        }
        for (name, share) in [
            ("--fault-share", self.fault_share),
            ("--newer-schema-share", self.newer_schema_share),
            ("--broken-share", self.broken_share),
        ] {
            if !(0.0..=1.0).contains(&share) {
                problems.push(format!("{name} {share}: must be within 0 and 1"));
            }
        }
        if self.broken_bytes > 1 << 20 {
            problems.push("--broken-bytes: at most 1MiB".to_owned());
        }
        problems
    }
}

impl RunArgs {
    /// All that is wrong with the settings.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = self.fleet.problems();
        match Server::parse(&self.mqtt) {
            Ok(server) if server.tls && self.tls_ca.is_none() => problems.push(format!(
                "--mqtt {}: TLS needs --tls-ca FILE, the certificate of the authority that signed the server's",
                self.mqtt
            )),
            Ok(server) if !server.tls && (self.tls_ca.is_some() || self.tls_ca_key.is_some()) => problems.push(
                format!("--tls-ca and --tls-ca-key have no effect with --mqtt {}: TLS is mqtts://HOST:PORT", self.mqtt),
            ),
            Ok(_) => {}
            Err(problem) => problems.push(problem),
        }
        if self.in_flight == 0 || self.in_flight > 1_000 {
            problems.push(format!("--in-flight {}: must be within 1 and 1000", self.in_flight));
        }
        if self.buffer < self.in_flight {
            problems
                .push(format!("--buffer {}: must hold at least what is in flight ({})", self.buffer, self.in_flight));
        }
        if self.resume && self.ledger.is_none() {
            problems.push("--resume needs --ledger FILE: the ledger tells where to resume".to_owned());
        }
        problems
    }
}

/// Where the server is, as `--mqtt` says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) address: HostPort,
    pub(crate) tls: bool,
}

impl Server {
    /// Takes HOST:PORT, mqtt://HOST:PORT or mqtts://HOST:PORT. The error says what is wrong.
    pub(crate) fn parse(mqtt: &str) -> Result<Self, String> {
        let (scheme, address) = mqtt.split_once("://").unwrap_or(("mqtt", mqtt));
        let tls = match scheme {
            "mqtt" => false,
            "mqtts" => true,
            _ => return Err(format!("--mqtt {mqtt:?}: must be HOST:PORT, or mqtts://HOST:PORT for TLS")),
        };
        let address =
            address.parse().map_err(|_| format!("--mqtt {mqtt:?}: must be HOST:PORT, such as localhost:1883"))?;
        Ok(Self { address, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_command_line_holds_together_and_its_defaults_are_those_of_the_code() {
        Args::command().debug_assert();
        let parsed = Args::parse_from(["simulator"]).run;
        assert_eq!(format!("{parsed:?}"), format!("{:?}", RunArgs::default()));
        let Some(Command::Generate(parsed)) = Args::parse_from(["simulator", "generate"]).command else { panic!() };
        assert_eq!(format!("{parsed:?}"), format!("{:?}", GenerateArgs::default()));
        assert!(Args::parse_from(["simulator", "--cars", "5"]).command.is_none());
        assert_eq!(parsed.fleet.start_ms(), 1_780_290_000_000, "another one would be another fleet");
        let ms = Args::parse_from(["simulator", "--start-time", "1780290000001"]).run.fleet.start_time;
        assert_eq!(ms, Some(1_780_290_000_001));
    }

    #[test]
    fn servers_with_and_without_tls() {
        let server = Server::parse("mqtts://[::1]:8883").unwrap();
        assert_eq!((server.address.as_pair(), server.tls), (("::1", 8883), true));
        assert!(!Server::parse("mqtt://bridge:1883").unwrap().tls);
        assert_eq!(Server::parse("bridge:1883"), Server::parse("mqtt://bridge:1883"));
        for wrong in ["bridge", ":1883", "https://bridge:1883", "mqtts://bridge", "mqtts://:8883", "bridge:99999"] {
            assert!(Server::parse(wrong).is_err(), "{wrong}");
        }
        let mut args = RunArgs { mqtt: "mqtts://bridge:8883".to_owned(), ..RunArgs::default() };
        assert_eq!(args.problems().len(), 1, "--tls-ca is missing");
        args.tls_ca = Some("ca.crt".into());
        assert!(args.problems().is_empty());
        args.mqtt = "bridge:1883".to_owned();
        assert_eq!(args.problems().len(), 1, "--tls-ca has no effect");
    }

    #[test]
    fn all_problems_are_told_together() {
        let mut args = RunArgs { mqtt: "nowhere".to_owned(), in_flight: 0, ..RunArgs::default() };
        args.fleet.cars = 0;
        args.fleet.fault_share = 2.0;
        assert_eq!(args.problems().len(), 4);
        assert!(RunArgs::default().problems().is_empty());
    }
}
