//! The end of a run: what the log held when it was told to stop is scored first, within a time-out.
//!
//! Nothing is lost without it: what is left is scored at the next start. It is for whoever stops a pipeline and counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{Error, Log, Range, Read};
use tokio_util::sync::CancellationToken;

/// How often the positions are looked at.
const POLL_MS: u64 = 50;

/// Waits until `group` has committed everything that `topic` holds now, at most `timeout`, or until `ended`. Blocking.
///
/// A log that does not answer is not waited for.
pub(crate) fn wait_for_end(log: &Arc<dyn Log>, group: &str, topic: &str, timeout: Duration, ended: &CancellationToken) {
    let deadline = Instant::now() + timeout;
    let waited = ends(log, topic).and_then(|ends| {
        while !ended.is_cancelled() && is_behind(log, group, topic, &ends)? {
            if Instant::now() >= deadline {
                let seconds = timeout.as_secs();
                tracing::warn!("readings are left in {topic} after {seconds} s; they are scored at the next start");
                break;
            }
            std::thread::sleep(Duration::from_millis(POLL_MS));
        }
        Ok(())
    });
    if let Err(error) = waited {
        tracing::warn!("not waiting for the end of {topic}: {:#}", anyhow::Error::from(error));
    }
}

fn ends(log: &Arc<dyn Log>, topic: &str) -> Result<Vec<u64>, Error> {
    Ok(log.describe(topic)?.partitions.iter().map(|bounds| bounds.next).collect())
}

/// Whether there are records between the committed positions and `ends`. Offsets do not tell: Kafka's transaction
/// markers take some, too.
fn is_behind(log: &Arc<dyn Log>, group: &str, topic: &str, ends: &[u64]) -> Result<bool, Error> {
    let bounds = log.describe(topic)?.partitions;
    let committed = log.committed(group, topic)?;
    let left: Vec<_> = committed
        .iter()
        .zip(&bounds)
        .zip(ends)
        .enumerate()
        .map(|(partition, ((committed, bounds), end))| Range {
            topic: topic.into(),
            partition: partition as u32,
            start: committed.unwrap_or(0).max(bounds.first),
            end: Some(*end),
        })
        .filter(|range| range.end > Some(range.start))
        .collect();
    if left.is_empty() {
        return Ok(false);
    }
    let mut reader = log.clone().reader(left)?;
    match reader.next(1, Duration::from_millis(POLL_MS)) {
        Ok(Read::End) => Ok(false),
        // Idle: not known yet. Out of range: retention went on meanwhile.
        Ok(Read::Batch(_) | Read::Idle) | Err(Error::OutOfRange { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}
