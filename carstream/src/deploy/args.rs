//! The settings of a deployment.

use contract::Contract;
use event_log::{CloudLogArgs, EdgeLogArgs, LogUrl};
use schema_registry::SchemaRegistryArgs;
use service::{ConfigError, ContractArgs, ServiceArgs};

/// Create the topics and register the schemas; report existing ones with other settings. Safe to run again.
///
/// The topics are those that the contract declares, in the logs where they belong; the schemas get the
/// compatibility FULL_TRANSITIVE.
///
/// Existing topics and schemas are compared, never changed. All differences (partitions, retention, compaction,
/// incompatible schemas) are reported together, each with its remedy.
///
/// Without a --cloud-log, the --edge-log is edge and cloud in one, and gets the topics of both.
///
/// Waits for a log or a registry that does not answer.
///
/// Exit code 0: everything matches; 1: something differs; 64: bad settings.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  carstream deploy --edge-log kafka://edge:9092 --cloud-log kafka://cloud:9092 --schema-registry http://registry:8081
      before the first start, and before each upgrade
  carstream deploy --check --edge-log kafka://localhost:9092
      changes nothing: checks that everything this release needs exists with the right settings")]
pub struct Args {
    /// The edge's log.
    #[command(flatten)]
    pub edge: EdgeLogArgs,
    /// The cloud's log.
    #[command(flatten)]
    pub cloud: CloudLogArgs,
    /// Where the schemas are registered.
    #[command(flatten)]
    pub schema_registry: SchemaRegistryArgs,
    /// Change nothing, only report: a topic or a schema that is missing is a difference, too.
    #[arg(long)]
    pub check: bool,
    /// Give every topic with more than one partition this many, instead of that of the contract.
    ///
    /// As many instances of a stage can share the work. The number cannot be changed later without giving up what the
    /// topics hold.
    #[arg(long, env = "CARSTREAM_PARTITIONS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub partitions: Option<u32>,
    /// Give each partition on Kafka this many replicas; without it, the cluster's default.replication.factor.
    #[arg(
        long,
        env = "CARSTREAM_REPLICATION_FACTOR",
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub replication_factor: Option<u16>,
    /// What the site has.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// What every process has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

impl Args {
    /// The command that creates what is missing.
    pub(super) fn command_line(&self) -> String {
        let mut line = "carstream deploy".to_owned();
        for (setting, log) in [("--edge-log", &self.edge.log), ("--cloud-log", &self.cloud.log)] {
            line += &log.as_ref().map(|log| format!(" {setting} {log}")).unwrap_or_default();
        }
        line +=
            &self.contract.contract.as_ref().map(|dir| format!(" --contract {}", dir.display())).unwrap_or_default();
        line += &self.partitions.map(|partitions| format!(" --partitions {partitions}")).unwrap_or_default();
        line += &self.replication_factor.map(|factor| format!(" --replication-factor {factor}")).unwrap_or_default();
        line
    }

    /// What cannot work, together.
    pub(super) fn check(&self) -> Result<Contract, ConfigError> {
        let mut problems = [self.schema_registry.problems(), self.edge.problems(), self.cloud.problems()].concat();
        let contract = self.contract.load().map_err(|more| problems.extend(more.0));
        if self.edge.log.is_none() && self.cloud.log.is_none() && self.schema_registry.schema_registry.is_none() {
            problems
                .push("--edge-log, --cloud-log, --schema-registry: name at least one place to deploy to".to_owned());
        }
        if self.edge.log.is_some() && self.edge.log == self.cloud.log {
            problems.push("--edge-log and --cloud-log are the same: leave --cloud-log out".to_owned());
        }
        for (setting, log) in [("--edge-log", &self.edge.log), ("--cloud-log", &self.cloud.log)] {
            if let Some(LogUrl::Directory(path)) = log.as_ref().filter(|_| self.check) {
                problems.extend(service::missing_directory(setting, path));
            }
        }
        ConfigError::check(problems)?;
        Ok(contract.unwrap_or_else(|()| Contract::builtin().clone()))
    }
}
