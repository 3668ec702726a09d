//! `carstream resume`: an operator's decision about what a stage has stopped.
//!
//! ```text
//!  preprocessor, scorer   is the partition behind? ─► decision in stages.gaps ─► the stage with it carries it out
//!  replicator             is the topic stopped? ─► hold its partitions ─► position and record, here and now
//! ```
//!
//! On Kafka the stages run meanwhile. An embedded log is one process's: stop it first.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Context, bail};
use contract::{Contract, own};
use event_log::{CloudLogArgs, EdgeLogArgs, Error, LogArgs, LogUrl};
use pipeline::gaps::{self, Accept, Decision, Place};
use service::{ConfigError, ContractArgs, values};

/// Resume what a stage has stopped because its log no longer holds the records that come next, and record that.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Which stage.
    #[command(subcommand)]
    pub stage: Stage,
}

/// A stage that stops what needs a decision.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Stage {
    /// Resume partitions that the preprocessor has stopped.
    ///
    /// Without --accept-gap or --accept-recreated it lists them. The decision is recorded in the topic stages.gaps, and
    /// the running preprocessor carries it out within seconds; with an embedded log, at its next start.
    Preprocessor(StageArgs),
    /// Resume partitions that the scorer has stopped.
    ///
    /// Without --accept-gap or --accept-recreated it lists them. The decision is recorded in the topic stages.gaps, and
    /// the running scorer carries it out within seconds; with an embedded log, at its next start.
    Scorer(StageArgs),
    /// Resume a topic that the replicator has stopped: the same as replicator resume.
    Replicator(Box<ReplicatorArgs>),
}

/// Which partitions, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct StageArgs {
    /// The log of the stage.
    #[command(flatten)]
    pub log: LogArgs,
    /// Which groups and topics a stage has.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// Resume only this consumer group; for a scorer with --scorer-group, that group.
    #[arg(long, value_name = "GROUP", value_parser = values::name)]
    pub group: Option<String>,
    /// Resume only this topic.
    #[arg(long, value_name = "TOPIC")]
    pub topic: Option<String>,
    /// Resume only this partition.
    #[arg(long, value_name = "N", requires = "topic")]
    pub partition: Option<u32>,
    /// Resume at the first offset that is left; the audit counts the removed ones as lost.
    #[arg(long, conflicts_with = "accept_recreated")]
    pub accept_gap: bool,
    /// Read a topic that was deleted and created again from its beginning.
    #[arg(long)]
    pub accept_recreated: bool,
}

/// Which topic of the replicator, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct ReplicatorArgs {
    /// The log to copy from.
    #[command(flatten)]
    pub edge: EdgeLogArgs,
    /// The log to copy to.
    #[command(flatten)]
    pub cloud: CloudLogArgs,
    /// The name of the site.
    #[arg(long, env = "CARSTREAM_SITE", value_name = "NAME", default_value = replicator::DEFAULT_SITE,
        value_parser = values::name)]
    pub site: String,
    /// What the site has.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// Which topic, and how.
    #[command(flatten)]
    pub resume: replicator::ResumeArgs,
}

/// Runs the command. Blocking. Returns what it has to say.
pub fn run(args: &Args) -> anyhow::Result<String> {
    match &args.stage {
        Stage::Preprocessor(stage) => resume("preprocessor", stage, |contract| {
            contract.streams().map(|stream| (stream.group(), stream.input.topic.clone())).collect()
        }),
        Stage::Scorer(stage) => resume("scorer", stage, |contract| {
            let group = stage.group.clone().unwrap_or_else(|| scorer::DEFAULT_GROUP.to_owned());
            contract.models().map(|model| (group.clone(), model.readings.name.clone())).collect()
        }),
        Stage::Replicator(resume) => {
            let ReplicatorArgs { edge, cloud, site, contract, resume } = (**resume).clone();
            let command = replicator::Command::Resume(resume);
            let url = |log: &Option<LogUrl>| log.clone().unwrap_or_else(|| LogUrl::Directory("".into()));
            let mut args = replicator::Args::new(url(&edge.log), url(&cloud.log));
            (args.edge, args.cloud, args.site, args.contract) = (edge, cloud, site, contract);
            replicator::run_command(&args, &command)
        }
    }
}

fn resume(
    stage: &str,
    args: &StageArgs,
    readers: impl Fn(&Contract) -> Vec<(String, Arc<str>)>,
) -> anyhow::Result<String> {
    let contract = args.contract.load()?;
    let wanted = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    let mut readers = readers(&contract);
    readers.retain(|(group, topic)| wanted(&args.group, group) && wanted(&args.topic, topic));
    if readers.is_empty() {
        let problem = format!("--group, --topic: no stream or model of the contract has them in the {stage}");
        return Err(ConfigError(vec![problem]).into());
    }
    if let LogUrl::Directory(path) = &args.log.log
        && !path.is_dir()
    {
        return Err(ConfigError(vec![format!("--log {}: the directory does not exist", path.display())]).into());
    }
    let log = match args.log.open() {
        Err(error) if matches!(error, Error::InUse { .. }) => {
            return Err(error).context(format!(
                "only one process can open an embedded log: stop the {stage}, run this command, and start it again"
            ));
        }
        opened => opened?,
    };
    let mut stopped = Vec::new();
    for (group, topic) in &readers {
        match pipeline::stopped(log.as_ref(), log.as_ref(), group, topic) {
            Err(Error::UnknownTopic { .. }) => {}
            found => stopped.extend(found?),
        }
    }
    stopped.retain(|(place, _)| args.partition.is_none_or(|partition| partition == place.partition));
    if stopped.is_empty() {
        bail!("no such partition of the {stage} is stopped in {}", log.url());
    }
    let accept = match (args.accept_gap, args.accept_recreated) {
        (true, _) => Accept::Gap,
        (_, true) => Accept::Recreated,
        _ => return Ok(stopped.iter().map(|(place, accept)| listed(place, *accept)).collect()),
    };
    if stopped.iter().all(|(_, stopped)| *stopped != accept) {
        let (list, setting) = (stopped.iter().map(|(place, accept)| listed(place, *accept)), accept.setting());
        bail!("{setting} resumes none of the stopped partitions:\n{}", list.collect::<String>());
    }
    let gaps = contract.expect_topic(own::GAPS);
    topics::ensure(log.as_ref(), gaps)?;
    let mut said = String::new();
    for (place, _) in stopped.iter().filter(|(_, stopped)| *stopped == accept) {
        let (topic_id, accepted_ms) = (log.describe(&place.topic)?.id, service::now_ms());
        let decision = Decision { topic_id, accepted: accept, accepted_ms, to: None };
        gaps::decide(&log, &gaps.name, place, &decision)?;
        let Place { group, topic, partition, from } = place;
        let _ = writeln!(said, "{topic}/{partition}: group {group} resumes at the first offset left, not at {from}");
    }
    said += match log.url() {
        LogUrl::Kafka { .. } => "recorded in topic stages.gaps; the running stage carries it out within seconds\n",
        LogUrl::Directory(_) => "recorded in topic stages.gaps; start the stage again, which carries it out\n",
    };
    Ok(said)
}

fn listed(Place { group, topic, partition, from }: &Place, accept: Accept) -> String {
    let why = match accept {
        Accept::Gap => "retention has removed the records that come next",
        Accept::Recreated => "the topic ends before that offset",
    };
    format!("{topic}/{partition}: group {group} is at offset {from}, and {why}: {}\n", accept.setting())
}
