//! The end of a run: processes the records that the log held when the stop was requested, within a time-out.
//!
//! Nothing is lost without it: the next start processes the rest. It serves those who stop a pipeline and then count.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use event_log::{Error, progress};
use tokio_util::sync::CancellationToken;

use crate::{Metrics, Options, Transform, run, stopped};

/// How often the positions are looked at, and how late a shutdown may be noticed.
const POLL: Duration = Duration::from_millis(50);

/// Like [`run`], but at shutdown it goes on until what its topics hold by then is committed, at most `timeout`.
pub fn run_and_drain(
    options: Options,
    transform: &mut dyn Transform,
    metrics: &Metrics,
    shutdown: &CancellationToken,
    timeout: Duration,
) -> anyhow::Result<()> {
    let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
    let drained = options.clone();
    std::thread::scope(|scope| {
        let at_shutdown = || {
            while !shutdown.is_cancelled() && !ended.is_cancelled() {
                std::thread::sleep(POLL);
            }
            drain(&drained, timeout, &ended);
            stop.cancel();
        };
        std::thread::Builder::new()
            .name("drain".into())
            .spawn_scoped(scope, at_shutdown)
            .context("cannot start a thread")?;
        // However the loop ends, the other thread must not keep the scope open.
        let _ended = ended.clone().drop_guard();
        run(options, transform, metrics, &stop)
    })
}

/// Waits until the group has committed everything that its topics hold now, at most `timeout`, or until `ended`.
/// Blocking. Does not wait for a log that does not answer.
pub fn drain(options: &Options, timeout: Duration, ended: &CancellationToken) {
    let deadline = Instant::now() + timeout;
    for topic in &options.topics {
        if let Err(error) = drain_topic(options, topic, deadline, ended) {
            tracing::warn!("not draining {topic}, its end is unknown: {:#}", anyhow::Error::from(error));
        }
    }
}

fn drain_topic(options: &Options, topic: &Arc<str>, deadline: Instant, ended: &CancellationToken) -> Result<(), Error> {
    let (source, target) = (&options.source, &options.target);
    let ends = progress::ends(source.as_ref(), topic)?;
    let mut before = None;
    while !ended.is_cancelled() {
        let mut left = progress::left(source.as_ref(), target.as_ref(), &options.group, topic, &ends)?;
        if options.gaps.is_some() && !left.is_empty() {
            // A partition that has stopped is not waited for.
            let stopped = stopped(source.as_ref(), target.as_ref(), &options.group, topic)?;
            left.retain(|range| stopped.iter().all(|(place, _)| place.partition != range.partition));
        }
        // A read tells, and costs more: only once nothing moves any more.
        if left.is_empty() || (before.as_ref() == Some(&left) && progress::is_drained(source, &left)?) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let offsets = progress::offsets(&left);
            tracing::warn!(
                "drain timeout: up to {offsets} records of {topic} are not processed; the next start resumes there"
            );
            return Ok(());
        }
        before = Some(left);
        std::thread::sleep(POLL);
    }
    Ok(())
}
