//! The end of a run: scores the records that the log held when the stop was requested, within a timeout.
//!
//! Nothing is lost without it: the next start scores the rest. It serves those who stop a pipeline and then count.

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{Error, Log, Range, Read};
use tokio_util::sync::CancellationToken;

/// How often the positions are looked at.
const POLL_MS: u64 = 50;
/// How long one look at what is left may take: on Kafka a reader connects first.
const LOOK_S: u64 = 2;

/// Waits until `group` has committed everything that `topic` holds now, at most `timeout`, or until `ended`. Blocking.
///
/// Does not wait for a log that does not answer.
pub(crate) fn wait_for_end(log: &Arc<dyn Log>, group: &str, topic: &str, timeout: Duration, ended: &CancellationToken) {
    if let Err(error) = try_wait_for_end(log, group, topic, timeout, ended) {
        tracing::warn!("not draining {topic}, its end is unknown: {:#}", anyhow::Error::from(error));
    }
}

fn try_wait_for_end(
    log: &Arc<dyn Log>,
    group: &str,
    topic: &str,
    timeout: Duration,
    ended: &CancellationToken,
) -> Result<(), Error> {
    let deadline = Instant::now() + timeout;
    let ends: Vec<u64> = log.describe(topic)?.partitions.iter().map(|bounds| bounds.next).collect();
    let mut before = None;
    while !ended.is_cancelled() {
        let positions: Vec<u64> = log.committed(group, topic)?.iter().map(|position| position.unwrap_or(0)).collect();
        if positions.iter().zip(&ends).all(|(position, end)| position >= end) {
            return Ok(());
        }
        if before.as_ref() == Some(&positions) && nothing_left(log, topic, &positions, &ends)? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let seconds = timeout.as_secs();
            tracing::warn!(
                "drain timeout: readings without a score are left in {topic} after {seconds} s; the next \
                start scores them"
            );
            return Ok(());
        }
        before = Some(positions);
        std::thread::sleep(Duration::from_millis(POLL_MS));
    }
    Ok(())
}

/// Whether there are no records between `positions` and `ends`. Offsets do not tell: Kafka's transaction markers take
/// some, too.
fn nothing_left(log: &Arc<dyn Log>, topic: &str, positions: &[u64], ends: &[u64]) -> Result<bool, Error> {
    let bounds = log.describe(topic)?.partitions;
    let ranges =
        bounds.iter().zip(positions).zip(ends).enumerate().map(|(partition, ((bounds, position), end))| Range {
            topic: topic.into(),
            partition: partition as u32,
            start: (*position).max(bounds.first),
            end: Some(*end),
        });
    let left: Vec<_> = ranges.filter(|range| range.end > Some(range.start)).collect();
    if left.is_empty() {
        return Ok(true);
    }
    let mut reader = log.clone().reader(left)?;
    match reader.next(1, Duration::from_secs(LOOK_S)) {
        Ok(Read::End) => Ok(true),
        // Idle: not known yet. Out of range: retention went on meanwhile.
        Ok(Read::Batch(_) | Read::Idle) | Err(Error::OutOfRange { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
