//! Looks from beside the connections whether the log can be written to.
//!
//! A connection only learns of trouble with the log when its car publishes. Without this a bridge whose broker is away,
//! or whose disk was full, would be "ready" for as long as no car says anything, and take cars that it cannot serve.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use event_log::{Error, Log};
use service::{Periodic, Readiness, Waiting};
use tokio::sync::oneshot;

/// Often enough for a load balancer; on Kafka a look is a small request.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A look every two seconds, until this is dropped.
pub(crate) struct LogWatch {
    /// The error after which this log takes nothing more.
    pub(crate) failed: oneshot::Receiver<Error>,
    _looks: Periodic,
}

impl LogWatch {
    /// Looks at `topic`, and keeps `readiness` up to date.
    pub(crate) fn start(log: &Arc<dyn Log>, topic: Arc<str>, readiness: &Readiness) -> std::io::Result<Self> {
        let (failed, failure) = oneshot::channel();
        let mut failed = Some(failed);
        let mut waiting = Waiting::new(format!("the log {}", log.url())).with_readiness(readiness);
        // The watch is not to keep open a log that nobody uses any more.
        let log = Arc::downgrade(log);
        let looks = Periodic::start("log-watch", LOOK_EVERY, move || {
            let Some(log) = log.upgrade() else { return ControlFlow::Break(()) };
            let Err(error) = log.check_writable(&topic) else {
                waiting.resolved();
                return ControlFlow::Continue(());
            };
            waiting.note(&error);
            if error.is_retriable() {
                return ControlFlow::Continue(());
            }
            failed.take().map(|failed| failed.send(error));
            ControlFlow::Break(())
        })?;
        Ok(Self { failed: failure, _looks: looks })
    }
}
