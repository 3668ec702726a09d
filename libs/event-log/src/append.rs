//! Appending a single record, for those that do so rarely.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::{AppendError, Error, Log, Record};

/// Appends one record, and waits until it is durable, at most `timeout`. Returns whether it is; if not, it may or may
/// not be in the log. Blocking.
///
/// Makes an appender for this one record: whoever appends many keeps one ([`Log::appender`]).
pub fn append_and_wait(
    log: &Arc<dyn Log>,
    topic: &Arc<str>,
    record: &Record<'_>,
    timeout: Duration,
) -> Result<bool, Error> {
    let durable = Arc::new(AtomicBool::new(false));
    let completed = durable.clone();
    let appender = log.clone().appender(Box::new(move |completions| {
        completed.store(completions.iter().all(|completion| completion.durable), Ordering::Release);
    }))?;
    match appender.append(topic, record, 0) {
        Ok(()) => {}
        // Of an appender of its own the queue is empty.
        Err(AppendError::Full) => return Ok(false),
        Err(AppendError::Refused(error)) => return Err(error),
    }
    Ok(appender.flush(timeout) && durable.load(Ordering::Acquire))
}
