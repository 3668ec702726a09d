//! The replicator: from one log to another, every record exactly once.
//!
//! ```text
//!  EDGE log                                                                    CLOUD log
//!  telemetry ─► loop of its own ─► bytes as they are, same partition ─► telemetry
//!  faults    ─► …                  + source.cluster, .topic,               ┐ one transaction
//!                                    .partition, .offset               positions, and whose they are
//! ```
//!
//! One loop (`pipeline`) per topic, each in its own thread: a topic that cannot continue stops alone, with an error,
//! and the process ends with an error. Positions are in the target log, beside the records that they belong to, so that
//! no crash can separate them. Each record's headers hold its origin and offset, so that a position in one log can be
//! translated into the other's (`replicator offsets`).
//!
//! What stops a topic: records that retention removed before they were copied, another topic under the same name,
//! another number of partitions, a circle of replicators. What then happens is the operator's decision (`replicator
//! resume`).
//!
//! Instances share the partitions of a topic. Their group is on the target, where the transactions are: see
//! `event_log`'s Kafka backend. An embedded log is one process's, and so is its replicator.
//!
//! It never looks into a payload, and there is no record that it cannot copy: it has no dead letters. Personal topics
//! are refused by name. It does not filter or rename.

mod args;
mod check;
mod copies;
mod copy;
mod metrics;
mod offsets;
mod resume;
mod state;
mod topic;
mod watch;

use std::io::Write as _;
use std::sync::Arc;

use anyhow::{Context, bail};
use event_log::{Error, Log, LogUrl};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use args::{Accept, Args, Command, DEFAULT_SITE, OffsetsArgs, ResumeArgs, group, group_of};
pub use copy::{SOURCE_CLUSTER, SOURCE_OFFSET, SOURCE_PARTITION, SOURCE_TOPIC};
pub use metrics::{Metrics, Seconds};
pub use pipeline::Topic;
pub use state::{Accepted, Gap, STATE_TOPIC, accepted_gaps};
use topic::Replication;

/// Runs the replicator until `shutdown`, with its admin port; or its command, if there is one.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    if let Some(command) = args.command.clone() {
        let said = tokio::task::spawn_blocking(move || run_command(&args, &command)).await??;
        return std::io::stdout().write_all(said.as_bytes()).context("cannot print");
    }
    service::stage(args, shutdown, Metrics::new, |metrics| &metrics.pipeline.readiness, run_with).await
}

/// Runs the replicator until `shutdown`; then copies what the source holds at that moment, and returns.
pub async fn run_with(args: Args, metrics: Metrics, shutdown: CancellationToken) -> anyhow::Result<()> {
    args.check()?;
    let edge = args.edge.log.as_ref().and_then(LogUrl::directory);
    service::ConfigError::check(edge.and_then(|path| service::missing_directory("--edge-log", path)))?;
    let (source, target) = open(&args)?;
    run_on(&args, source, target, metrics, shutdown).await
}

/// Runs a command. Blocking. Returns what it has to say.
pub fn run_command(args: &Args, command: &Command) -> anyhow::Result<String> {
    let (contract, topics) = args.check()?;
    let opened = open(args);
    let (source, target) = match opened {
        Err(error) if matches!(error.downcast_ref(), Some(Error::InUse { .. })) => {
            return Err(error).context(
                "only one process can open an embedded log: stop the replicator, run this command, and start \
                          it again",
            );
        }
        opened => opened?,
    };
    match command {
        Command::Offsets(offsets) => offsets::run(args, &contract, &topics, offsets, &source, &target),
        Command::Resume(resume) => {
            let done = resume::run(args, &contract, resume, source, target)?;
            Ok(format!("{done}\nstart the replicator again\n"))
        }
    }
}

/// Source and target.
type Logs = (Arc<dyn Log>, Arc<dyn Log>);

fn open(args: &Args) -> anyhow::Result<Logs> {
    let both = args.edge.open()?.zip(args.cloud.open()?);
    both.context("--edge-log and --cloud-log are missing")
}

/// Like [`run_with`], on logs that are open already: for tests and to inject faults.
pub async fn run_on(
    args: &Args,
    source: Arc<dyn Log>,
    target: Arc<dyn Log>,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (contract, topics) = args.check()?;
    let names: Vec<_> = topics.iter().map(|topic| &*topic.name).collect();
    tracing::info!("copying {} from {} to {}", names.join(", "), source.url(), target.url());
    let shutdown = shutdown.child_token();
    let readiness = &metrics.pipeline.readiness;
    let replications: Vec<_> =
        names.iter().map(|topic| Replication::new(args, &contract, topic, source.clone(), target.clone())).collect();
    for replication in &replications {
        // Before it waits for the target: until then the source must keep what is to be copied.
        replication.source.keep_for(&replication.group, &replication.topic, &[])?;
        readiness.waits_for(replication.awaited(), replication.not_started());
    }
    readiness.started();
    metrics.stopped_topics.set(0);
    let mut topics = JoinSet::new();
    for replication in replications {
        let (args, metrics, shutdown) = (args.clone(), metrics.clone(), shutdown.clone());
        let (topic, awaited) = (replication.topic.clone(), replication.awaited());
        topics.spawn_blocking(move || (replication.run(&args, &metrics, &shutdown), topic, awaited));
    }
    let mut stopped = Vec::new();
    while let Some(joined) = topics.join_next().await {
        let (Err(error), topic, awaited) = joined? else { continue };
        tracing::error!(%topic, "stopped copying {topic}: {error:#}");
        readiness.waits_for(awaited, "stopped with an error: see the log output");
        stopped.push(format!("{topic}: {error:#}"));
        // Two processes of one name would share out the topics by chance, each with those that it took up last.
        if error.chain().any(|cause| matches!(cause.downcast_ref(), Some(Error::Fenced { .. }))) {
            shutdown.cancel();
        }
        metrics.stopped_topics.set(stopped.len() as i64);
    }
    if !stopped.is_empty() {
        bail!("stopped before the end of {}", stopped.join("; "));
    }
    Ok(())
}
