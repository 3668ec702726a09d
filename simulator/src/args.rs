//! The settings: which fleet, how it sends, what it writes.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use service::ServiceArgs;

use crate::car::{FleetSpec, MAX_CARS};

/// Monday, 2026-06-01, 06:00 in the fleet's time zone: the first commuters leave, the early shift has begun.
const START_TIME_MS: i64 = 1_780_290_000_000;

/// Enough for 16 hours of driving at the default interval.
const BUFFER_READINGS: usize = 2_000;

/// Enough to keep a car busy over a round trip of half a second at a speed-up of 1,000.
const IN_FLIGHT: usize = 16;

/// A fleet of cars that behave like cars: they make trips, meet tunnels and garages, break and are repaired, and send
/// what they measure over MQTT 3.1.1, QoS 1.
///
/// Car i of seed s is the same car in any process: the same VIN, driver, trips, faults and readings.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  simulator --cars 100 --mqtt localhost:1883                  a hundred cars, in real time, until Ctrl-C
  simulator --cars 500 --speedup 1200 --duration 60           twenty hours in a minute
  simulator --cars 15000 --first-car 15000 --ramp 30s         the second part of a larger fleet
  simulator --cars 50 --duration 1h --ledger l.csv --resume   what became of each reading; goes on after kill -9
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
    /// Everything random depends on this.
    #[arg(long, env = "CARSTREAM_SEED", default_value_t = 1)]
    pub seed: u64,
    /// How many cars.
    #[arg(long, env = "CARSTREAM_CARS", default_value_t = 100)]
    pub cars: u32,
    /// Number of the first car: several processes share a fleet.
    #[arg(long, default_value_t = 0)]
    pub first_car: u32,
    /// How long the cars send: wall-clock time, as 90, 90s, 15m, 20h or 2d. The readings span this times the speed-up of
    /// event time. Without it a run goes on until it is stopped.
    #[arg(long, value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// How many seconds of a car's life pass in a second of the clock.
    #[arg(long, default_value_t = 1.0)]
    pub speedup: f64,
    /// Between two readings of a driving car, in its own time; a parked car sends every tenth.
    #[arg(long, value_parser = parse_duration, default_value = "30s")]
    pub interval: Duration,
    /// Event time at the start, in ms since 1970. A constant by default, so that the same seed gives the same readings.
    #[arg(long, value_name = "MS", default_value_t = START_TIME_MS)]
    pub start_time: i64,
    /// Share of the readings that are taken while something is broken.
    #[arg(long, default_value_t = 0.005)]
    pub fault_share: f64,
    /// Share of the cars that send the newer schema, with the outside temperature.
    #[arg(long, default_value_t = 0.0)]
    pub newer_schema_share: f64,
    /// Share of the readings that are sent broken: malformed JSON, wrong types, values out of range, unknown fields,
    /// no text, another car's VIN, oversized.
    #[arg(long, default_value_t = 0.0)]
    pub broken_share: f64,
    /// Size of an oversized broken payload, at most 1048576.
    #[arg(long, default_value_t = 80_000, value_name = "BYTES")]
    pub broken_bytes: usize,
}

/// How the fleet sends.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// Which cars.
    #[command(flatten)]
    pub fleet: FleetArgs,
    /// The MQTT bridge, or any MQTT 3.1.1 server: HOST:PORT, or mqtts://HOST:PORT for TLS (1.2 and 1.3).
    #[arg(long, env = "CARSTREAM_MQTT", value_name = "[mqtts://]HOST:PORT", default_value = "localhost:1883")]
    pub mqtt: String,
    /// Who signs for the server, in PEM; TLS needs it.
    #[arg(long, env = "CARSTREAM_MQTT_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// The private key of an authority in --tls-ca. With it the simulator signs a certificate for each of its cars, as a
    /// factory would; without it cars have none. Where your CA keeps its key to itself, make one for simulated cars
    /// (carstream secrets), and name both in --tls-ca here and in the bridge's --tls-client-ca.
    #[arg(long, env = "CARSTREAM_MQTT_TLS_CA_KEY", value_name = "FILE")]
    pub tls_ca_key: Option<PathBuf>,
    /// Spread the first connects over this time.
    #[arg(long, value_parser = parse_duration, default_value = "1s")]
    pub ramp: Duration,
    /// Local addresses to connect from, taken in turn: each has about 28,000 ports. On Linux all of 127.0.0.0/8 is there.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub source_addresses: Vec<IpAddr>,
    /// Readings that a car keeps while it can't send; when it is full, the oldest is dropped and counted.
    #[arg(long, default_value_t = BUFFER_READINGS)]
    pub buffer: usize,
    /// Publishes of a car that may be unacknowledged at a time.
    #[arg(long, default_value_t = IN_FLIGHT)]
    pub in_flight: usize,
    /// At the end, wait this long for the last acknowledgements.
    #[arg(long, value_parser = parse_duration, default_value = "30s")]
    pub drain_timeout: Duration,
    /// Stay connected this long after the last acknowledgement, for alerts; a signal ends it.
    #[arg(long, value_parser = parse_duration, default_value = "0")]
    pub linger: Duration,
    /// Write what became of each reading, as CSV, and beside it FILE.run, which says of which fleet it is.
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// Go on where the ledger ends, whatever ended the run that wrote it, kill -9 included: the same cars, what is not
    /// settled is sent again, and event time goes on from the newest row to the end of the span. Starts a new ledger if
    /// there is none.
    #[arg(long, requires = "ledger")]
    pub resume: bool,
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
    /// NDJSON: payloads as they would be sent, a line each. Parquet: the columns of schemas/telemetry_raw.avsc.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Where to; NDJSON goes to standard output by default.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write the workshop's findings as NDJSON.
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

impl Default for FleetArgs {
    fn default() -> Self {
        Self {
            seed: 1,
            cars: 100,
            first_car: 0,
            duration: None,
            speedup: 1.0,
            interval: Duration::from_secs(30),
            start_time: START_TIME_MS,
            fault_share: 0.005,
            newer_schema_share: 0.0,
            broken_share: 0.0,
            broken_bytes: 80_000,
        }
    }
}

impl Default for RunArgs {
    fn default() -> Self {
        Self {
            fleet: FleetArgs::default(),
            mqtt: "localhost:1883".to_owned(),
            tls_ca: None,
            tls_ca_key: None,
            ramp: Duration::from_secs(1),
            source_addresses: Vec::new(),
            buffer: BUFFER_READINGS,
            in_flight: IN_FLIGHT,
            drain_timeout: Duration::from_secs(30),
            linger: Duration::ZERO,
            ledger: None,
            resume: false,
            service: ServiceArgs::default(),
        }
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
            start_ms: self.start_time,
            fault_share: self.fault_share,
            newer_schema_share: self.newer_schema_share,
        }
    }

    /// Event time at which the run ends; `None`: never.
    pub fn end_ms(&self) -> Option<i64> {
        self.duration.map(|duration| self.start_time + (duration.as_secs_f64() * self.speedup * 1_000.0) as i64)
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
        if !(self.speedup > 0.0 && self.speedup <= 1e6) {
            problems.push(format!("--speedup {}: must be above 0 and at most 1000000", self.speedup));
        }
        if self.interval.is_zero() {
            problems.push("--interval 0: must be above 0".to_owned());
        }
        // The range of event times in the schema: the years 2000 to 2100.
        if !(946_684_800_000..=4_102_444_800_000).contains(&self.start_time) {
            problems.push(format!("--start-time {}: must be within the years 2000 to 2099, in ms", self.start_time));
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
            problems.push(format!("--broken-bytes {}: at most 1048576", self.broken_bytes));
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
                "--mqtt {}: TLS needs --tls-ca FILE, the certificate of who signs for the server",
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
            problems.push("--resume needs --ledger: it says where to go on".to_owned());
        }
        problems
    }
}

/// Where the server is, as `--mqtt` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Server<'a> {
    pub(crate) host_and_port: &'a str,
    pub(crate) host: &'a str,
    pub(crate) tls: bool,
}

impl<'a> Server<'a> {
    /// Takes HOST:PORT, mqtt://HOST:PORT or mqtts://HOST:PORT. The error says what is wrong.
    pub(crate) fn parse(mqtt: &'a str) -> Result<Self, String> {
        let (scheme, host_and_port) = mqtt.split_once("://").unwrap_or(("mqtt", mqtt));
        let host = host_and_port.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map(|(host, _)| host);
        match (scheme, host) {
            ("mqtt" | "mqtts", Some(host)) if !host.is_empty() => {
                Ok(Self { host_and_port, host, tls: scheme == "mqtts" })
            }
            _ => Err(format!("--mqtt {mqtt:?}: must be HOST:PORT, or mqtts://HOST:PORT for TLS")),
        }
    }
}

/// `90`, `90s`, `1.5m`, `20h`, `2d`, `250ms`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit_s = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(format!("{unit:?} is no unit; use ms, s, m, h or d")),
    };
    let number: f64 = number.trim().parse().map_err(|_| format!("{number:?} is no number"))?;
    Duration::try_from_secs_f64(number * unit_s).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::{CommandFactory, Parser};

    #[test]
    fn durations() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("20h"), Ok(Duration::from_secs(72_000)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(parse_duration("3 weeks").is_err() && parse_duration("-1").is_err() && parse_duration("").is_err());
    }

    #[test]
    fn the_command_line_holds_together_and_its_defaults_are_those_of_the_code() {
        Args::command().debug_assert();
        let parsed = Args::parse_from(["simulator"]).run;
        assert_eq!(format!("{parsed:?}"), format!("{:?}", RunArgs::default()));
        let Some(Command::Generate(parsed)) = Args::parse_from(["simulator", "generate"]).command else { panic!() };
        assert_eq!(format!("{parsed:?}"), format!("{:?}", GenerateArgs::default()));
        assert!(Args::parse_from(["simulator", "--cars", "5"]).command.is_none());
    }

    #[test]
    fn servers_with_and_without_tls() {
        let server = Server::parse("mqtts://[::1]:8883").unwrap();
        assert_eq!((server.host_and_port, server.host, server.tls), ("[::1]:8883", "[::1]", true));
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
