//! What has been let through: exactly, in little room.
//!
//! A car numbers the readings of one boot from 0 and repeats what was not acknowledged, so what has been let through
//! is nearly always one interval per boot:
//!
//! ```text
//!  car WVW…01 ─┬─ boot 81: [0 ─────────────── 5210]                    ended
//!              └─ boot 97: [0 ── 88] [90 ─ 93]                         under way; 89 was not seen yet
//! ```
//!
//! Exact, over restarts too: it is part of the stage's state ([`stored`]). Bounded, and at a bound nothing is guessed:
//! what can no longer be told apart is [`Seen::TooOld`], which becomes a dead letter, neither dropped nor doubled.
//!
//! - [`MAX_INTERVALS`] per boot. Past it the lowest is forgotten, and sequence numbers below its end are too old.
//! - [`MAX_BOOTS`] per car with their intervals. Past it the one used least recently is retired: only its id is kept,
//!   and all of its readings are too old.
//! - The ids of retired boots for [`RETIRED_MS`] at least, and for twice that at most: a car sends what it has kept
//!   before what is new, so that nothing is to come of a boot that eight others have followed for a week.
//! - [`MAX_RETIRED_BOOTS`] ids per car. Past it a boot that is not known may be one that was forgotten: too old.
//! - As many cars as the caller lets in ([`Duplicates::knows`]), each until it has been silent for long
//!   ([`Duplicates::pass_time`]).
//!
//! Time is that of the records, so that the same records give the same memory whenever they are read.

pub mod stored;

use std::collections::HashMap;

use pipeline::{ForgetAfter, RecordClock};

/// Boots per car that are kept with intervals: the one under way and some whose last readings are still to come.
pub const MAX_BOOTS: usize = 8;

/// Intervals per boot: as many gaps can be open at once. A car closes them by sending again what was not acknowledged.
pub const MAX_INTERVALS: usize = 64;

/// How long the id of a retired boot is kept at least: a week.
pub const RETIRED_MS: i64 = 7 * 24 * 3600 * 1000;

/// Ids of retired boots per car, 8 bytes each: two weeks of starting every two and a half minutes.
pub const MAX_RETIRED_BOOTS: usize = 8192;

/// Whether a reading has been let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Not yet; it counts as let through from now on.
    New,
    /// It has been.
    Before,
    /// That is no longer known.
    TooOld,
}

/// What has been let through of one partition.
#[derive(Debug, Default)]
pub struct Duplicates {
    clock: RecordClock,
    cars: HashMap<Box<str>, Car>,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Car {
    /// The day of the clock on which it was last heard of.
    heard: u32,
    /// The one used last comes last.
    boots: Vec<Boot>,
    /// None for most cars: a car starts a few times a day.
    retired: Option<Box<Retired>>,
}

/// Ids of retired boots, in two generations that take turns.
#[derive(Debug, Clone, PartialEq)]
struct Retired {
    /// When the younger generation began.
    since_ms: i64,
    /// Sorted. Retired before that.
    older: Vec<i64>,
    /// Sorted.
    younger: Vec<i64>,
}

#[derive(Debug, Clone, PartialEq)]
struct Boot {
    id: i64,
    /// Sequence numbers below it are no longer known.
    floor: i64,
    /// First and last of each run, in order, with gaps between.
    intervals: Vec<(i64, i64)>,
}

impl Duplicates {
    /// Whether reading `seq` of `boot` of `car` has been let through, and notes that it now is. `time_ms`: the
    /// record's.
    pub fn admit(&mut self, car: &str, boot: i64, seq: i64, time_ms: i64) -> Seen {
        let today = self.clock.day();
        let car = match self.cars.get_mut(car) {
            Some(known) => known,
            None => self.cars.entry(car.into()).or_default(),
        };
        car.heard = today;
        car.admit(boot, seq, time_ms)
    }

    /// Lets time pass up to a record of this time, and forgets the cars that have been silent for too long by then.
    /// Returns how many those are.
    pub fn pass_time(&mut self, time_ms: i64, forget_after: ForgetAfter) -> usize {
        if !self.clock.advance(time_ms) {
            return 0;
        }
        let (today, before) = (self.clock.day(), self.cars.len());
        self.cars.retain(|_, car| !forget_after.is_over(car.heard, today));
        before - self.cars.len()
    }

    /// Forgets a car at once. Returns whether anything was known of it.
    pub fn forget(&mut self, car: &str) -> bool {
        self.cars.remove(car).is_some()
    }

    /// Whether anything is known of a car.
    pub fn knows(&self, car: &str) -> bool {
        self.cars.contains_key(car)
    }

    /// Whether reading `seq` of `boot` of `car` is known to have been let through. Notes nothing.
    pub fn contains(&self, car: &str, boot: i64, seq: i64) -> bool {
        let boots = self.cars.get(car).map(|car| car.boots.as_slice()).unwrap_or_default();
        let known = boots.iter().find(|known| known.id == boot);
        known.is_some_and(|boot| boot.intervals.iter().any(|(first, last)| (*first..=*last).contains(&seq)))
    }

    /// How many cars are known.
    pub fn cars(&self) -> usize {
        self.cars.len()
    }
}

impl Car {
    fn admit(&mut self, id: i64, seq: i64, time_ms: i64) -> Seen {
        match self.boots.iter().position(|boot| boot.id == id) {
            Some(at) => {
                self.boots[at..].rotate_left(1);
            }
            None => {
                if let Some(retired) = &mut self.retired {
                    retired.forget(time_ms);
                    if retired.contains(id) || retired.len() >= MAX_RETIRED_BOOTS {
                        return Seen::TooOld;
                    }
                }
                if self.boots.len() == MAX_BOOTS {
                    let oldest = self.boots.remove(0).id;
                    self.retired.get_or_insert_with(|| Box::new(Retired::new(time_ms))).insert(oldest);
                }
                self.boots.push(Boot { id, floor: i64::MIN, intervals: Vec::with_capacity(1) });
            }
        }
        self.boots.last_mut().expect("it was just put there").admit(seq)
    }
}

impl Retired {
    fn new(since_ms: i64) -> Self {
        Self { since_ms, older: Vec::new(), younger: Vec::new() }
    }

    fn len(&self) -> usize {
        self.older.len() + self.younger.len()
    }

    fn contains(&self, id: i64) -> bool {
        [&self.older, &self.younger].iter().any(|ids| ids.binary_search(&id).is_ok())
    }

    fn insert(&mut self, id: i64) {
        let at = self.younger.partition_point(|other| *other < id);
        self.younger.insert(at, id);
    }

    /// Forgets what was retired longer ago than is kept.
    fn forget(&mut self, time_ms: i64) {
        let age_ms = time_ms.saturating_sub(self.since_ms);
        if age_ms >= RETIRED_MS {
            self.older = std::mem::take(&mut self.younger);
            if age_ms >= 2 * RETIRED_MS {
                self.older = Vec::new();
            }
            self.since_ms = time_ms;
        }
    }
}

impl Boot {
    fn admit(&mut self, seq: i64) -> Seen {
        if seq < self.floor {
            return Seen::TooOld;
        }
        // The first interval that begins after seq; nearly always there is none.
        let next = self.intervals.partition_point(|(first, _)| *first <= seq);
        if next > 0 && seq <= self.intervals[next - 1].1 {
            return Seen::Before;
        }
        let extends_left = next > 0 && seq - 1 == self.intervals[next - 1].1;
        let extends_right = next < self.intervals.len() && seq + 1 == self.intervals[next].0;
        match (extends_left, extends_right) {
            (true, true) => {
                self.intervals[next - 1].1 = self.intervals[next].1;
                self.intervals.remove(next);
            }
            (true, false) => self.intervals[next - 1].1 = seq,
            (false, true) => self.intervals[next].0 = seq,
            (false, false) => {
                self.intervals.insert(next, (seq, seq));
                if self.intervals.len() > MAX_INTERVALS {
                    self.floor = self.intervals.remove(0).1 + 1;
                }
            }
        }
        Seen::New
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use test_support::random::Random;

    use super::*;

    #[test]
    fn gaps_stay_open_until_they_are_filled() {
        let mut seen = Duplicates::default();
        for seq in [0, 1, 2, 5, 6, 4] {
            assert_eq!(seen.admit("a", 7, seq, 0), Seen::New);
        }
        assert_eq!(seen.admit("a", 7, 5, 0), Seen::Before);
        assert_eq!(seen.admit("a", 7, 3, 0), Seen::New);
        assert_eq!(seen.admit("b", 7, 3, 0), Seen::New, "another car");
        assert_eq!(seen.admit("a", 8, 3, 0), Seen::New, "another boot");
        assert_eq!(seen.cars["a"].boots[0].intervals, [(0, 6)]);
    }

    /// Whatever the order, and as long as no bound is reached, it is a set.
    #[test]
    fn agrees_with_a_set() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let mut seen = Duplicates::default();
            let mut model = HashSet::new();
            let span = 1 + random.below(120);
            for _ in 0..2000 {
                let reading = (random.below(3), random.below(MAX_BOOTS as u64) as i64, random.below(span) as i64);
                let (car, boot, seq) = reading;
                assert_eq!(seen.contains(&car.to_string(), boot, seq), model.contains(&reading));
                let wanted = if model.insert(reading) { Seen::New } else { Seen::Before };
                assert_eq!(seen.admit(&car.to_string(), boot, seq, 0), wanted, "seed {seed}: {reading:?}");
            }
        }
    }

    /// Beyond the bounds too: never doubled, never dropped as a duplicate without having been let through.
    #[test]
    fn past_the_bounds_it_only_ever_says_too_old() {
        let mut too_old = 0;
        for seed in 0..100 {
            let mut random = Random::new(seed);
            let mut seen = Duplicates::default();
            let mut let_through = HashSet::new();
            let boots = 1 + random.below(2 * MAX_BOOTS as u64);
            for _ in 0..4000 {
                // Even numbers only: gaps that never close.
                let (boot, seq) = (random.below(boots) as i64, 2 * random.below(3 * MAX_INTERVALS as u64) as i64);
                match seen.admit("a", boot, seq, 0) {
                    Seen::New => assert!(let_through.insert((boot, seq)), "seed {seed}: {boot}/{seq} doubled"),
                    Seen::Before => assert!(let_through.contains(&(boot, seq)), "seed {seed}: {boot}/{seq} dropped"),
                    Seen::TooOld => too_old += 1,
                }
            }
            let car = &seen.cars["a"];
            assert!(car.boots.len() <= MAX_BOOTS && car.boots.iter().all(|b| b.intervals.len() <= MAX_INTERVALS));
        }
        assert!(too_old > 1000, "the bounds were reached");
    }

    #[test]
    fn the_boot_used_least_recently_is_retired() {
        let mut seen = Duplicates::default();
        let boots = MAX_BOOTS as i64;
        for boot in 0..boots {
            seen.admit("a", boot, 0, 0);
        }
        assert_eq!(seen.admit("a", 0, 1, 0), Seen::New);
        assert_eq!(seen.admit("a", boots, 0, 0), Seen::New, "retires boot 1, not 0");
        assert_eq!(seen.admit("a", 1, 0, 0), Seen::TooOld);
        assert_eq!(seen.admit("a", 1, 77, 0), Seen::TooOld);
        assert_eq!(seen.admit("a", 0, 1, 0), Seen::Before);
    }

    #[test]
    fn a_car_with_too_many_boots_is_not_let_in_twice() {
        let mut seen = Duplicates::default();
        let most = (MAX_RETIRED_BOOTS + MAX_BOOTS) as i64;
        for boot in (0..most).rev() {
            assert_eq!(seen.admit("a", boot, 0, 0), Seen::New);
        }
        assert_eq!(seen.admit("a", most, 0, 0), Seen::TooOld, "may be one that was forgotten");
        assert_eq!(seen.admit("a", most - 1, 0, 0), Seen::TooOld);
        assert_eq!(seen.admit("a", 0, 0, 0), Seen::Before);
    }

    #[test]
    fn retired_boots_are_forgotten_after_a_week_or_two() {
        let boots = MAX_BOOTS as i64;
        let retired_one = || {
            let mut seen = Duplicates::default();
            for boot in 0..=boots {
                seen.admit("a", boot, 0, 1000);
            }
            seen
        };
        for (after_ms, expected) in
            [(RETIRED_MS - 1, Seen::TooOld), (RETIRED_MS, Seen::TooOld), (2 * RETIRED_MS, Seen::New)]
        {
            assert_eq!(retired_one().admit("a", 0, 0, 1000 + after_ms), expected, "after {after_ms} ms");
        }
        let mut seen = retired_one();
        assert_eq!(seen.admit("a", 100, 0, 1000 + RETIRED_MS), Seen::New, "begins another generation, retires boot 1");
        assert_eq!(seen.admit("a", 0, 0, 1000 + 2 * RETIRED_MS - 1), Seen::TooOld);
        assert_eq!(seen.admit("a", 1, 0, 1000 + 2 * RETIRED_MS), Seen::TooOld, "a week after it was retired");
        assert_eq!(seen.admit("a", 0, 0, 1000 + 2 * RETIRED_MS), Seen::New, "two weeks");
        assert_eq!(seen.admit("a", 100, 0, 1000 + 9 * RETIRED_MS), Seen::Before, "not retired: never forgotten");
    }

    #[test]
    fn a_car_that_starts_all_the_time_is_let_in_again_when_its_boots_are_forgotten() {
        let mut seen = Duplicates::default();
        let most = (MAX_RETIRED_BOOTS + MAX_BOOTS) as i64;
        for boot in 0..most {
            seen.admit("a", boot, 0, 0);
        }
        assert_eq!(seen.admit("a", most, 0, RETIRED_MS - 1), Seen::TooOld);
        assert_eq!(seen.admit("a", most, 0, 2 * RETIRED_MS), Seen::New);
    }

    #[test]
    fn a_silent_car_is_forgotten_when_its_time_is_over() {
        const DAY_MS: i64 = 24 * 3600 * 1000;
        let after = "30d".parse().unwrap();
        let mut seen = Duplicates::default();
        let mut forgotten = Vec::new();
        for hour in 0..24 * 100 {
            let time_ms = 1_795_219_200_000 + hour * DAY_MS / 24;
            if seen.pass_time(time_ms, after) > 0 {
                forgotten.push(hour);
            }
            seen.admit("drives", 1, hour, time_ms);
            if hour < 24 {
                seen.admit("is scrapped", 1, hour, time_ms);
            }
        }
        assert_eq!((forgotten, seen.cars()), (vec![24 * 31], 1), "after thirty whole days");
        assert_eq!(seen.admit("is scrapped", 1, 0, 0), Seen::New);
        assert_eq!(seen.admit("drives", 1, 0, 0), Seen::Before);
        assert_eq!(seen.pass_time(i64::MAX, ForgetAfter::Never), 0);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let mut seen = Duplicates::default();
        for seq in [i64::MAX - 1, 0, i64::MAX - 2] {
            assert_eq!(seen.admit("a", i64::MAX, seq, 0), Seen::New);
            assert_eq!(seen.admit("a", i64::MAX, seq, 0), Seen::Before);
        }
    }
}
