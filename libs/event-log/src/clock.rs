//! The two clocks of a host: one that people set, and one that only runs.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The system's wall clock, in milliseconds since the epoch.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The wall clock and the monotonic clock that an embedded log goes by: the system's, unless a test sets them.
///
/// A clone is the same clock.
#[derive(Debug, Clone, Default)]
pub struct Clock(Arc<Ahead>);

/// How far the clocks are ahead of the system's.
#[derive(Debug, Default)]
struct Ahead {
    wall_ms: AtomicI64,
    monotonic_ms: AtomicU64,
}

impl Clock {
    /// Lets time pass: both clocks advance. For tests.
    pub fn pass(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.0.monotonic_ms.fetch_add(ms, Ordering::Relaxed);
        self.step_ms(i64::try_from(ms).unwrap_or(i64::MAX));
    }

    /// Sets the wall clock alone, forward or back, as NTP or an operator does. For tests.
    pub fn step_ms(&self, by_ms: i64) {
        self.0.wall_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// Milliseconds since the epoch. May jump, both ways.
    pub fn wall_ms(&self) -> i64 {
        now_ms().saturating_add(self.0.wall_ms.load(Ordering::Relaxed))
    }

    /// Milliseconds since some moment of this process. Never goes back, and no faster than time.
    pub fn monotonic_ms(&self) -> u64 {
        static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
        BEGAN.elapsed().as_millis() as u64 + self.0.monotonic_ms.load(Ordering::Relaxed)
    }
}
