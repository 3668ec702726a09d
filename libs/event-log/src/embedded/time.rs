//! The log's own time, by which records grow old.
//!
//! ```text
//!  wall clock   ──────────────╮ step: noticed, not believed
//!                             ╰───────────────
//!  log time     ────────────────────────────── while open: the monotonic clock
//!                     closed ┊ open again: at most MAX_CLOSED later, and never back
//! ```
//!
//! Retention deletes for ever, so it must not rest on a clock that can be wrong: one that is set wrongly for ten
//! seconds, or that starts at the date of its firmware until NTP answers. Log time only runs while the log is open, and
//! cannot jump. It says how long a block has been in the log, and nothing about the date. Being wrong it is behind,
//! and records stay longer: the disk is bounded all the same, since a log that is closed does not grow.

use parking_lot::Mutex;

use crate::{Clock, LogUrl};

/// The wall clock may move by this much against the monotonic one before it counts as a step.
const STEP_MS: i64 = 120_000;

/// The time between two openings counts up to this: a restart and an upgrade do. A longer time cannot be told from a
/// wall clock that is wrong.
const MAX_CLOSED_MS: i64 = 3_600_000;

/// How much log time may pass until it is stored again, with the next commit.
const STORE_EVERY_MS: i64 = 60_000;

/// Log time, and the wall clock at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) log_ms: i64,
    pub(super) wall_ms: i64,
}

impl Moment {
    pub(super) fn encode(self) -> Vec<u8> {
        [self.log_ms.to_le_bytes(), self.wall_ms.to_le_bytes()].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (log, wall) = bytes.split_first_chunk::<8>()?;
        let wall = wall.try_into().ok()?;
        Some(Self { log_ms: i64::from_le_bytes(*log), wall_ms: i64::from_le_bytes(wall) })
    }
}

/// The time of one open log.
#[derive(Debug)]
pub(super) struct LogTime {
    clock: Clock,
    /// Log time when the monotonic clock of this process was at 0.
    base_ms: i64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The wall clock less log time, as it was when the two last agreed.
    offset_ms: i64,
    stored_ms: i64,
    steps: u64,
}

impl LogTime {
    /// Goes on from the last stored moment, or from `newest_ms`, the time of the newest block, if that is later.
    pub(super) fn resume(log: &LogUrl, clock: Clock, stored: Option<Moment>, newest_ms: Option<i64>) -> Self {
        let wall_ms = clock.wall_ms();
        // A log of a version that did not store it: its blocks have the wall clock's times.
        let last = stored.or(newest_ms.map(|ms| Moment { log_ms: ms, wall_ms: ms }));
        let (mut steps, mut start_ms) = (0, wall_ms);
        if let Some(last) = last {
            let closed_ms = wall_ms.saturating_sub(last.wall_ms);
            if closed_ms < -STEP_MS {
                steps = 1;
                tracing::warn!(
                    %log,
                    "the wall clock is {} s behind the time at which {log} was last written: it was or is wrong. \
                     Retention does not depend on it",
                    -closed_ms / 1000
                );
            } else if closed_ms > MAX_CLOSED_MS {
                tracing::warn!(
                    %log,
                    "by the wall clock {log} was last written {} h ago, which cannot be told from a clock that is \
                     wrong: retention counts {} h of it",
                    closed_ms / 3_600_000,
                    MAX_CLOSED_MS / 3_600_000
                );
            }
            start_ms = last.log_ms.saturating_add(closed_ms.clamp(0, MAX_CLOSED_MS));
        }
        let start_ms = start_ms.max(newest_ms.unwrap_or(i64::MIN));
        let base_ms = start_ms.saturating_sub_unsigned(clock.monotonic_ms());
        let state = State { offset_ms: wall_ms.saturating_sub(start_ms), stored_ms: start_ms, steps };
        Self { clock, base_ms, state: state.into() }
    }

    /// Log time now, in milliseconds. Never goes back.
    pub(super) fn now_ms(&self) -> i64 {
        self.base_ms.saturating_add_unsigned(self.clock.monotonic_ms())
    }

    /// What is to be stored with the next commit, if it is time for that.
    pub(super) fn due(&self) -> Option<Moment> {
        let now = self.moment();
        let mut state = self.state.lock();
        (now.log_ms - state.stored_ms >= STORE_EVERY_MS).then(|| {
            state.stored_ms = now.log_ms;
            now
        })
    }

    pub(super) fn moment(&self) -> Moment {
        Moment { log_ms: self.now_ms(), wall_ms: self.clock.wall_ms() }
    }

    /// Looks whether the wall clock was set, says so, and counts it.
    pub(super) fn watch(&self, log: &LogUrl) {
        let now = self.moment();
        let offset_ms = now.wall_ms.saturating_sub(now.log_ms);
        let mut state = self.state.lock();
        let step_ms = offset_ms.saturating_sub(state.offset_ms);
        if step_ms.saturating_abs() > STEP_MS {
            (state.offset_ms, state.steps) = (offset_ms, state.steps + 1);
            drop(state);
            tracing::warn!(
                %log,
                "the wall clock was set {} by {} s. Retention in {log} does not depend on it; the times in records do",
                if step_ms > 0 { "forward" } else { "back" },
                step_ms.saturating_abs() / 1000
            );
        }
    }

    /// How often the wall clock was found to have been set.
    pub(super) fn steps(&self) -> u64 {
        self.state.lock().steps
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    fn url() -> LogUrl {
        LogUrl::Directory("log".into())
    }

    fn resume(clock: &Clock, stored: Option<Moment>, newest_ms: Option<i64>) -> LogTime {
        LogTime::resume(&url(), clock.clone(), stored, newest_ms)
    }

    /// Real time passes during a test, too.
    fn close(a: i64, b: i64) -> bool {
        (a - b).abs() < 60_000
    }

    #[test]
    fn it_runs_with_time_and_not_with_the_wall_clock() {
        let clock = Clock::default();
        let time = resume(&clock, None, None);
        let began = time.now_ms();
        assert!(close(began, clock.wall_ms()));
        clock.pass(Duration::from_secs(7200));
        time.watch(&url());
        assert!(close(time.now_ms(), began + 2 * HOUR_MS) && time.steps() == 0);
        for (step_ms, steps) in [(9 * 24 * HOUR_MS, 1), (-9 * 24 * HOUR_MS, 2), (-90_000, 2), (-90_000, 3)] {
            clock.step_ms(step_ms);
            time.watch(&url());
            assert!(close(time.now_ms(), began + 2 * HOUR_MS));
            assert_eq!(time.steps(), steps, "small steps add up");
        }
    }

    #[test]
    fn the_time_closed_counts_up_to_a_bound_and_never_back() {
        let clock = Clock::default();
        let last = Moment { log_ms: 5_000_000, wall_ms: clock.wall_ms() };
        for (step_ms, after_ms, steps) in
            [(0, 0, 0), (600_000, 600_000, 0), (24 * HOUR_MS, HOUR_MS, 0), (-400 * 24 * HOUR_MS, 0, 1)]
        {
            clock.step_ms(step_ms);
            let time = resume(&clock, Some(last), Some(4_000_000));
            assert!(close(time.now_ms(), last.log_ms + after_ms), "{step_ms}: {}", time.now_ms());
            assert_eq!(time.steps(), steps);
            clock.step_ms(-step_ms);
        }
        assert!(resume(&clock, Some(last), Some(9_000_000)).now_ms() >= 9_000_000, "never behind a block");
        let of_an_old_version = resume(&clock, None, Some(clock.wall_ms() - 2 * HOUR_MS));
        assert!(close(of_an_old_version.now_ms(), clock.wall_ms() - HOUR_MS));
    }

    #[test]
    fn it_is_stored_now_and_then() {
        let clock = Clock::default();
        let time = resume(&clock, None, None);
        assert_eq!(time.due(), None);
        clock.pass(Duration::from_secs(61));
        let due = time.due();
        assert!(due.is_some() && time.due().is_none());
        assert_eq!(due.and_then(|moment| Moment::decode(&moment.encode())), due);
    }
}
