//! Settings.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use event_log::{LogArgs, LogUrl};
use lake::{LakeArgs, LakeUrl};
use schema_registry::SchemaRegistryArgs;
use service::{ConfigError, ContractArgs, ServiceArgs};

/// Gives each clean reading a score, and opens and closes alerts.
///
/// Reads topic `telemetry`, writes `scores` (one per reading) and `alerts` to the same log. The model is either a
/// fixed one (--model), or the one that was announced last on topic `models`, taken from the lake; a newly announced
/// model takes over between two batches. Without any model the scorer waits.
///
/// What is known of each car is kept over restarts, in topic `scorer.state` of the same log.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "scorer",
    version,
    after_help = "Examples:
  scorer --log edge-log --model model                         an edge site without an uplink: a log, a model, no more
  scorer --log kafka://localhost:9092 --lake s3://readings    follows the models that the trainer announces"
)]
pub struct Args {
    /// The log with the readings; scores and alerts go there, too.
    #[command(flatten)]
    pub log: LogArgs,

    /// Which topics readings, scores and alerts are.
    #[command(flatten)]
    pub contract: ContractArgs,

    /// A fixed model: a directory with manifest.json and weights.safetensors. Announcements are not followed, and the
    /// lake is not used.
    #[arg(long, env = "CARSTREAM_MODEL", value_name = "DIR")]
    pub model: Option<PathBuf>,

    /// The log whose topic `models` announces models, if it is not --log.
    #[arg(long, env = "CARSTREAM_MODELS_LOG", value_name = "URL", conflicts_with = "model")]
    pub models_log: Option<LogUrl>,

    /// The lake with the announced models.
    #[command(flatten)]
    pub lake: LakeArgs,

    /// Where schema ids come from.
    #[command(flatten)]
    pub schema_registry: SchemaRegistryArgs,

    /// The consumer group. Instances of one group share the partitions; another group scores everything again.
    #[arg(long, env = "CARSTREAM_SCORER_GROUP", default_value = DEFAULT_GROUP, value_name = "NAME")]
    pub group: String,

    /// The name of this instance within the group: its own for each process, and the same after a restart. @host is the
    /// name of the host, container or pod.
    #[arg(long, env = "CARSTREAM_INSTANCE", default_value = DEFAULT_INSTANCE, value_name = "NAME", value_parser = service::instance_name)]
    pub instance: String,

    /// Commit at the latest after this many readings.
    #[arg(long, env = "CARSTREAM_SCORER_BATCH", default_value_t = DEFAULT_BATCH, value_name = "READINGS")]
    pub batch: usize,

    /// Commit at the latest this long after the first reading of a batch, in milliseconds: shorter for less latency,
    /// longer for less work.
    #[arg(long, env = "CARSTREAM_SCORER_BATCH_MS", default_value_t = DEFAULT_BATCH_MS, value_name = "MS")]
    pub batch_ms: u64,

    /// When stopped, score what the log holds at that moment, for at most so long. The rest is scored at the next start.
    #[arg(long, env = "CARSTREAM_SCORER_DRAIN_TIMEOUT", value_name = "SECONDS", default_value = "30", value_parser = service::seconds)]
    pub drain_timeout: Duration,

    /// Write what is known of a partition's cars to topic scorer.state every so many readings: fewer for a quicker start
    /// after a crash, more for less work. A clean stop writes it in any case.
    #[arg(long, env = "CARSTREAM_SCORER_SNAPSHOT_READINGS", default_value_t = pipeline::SNAPSHOT_RECORDS, value_name = "READINGS")]
    pub snapshot_readings: u64,

    /// What every process has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// The consumer group, unless another is named.
pub const DEFAULT_GROUP: &str = "scorer";
const DEFAULT_INSTANCE: &str = "1";
/// Enough to make a commit cheap, few enough to hold a few megabytes.
const DEFAULT_BATCH: usize = 4096;
const DEFAULT_BATCH_MS: u64 = 50;

impl AsRef<ServiceArgs> for Args {
    fn as_ref(&self) -> &ServiceArgs {
        &self.service
    }
}

impl Args {
    /// The defaults, for this log and this lake.
    pub fn new(log: LogUrl, lake: LakeUrl) -> Self {
        Self {
            log: LogArgs::new(log),
            model: None,
            models_log: None,
            contract: ContractArgs::default(),
            lake: LakeArgs::new(lake),
            schema_registry: SchemaRegistryArgs::default(),
            group: DEFAULT_GROUP.to_owned(),
            instance: DEFAULT_INSTANCE.to_owned(),
            batch: DEFAULT_BATCH,
            batch_ms: DEFAULT_BATCH_MS,
            drain_timeout: Duration::from_secs(30),
            snapshot_readings: pipeline::SNAPSHOT_RECORDS,
            service: ServiceArgs::default(),
        }
    }

    /// All settings that cannot work, together.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        if self.batch == 0 {
            problems.push("--batch must be at least 1".to_owned());
        }
        if self.snapshot_readings == 0 {
            problems.push("--snapshot-readings must be at least 1".to_owned());
        }
        for (setting, value) in [("--group", &self.group), ("--instance", &self.instance)] {
            if value.trim().is_empty() {
                problems.push(format!("{setting} must not be empty"));
            }
        }
        if let Some(directory) = &self.model {
            problems.extend(crate::models::missing_files(directory));
        }
        problems.extend(self.lake.problems());
        problems.extend(self.schema_registry.problems());
        ConfigError::check(problems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_same_in_both_ways() {
        let parsed = Args::try_parse_from(["scorer", "--log", "log", "--lake", "store"]).unwrap();
        let made = Args::new("log".parse().unwrap(), "store".parse().unwrap());
        assert_eq!(format!("{parsed:?}"), format!("{made:?}"));
    }

    #[test]
    fn a_fixed_model_and_announcements_exclude_each_other() {
        assert!(Args::try_parse_from(["scorer", "--model", "m", "--models-log", "log"]).is_err());
    }

    #[test]
    fn all_problems_are_reported_together() {
        let args = Args::parse_from(["scorer", "--batch", "0", "--group", " ", "--model", "/nowhere/at/all"]);
        let ConfigError(problems) = args.check().expect_err("three settings are wrong");
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[2].contains("/nowhere/at/all"), "{problems:?}");
    }
}
