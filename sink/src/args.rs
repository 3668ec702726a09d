//! The settings of the sink.

use std::time::Duration;

use contract::{Contract, Topic};
use event_log::{LogArgs, LogUrl};
use lake::{LakeArgs, LakeUrl};
use schema_registry::SchemaRegistryArgs;
use service::{ConfigError, ContractArgs, ServiceArgs};

/// Writes topics of the log to Parquet in object storage, each record exactly once.
///
/// Where it goes on after a restart is read from the store itself: it keeps no state of its own, may be killed at any
/// moment, and may run twice. Parquet files lie under TOPIC/date=…/partition=…/ and are never changed, so that DuckDB,
/// pyarrow, Spark and others can read them at any time.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "sink", version)]
pub struct Args {
    /// What every process has.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// The log to read.
    #[command(flatten)]
    pub log: LogArgs,
    /// The lake to write.
    #[command(flatten)]
    pub lake: LakeArgs,
    /// Where schema ids come from.
    #[command(flatten)]
    pub schema_registry: SchemaRegistryArgs,
    /// Which topics go to the lake.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// Write only these topics, comma-separated. Without it: all that the contract has for the lake.
    #[arg(long, env = "CARSTREAM_SINK_TOPICS", value_delimiter = ',', value_name = "TOPIC")]
    pub topics: Vec<String>,
    /// A file ends after this many rows.
    #[arg(long, env = "CARSTREAM_SINK_MAX_ROWS", default_value_t = DEFAULT_MAX_ROWS,
        value_parser = clap::value_parser!(u64).range(1..))]
    pub max_rows: u64,
    /// A file ends after this many bytes of records, as they are in the log.
    #[arg(long, env = "CARSTREAM_SINK_MAX_BYTES", default_value_t = DEFAULT_MAX_BYTES,
        value_parser = clap::value_parser!(u64).range(1..))]
    pub max_bytes: u64,
    /// A file ends this many seconds after its first record came: so old can what is in the lake be.
    #[arg(long, env = "CARSTREAM_SINK_MAX_AGE", value_name = "SECONDS", default_value = "60", value_parser = service::seconds)]
    pub max_age: Duration,
    /// Bytes of records held in memory, over all partitions. At this bound files end early, and if the store does not
    /// take them, nothing more is read.
    #[arg(long, env = "CARSTREAM_SINK_MAX_MEMORY", default_value_t = DEFAULT_MAX_MEMORY,
        value_parser = clap::value_parser!(u64).range(1..))]
    pub max_memory: u64,
    /// An upload that takes longer is tried again.
    #[arg(long, env = "CARSTREAM_SINK_STORE_TIMEOUT", value_name = "SECONDS", default_value = "60", value_parser = service::seconds)]
    pub store_timeout: Duration,
    /// When stopped, write what the log holds at that moment, for at most so long.
    #[arg(long, env = "CARSTREAM_SINK_DRAIN_TIMEOUT", value_name = "SECONDS", default_value = "30", value_parser = service::seconds)]
    pub drain_timeout: Duration,
    /// Keep records that cannot be decoded under _undecodable/ and go on, instead of stopping their topic.
    #[arg(long, env = "CARSTREAM_SINK_SKIP_UNDECODABLE")]
    pub skip_undecodable: bool,
}

/// Large enough to read fast, small enough that twelve partitions of it fit in memory.
const DEFAULT_MAX_ROWS: u64 = 100_000;
const DEFAULT_MAX_BYTES: u64 = 32 << 20;
/// Rows being decoded and files being encoded come on top, as much again or more: see examples/cost.rs.
const DEFAULT_MAX_MEMORY: u64 = 64 << 20;

impl Args {
    /// The defaults, for this log and this lake.
    pub fn new(log: LogUrl, lake: LakeUrl) -> Self {
        Self {
            service: ServiceArgs::default(),
            log: LogArgs::new(log),
            lake: LakeArgs::new(lake),
            schema_registry: SchemaRegistryArgs::default(),
            contract: ContractArgs::default(),
            topics: Vec::new(),
            max_rows: DEFAULT_MAX_ROWS,
            max_bytes: DEFAULT_MAX_BYTES,
            max_age: Duration::from_secs(60),
            max_memory: DEFAULT_MAX_MEMORY,
            store_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
            skip_undecodable: false,
        }
    }

    /// The topics to write: those that are named, or all that the contract has for the lake. All settings that cannot work
    /// are reported together.
    pub(crate) fn check(&self) -> Result<(Contract, Vec<Topic>), ConfigError> {
        let mut problems = Vec::new();
        let contract = self.contract.load().map_err(|more| problems.extend(more.0)).ok();
        let mut topics = Vec::new();
        if let Some(contract) = &contract {
            let known: Vec<_> = contract.lake_topics().collect();
            for (i, name) in self.topics.iter().enumerate() {
                match known.iter().find(|topic| *topic.name == **name) {
                    Some(topic) => topics.push(Topic::clone(topic)),
                    None => {
                        let known = known.iter().map(|topic| &*topic.name).collect::<Vec<_>>().join(", ");
                        problems.push(format!("--topics: {name:?} is not for the lake; the contract has: {known}"));
                    }
                }
                if self.topics[..i].contains(name) {
                    problems.push(format!("--topics names {name} twice"));
                }
            }
            if self.topics.is_empty() {
                topics = known.into_iter().cloned().collect();
            }
            if topics.is_empty() && problems.is_empty() {
                problems.push("the contract has no topic for the lake (\"lake\": true)".to_owned());
            }
        }
        if self.store_timeout.is_zero() {
            problems.push("--store-timeout must be more than 0".to_owned());
        }
        problems.extend(self.lake.problems());
        problems.extend(self.schema_registry.problems());
        ConfigError::check(problems)?;
        Ok((contract.unwrap_or_else(|| Contract::builtin().clone()), topics))
    }
}

impl AsRef<ServiceArgs> for Args {
    fn as_ref(&self) -> &ServiceArgs {
        &self.service
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;

    #[test]
    fn the_defaults_are_the_same_in_both_ways() {
        let parsed = Args::try_parse_from(["sink", "--log", "log", "--lake", "store"]).unwrap();
        let made = Args::new("log".parse().unwrap(), "store".parse().unwrap());
        assert_eq!(format!("{parsed:?}"), format!("{made:?}"));
    }

    #[test]
    fn all_problems_are_reported_together() {
        let mut args = Args::new("log".parse().unwrap(), "store".parse().unwrap());
        assert!(args.check().is_ok());
        args.topics = ["telemetry", "alerts", "telemetry"].map(str::to_owned).into();
        args.store_timeout = Duration::ZERO;
        let problems = args.check().unwrap_err().0;
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(Args::try_parse_from(["sink", "--max-rows", "0"]).is_err());
        assert!(Args::try_parse_from(["sink", "--max-age", "-1"]).is_err());
    }
}
