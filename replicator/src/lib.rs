//! The replicator: from one log to another, every record exactly once.
//!
//! ```text
//!  EDGE log                                                                    CLOUD log
//!  telemetry ─► loop of its own ─► bytes as they are, same partition ─► telemetry
//!  faults    ─► …                  + source.cluster, .topic,               ┐ one transaction
//!                                    .partition, .offset               positions
//! ```
//!
//! One loop (`pipeline`) per topic, each in a thread of its own: a topic that cannot go on stops alone, loudly, and the
//! process ends with an error. Positions are in the target log, beside what they belong to, so that no crash can tear
//! them apart. Where a record came from is in its headers, offset by offset.
//!
//! It never looks into a payload, and there is no record that it cannot copy: it has no dead letters. Personal topics
//! are refused by name. It does not filter or rename.

mod args;
mod copy;
mod metrics;
mod topic;

use std::sync::Arc;

use anyhow::bail;
use event_log::Log;
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use args::{Args, DEFAULT_TOPICS, group};
pub use copy::{SOURCE_CLUSTER, SOURCE_OFFSET, SOURCE_PARTITION, SOURCE_TOPIC};
pub use metrics::{Metrics, Topic};
use topic::Replication;

/// Runs the replicator until `shutdown`, with its admin port.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let service = args.service.clone();
    service::with_admin(&service, registry, run_with(args, metrics, shutdown)).await
}

/// Runs the replicator until `shutdown`; then copies what the source holds at that moment, and returns.
pub async fn run_with(args: Args, metrics: Metrics, shutdown: CancellationToken) -> anyhow::Result<()> {
    args.check()?;
    let source = event_log::open(&args.source_log, &args.source_kafka_options)?;
    let target = event_log::open(&args.target_log, &args.target_kafka_options)?;
    run_on(&args, source, target, metrics, shutdown).await
}

/// Like [`run_with`], on logs that are open already: for tests and to inject faults.
pub async fn run_on(
    args: &Args,
    source: Arc<dyn Log>,
    target: Arc<dyn Log>,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    args.check()?;
    let mut topics = JoinSet::new();
    for topic in &args.topics {
        let replication = Replication::new(args, topic, source.clone(), target.clone());
        let (args, topic) = (args.clone(), topic.clone());
        let (metrics, shutdown) = (metrics.clone(), shutdown.clone());
        topics.spawn_blocking(move || (replication.run(&args, &metrics, &shutdown), topic));
    }
    let mut stopped = Vec::new();
    while let Some(joined) = topics.join_next().await {
        let (Err(error), topic) = joined? else { continue };
        tracing::error!(%topic, "stopped copying {topic}: {error:#}");
        stopped.push(format!("{topic}: {error:#}"));
        metrics.stopped_topics.set(stopped.len() as i64);
    }
    if !stopped.is_empty() {
        bail!("stopped before the end of {}", stopped.join("; "));
    }
    Ok(())
}
