//! The settings of the replicator.

use std::time::Duration;

use contract::{Contract, Topic};
use event_log::{KafkaOption, LogUrl};
use service::{ConfigError, ContractArgs, ServiceArgs};

/// Copies topics from one log to another, as a rule from the edge to the cloud, each record exactly once.
///
/// Keys, payloads, headers, timestamps and partitions stay as they are; headers that say where a record comes from are
/// added. Positions are kept in the target log, in the same transaction as the records. Topics with personal data are
/// refused.
///
/// A topic stops, and the others go on, when retention has removed what was not copied yet, when the source topic was
/// deleted and created again, when its number of partitions changes, and when its records would go round in a circle.
/// The error names the offsets and the choices; `resume` carries one out.
///
/// Several instances with names of their own share the partitions, if the target is Kafka: its group decides who copies
/// which, and refuses who was away too long.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    name = "replicator",
    version,
    subcommand_help_heading = "Instead of copying",
    subcommand_value_name = "COMMAND"
)]
pub struct Args {
    /// What to do instead of copying.
    #[command(subcommand)]
    pub command: Option<Command>,
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
    /// Which topics may leave the source.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// Copy only these topics, comma-separated. Without it: all that the contract has at the edge and in the cloud.
    #[arg(long, env = "CARSTREAM_REPLICATOR_TOPICS", value_delimiter = ',', value_name = "TOPIC")]
    pub topics: Vec<String>,
    /// The name of this instance: its own for each process, and the same after a restart. A second process with the same
    /// name takes over from the first, which stops. @host is the name of the host, container or pod.
    #[arg(long, env = "CARSTREAM_INSTANCE", value_name = "NAME", default_value = DEFAULT_INSTANCE, value_parser = service::instance_name)]
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

/// What else the replicator does. Settings of the logs come before: `replicator --source-log URL --target-log URL
/// offsets`, or from the environment.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// How far each partition is copied; or where one offset is in the other log.
    ///
    /// Without --partition it lists, for each partition: the source position (the next offset to be copied), the source's
    /// end, the lag, and the target's offset behind the last copy. An embedded log is one process's: stop that first.
    Offsets(OffsetsArgs),
    /// Lets a topic that has stopped go on, in the one way that is named, and records that in the topic replicator.state.
    ///
    /// It holds all partitions of the topic while it does so: instances that still copy it must be stopped. Afterwards
    /// the replicator must be started again.
    Resume(ResumeArgs),
}

/// Which offsets to show.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct OffsetsArgs {
    /// Only this topic. Without it: all that are copied.
    #[arg(long, value_name = "TOPIC")]
    pub topic: Option<String>,
    /// Only this partition: needed with --source-offset and --target-offset.
    #[arg(long, value_name = "NUMBER", requires = "topic")]
    pub partition: Option<u32>,
    /// Where this offset of the source is in the target: the first copy of it or of a later one.
    #[arg(long, value_name = "OFFSET", requires = "partition", conflicts_with = "target_offset")]
    pub source_offset: Option<u64>,
    /// Where to go on in the source after having read the target up to this offset: the offset of the first record that
    /// has its copy there or later.
    #[arg(long, value_name = "OFFSET", requires = "partition")]
    pub target_offset: Option<u64>,
    /// Print JSON, one object per line.
    #[arg(long)]
    pub json: bool,
}

/// Which topic is to go on, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct ResumeArgs {
    /// The topic.
    #[arg(long, value_name = "TOPIC")]
    pub topic: String,
    /// How.
    #[command(flatten)]
    pub accept: Accept,
}

/// Exactly one way to go on.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Accept {
    /// After a retention gap: go on at the first offset that the source still has. The offsets in between are recorded as
    /// never copied.
    #[arg(long)]
    pub accept_gap: bool,
    /// After the source topic was deleted and created again: copy the new topic from its beginning, behind what was copied
    /// of the old one.
    #[arg(long)]
    pub accept_recreated: bool,
    /// After partitions were added in both logs: copy the new ones from their beginning. New records of a key may be in
    /// another partition than its older ones.
    #[arg(long)]
    pub accept_partitions: bool,
    /// After the target has forgotten positions: find them again by the last copy in each partition.
    #[arg(long)]
    pub find_positions: bool,
}

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
pub fn group_of(source_name: &str, topic: &str) -> String {
    format!("replicator-{source_name}-{topic}")
}

impl Args {
    /// The defaults, for these two logs.
    pub fn new(source_log: LogUrl, target_log: LogUrl) -> Self {
        Self {
            command: None,
            service: ServiceArgs::default(),
            source_log,
            target_log,
            source_kafka_options: Vec::new(),
            target_kafka_options: Vec::new(),
            source_name: DEFAULT_SOURCE_NAME.to_owned(),
            target_name: DEFAULT_TARGET_NAME.to_owned(),
            contract: ContractArgs::default(),
            topics: Vec::new(),
            instance: DEFAULT_INSTANCE.to_owned(),
            batch: DEFAULT_BATCH,
            batch_ms: DEFAULT_BATCH_MS,
            drain_timeout: Duration::from_secs(30),
        }
    }

    /// The command line of `replicator` for these logs, with `command`.
    pub(crate) fn command_line(&self, command: &str) -> String {
        let mut line = format!("replicator --source-log {} --target-log {}", self.source_log, self.target_log);
        if self.source_name != DEFAULT_SOURCE_NAME {
            line += &format!(" --source-name {}", self.source_name);
        }
        format!("{line} {command}")
    }

    /// The topics to copy: those that are named, or all that the contract lets leave the edge. All settings that cannot
    /// work are reported together.
    pub(crate) fn check(&self) -> Result<(Contract, Vec<Topic>), ConfigError> {
        let mut problems = Vec::new();
        let contract = self.contract.load().map_err(|more| problems.extend(more.0)).ok();
        if self.source_log == self.target_log {
            problems.push(format!("--source-log and --target-log are the same: {}", self.source_log));
        }
        if self.source_name == self.target_name {
            problems.push(format!("--source-name and --target-name are the same: {}", self.source_name));
        }
        let of_command = match &self.command {
            Some(
                Command::Offsets(OffsetsArgs { topic: Some(topic), .. }) | Command::Resume(ResumeArgs { topic, .. }),
            ) => Some(topic),
            _ => None,
        };
        for (setting, topic) in self.topics.iter().map(|t| ("--topics", t)).chain(of_command.map(|t| ("--topic", t))) {
            if contract.as_ref().is_some_and(|contract| contract.is_personal(topic)) {
                problems.push(format!(
                    "{setting}: {topic:?} holds personal data, or is not declared in the contract: \
                     it must not leave the edge"
                ));
            }
        }
        for (i, topic) in self.topics.iter().enumerate() {
            if self.topics[..i].contains(topic) {
                problems.push(format!("--topics names {topic} twice"));
            }
        }
        let topics = contract.as_ref().map(|contract| self.topics_of(contract)).unwrap_or_default();
        if topics.is_empty() && problems.is_empty() {
            problems.push("the contract has no topic that leaves the edge (\"at\": \"both\")".to_owned());
        }
        ConfigError::check(problems)?;
        Ok((contract.unwrap_or_else(|| Contract::builtin().clone()), topics))
    }

    fn topics_of(&self, contract: &Contract) -> Vec<Topic> {
        if self.topics.is_empty() {
            return contract.leaving_the_edge().cloned().collect();
        }
        self.topics.iter().filter_map(|name| contract.topic(name).cloned()).collect()
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
