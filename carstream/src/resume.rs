//! `carstream resume`: an operator's decision about what a stage has stopped.
//!
//! ```text
//!  preprocessor, scorer   is the partition behind? ─► decision in stages.gaps ─► the stage with it carries it out
//!  replicator             is the topic stopped? ─► hold its partitions ─► position and record, here and now
//!  sink                   is the partition behind? ─► an object of the lake that says what is skipped, here and now
//! ```
//!
//! On Kafka the stages run meanwhile. A running edge box decides for its preprocessor and scorer itself ([`live`]); for
//! the others an embedded log is one process's: stop it first.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Context, bail};
use contract::{Contract, own};
use event_log::{CloudLogArgs, EdgeLogArgs, Error, Log, LogArgs, LogUrl};
use lake::{LakeArgs, LakeUrl, OffsetRange};
use pipeline::gaps::{self, Accept, Decision, Place};
use serde::{Deserialize, Serialize};
use service::{ConfigError, ContractArgs, values};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::live::{self, Request};

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
    /// the running preprocessor, also that of an edge box, carries it out within seconds. Any other process that has an
    /// embedded log open must be stopped first, and carries it out at its next start.
    Preprocessor(StageArgs),
    /// Resume partitions that the scorer has stopped.
    ///
    /// Without --accept-gap or --accept-recreated it lists them. The decision is recorded in the topic stages.gaps, and
    /// the running scorer, also that of an edge box, carries it out within seconds. Any other process that has an
    /// embedded log open must be stopped first, and carries it out at its next start.
    Scorer(StageArgs),
    /// Resume a topic that the replicator has stopped: the same as replicator resume.
    Replicator(Box<ReplicatorArgs>),
    /// Resume partitions that the sink has stopped.
    ///
    /// Without --accept-gap it lists them. The decision is an object of the lake, whose footer says which offsets are
    /// missing. Use it only for topics that every sink of this lake has stopped, and start the sinks again.
    Sink(Box<SinkArgs>),
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

/// Which partitions of the sink, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct SinkArgs {
    /// The log that the sink reads.
    #[command(flatten)]
    pub log: LogArgs,
    /// The lake that it writes.
    #[command(flatten)]
    pub lake: LakeArgs,
    /// Which topics go to the lake.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// Resume only this topic.
    #[arg(long, value_name = "TOPIC")]
    pub topic: Option<String>,
    /// Resume only this partition.
    #[arg(long, value_name = "N", requires = "topic")]
    pub partition: Option<u32>,
    /// Resume at the first offset that is left; readers of the lake and the audit are told which are missing.
    #[arg(long)]
    pub accept_gap: bool,
}

/// Runs the command. Blocking, within a runtime. Returns what it has to say.
pub fn run(args: &Args) -> anyhow::Result<String> {
    match &args.stage {
        Stage::Preprocessor(stage) => resume(Readers::Preprocessor, stage),
        Stage::Scorer(stage) => resume(Readers::Scorer, stage),
        Stage::Replicator(resume) => {
            let ReplicatorArgs { edge, cloud, site, contract, resume } = (**resume).clone();
            let command = replicator::Command::Resume(resume);
            let url = |log: &Option<LogUrl>| log.clone().unwrap_or_else(|| LogUrl::Directory("".into()));
            let mut args = replicator::Args::new(url(&edge.log), url(&cloud.log));
            (args.edge, args.cloud, args.site, args.contract) = (edge, cloud, site, contract);
            replicator::run_command(&args, &command)
        }
        Stage::Sink(sink) => resume_sink(sink),
    }
}

fn resume_sink(args: &SinkArgs) -> anyhow::Result<String> {
    let contract = args.contract.load()?;
    let mut topics: Vec<_> = contract.lake_topics().map(|topic| topic.name.clone()).collect();
    topics.retain(|name| args.topic.as_deref().is_none_or(|wanted| *wanted == **name));
    if topics.is_empty() {
        return Err(ConfigError(vec!["--topic: the contract has no such topic for the lake".to_owned()]).into());
    }
    let mut problems = [args.log.problems(), args.lake.problems()].concat();
    if let LakeUrl::Directory(path) = &args.lake.lake {
        problems.extend(service::missing_directory("--lake", path));
    }
    problems.extend(crate::missing_log("--log", &args.log.log));
    ConfigError::check(problems)?;
    let (log, lake, runtime) = (open(&args.log, "sink")?, args.lake.open()?, Handle::current());
    let mut behind = Vec::new();
    for topic in &topics {
        behind.extend(sink::behind(log.as_ref(), &lake, &runtime, topic)?);
    }
    behind.retain(|range| args.partition.is_none_or(|partition| partition == range.partition));
    if behind.is_empty() {
        bail!("no such partition of the lake {} is behind what {} holds", lake.url(), log.url());
    }
    let mut said = String::new();
    for range in &behind {
        let OffsetRange { topic, partition, start, end } = range;
        if args.accept_gap {
            runtime.block_on(lake.skip(range))?;
            let _ = writeln!(said, "{topic}/{partition}: the lake continues at offset {end}, not at {start}");
        } else {
            let last = end - 1;
            let _ = writeln!(said, "{topic}/{partition}: retention removed offsets {start} to {last}: --accept-gap");
        }
    }
    if args.accept_gap {
        said += "recorded in the lake; start the sink again\n";
    }
    Ok(said)
}

fn open(log: &LogArgs, stage: &str) -> anyhow::Result<Arc<dyn Log>> {
    match log.open() {
        Err(error) if matches!(error, Error::InUse { .. }) => Err(error).context(format!(
            "only one process can open an embedded log: stop the {stage}, run this command, and start it again"
        )),
        opened => Ok(opened?),
    }
}

/// Which partitions of preprocessor or scorer, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Question {
    stage: Readers,
    group: Option<String>,
    topic: Option<String>,
    partition: Option<u32>,
    /// None: list them.
    accept: Option<Accept>,
}

/// A stage whose decisions are records.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Readers {
    Preprocessor,
    Scorer,
}

impl Readers {
    fn name(self) -> &'static str {
        match self {
            Self::Preprocessor => "preprocessor",
            Self::Scorer => "scorer",
        }
    }

    /// Its groups, each with a topic.
    fn of(self, contract: &Contract, group: Option<&str>) -> Vec<(String, Arc<str>)> {
        match self {
            Self::Preprocessor => {
                contract.streams().map(|stream| (stream.group(), stream.input.topic.clone())).collect()
            }
            Self::Scorer => {
                let group = group.unwrap_or(scorer::DEFAULT_GROUP);
                contract.models().map(|model| (group.to_owned(), model.readings.name.clone())).collect()
            }
        }
    }
}

fn resume(stage: Readers, args: &StageArgs) -> anyhow::Result<String> {
    let accept = match (args.accept_gap, args.accept_recreated) {
        (true, _) => Some(Accept::Gap),
        (_, true) => Some(Accept::Recreated),
        _ => None,
    };
    let StageArgs { group, topic, partition, .. } = args.clone();
    let question = Question { stage, group, topic, partition, accept };
    if let Some(answer) = live::ask(&args.log.log, &Request::Resume(question.clone()), &CancellationToken::new())? {
        return answer.said();
    }
    let contract = args.contract.load()?;
    ConfigError::check(crate::missing_log("--log", &args.log.log))?;
    let log = open(&args.log, stage.name())?;
    let is_running = matches!(log.url(), LogUrl::Kafka { .. });
    answer(&question, &log, &contract, is_running)
}

/// Lists what a stage has stopped, or records a decision about it. Blocking.
pub(crate) fn answer(
    question: &Question,
    log: &Arc<dyn Log>,
    contract: &Contract,
    is_running: bool,
) -> anyhow::Result<String> {
    let Question { stage, group, topic, partition, accept } = question;
    let wanted = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    let mut readers = stage.of(contract, group.as_deref());
    readers.retain(|(reader, read)| wanted(group, reader) && wanted(topic, read));
    let stage = stage.name();
    if readers.is_empty() {
        let problem = format!("--group, --topic: no stream or model of the contract has them in the {stage}");
        return Err(ConfigError(vec![problem]).into());
    }
    let mut stopped = Vec::new();
    for (group, topic) in &readers {
        match pipeline::stopped(log.as_ref(), log.as_ref(), group, topic) {
            Err(Error::UnknownTopic { .. }) => {}
            found => stopped.extend(found?),
        }
    }
    stopped.retain(|(place, _)| partition.is_none_or(|partition| partition == place.partition));
    if stopped.is_empty() {
        bail!("no such partition of the {stage} is stopped in {}", log.url());
    }
    let Some(accept) = *accept else {
        return Ok(stopped.iter().map(|(place, accept)| listed(place, *accept)).collect());
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
        gaps::decide(log, &gaps.name, place, &decision)?;
        let Place { group, topic, partition, from } = place;
        let _ = writeln!(said, "{topic}/{partition}: group {group} resumes at the first offset left, not at {from}");
    }
    said += match is_running {
        true => "recorded in topic stages.gaps; the running stage carries it out within seconds\n",
        false => "recorded in topic stages.gaps; start the stage again, which carries it out\n",
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
