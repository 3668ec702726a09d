//! Which cars and which time are trained, validated and tested on.
//!
//! ```text
//!               first reading ──────────────── 80% of the time ──────── last reading
//!  60% of cars  │ training: scaling, network, sigmas │ "later": metrics only       │
//!  20% of cars  │ validation: threshold                                            │
//!  20% of cars  │ test: metrics only                                               │
//! ```
//!
//! A car's place is a hash of its pseudonym and the seed: it stays there when other cars come or go.

use crate::fleet::{Fleet, number_of};

/// Shares of the cars, in percent; the rest is for tests.
const TRAINING_PERCENT: u64 = 60;
const VALIDATION_PERCENT: u64 = 20;

/// Share of the time that is trained on, in percent.
const TRAINING_TIME_PERCENT: i64 = 80;

/// The place of a car.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Scaling, network and sigmas come from it.
    Training,
    /// The threshold comes from it.
    Validation,
    /// Metrics come from it.
    Test,
}

/// The place of car `pseudonym`.
pub(crate) fn part(seed: u64, pseudonym: &str) -> Part {
    match number_of(seed, b"", pseudonym) % 100 {
        place if place < TRAINING_PERCENT => Part::Training,
        place if place < TRAINING_PERCENT + VALIDATION_PERCENT => Part::Validation,
        _ => Part::Test,
    }
}

/// Readings of training cars from this time on are not trained on.
pub(crate) fn training_until_ms(event_time_ms: [i64; 2]) -> i64 {
    let [first, last] = event_time_ms;
    first + (last - first) * TRAINING_TIME_PERCENT / 100
}

/// The split in numbers and words, for the manifest.
pub(crate) fn describe(fleet: &Fleet, seed: u64, training_until_ms: i64) -> model::artefact::Split {
    let count = |wanted| fleet.cars.keys().filter(|car| part(seed, car) == wanted).count() as u64;
    model::artefact::Split {
        description: format!(
            "by car: SHA-256(seed as 8 bytes little endian, pseudonym), first 8 bytes big endian, modulo 100: below \
             {TRAINING_PERCENT} training, below {} validation, else test; by time: the first {TRAINING_TIME_PERCENT}% \
             of the time between first and last reading are trained on",
            TRAINING_PERCENT + VALIDATION_PERCENT
        ),
        training_until_ms,
        training_cars: count(Part::Training),
        validation_cars: count(Part::Validation),
        test_cars: count(Part::Test),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cars_are_split_by_share_and_seed() {
        let count = |seed: u64, wanted| (0..2000).filter(|i| part(seed, &format!("car {i}")) == wanted).count();
        assert!((1150..1250).contains(&count(1, Part::Training)), "{}", count(1, Part::Training));
        assert!((340..460).contains(&count(1, Part::Validation)));
        assert!((340..460).contains(&count(1, Part::Test)));
        let moved = (0..2000).filter(|i| part(1, &format!("car {i}")) != part(2, &format!("car {i}"))).count();
        assert!(moved > 800, "another seed is another split: {moved}");
    }
}
