//! The settings of a deployment.

use contract::Contract;
use event_log::{KafkaOption, LogUrl};
use schema_registry::SchemaRegistryArgs;
use service::{ConfigError, ContractArgs, ServiceArgs};

/// Makes the topics and registers the schemas; says what is there with other settings. Can run again.
///
/// The topics are those that the contract declares, in the logs where they belong; the schemas get the
/// compatibility FULL_TRANSITIVE.
///
/// What is there already is compared. A topic with other partitions, retention or compaction, or a schema that does not go
/// with those that are registered, is left as it is and reported, all together, with what to do about it.
///
/// A log or a registry that does not answer is waited for.
///
/// Exit code 0: all is as it should be; 1: something is not; 64: settings.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  carstream deploy --log kafka://edge:9092 --cloud-log kafka://cloud:9092 --schema-registry http://registry:8081
      before the first start, and before each upgrade
  carstream deploy --check --log kafka://localhost:9092
      changes nothing: is all that this release needs there, and as it should be?")]
pub struct Args {
    /// The edge's log: kafka://HOST:PORT[,HOST:PORT…], or a directory for the embedded log. Without a --cloud-log it is
    /// edge and cloud in one, and gets the topics of both.
    #[arg(long, env = "CARSTREAM_LOG", value_name = "URL")]
    pub log: Option<LogUrl>,
    /// The cloud's log.
    #[arg(long, env = "CARSTREAM_CLOUD_LOG", value_name = "URL")]
    pub cloud_log: Option<LogUrl>,
    /// Where the schemas are registered.
    #[command(flatten)]
    pub schema_registry: SchemaRegistryArgs,
    /// Only report: what is missing is a finding, too.
    #[arg(long)]
    pub check: bool,
    /// Partitions of every topic that has more than one, in place of those of the contract: as many instances of a
    /// stage can share the work. They cannot be changed later without giving up what the topics hold.
    #[arg(long, env = "CARSTREAM_PARTITIONS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub partitions: Option<u32>,
    /// Replicas of each partition on Kafka. Without it: as many as the cluster's administrator chose
    /// (default.replication.factor).
    #[arg(long, env = "CARSTREAM_REPLICATION_FACTOR", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub replication_factor: Option<u16>,
    /// What the site has.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// A librdkafka property for the edge's log; may be repeated, or comma-separated in the environment.
    #[arg(long = "kafka-option", env = "CARSTREAM_KAFKA_OPTIONS", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub kafka_options: Vec<KafkaOption>,
    /// A librdkafka property for the cloud's log.
    #[arg(
        long = "cloud-kafka-option",
        env = "CARSTREAM_CLOUD_KAFKA_OPTIONS",
        value_name = "KEY=VALUE",
        value_delimiter = ','
    )]
    pub cloud_kafka_options: Vec<KafkaOption>,
    /// What every process has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

impl Args {
    /// What cannot work, together.
    pub(super) fn check(&self) -> Result<Contract, ConfigError> {
        let mut problems = self.schema_registry.problems();
        let contract = self.contract.load().map_err(|more| problems.extend(more.0));
        if self.log.is_none() && self.cloud_log.is_none() && self.schema_registry.schema_registry.is_none() {
            problems.push("--log, --cloud-log, --schema-registry: name at least one place to deploy to".to_owned());
        }
        if self.log.is_some() && self.log == self.cloud_log {
            problems.push("--log and --cloud-log are the same: leave --cloud-log out".to_owned());
        }
        for (setting, log) in [("--log", &self.log), ("--cloud-log", &self.cloud_log)] {
            match log {
                // Opening it would make it.
                Some(LogUrl::Directory(path)) if self.check && !path.is_dir() => {
                    problems.push(format!("{setting} {}: there is no such directory", path.display()));
                }
                _ => {}
            }
        }
        ConfigError::check(problems)?;
        Ok(contract.unwrap_or_else(|()| Contract::builtin().clone()))
    }
}
