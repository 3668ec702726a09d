//! Whether a process is ready, and if not, what it is waiting for.
//!
//! A stage lists each part that it cannot work without, and removes the part from the list once it is available.
//! `/readyz` and the gauge `carstream_ready` report the rest of the list. This module does not check the parts: it
//! holds what the stage has noticed.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// What stands on the list of a stage that has only just begun.
const START: &str = "the start";

/// What a stage waits for; clones share it. Ready is a stage that waits for nothing.
#[derive(Debug, Clone)]
pub struct Readiness {
    /// The missing parts, and why each is missing.
    awaited: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Default for Readiness {
    /// Of a stage that has not started yet.
    fn default() -> Self {
        let awaited = BTreeMap::from([(START.to_owned(), "opening its inputs and outputs".to_owned())]);
        Self { awaited: Arc::new(Mutex::new(awaited)) }
    }
}

impl Readiness {
    /// From now on it waits for `what`; `why` says what is wrong with it, as far as that is known.
    pub fn waits_for(&self, what: impl Into<String>, why: impl Into<String>) {
        self.awaited.lock().insert(what.into(), why.into());
    }

    /// `what` is available.
    pub fn available(&self, what: &str) {
        self.awaited.lock().remove(what);
    }

    /// The stage has started: what it waits for from now on, it has named.
    pub fn started(&self) {
        self.available(START);
    }

    /// Whether it waits for nothing.
    pub fn is_ready(&self) -> bool {
        self.awaited.lock().is_empty()
    }

    /// What it waits for, in words: one clause for each cause. That it has not started says less than what keeps it
    /// from it.
    pub fn reasons(&self) -> Vec<String> {
        let awaited = self.awaited.lock();
        let only = awaited.len() == 1;
        let mut by_cause: Vec<(&str, Vec<&str>)> = Vec::new();
        for (what, why) in awaited.iter().filter(|(what, _)| only || *what != START) {
            match by_cause.iter_mut().find(|(cause, _)| cause == why) {
                Some((_, parts)) => parts.push(what),
                None => by_cause.push((why, vec![what])),
            }
        }
        by_cause.into_iter().map(|(why, parts)| format!("{}: {why}", parts.join(", "))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_ready_once_it_has_started_and_waits_for_nothing() {
        let readiness = Readiness::default();
        assert_eq!(readiness.reasons(), ["the start: opening its inputs and outputs"]);
        let of_the_loop = readiness.clone();
        of_the_loop.waits_for("a model", "none is announced");
        assert_eq!(readiness.reasons(), ["a model: none is announced"]);
        readiness.started();
        assert!(!readiness.is_ready());
        of_the_loop.waits_for("a model", "it cannot be read");
        assert_eq!(readiness.reasons(), ["a model: it cannot be read"]);
        of_the_loop.available("a model");
        assert!(readiness.is_ready());
        for topic in ["topic a", "topic b"] {
            of_the_loop.waits_for(topic, "no answer from the cloud");
        }
        of_the_loop.waits_for("a model", "none is announced");
        let reasons = ["a model: none is announced", "topic a, topic b: no answer from the cloud"];
        assert_eq!(readiness.reasons(), reasons, "one clause for each cause");
        of_the_loop.waits_for("the log", "it went away");
        assert!(!readiness.is_ready(), "it may wait again at any time");
    }
}
