//! Log lines about clients that do something wrong: one for each reason once in a while, with the number of others.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// One line a reason in this time: a fleet with a wrong certificate must not fill the disk.
const QUIET: Duration = Duration::from_secs(10);

/// Says why clients are refused or disconnected, but not for each of them.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    by_reason: Mutex<HashMap<&'static str, Told>>,
}

#[derive(Debug)]
struct Told {
    at: Instant,
    /// Since then.
    untold: u64,
}

impl Complaints {
    /// Notes what was done to a client, and why; logs it if it is the first of its reason for a while. The sentence
    /// names no client: it would be a car.
    pub(crate) fn note(&self, reason: &'static str, what: &str, sentence: &str) {
        if let Some(untold) = self.count(reason, Instant::now()) {
            let others = if untold > 0 { format!(" ({untold} more since the last such line)") } else { String::new() };
            tracing::warn!(reason, "a client was {what}: {sentence}{others}");
        }
    }

    /// How many were not told of, if it is time to tell.
    fn count(&self, reason: &'static str, now: Instant) -> Option<u64> {
        let mut by_reason = self.by_reason.lock();
        match by_reason.get_mut(reason) {
            Some(told) if now.duration_since(told.at) < QUIET => {
                told.untold += 1;
                None
            }
            told => {
                let untold = told.map_or(0, |told| told.untold);
                by_reason.insert(reason, Told { at: now, untold: 0 });
                Some(untold)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_once_in_a_while_with_what_was_left_out() {
        let (complaints, now) = (Complaints::default(), Instant::now());
        assert_eq!(complaints.count("a", now), Some(0));
        assert_eq!(complaints.count("a", now + QUIET / 2), None);
        assert_eq!(complaints.count("b", now + QUIET / 2), Some(0), "another reason");
        assert_eq!(complaints.count("a", now + QUIET - Duration::from_millis(1)), None);
        assert_eq!(complaints.count("a", now + QUIET), Some(2));
        assert_eq!(complaints.count("a", now + QUIET * 3), Some(0));
    }
}
