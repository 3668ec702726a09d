//! From scores to alerts, with hysteresis: one bad reading opens nothing, one good reading closes nothing.
//!
//! ```text
//!  score  ▁▁▂▆▆▇▇▇▆▅▅▃▂▁▁▁▁     threshold ────── open after it was above for `open_after` readings in a row
//!               │        │      close_below × threshold ┄┄ close after it was below for `close_after` in a row
//!             opened   closed
//! ```

use serde::{Deserialize, Serialize};

use crate::Verdict;

/// When alerts open and close. Part of a model: its threshold was set with this rule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertRule {
    /// Readings in a row above the threshold that open an alert; at least 1.
    pub open_after: u32,
    /// The share of the threshold that counts as well again; 0 to 1.
    pub close_below: f32,
    /// Readings in a row below that share that close the alert; at least 1.
    pub close_after: u32,
}

impl Default for AlertRule {
    fn default() -> Self {
        Self { open_after: 3, close_below: 0.7, close_after: 10 }
    }
}

/// Whether a car has an open alert. Starts closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertState {
    open: bool,
    /// Readings in a row that speak for a change.
    run: u32,
}

/// What a reading did to the alert of its car.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlertChange {
    /// An alert opens with this reading.
    Opened,
    /// The alert closes with this reading.
    Closed,
}

impl AlertState {
    /// Whether an alert is open.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// To be stored: whether it is open, then the run, little-endian.
    pub fn to_bytes(&self) -> [u8; 5] {
        let [a, b, c, d] = self.run.to_le_bytes();
        [u8::from(self.open), a, b, c, d]
    }

    /// From [`AlertState::to_bytes`].
    pub fn from_bytes([open, run @ ..]: [u8; 5]) -> Self {
        Self { open: open != 0, run: u32::from_le_bytes(run) }
    }

    /// Takes the next verdict of the car. One on a late reading, or on one that was not judged, changes nothing.
    pub fn observe(&mut self, rule: &AlertRule, verdict: &Verdict) -> Option<AlertChange> {
        if verdict.late || !verdict.judged { None } else { self.step(rule, verdict.score, verdict.threshold) }
    }

    /// Takes the next score of the car.
    pub fn step(&mut self, rule: &AlertRule, score: f32, threshold: f32) -> Option<AlertChange> {
        let (speaks_for_change, enough) = if self.open {
            (score < rule.close_below * threshold, rule.close_after)
        } else {
            (score > threshold, rule.open_after)
        };
        self.run = if speaks_for_change { self.run + 1 } else { 0 };
        if self.run < enough.max(1) {
            return None;
        }
        self.run = 0;
        self.open = !self.open;
        Some(if self.open { AlertChange::Opened } else { AlertChange::Closed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: AlertRule = AlertRule { open_after: 3, close_below: 0.5, close_after: 2 };

    /// `o`: opened at this reading, `c`: closed, `.`: nothing.
    fn changes(scores: &[f32]) -> String {
        let mut state = AlertState::default();
        let change = |score: &f32| match state.step(&RULE, *score, 10.0) {
            Some(AlertChange::Opened) => 'o',
            Some(AlertChange::Closed) => 'c',
            None => '.',
        };
        scores.iter().map(change).collect()
    }

    #[test]
    fn alerts_open_and_close_with_hysteresis() {
        for (what, scores, expected) in [
            ("never above", &[0.0, 9.0, 9.9, 9.9, 9.9][..], "....."),
            ("the threshold itself is not above", &[10.0, 10.0, 10.0, 10.0], "...."),
            ("opens with the third", &[11.0, 11.0, 11.0, 11.0, 11.0, 11.0, 11.0], "..o...."),
            ("a dip starts the count anew", &[11.0, 11.0, 9.0, 11.0, 11.0, 11.0], ".....o"),
            ("between the bounds it stays open", &[11.0, 11.0, 11.0, 6.0, 6.0, 6.0, 6.0], "..o...."),
            ("one good reading does not close", &[11.0, 11.0, 11.0, 4.0, 6.0, 4.0, 6.0], "..o...."),
            ("two good readings close", &[11.0, 11.0, 11.0, 4.0, 4.0, 4.0], "..o.c."),
            ("exactly the lower bound is not below", &[11.0, 11.0, 11.0, 5.0, 5.0, 5.0], "..o..."),
            ("opens again only after three", &[11.0, 11.0, 11.0, 0.0, 0.0, 11.0, 11.0, 11.0], "..o.c..o"),
            ("not a number opens nothing", &[f32::NAN, f32::NAN, f32::NAN, f32::NAN], "...."),
        ] {
            assert_eq!(changes(scores), expected, "{what}");
        }
    }

    #[test]
    fn a_state_survives_being_stored() {
        for state in [AlertState::default(), AlertState { open: true, run: u32::MAX - 1 }] {
            assert_eq!(AlertState::from_bytes(state.to_bytes()), state);
        }
    }

    #[test]
    fn a_late_or_unjudged_reading_changes_nothing() {
        let contributors = [(0, 11.0); 3];
        let bad = Verdict { score: 11.0, threshold: 10.0, anomalous: true, late: false, judged: true, contributors };
        let mut state = AlertState::default();
        assert_eq!(state.observe(&RULE, &bad), None);
        assert_eq!(state.observe(&RULE, &bad), None);
        assert_eq!(state.observe(&RULE, &Verdict { late: true, ..bad }), None);
        assert_eq!(state.observe(&RULE, &Verdict { judged: false, score: 0.0, anomalous: false, ..bad }), None);
        assert!(!state.is_open());
        assert_eq!(state.observe(&RULE, &bad), Some(AlertChange::Opened));
        assert!(state.is_open());
    }
}
