//! Saying in one line what a process waits for.

use std::error::Error;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::Readiness;

/// Often enough to see that the process is alive, rare enough to keep the log readable.
const REPEAT_AFTER_S: u64 = 10;

/// A missing part is back soon after it starts.
const RETRY_AFTER_MS: u64 = 250;

/// A part that is not available yet. Logs this at once, then every ten seconds.
#[derive(Debug)]
pub struct Waiting {
    what: String,
    said: Option<Instant>,
    readiness: Option<Readiness>,
}

impl Waiting {
    /// Waits for `what`, as in "topic telemetry.raw in kafka://localhost:9092".
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), said: None, readiness: None }
    }

    /// While it waits, the stage is not ready.
    #[must_use]
    pub fn with_readiness(self, readiness: &Readiness) -> Self {
        Self { readiness: Some(readiness.clone()), ..self }
    }

    /// Logs the missing part and the reason, unless that was logged a moment ago.
    pub fn note(&mut self, cause: &dyn Error) {
        if let Some(readiness) = &self.readiness {
            readiness.waits_for(&self.what, chain(cause));
        }
        if self.said.is_some_and(|said| said.elapsed() < Duration::from_secs(REPEAT_AFTER_S)) {
            return;
        }
        tracing::info!("waiting for {}: {}", self.what, chain(cause));
        self.said = Some(Instant::now());
    }

    /// Says that the waiting is over, if it was ever said that it began.
    pub fn resolved(&mut self) {
        if self.said.take().is_some() {
            tracing::info!("{}: available now", self.what);
            if let Some(readiness) = &self.readiness {
                readiness.available(&self.what);
            }
        }
    }
}

impl<T: Into<String>> From<T> for Waiting {
    fn from(what: T) -> Self {
        Self::new(what)
    }
}

/// Calls `attempt` until it succeeds, fails with an error that is not retriable, or shutdown; says meanwhile what it is
/// `waiting` for. Blocking. `Ok(None)`: shut down.
pub fn retry_until<T, E: Error>(
    shutdown: &CancellationToken,
    waiting: impl Into<Waiting>,
    is_retriable: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<Option<T>, E> {
    let mut waiting = waiting.into();
    while !shutdown.is_cancelled() {
        match attempt() {
            Ok(value) => {
                waiting.resolved();
                return Ok(Some(value));
            }
            Err(error) if is_retriable(&error) => waiting.note(&error),
            Err(error) => return Err(error),
        }
        std::thread::sleep(Duration::from_millis(RETRY_AFTER_MS));
    }
    Ok(None)
}

/// An error with its causes, in one line. Some libraries repeat a cause in their own text: it is printed once.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn a_cause_is_said_once() {
        let cause = Layer("no space left", None);
        let repeats = Layer("cannot write f: no space left", Some(Box::new(cause)));
        assert_eq!(
            chain(&Layer("cannot create o", Some(Box::new(repeats)))),
            "cannot create o: cannot write f: no space left"
        );
    }

    #[test]
    fn a_stage_that_waits_is_not_ready() {
        let readiness = Readiness::default();
        readiness.started();
        let mut waiting = Waiting::new("the log").with_readiness(&readiness);
        assert!(readiness.is_ready(), "it has not had to wait yet");
        waiting.note(&Layer("no answer", None));
        waiting.note(&Layer("connection refused", None));
        assert_eq!(readiness.reasons(), ["the log: connection refused"], "the last cause, however seldom it is logged");
        waiting.resolved();
        assert!(readiness.is_ready());
    }

    #[test]
    fn retries_until_it_succeeds_or_cannot() {
        let shutdown = CancellationToken::new();
        let mut attempts = 0;
        let got = retry_until(
            &shutdown,
            "the third attempt",
            |e: &std::io::Error| e.raw_os_error().is_none(),
            || {
                attempts += 1;
                if attempts < 3 { Err(std::io::Error::other("not yet")) } else { Ok(attempts) }
            },
        );
        assert_eq!(got.ok(), Some(Some(3)));
        let refused = retry_until(
            &shutdown,
            "nothing",
            |_: &std::io::Error| false,
            || Err::<(), _>(std::io::Error::other("never")),
        );
        assert_eq!(refused.map_err(|e| e.to_string()), Err("never".to_owned()));
        shutdown.cancel();
        let stopped = retry_until(&shutdown, "nothing", |_: &std::io::Error| true, || Ok(()));
        assert_eq!(stopped.ok(), Some(None));
    }
}
