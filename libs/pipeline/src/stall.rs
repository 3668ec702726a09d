//! A loop that cannot go on until an operator has changed a setting or a clock.
//!
//! To end would not help: the process would meet the same batch after its restart, again and again. So it stays, is not
//! ready, says why, and tries again from the last commit.

use std::time::{Duration, Instant};

use event_log::Error;
use service::Readiness;
use tokio_util::sync::CancellationToken;

/// How often it tries again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How often the same cause is logged.
const REPEAT_AFTER: Duration = Duration::from_secs(60);
/// How late a shutdown may be noticed.
const POLL: Duration = Duration::from_millis(50);

/// What keeps a loop from going on.
#[derive(Debug)]
pub(crate) struct Stall {
    /// The name under which it stands in the readiness.
    what: String,
    readiness: Readiness,
    said: Option<(Instant, String)>,
}

impl Stall {
    /// Of the loop that `awaited` names.
    pub(crate) fn new(awaited: &str, readiness: &Readiness) -> Self {
        Self { what: format!("an operator, for {awaited}"), readiness: readiness.clone(), said: None }
    }

    /// Says what keeps it, and waits until it is time to try again. Blocking.
    pub(crate) fn wait(&mut self, cause: &Error, shutdown: &CancellationToken) {
        let cause = service::chain(cause);
        self.readiness.waits_for(&self.what, &cause);
        if !self.said.as_ref().is_some_and(|(when, said)| *said == cause && when.elapsed() < REPEAT_AFTER) {
            tracing::error!("processing stands still, and continues by itself once this is put right: {cause}");
            self.said = Some((Instant::now(), cause));
        }
        let until = Instant::now() + RETRY_AFTER;
        while Instant::now() < until && !shutdown.is_cancelled() {
            std::thread::sleep(POLL);
        }
    }

    /// A commit has succeeded.
    pub(crate) fn over(&mut self) {
        if self.said.take().is_some() {
            tracing::info!("processing continues");
            self.readiness.available(&self.what);
        }
    }
}
