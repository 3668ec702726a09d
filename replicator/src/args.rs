//! The settings of the replicator.

use contract::{Contract, Topic};
use event_log::{CloudLogArgs, EdgeLogArgs, LogUrl};
use pipeline::LoopArgs;
use service::{ConfigError, ContractArgs, DrainArgs, ServiceArgs, settings, values};

/// Copy topics from the log of the edge to the log of the cloud, each record exactly once.
///
/// Keys, payloads, headers, timestamps and partitions stay unchanged; headers with the origin of each record are added.
/// Positions are kept in the target log, in the same transaction as the records. Topics with personal data are refused.
///
/// A topic stops, while the others continue, when retention has removed records before they were copied, when the
/// source topic was deleted and recreated, when its number of partitions changes, and when its records would be copied
/// in a circle. The error names the offsets and the choices; `resume` carries one out.
///
/// Several instances with different names share the partitions, if the target is Kafka: its group assigns them, and
/// refuses an instance that was away too long.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    name = "replicator",
    version,
    subcommand_help_heading = "Instead of copying",
    subcommand_value_name = "COMMAND",
    // What the commands need, too: before them or behind them.
    mut_args(|arg| if OF_COMMANDS.contains(&arg.get_id().as_str()) { arg.global(true) } else { arg })
)]
pub struct Args {
    /// What to do instead of copying.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The source: the log to copy from.
    #[command(flatten)]
    pub edge: EdgeLogArgs,
    /// The target: the log to copy to.
    #[command(flatten)]
    pub cloud: CloudLogArgs,
    /// Name the edge site this in the cloud, in the header source.cluster; each of several sites needs its own name.
    #[arg(long, env = "CARSTREAM_SITE", value_name = "NAME", default_value = DEFAULT_SITE, value_parser = values::name)]
    pub site: String,
    /// Name the cloud this; a topic stops at a record that came from there already, instead of copying it in a circle.
    #[arg(long, env = "CARSTREAM_CLOUD_NAME", value_name = "NAME", default_value = "cloud",
        value_parser = values::name)]
    pub cloud_name: String,
    /// Which topics may leave the edge.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// Copy only this topic; may be repeated; without it, all that the contract has at the edge and in the cloud.
    #[arg(long = "topic", env = "CARSTREAM_REPLICATOR_TOPICS", value_name = "TOPIC")]
    pub topics: Vec<String>,
    /// Instances and batches.
    #[command(flatten)]
    pub pipeline: LoopArgs,
    /// Copies what the source holds when it is stopped.
    #[command(flatten)]
    pub drain: DrainArgs,
    /// What every process has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Settings that the commands have, too.
const OF_COMMANDS: [&str; 8] =
    ["edge_log", "edge_kafka_option", "cloud_log", "cloud_kafka_option", "site", "cloud_name", "contract", "instance"];

/// What else the replicator does.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Show how far each partition is copied; or where one offset is in the other log.
    ///
    /// Without --partition it lists, for each partition: the source position (the next offset to be copied), the
    /// source's end, the lag, and the target's offset behind the last copy. An embedded log is one process's: stop that
    /// first.
    Offsets(OffsetsArgs),
    /// Resume a stopped topic in the given way, and record that in the topic replicator.state.
    ///
    /// It holds all partitions of the topic while it does so: instances that still copy it must be stopped. Afterwards
    /// the replicator must be started again.
    Resume(ResumeArgs),
}

/// Which offsets to show.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct OffsetsArgs {
    /// Show only this topic; without it, all that are copied.
    #[arg(long, value_name = "TOPIC")]
    pub topic: Option<String>,
    /// Show only this partition: needed with --source-offset and --target-offset.
    #[arg(long, value_name = "N", requires = "topic")]
    pub partition: Option<u32>,
    /// Show where this offset of the source is in the target: the first copy of it or of a later record.
    #[arg(long, value_name = "OFFSET", requires = "partition", conflicts_with = "target_offset")]
    pub source_offset: Option<u64>,
    /// Show where to resume in the source after having read the target up to this offset: at the first record with its
    /// copy there or later.
    #[arg(long, value_name = "OFFSET", requires = "partition")]
    pub target_offset: Option<u64>,
    /// Print JSON, one object per line.
    #[arg(long)]
    pub json: bool,
}

/// Which topic to resume, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct ResumeArgs {
    /// Resume this topic.
    #[arg(long, value_name = "TOPIC")]
    pub topic: String,
    /// How.
    #[command(flatten)]
    pub accept: Accept,
}

/// Exactly one way to resume.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Accept {
    /// Resume after a retention gap at the first offset that the source still has; note the others as never copied.
    #[arg(long)]
    pub accept_gap: bool,
    /// Copy a source topic that was deleted and created again from its beginning, behind the copies of the old one.
    #[arg(long)]
    pub accept_recreated: bool,
    /// Copy partitions that were added in both logs from their beginning.
    ///
    /// New records of a key may be in another partition than its older ones.
    #[arg(long)]
    pub accept_partitions: bool,
    /// Find positions that the target has forgotten by the last copy in each partition.
    #[arg(long)]
    pub find_positions: bool,
}

/// What a site is called unless it has a name.
pub const DEFAULT_SITE: &str = "edge";

/// The consumer group of a topic of a site with the default name: its positions are in the target log.
pub fn group(topic: &str) -> String {
    group_of(DEFAULT_SITE, topic)
}

/// The consumer group of a topic of this site. Each topic has its own, so that one that stops does not hold up the
/// others; each site has its own, since several may share the cloud.
pub fn group_of(site: &str, topic: &str) -> String {
    format!("replicator-{site}-{topic}")
}

impl Args {
    /// The defaults, for these two logs.
    pub fn new(edge: LogUrl, cloud: LogUrl) -> Self {
        Self { edge: EdgeLogArgs::new(edge), cloud: CloudLogArgs::new(cloud), ..settings::defaults(&[]) }
    }

    /// The command line of `replicator` for these logs, with `command`.
    pub(crate) fn command_line(&self, command: &str) -> String {
        let mut line = service::command_of("replicator");
        for (setting, log) in [("--edge-log", &self.edge.log), ("--cloud-log", &self.cloud.log)] {
            line += &log.as_ref().map(|log| format!(" {setting} {log}")).unwrap_or_default();
        }
        if self.site != DEFAULT_SITE {
            line += &format!(" --site {}", self.site);
        }
        if let Some(directory) = &self.contract.contract {
            line += &format!(" --contract {}", directory.display());
        }
        format!("{line} {command}")
    }

    /// Source and target, as messages name them.
    pub(crate) fn logs(&self) -> (String, String) {
        let name = |log: &Option<LogUrl>| log.as_ref().map(LogUrl::to_string).unwrap_or_default();
        (name(&self.edge.log), name(&self.cloud.log))
    }

    /// The topics to copy: those that are named, or all that the contract lets leave the edge. All settings that cannot
    /// work are reported together.
    pub(crate) fn check(&self) -> Result<(Contract, Vec<Topic>), ConfigError> {
        let mut problems = [self.edge.problems(), self.cloud.problems(), self.pipeline.problems()].concat();
        let contract = self.contract.load().map_err(|more| problems.extend(more.0)).ok();
        for (setting, log) in [("--edge-log", &self.edge.log), ("--cloud-log", &self.cloud.log)] {
            if log.is_none() {
                problems.push(format!("{setting} is missing: topics are copied from --edge-log to --cloud-log"));
            }
        }
        if let (Some(edge), Some(cloud)) = (&self.edge.log, &self.cloud.log)
            && edge == cloud
        {
            problems.push(format!("--edge-log and --cloud-log are the same: {edge}"));
        }
        if self.site == self.cloud_name {
            problems.push(format!("--site and --cloud-name are the same: {}", self.site));
        }
        let of_command = match &self.command {
            Some(
                Command::Offsets(OffsetsArgs { topic: Some(topic), .. }) | Command::Resume(ResumeArgs { topic, .. }),
            ) => Some(topic),
            _ => None,
        };
        for (setting, topic) in self.topics.iter().map(|t| ("--topic", t)).chain(of_command.map(|t| ("--topic", t))) {
            if contract.as_ref().is_some_and(|contract| contract.is_personal(topic)) {
                problems.push(format!(
                    "{setting}: {topic:?} holds personal data, or is not declared in the contract: \
                     it must not leave the edge"
                ));
            }
        }
        for (i, topic) in self.topics.iter().enumerate() {
            if self.topics[..i].contains(topic) {
                problems.push(format!("--topic {topic} is named twice"));
            }
        }
        let topics = contract.as_ref().map(|contract| self.topics_of(contract)).unwrap_or_default();
        if topics.is_empty() && problems.is_empty() {
            problems.push("the contract has no topic that leaves the edge (\"at\": \"both\")".to_owned());
        }
        ConfigError::check(problems)?;
        Ok((contract.unwrap_or_else(|| Contract::builtin().clone()), topics))
    }

    /// What of the settings cannot work.
    pub fn problems(&self) -> Vec<String> {
        self.check().map_or_else(|error| error.0, |_| Vec::new())
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
    use clap::{CommandFactory, Parser};

    use super::*;

    #[test]
    fn settings_of_a_command_stand_before_it_or_behind_it() {
        Args::command().debug_assert();
        let parse = |line: &str| Args::try_parse_from(line.split(' ')).unwrap();
        for line in [
            "replicator --edge-log a --cloud-log b --site s --contract c --instance 2 offsets --json",
            "replicator offsets --edge-log a --json --cloud-log b --site s --contract c --instance 2",
            "replicator --edge-log a --site s resume --topic t --accept-gap --cloud-log b --contract c --instance 2",
        ] {
            let args = parse(line);
            assert_eq!(args.logs(), ("a".to_owned(), "b".to_owned()), "{line}");
            assert_eq!((args.site.as_str(), args.pipeline.instance.as_str()), ("s", "2"), "{line}");
            assert_eq!(args.contract.contract.as_deref(), Some("c".as_ref()), "{line}");
            assert!(args.command.is_some(), "{line}");
        }
        let mut command = Args::command();
        command.build();
        for name in ["offsets", "resume"] {
            let help = command.find_subcommand_mut(name).unwrap().render_long_help().to_string();
            for setting in ["--edge-log", "--cloud-kafka-option", "--contract", "--instance"] {
                assert!(help.contains(setting), "{help}");
            }
        }
    }

    #[test]
    fn what_must_not_leave_the_edge_is_refused_with_all_other_problems() {
        let mut args = Args::new("a".parse().unwrap(), "b".parse().unwrap());
        assert!(args.check().is_ok());
        args.topics = ["telemetry", "telemetry.raw", "drivers", "nobody-knows", "telemetry"].map(str::to_owned).into();
        args.cloud_name = args.site.clone();
        args.cloud.log = args.edge.log.clone();
        let problems = args.check().unwrap_err().0;
        assert_eq!(problems.len(), 6, "{problems:?}");
    }
}
