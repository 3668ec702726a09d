//! The day of a test. Every time that is compared with the system's clock comes from here.
//!
//! A test may assume that today is a day that the schemas have room for (2001 to 2099), and nothing else about the
//! date:
//!
//! - A *record's timestamp* is compared with the system's clock: retention removes old records, in the background and
//!   within seconds, and Kafka refuses those from the future. It is [`now_ms`], [`yesterday_ms`] or a time derived from
//!   them. A fixed one is right only where the topic has no retention.
//! - So is the *validity of a certificate*.
//! - *Event time* is data, like the dates that a pure function is given: it may be fixed.
//!
//! `scripts/test-calendar` runs the tests on other days.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::DateTime;

const DAY_MS: i64 = 24 * 3_600_000;
const EIGHT_HOURS_MS: i64 = 8 * 3_600_000;

/// Milliseconds since the epoch, by the system's clock.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    since.as_millis().try_into().expect("a clock before the year 292,000,000")
}

/// 08:00 UTC of the day before this process first asked, always the same.
///
/// That is 16 to 40 hours ago: within the 168 hours of the topics of clean records, but not within the 24 hours of the
/// raw ones. The 16 hours that follow are on the same day and in the past.
pub fn yesterday_ms() -> i64 {
    static YESTERDAY_MS: LazyLock<i64> = LazyLock::new(|| {
        let now_ms = now_ms();
        now_ms - now_ms % DAY_MS - DAY_MS + EIGHT_HOURS_MS
    });
    *YESTERDAY_MS
}

/// The UTC date of a time, as the lake writes it: `2026-11-21`.
pub fn date(time_ms: i64) -> String {
    DateTime::from_timestamp_millis(time_ms).expect("a time that has a date").format("%F").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yesterday_is_one_day_in_the_past() {
        let (hour_ms, began_ms) = (3_600_000, yesterday_ms());
        assert!((16 * hour_ms..=40 * hour_ms).contains(&(now_ms() - began_ms)));
        assert_eq!(date(began_ms - 8 * hour_ms), date(began_ms));
        assert_eq!(date(began_ms + 16 * hour_ms - 1), date(began_ms));
        assert_ne!(date(began_ms + 16 * hour_ms), date(began_ms));
        assert_eq!(yesterday_ms(), began_ms);
        assert_eq!(date(1_795_305_599_999), "2026-11-21");
    }
}
