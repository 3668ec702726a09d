//! The settings of the replicator.

use std::time::Duration;

use event_log::{KafkaOption, LogUrl, catalogue};
use service::{ConfigError, ServiceArgs};

/// Copies topics from one log to another, as a rule from the edge to the cloud, each record exactly once.
///
/// Keys, payloads, headers, timestamps and partitions stay as they are; headers that say where a record comes from are
/// added. Positions are kept in the target log, in the same transaction as the records. Topics with personal data are
/// refused.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "replicator", version)]
pub struct Args {
    /// What every process has.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// The log to copy from: kafka://HOST:PORT[,HOST:PORT…], or a directory for the embedded log.
    #[arg(long, env = "CARSTREAM_SOURCE_LOG", value_name = "URL")]
    pub source_log: LogUrl,
    /// The log to copy to.
    #[arg(long, env = "CARSTREAM_TARGET_LOG", value_name = "URL")]
    pub target_log: LogUrl,
    /// A librdkafka property for the source; may be repeated, or comma-separated in the environment.
    #[arg(
        long = "source-kafka-option",
        env = "CARSTREAM_SOURCE_KAFKA_OPTIONS",
        value_name = "KEY=VALUE",
        value_delimiter = ','
    )]
    pub source_kafka_options: Vec<KafkaOption>,
    /// A librdkafka property for the target; may be repeated, or comma-separated in the environment.
    #[arg(
        long = "target-kafka-option",
        env = "CARSTREAM_TARGET_KAFKA_OPTIONS",
        value_name = "KEY=VALUE",
        value_delimiter = ','
    )]
    pub target_kafka_options: Vec<KafkaOption>,
    /// What the source is called in the header source.cluster. Each of several sources of one target needs its own.
    #[arg(long, env = "CARSTREAM_SOURCE_NAME", value_name = "NAME", default_value = DEFAULT_SOURCE_NAME)]
    pub source_name: String,
    /// What the target is called. A record that has come from there already is not sent back: its topic stops.
    #[arg(long, env = "CARSTREAM_TARGET_NAME", value_name = "NAME", default_value = DEFAULT_TARGET_NAME)]
    pub target_name: String,
    /// The topics to copy, comma-separated.
    #[arg(long, env = "CARSTREAM_REPLICATOR_TOPICS", value_delimiter = ',', default_values = DEFAULT_TOPICS)]
    pub topics: Vec<String>,
    /// The name of this instance: its own for each process, and the same after a restart.
    #[arg(long, env = "CARSTREAM_INSTANCE", value_name = "NAME", default_value = DEFAULT_INSTANCE)]
    pub instance: String,
    /// Commit at the latest after this many records.
    #[arg(long, env = "CARSTREAM_REPLICATOR_BATCH", value_name = "RECORDS", default_value_t = DEFAULT_BATCH,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: u32,
    /// Commit at the latest this long after the first record of a batch, in milliseconds.
    #[arg(long, env = "CARSTREAM_REPLICATOR_BATCH_MS", value_name = "MS", default_value_t = DEFAULT_BATCH_MS)]
    pub batch_ms: u64,
    /// When stopped, copy what the source holds at that moment, for at most so long. The rest is copied at the next
    /// start.
    #[arg(long, env = "CARSTREAM_REPLICATOR_DRAIN_TIMEOUT", value_name = "SECONDS", default_value = "30", value_parser = service::seconds)]
    pub drain_timeout: Duration,
}

/// The topics that are copied unless others are named.
pub const DEFAULT_TOPICS: [&str; 4] = ["telemetry", "faults", "scores", "alerts"];

const DEFAULT_SOURCE_NAME: &str = "edge";
const DEFAULT_TARGET_NAME: &str = "cloud";
const DEFAULT_INSTANCE: &str = "1";
/// At this size transactions cost Kafka little.
const DEFAULT_BATCH: u32 = 5000;
const DEFAULT_BATCH_MS: u64 = 50;

/// The consumer group of a topic with the default source name: its positions are in the target log.
pub fn group(topic: &str) -> String {
    group_of(DEFAULT_SOURCE_NAME, topic)
}

/// The consumer group of a topic of this source. Each topic has its own, so that one that stops does not hold up the
/// others; each source has its own, since several may share the target.
pub(crate) fn group_of(source_name: &str, topic: &str) -> String {
    format!("replicator-{source_name}-{topic}")
}

impl Args {
    /// The defaults, for these two logs.
    pub fn new(source_log: LogUrl, target_log: LogUrl) -> Self {
        Self {
            service: ServiceArgs::default(),
            source_log,
            target_log,
            source_kafka_options: Vec::new(),
            target_kafka_options: Vec::new(),
            source_name: DEFAULT_SOURCE_NAME.to_owned(),
            target_name: DEFAULT_TARGET_NAME.to_owned(),
            topics: DEFAULT_TOPICS.map(str::to_owned).into(),
            instance: DEFAULT_INSTANCE.to_owned(),
            batch: DEFAULT_BATCH,
            batch_ms: DEFAULT_BATCH_MS,
            drain_timeout: Duration::from_secs(30),
        }
    }

    /// All that cannot work, together.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        if self.source_log == self.target_log {
            problems.push(format!("--source-log and --target-log are the same: {}", self.source_log));
        }
        if self.source_name == self.target_name {
            problems.push(format!("--source-name and --target-name are the same: {}", self.source_name));
        }
        if self.topics.is_empty() {
            problems.push("--topics names no topic".to_owned());
        }
        for (i, topic) in self.topics.iter().enumerate() {
            if catalogue::is_personal(topic) {
                problems.push(format!(
                    "--topics: {topic:?} holds personal data, or is not declared in schemas/topics.json: \
                     it must not leave the edge"
                ));
            }
            if self.topics[..i].contains(topic) {
                problems.push(format!("--topics names {topic} twice"));
            }
        }
        ConfigError::check(problems)
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
        let parsed = Args::try_parse_from(["replicator", "--source-log", "a", "--target-log", "b"]).unwrap();
        let made = Args::new("a".parse().unwrap(), "b".parse().unwrap());
        assert_eq!(format!("{parsed:?}"), format!("{made:?}"));
    }

    #[test]
    fn what_must_not_leave_the_edge_is_refused_with_all_other_problems() {
        let mut args = Args::new("a".parse().unwrap(), "b".parse().unwrap());
        assert!(args.check().is_ok());
        args.topics = ["telemetry", "telemetry.raw", "drivers", "nobody-knows", "telemetry"].map(str::to_owned).into();
        args.target_name = args.source_name.clone();
        args.target_log = args.source_log.clone();
        let problems = args.check().unwrap_err().0;
        assert_eq!(problems.len(), 6, "{problems:?}");
    }
}
