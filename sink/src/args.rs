//! The settings of the sink.

use std::time::Duration;

use contract::{Contract, Topic};
use event_log::{LogArgs, LogUrl};
use lake::{Encodings, LakeArgs, LakeUrl};
use schema_registry::SchemaRegistryArgs;
use service::{ConfigError, ContractArgs, DrainArgs, ServiceArgs, settings, values};

/// Write topics of the log to Parquet in object storage, each record exactly once.
///
/// After a restart it resumes from the objects in the store: it keeps no other state, may be killed at any moment, and
/// may run twice. Parquet files lie under TOPIC/date=…/partition=…/ and are never changed, so that DuckDB, pyarrow,
/// polars, Spark and others can read them at any time. The date is the day (UTC) on which the log got the record.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "sink", version)]
pub struct Args {
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
    /// Write only this topic; may be repeated; without it, all that the contract has for the lake.
    #[arg(long = "topic", env = "CARSTREAM_SINK_TOPICS", value_name = "TOPIC")]
    pub topics: Vec<String>,
    /// Close a file at this many rows.
    // Large enough to read fast, small enough that twelve partitions of it fit in memory.
    #[arg(long, env = "CARSTREAM_SINK_MAX_ROWS", value_name = "ROWS", default_value_t = 100_000,
        value_parser = clap::value_parser!(u64).range(1..))]
    pub max_rows: u64,
    /// Close a file at this size of its records, as they are in the log.
    #[arg(long, env = "CARSTREAM_SINK_MAX_BYTES", value_name = "SIZE", default_value = "32MiB",
        value_parser = values::size::<u64>)]
    pub max_bytes: u64,
    /// Close a file this long after its first record, which bounds how stale the lake can be.
    #[arg(long, env = "CARSTREAM_SINK_MAX_AGE", value_name = "DURATION", default_value = "60s",
        value_parser = values::duration)]
    pub max_age: Duration,
    /// How numbers are laid out in the files.
    #[arg(long, env = "CARSTREAM_SINK_ENCODINGS", value_name = "LAYOUT", value_enum, default_value_t)]
    pub encodings: Layout,
    /// Hold at most this size of records in memory, over all partitions.
    ///
    /// At this bound files are closed early, and if the store does not take them, nothing more is read.
    // Rows being decoded and files being encoded come on top, as much again or more: see benches/cost.rs.
    #[arg(long, env = "CARSTREAM_SINK_MAX_MEMORY", value_name = "SIZE", default_value = "64MiB",
        value_parser = values::size::<u64>)]
    pub max_memory: u64,
    /// Retry an upload that takes longer than this.
    #[arg(long, env = "CARSTREAM_SINK_STORE_TIMEOUT", value_name = "DURATION", default_value = "60s",
        value_parser = values::duration)]
    pub store_timeout: Duration,
    /// Writes what the log holds when it is stopped.
    #[command(flatten)]
    pub drain: DrainArgs,
    /// Keep records that cannot be decoded under _undecodable/ and continue, instead of stopping their topic.
    #[arg(long, env = "CARSTREAM_SINK_SKIP_UNDECODABLE")]
    pub skip_undecodable: bool,
    /// What every process has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// How numbers are laid out in the files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// In encodings that every reader of Parquet knows.
    #[default]
    Standard,
    /// Smaller, for DuckDB, pyarrow and polars; Spark before 4.2 and Iceberg's readers cannot read it at full speed.
    Compact,
}

impl From<Layout> for Encodings {
    fn from(layout: Layout) -> Self {
        match layout {
            Layout::Standard => Self::Standard,
            Layout::Compact => Self::Compact,
        }
    }
}

impl Args {
    /// The defaults, for this log and this lake.
    pub fn new(log: LogUrl, lake: LakeUrl) -> Self {
        Self { log: LogArgs::new(log), lake: LakeArgs::new(lake), ..settings::defaults(&[]) }
    }

    /// The topics to write: those that are named, or all that the contract has for the lake. All settings that cannot
    /// work are reported together.
    pub(crate) fn check(&self) -> Result<(Contract, Vec<Topic>), ConfigError> {
        let mut problems = self.log.problems();
        let contract = self.contract.load().map_err(|more| problems.extend(more.0)).ok();
        let mut topics = Vec::new();
        if let Some(contract) = &contract {
            let known: Vec<_> = contract.lake_topics().collect();
            for (i, name) in self.topics.iter().enumerate() {
                match known.iter().find(|topic| *topic.name == **name) {
                    Some(topic) => topics.push(Topic::clone(topic)),
                    None => {
                        let known = known.iter().map(|topic| &*topic.name).collect::<Vec<_>>().join(", ");
                        problems.push(format!("--topic: {name:?} is not for the lake; the contract has: {known}"));
                    }
                }
                if self.topics[..i].contains(name) {
                    problems.push(format!("--topic {name} is named twice"));
                }
            }
            if self.topics.is_empty() {
                topics = known.into_iter().cloned().collect();
            }
            if topics.is_empty() && problems.is_empty() {
                problems.push("the contract has no topic for the lake (\"lake\": true)".to_owned());
            }
        }
        let above_0 = [
            ("--max-age", self.max_age.is_zero()),
            ("--store-timeout", self.store_timeout.is_zero()),
            ("--max-bytes", self.max_bytes == 0),
            ("--max-memory", self.max_memory == 0),
        ];
        for (setting, _) in above_0.iter().filter(|(_, is_0)| *is_0) {
            problems.push(format!("{setting} must be above 0"));
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
    use clap::Parser;

    use super::*;

    #[test]
    fn all_problems_are_reported_together() {
        let mut args = Args::new("log".parse().unwrap(), "store".parse().unwrap());
        assert!(args.check().is_ok());
        args.topics = ["telemetry", "alerts", "telemetry"].map(str::to_owned).into();
        (args.store_timeout, args.max_age, args.max_memory) = (Duration::ZERO, Duration::ZERO, 0);
        let problems = args.check().unwrap_err().0;
        assert_eq!(problems.len(), 5, "{problems:?}");
        assert!(Args::try_parse_from(["sink", "--max-rows", "0"]).is_err());
        assert!(Args::try_parse_from(["sink", "--max-age", "-1s"]).is_err());
    }
}
