//! Settings.

use std::path::PathBuf;

use clap::Parser;
use event_log::{CloudLogArgs, LogArgs, LogUrl};
use lake::{LakeArgs, LakeUrl};
use pipeline::{ForgetArgs, LoopArgs, SnapshotArgs};
use schema_registry::SchemaRegistryArgs;
use service::{ConfigError, ContractArgs, DrainArgs, ServiceArgs, settings};

/// Give each clean reading a score; open and close alerts.
///
/// Reads topic `telemetry`, writes `scores` (one per reading) and `alerts` to the same log. The model is either a
/// fixed one (--model), or the one that was announced last on topic `models` of --cloud-log (or of --log without
/// one), taken from the lake. Another model than before first replays the readings that the log holds, while the one
/// before scores on; then it takes over between two batches. Without any model the scorer waits.
///
/// The state of each car is kept across restarts, in topic `scorer.state` of the same log.
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

    /// Score with the model in this directory, which has manifest.json and weights.safetensors.
    ///
    /// Then announcements are not followed, and --lake is not used.
    #[arg(long, env = "CARSTREAM_MODEL", value_name = "DIR")]
    pub model: Option<PathBuf>,

    /// The log whose topic `models` announces models; without it --log.
    #[command(flatten)]
    pub cloud: CloudLogArgs,

    /// The lake with the announced models.
    #[command(flatten)]
    pub lake: LakeArgs,

    /// Where schema ids come from.
    #[command(flatten)]
    pub schema_registry: SchemaRegistryArgs,

    /// Use this consumer group: instances of one group share the partitions, another group scores everything again.
    #[arg(long, env = "CARSTREAM_SCORER_GROUP", value_name = "NAME", default_value = DEFAULT_GROUP)]
    pub scorer_group: String,

    /// When a car is forgotten.
    #[command(flatten)]
    pub forget: ForgetArgs,

    /// Instances and batches.
    #[command(flatten)]
    pub pipeline: LoopArgs,
    /// Resume after gaps that retention has left, as if an operator had accepted each.
    #[arg(skip)]
    pub accept_gap: bool,

    /// Snapshots of what is known of each car, in topic scorer.state.
    #[command(flatten)]
    pub snapshots: SnapshotArgs,

    /// Scores what the log holds when it is stopped.
    #[command(flatten)]
    pub drain: DrainArgs,

    /// What every process has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// The consumer group of the scorer.
pub const DEFAULT_GROUP: &str = "scorer";
impl AsRef<ServiceArgs> for Args {
    fn as_ref(&self) -> &ServiceArgs {
        &self.service
    }
}

impl Args {
    /// The defaults, for this log and this lake.
    pub fn new(log: LogUrl, lake: LakeUrl) -> Self {
        Self { log: LogArgs::new(log), lake: LakeArgs::new(lake), ..settings::defaults(&[]) }
    }

    /// All settings that cannot work, together.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let mut problems =
            [self.log.problems(), self.cloud.problems(), self.pipeline.problems(), self.snapshots.problems()].concat();
        if self.scorer_group.trim().is_empty() {
            problems.push("--scorer-group must not be empty".to_owned());
        }
        match &self.model {
            Some(directory) => problems.extend(crate::models::missing_files(directory)),
            None => problems.extend(self.lake.problems()),
        }
        problems.extend(self.schema_registry.problems());
        ConfigError::check(problems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_reported_together() {
        let args =
            Args::parse_from(["scorer", "--batch-records", "0", "--scorer-group", " ", "--model", "/nowhere/at/all"]);
        let ConfigError(problems) = args.check().expect_err("three settings are wrong");
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[2].contains("/nowhere/at/all"), "{problems:?}");
    }
}
