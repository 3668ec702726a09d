//! Looks from beside the connections whether the log can be written to.
//!
//! A connection only learns of trouble with the log when its car publishes. Without this a bridge whose broker is away,
//! or whose disk was full, would be "ready" for as long as no car says anything, and take cars that it cannot serve.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::Duration;

use event_log::{Error, Log};
use service::{Readiness, Waiting};
use tokio::sync::oneshot;

/// Often enough for a load balancer; on Kafka a look is a small request.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A look every two seconds, until this is dropped.
pub(crate) struct LogWatch {
    /// The error after which this log takes nothing more.
    pub(crate) failed: oneshot::Receiver<Error>,
    /// Dropping the sender stops the watch.
    _ends: mpsc::Sender<()>,
}

impl LogWatch {
    /// Looks at `topic`, and keeps `readiness` up to date.
    pub(crate) fn start(log: &Arc<dyn Log>, topic: Arc<str>, readiness: &Readiness) -> std::io::Result<Self> {
        let (failed, failure) = oneshot::channel();
        let (ends, ended) = mpsc::channel();
        let waiting = Waiting::new(format!("the log {}", log.url())).with_readiness(readiness);
        // A thread of its own, and not joined: a broker that does not answer must not hold up a stop.
        let (log, look) = (Arc::downgrade(log), move |log| watch(log, &topic, waiting, &ended));
        std::thread::Builder::new().name("log-watch".into()).spawn(move || {
            if let Some(error) = look(log) {
                let _ = failed.send(error);
            }
        })?;
        Ok(Self { failed: failure, _ends: ends })
    }
}

fn watch(log: Weak<dyn Log>, topic: &str, mut waiting: Waiting, ended: &mpsc::Receiver<()>) -> Option<Error> {
    // The watch is not to keep open a log that nobody uses any more.
    while let Some(log) = log.upgrade() {
        match log.check_writable(topic) {
            Ok(()) => waiting.resolved(),
            Err(error) => {
                waiting.note(&error);
                if !error.is_retriable() {
                    return Some(error);
                }
            }
        }
        drop(log);
        if ended.recv_timeout(LOOK_EVERY) != Err(RecvTimeoutError::Timeout) {
            return None;
        }
    }
    None
}
