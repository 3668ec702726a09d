//! Settings.

use std::str::FromStr;
use std::time::Duration;

use contract::ModelDefinition;
use event_log::{LogArgs, LogUrl};
use lake::{LakeArgs, LakeUrl, OffsetRange};
use schema_registry::SchemaRegistryArgs;
use service::{ConfigError, ContractArgs, ServiceArgs, settings, values};

/// The model that the scorer looks for.
pub const DEFAULT_NAME: &str = "telemetry-anomaly";

/// Learn from clean readings what healthy cars do, and write a model for the scorer.
///
/// Reads an exact range of the topics `telemetry` and `faults`, from the lake or from the log: the same range gives the
/// same rows, and the same seed then the same model, byte for byte. The workshop's findings (`faults`) are not learnt
/// from: they separate false alarms from true ones, and measure the model.
///
/// The model goes into the lake under models/NAME/VERSION, with its manifest, weights and plots, and is announced on
/// topic `models`, from which scorers take it.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    name = "trainer",
    version,
    after_help = "Examples:
  trainer --lake lake --log edge-log                       all that is there now
  trainer --from log --range telemetry/0:0-50000 --range faults/0:0-20 --seed 7
  trainer --min-rows 100000 --every 24h                    when there is enough, then daily"
)]
pub struct Args {
    /// What to do: there is one command.
    #[arg(value_enum, default_value_t, hide = true)]
    pub command: Command,

    /// Read the readings from here.
    #[arg(long, env = "CARSTREAM_TRAINER_FROM", value_enum, default_value_t)]
    pub from: Source,

    /// Train on this part of a partition, offsets START to END, END excluded; may be repeated.
    ///
    /// The topic is telemetry (readings) or faults (workshop findings). Without it: what both got within --window.
    #[arg(long = "range", value_name = "TOPIC/PARTITION:START-END")]
    pub ranges: Vec<Range>,

    /// Train on what was received within this time, by whole days in the lake; all for everything.
    #[arg(long, env = "CARSTREAM_TRAINER_WINDOW", value_name = "DURATION|all", default_value = "7d")]
    pub window: Window,

    /// Hold at most this many readings, about 250 bytes each; of a larger fleet, cars are drawn by --seed.
    // Enough for a threshold of 0.05 alarms per car and day, in the memory of a small container.
    #[arg(long, env = "CARSTREAM_TRAINER_MAX_READINGS", value_name = "READINGS", default_value_t = 2_000_000,
        value_parser = clap::value_parser!(u64).range(1..))]
    pub max_readings: u64,

    /// Give the model this name.
    #[arg(long, env = "CARSTREAM_TRAINER_NAME", value_name = "NAME", default_value = DEFAULT_NAME)]
    pub name: String,

    /// Derive everything random from this: the split of the cars, the first weights, the order of readings.
    #[arg(long, env = "CARSTREAM_TRAINER_SEED", value_name = "SEED", default_value_t = 1)]
    pub seed: u64,

    /// Pass over the readings this many times.
    #[arg(long, env = "CARSTREAM_TRAINER_EPOCHS", value_name = "EPOCHS", default_value_t = 12)]
    pub epochs: u32,

    /// Take this many readings per step.
    #[arg(long, env = "CARSTREAM_TRAINER_BATCH_SIZE", value_name = "READINGS", default_value_t = 512)]
    pub batch_size: u32,

    /// Begin with this learning rate, which falls along half a cosine.
    #[arg(long, env = "CARSTREAM_TRAINER_LEARNING_RATE", value_name = "RATE", default_value_t = 5e-3)]
    pub learning_rate: f64,

    /// Set the threshold so that there are this many false alarms per car and day.
    #[arg(long, env = "CARSTREAM_TRAINER_ALARMS_PER_CAR_DAY", value_name = "ALARMS", default_value_t = 0.05)]
    pub alarms_per_car_day: f64,

    /// Wait for at least this many readings.
    #[arg(long, env = "CARSTREAM_TRAINER_MIN_ROWS", value_name = "ROWS", default_value_t = 20_000)]
    pub min_rows: u64,

    /// Train the network on at most this many readings, a sample drawn by --seed.
    ///
    /// Scaling, threshold and metrics come from all readings that are held.
    #[arg(long, env = "CARSTREAM_TRAINER_SAMPLE_ROWS", value_name = "ROWS", default_value_t = 500_000)]
    pub sample_rows: usize,

    /// Train again after this time; without it, train once.
    #[arg(long, env = "CARSTREAM_TRAINER_EVERY", value_name = "DURATION", value_parser = values::positive_duration)]
    pub every: Option<Duration>,

    /// Do not announce the model on topic `models`; with --from lake, no log is needed then.
    #[arg(long, env = "CARSTREAM_TRAINER_NO_ANNOUNCE")]
    pub no_announce: bool,

    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,

    /// The log with the readings (--from log) and with the topic `models`.
    #[command(flatten)]
    pub log: LogArgs,

    /// Which topics readings, findings and announcements are.
    #[command(flatten)]
    pub contract: ContractArgs,

    /// The lake with the readings (--from lake), and for the model.
    #[command(flatten)]
    pub lake: LakeArgs,

    /// Where schema ids come from, with --from log.
    #[command(flatten)]
    pub schema_registry: SchemaRegistryArgs,

    /// Logging and metrics.
    #[command(flatten)]
    pub service: ServiceArgs,
}

impl AsRef<ServiceArgs> for Args {
    fn as_ref(&self) -> &ServiceArgs {
        &self.service
    }
}

/// What the trainer does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Command {
    /// Train a model.
    #[default]
    Train,
}

/// Where readings come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Source {
    /// Parquet objects of the sink.
    #[default]
    Lake,
    /// The topics themselves, as far as retention has kept them.
    Log,
}

/// How far back a training looks, by the time of receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// Everything.
    All,
    /// This long.
    Last(Duration),
}

impl FromStr for Window {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s == "all" { Ok(Self::All) } else { values::positive_duration(s).map(Self::Last) }
    }
}

impl Window {
    /// When it begins, in milliseconds since the epoch; none if it has no beginning.
    pub(crate) fn start_ms(self, now_ms: i64) -> Option<i64> {
        match self {
            Self::All => None,
            Self::Last(window) => Some(now_ms.saturating_sub(i64::try_from(window.as_millis()).unwrap_or(i64::MAX))),
        }
    }
}

/// A part of a partition, as a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range(pub OffsetRange);

impl FromStr for Range {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let parse = || {
            let (topic, rest) = s.rsplit_once('/')?;
            let (partition, offsets) = rest.split_once(':')?;
            let (start, end) = offsets.split_once('-')?;
            let range = OffsetRange {
                topic: topic.to_owned(),
                partition: partition.parse().ok()?,
                start: start.parse().ok()?,
                end: end.parse().ok()?,
            };
            (!range.topic.is_empty()).then_some(range)
        };
        let range = parse().ok_or_else(|| format!("{s:?} is not TOPIC/PARTITION:START-END, as telemetry/0:0-5000"))?;
        if range.start >= range.end {
            return Err(format!("{s:?} is empty: the end is the offset after the last record"));
        }
        Ok(Self(range))
    }
}

impl Args {
    /// The defaults, for this log and this lake.
    pub fn new(log: LogUrl, lake: LakeUrl) -> Self {
        Self { log: LogArgs::new(log), lake: LakeArgs::new(lake), ..settings::defaults(&[]) }
    }

    /// Reports all settings that cannot work together.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut problems = self.log.problems();
        let mut refuse = |bad: bool, problem: &str| {
            if bad {
                problems.push(problem.to_owned());
            }
        };
        refuse(self.epochs == 0, "--epochs must be at least 1");
        refuse(self.batch_size == 0, "--batch-size must be at least 1");
        let rate = self.learning_rate;
        refuse(!(rate.is_finite() && rate > 0.0), "--learning-rate must be positive");
        let alarms = self.alarms_per_car_day;
        refuse(!(alarms.is_finite() && alarms >= 0.0), "--alarms-per-car-day must be 0 or more");
        refuse(
            self.sample_rows < crate::train::MIN_TRAINING_ROWS,
            "--sample-rows is too small to train with: 1000 or more",
        );
        let contract = self.contract.load();
        let place = contract.as_ref().ok().and_then(|contract| contract.model(contract::MODEL));
        if let Some(ModelDefinition { readings, findings, .. }) = place {
            let (readings, findings) = (&*readings.name, &*findings.name);
            let known = |range: &Range| [readings, findings].contains(&range.0.topic.as_str());
            let unknown = format!("--range: a model is trained on the topics {readings} and {findings} only");
            refuse(!self.ranges.iter().all(known), &unknown);
            let of_readings = |range: &Range| range.0.topic == readings;
            let none = format!("--range: none of topic {readings}");
            refuse(!self.ranges.is_empty() && !self.ranges.iter().any(of_readings), &none);
        } else if contract.is_ok() {
            refuse(true, &format!("--contract: has no model {0} (models/{0}/model.json)", contract::MODEL));
        }
        let mut sorted: Vec<_> = self.ranges.iter().map(|range| &range.0).collect();
        sorted.sort();
        let overlap = |pair: &[&OffsetRange]| {
            (&pair[0].topic, pair[0].partition) == (&pair[1].topic, pair[1].partition) && pair[0].end > pair[1].start
        };
        refuse(sorted.windows(2).any(overlap), "--range: two of them overlap, so readings would count twice");
        problems.extend(contract.err().into_iter().flat_map(|error| error.0));
        problems.extend(self.lake.problems());
        problems.extend(self.schema_registry.problems());
        ConfigError::check(problems)
    }

    /// The directories that do not exist, although a training that does not repeat finds everything in them.
    pub(crate) fn missing_directories(&self) -> Vec<String> {
        let lake = match &self.lake.lake {
            LakeUrl::Directory(path) if self.from == Source::Lake => Some(&**path),
            _ => None,
        };
        let log = self.log.log.directory().filter(|_| self.from == Source::Log || !self.no_announce);
        let both = [("--lake", lake), ("--log", log)].into_iter();
        both.filter_map(|(setting, path)| service::missing_directory(setting, path?)).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn ranges_are_read_and_refused() {
        let range: Range = "telemetry/3:10-20".parse().expect("a range");
        assert_eq!(range.0.to_string(), "telemetry/3 offsets 10 to 20");
        for bad in ["", "telemetry", "telemetry/3", "telemetry/3:10", "telemetry/x:1-2", "/0:1-2", "telemetry/0:5-5"] {
            assert!(bad.parse::<Range>().is_err(), "{bad}");
        }
    }

    #[test]
    fn all_bad_settings_are_reported_together() {
        let args =
            Args::try_parse_from(["trainer", "--epochs", "0", "--range", "drivers/0:0-5", "--alarms-per-car-day=-1"]);
        let problems = args.expect("they parse").check().expect_err("they cannot work").0;
        assert_eq!(problems.len(), 4, "{problems:?}");
        let overlapping = ["trainer", "--range", "telemetry/0:0-5", "--range", "telemetry/0:4-9"];
        assert!(Args::try_parse_from(overlapping).expect("they parse").check().is_err());
        assert!(Args::try_parse_from(["trainer", "train"]).expect("the default").check().is_ok());
    }
}
