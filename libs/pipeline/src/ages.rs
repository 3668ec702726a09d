//! How old state is: by the timestamps of the records, so that the same records give the same state whenever they are
//! read.
//!
//! ```text
//!  timestamps    10:00   10:01   +9 d    10:02   10:03  …  +9 d 1 min
//!  RecordClock   10:00   10:01   +1 d    stands still      +1 d 1 min
//! ```
//!
//! Timestamps are the hosts', whose clocks may be wrong. So the clock never goes back, and takes at most a day from one
//! record: one that was days ahead makes nothing old, and delays what would have grown old meanwhile.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use service::values;

const DAY_MS: i64 = 24 * 3600 * 1000;

/// So many records in a row that are more than a day behind the newest show that the newest was wrong.
const RESYNC_RECORDS: u16 = 1000;

/// The days that have passed in one partition, as its records tell it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordClock {
    elapsed_ms: i64,
    /// None before the first record.
    newest_ms: Option<i64>,
    /// Records in a row that were more than a day older.
    behind: u16,
}

impl RecordClock {
    /// The length of a stored clock.
    pub const STORED_BYTES: usize = 8 + 8 + 2;

    /// Takes the timestamp of the next record. Returns whether a day has ended.
    pub fn advance(&mut self, timestamp_ms: i64) -> bool {
        let before = self.day();
        let newest_ms = self.newest_ms.unwrap_or(timestamp_ms);
        let step_ms = timestamp_ms.saturating_sub(newest_ms);
        self.behind = if step_ms < -DAY_MS { self.behind + 1 } else { 0 };
        if step_ms >= 0 || self.behind == RESYNC_RECORDS {
            self.elapsed_ms = self.elapsed_ms.saturating_add(step_ms.clamp(0, DAY_MS));
            (self.newest_ms, self.behind) = (Some(timestamp_ms), 0);
        }
        self.day() > before
    }

    /// How many days have passed since the first record.
    pub fn day(&self) -> u32 {
        u32::try_from(self.elapsed_ms / DAY_MS).unwrap_or(u32::MAX)
    }

    /// To be stored with the state; little-endian.
    pub fn to_bytes(&self) -> [u8; Self::STORED_BYTES] {
        let mut bytes = [0; Self::STORED_BYTES];
        bytes[..8].copy_from_slice(&self.elapsed_ms.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.newest_ms.unwrap_or(i64::MIN).to_le_bytes());
        bytes[16..].copy_from_slice(&self.behind.to_le_bytes());
        bytes
    }

    /// From [`RecordClock::to_bytes`]; `None`: no clock has these bytes.
    pub fn from_bytes(bytes: &[u8; Self::STORED_BYTES]) -> Option<Self> {
        let number = |at: usize| i64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let newest_ms = Some(number(8)).filter(|ms| *ms != i64::MIN);
        let clock = Self { elapsed_ms: number(0), newest_ms, behind: u16::from_le_bytes([bytes[16], bytes[17]]) };
        (clock.elapsed_ms >= 0 && clock.behind < RESYNC_RECORDS).then_some(clock)
    }
}

/// For how long a stage knows a car that sends nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForgetAfter {
    /// This long, and up to two days more.
    Silence(Duration),
    /// For ever.
    Never,
}

impl ForgetAfter {
    /// The usual one: a season, and longer than any event time may be behind its receipt.
    pub const DEFAULT: Self = Self::Silence(Duration::from_secs(90 * 24 * 3600));

    /// Whether a car is to be forgotten that was last heard of on day `heard`, on day `today` of the same
    /// [`RecordClock`].
    pub fn is_over(self, heard: u32, today: u32) -> bool {
        match self {
            Self::Silence(silence) => {
                let days = silence.as_millis().div_ceil(DAY_MS as u128);
                // A reading of the last minute of a day is hardly old when the next day ends.
                u128::from(today.saturating_sub(heard)) > days
            }
            Self::Never => false,
        }
    }
}

impl FromStr for ForgetAfter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "never" { Ok(Self::Never) } else { values::positive_duration(text).map(Self::Silence) }
    }
}

impl fmt::Display for ForgetAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silence(silence) => f.write_str(&values::shown_duration(*silence)),
            Self::Never => f.write_str("never"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_795_219_200_000;

    /// The day of a clock that has seen these timestamps, in days after the first.
    fn day_after(days: impl IntoIterator<Item = i64>) -> u32 {
        let mut clock = RecordClock::default();
        for days in days {
            clock.advance(NOW_MS + days * DAY_MS);
        }
        clock.day()
    }

    #[test]
    fn days_pass_with_the_records() {
        let mut clock = RecordClock::default();
        let ends: Vec<_> = (0..100).filter(|hours| clock.advance(NOW_MS + hours * DAY_MS / 24)).collect();
        assert_eq!((ends, clock.day()), (vec![24, 48, 72, 96], 4));
        // A little out of order, as from several bridges.
        assert!(!clock.advance(NOW_MS + 3 * DAY_MS) && clock.day() == 4);
    }

    #[test]
    fn no_clock_that_is_wrong_makes_anything_old() {
        assert_eq!(day_after([0, 400]), 1, "a jump ahead, or a pause");
        let for_minutes = (0..500).map(|i| if (100..200).contains(&i) { 9 } else { 0 });
        assert_eq!(day_after(for_minutes), 1, "days ahead, for a while");
        assert_eq!(day_after((0..500).map(|i| i % 2 * 400)), 1, "one of two bridges");
        assert_eq!(day_after([0, -400, 0, 1]), 1, "a jump back");
        assert_eq!(day_after([i64::MAX / DAY_MS - 30_000, i64::MIN / DAY_MS]), 0);
    }

    #[test]
    fn a_first_record_of_a_wrong_clock_does_not_stop_time_for_ever() {
        let years = |after: i64| std::iter::once(30_000).chain(std::iter::repeat_n(0, 1000)).chain(0..after);
        assert_eq!(day_after(years(11)), 10);
    }

    #[test]
    fn a_clock_survives_being_stored() {
        let mut straight = RecordClock::default();
        let mut restored = RecordClock::default();
        for i in 0..5000 {
            let time_ms = NOW_MS + (i * 7919 % 3000) * DAY_MS / 50;
            assert_eq!(straight.advance(time_ms), restored.advance(time_ms));
            restored = RecordClock::from_bytes(&restored.to_bytes()).expect("it was stored");
            assert_eq!(restored, straight);
        }
        let fresh = RecordClock::default();
        assert_eq!(RecordClock::from_bytes(&fresh.to_bytes()), Some(fresh));
        assert_eq!(RecordClock::from_bytes(&[0xff; 18]), None);
    }

    #[test]
    fn silence_is_counted_in_whole_days() {
        let after: ForgetAfter = "36h".parse().expect("a duration");
        assert_eq!([1, 2, 3].map(|today| after.is_over(0, today)), [false, false, true]);
        assert!(!after.is_over(5, 3) && !ForgetAfter::Never.is_over(0, u32::MAX));
        for text in ["90d", "never", "36h"] {
            assert_eq!(text.parse::<ForgetAfter>().map(|after| after.to_string()).as_deref(), Ok(text));
        }
        assert!(["0s", "90", "always"].iter().all(|text| text.parse::<ForgetAfter>().is_err()));
    }
}
