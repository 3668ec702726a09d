//! When a fleet begins, in event time, and whether its readings will be accepted.
//!
//! ```text
//!  Monday, 05:00 UTC ├──────────── span = --duration × --speedup ────────────┤ ≤ now        never ahead of the clock
//! ```
//!
//! A preprocessor makes dead letters of readings whose event time is far from their receipt. So a fleet that lives
//! faster than the clock begins so far in the past that its span ends in the past, too. It begins whole weeks from
//! [`START_MS`], so that it is the same fleet on any day.

use std::time::Duration;

use contract::{EVENT_TIME_AHEAD, EVENT_TIME_BEHIND};
use service::values::shown_duration;

use crate::args::{FleetArgs, RunArgs};
use crate::ledger;

/// Monday, 2026-06-01, 06:00 in the fleet's time zone: the first commuters leave, the early shift has begun.
pub(crate) const START_MS: i64 = 1_780_290_000_000;

const WEEK_MS: i64 = 7 * 24 * 3_600_000;

/// A fleet without an end that lives faster than the clock begins so far in the past, at least.
const HEAD_START_MS: i64 = 2 * WEEK_MS;

impl RunArgs {
    /// Decides when the fleet begins, if no setting does: as in the ledger that is resumed, or so that its span ends
    /// in the past.
    pub fn decide_start(&mut self) {
        let resumed = || self.ledger.as_deref().filter(|_| self.resume).and_then(ledger::start_ms);
        self.fleet.start_time = Some(
            self.fleet.start_time.or_else(resumed).unwrap_or_else(|| default_start_ms(&self.fleet, service::now_ms())),
        );
    }
}

fn default_start_ms(fleet: &FleetArgs, now_ms: i64) -> i64 {
    let span_ms = match fleet.end_ms() {
        Some(end_ms) => end_ms.saturating_sub(fleet.start_ms()),
        None if fleet.speedup > 1.0 => HEAD_START_MS,
        None => 0,
    };
    let start_ms = START_MS + now_ms.saturating_sub(span_ms).saturating_sub(START_MS).div_euclid(WEEK_MS) * WEEK_MS;
    // A span that is longer than the past has no place in it.
    if start_ms < FleetArgs::EARLIEST_MS { START_MS } else { start_ms }
}

/// What a user should know before readings become dead letters: those of a run that begins now, at event time
/// `start_ms`.
pub(crate) fn warning(fleet: &FleetArgs, start_ms: i64, now_ms: i64) -> Option<String> {
    let ms = |duration: Duration| duration.as_millis() as i64;
    let behind_ms = now_ms - start_ms;
    let unless = "a preprocessor makes dead letters of its readings, unless it is started with --event-time";
    if behind_ms > ms(EVENT_TIME_BEHIND) {
        let days = behind_ms / 86_400_000;
        return Some(format!("this fleet's time is {days} days behind the clock: {unless}-behind any"));
    }
    // What of the window ahead is left, and how fast it goes.
    let (left_ms, per_ms) = (behind_ms + ms(EVENT_TIME_AHEAD), fleet.speedup - 1.0);
    let lasts_ms = fleet.end_ms().map_or(f64::INFINITY, |end_ms| (end_ms - start_ms) as f64 / fleet.speedup);
    let passes_ms = match left_ms {
        ..0 => 0.0,
        _ if per_ms > 0.0 => left_ms as f64 / per_ms,
        _ => f64::INFINITY,
    };
    let passes = || shown_duration(Duration::from_secs((passes_ms / 1000.0) as u64));
    (passes_ms < lasts_ms).then(|| {
        format!("this fleet lives faster than the clock and is ahead of it in {}: then {unless}-ahead any", passes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;
    const DAY_MS: i64 = 24 * HOUR_MS;

    fn fleet(duration_s: Option<u64>, speedup: f64) -> FleetArgs {
        FleetArgs { duration: duration_s.map(Duration::from_secs), speedup, ..FleetArgs::default() }
    }

    /// Days before and after the first one, at odd times.
    fn days() -> impl Iterator<Item = i64> {
        (-400..4_000).map(|day| START_MS + day * 13 * HOUR_MS + 777)
    }

    #[test]
    fn a_fleet_with_an_end_is_never_out_of_the_window() {
        for now_ms in days() {
            for fleet in [fleet(Some(60), 2400.0), fleet(Some(1200), 100.0), fleet(Some(8), 0.5)] {
                let start_ms = default_start_ms(&fleet, now_ms);
                let span_ms = (fleet.duration.unwrap().as_millis() as f64 * fleet.speedup) as i64;
                assert_eq!((start_ms - START_MS) % WEEK_MS, 0, "the same fleet");
                assert!((0..WEEK_MS).contains(&(now_ms - start_ms - span_ms)), "{fleet:?} at {now_ms}");
                let fleet = FleetArgs { start_time: Some(start_ms), ..fleet };
                assert_eq!(warning(&fleet, start_ms, now_ms), None);
            }
        }
    }

    #[test]
    fn a_fleet_without_an_end_has_two_weeks_or_is_as_fast_as_the_clock() {
        for now_ms in days() {
            let real = fleet(None, 1.0);
            let start_ms = default_start_ms(&real, now_ms);
            assert!((0..WEEK_MS).contains(&(now_ms - start_ms)));
            assert_eq!(warning(&real, start_ms, now_ms), None);
            let fast = fleet(None, 1201.0);
            let start_ms = default_start_ms(&fast, now_ms);
            assert!((2 * WEEK_MS..3 * WEEK_MS).contains(&(now_ms - start_ms)));
            assert!(warning(&fast, start_ms, now_ms).unwrap().ends_with("--event-time-ahead any"));
        }
    }

    #[test]
    fn a_fleet_that_leaves_the_window_is_told_when_and_what_to_set() {
        let now_ms = START_MS + 100 * DAY_MS;
        let warned = |duration_s, speedup, start_ms: i64| {
            let fleet = FleetArgs { start_time: Some(start_ms), ..fleet(duration_s, speedup) };
            warning(&fleet, start_ms, now_ms).unwrap_or_default()
        };
        // 19 hours behind, and one that it may be ahead: 20 hours, at 1,200 times the speed of life.
        let start_ms = now_ms - 19 * HOUR_MS;
        assert!(warned(None, 1201.0, start_ms).contains("ahead of it in 1m: then"));
        assert!(warned(Some(61), 1201.0, start_ms).contains("ahead of it in 1m: then"));
        assert_eq!(warned(Some(60), 1201.0, start_ms), "");
        assert!(warned(None, 1.0, now_ms + 2 * HOUR_MS).contains("ahead of it in 0ms"));
        let old = "this fleet's time is 31 days behind the clock: a preprocessor makes dead letters of its readings, \
            unless it is started with --event-time-behind any";
        assert_eq!(warned(None, 1.0, now_ms - 31 * DAY_MS), old);
        assert_eq!(warned(None, 1.0, now_ms - 30 * DAY_MS), "");
    }

    #[test]
    fn a_span_that_is_longer_than_the_past_begins_where_it_always_did() {
        assert_eq!(default_start_ms(&fleet(Some(86_400), 1e6), START_MS + DAY_MS), START_MS);
    }
}
