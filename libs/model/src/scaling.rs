//! What the fleet does: mean and deviation of each feature at each speed, fitted on the training split only.
//!
//! Most features follow the speed (vibration, current, air flow, accelerations). Holding a value against what the fleet
//! does at this speed leaves what the speed does not explain.
//!
//! ```text
//!  feature │        ·  ∙ ╱─      mean and deviation are kept at a few speeds (knots) and interpolated linearly;
//!          │   ·  ∙ ╱──          speed itself and the firmware have one value for all speeds
//!          │ ──╱──  ·
//!          └─┴──┴───┴────┴─ speed
//! ```

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::features::{FEATURE_COUNT, FEATURES, FIRMWARE, Kind, Row, SPEED, kind};

/// How many speeds the fleet's behaviour is kept at.
pub const KNOTS: usize = 7;

/// These speeds: standing, creeping, city, town limit, country road, motorway, fast.
pub const SPEED_KNOTS_MPS: [f32; KNOTS] = [0.0, 2.0, 6.0, 12.0, 20.0, 30.0, 42.0];

/// A knot with less weight than this many readings takes the mean and deviation over all speeds instead.
const MIN_KNOT_WEIGHT: f64 = 30.0;

/// What is added before taking the logarithm of an amplitude, in its unit: no amplitude is not minus infinity.
const AMPLITUDE_OFFSET: f32 = 0.05;

/// The fleet's means and deviations. Part of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scaling {
    /// The speeds, in m/s, ascending.
    pub speed_knots_mps: [f32; KNOTS],
    /// Per feature: its mean at each speed.
    pub mean: [[f32; KNOTS]; FEATURE_COUNT],
    /// Per feature: its standard deviation at each speed; positive.
    pub deviation: [[f32; KNOTS]; FEATURE_COUNT],
    /// Per feature: mean of what a car's own baseline is then held against (about 0; windows shift it).
    pub level: Row,
    /// Per feature: its standard deviation; positive.
    pub spread: Row,
}

impl Scaling {
    /// The features, less what the fleet does at this speed, in the fleet's deviations.
    pub fn relative(&self, raw: &Row) -> Row {
        let (knot, share) = self.place(raw[SPEED]);
        std::array::from_fn(|i| {
            let at = |values: &[f32; KNOTS]| values[knot] + share * (values[knot + 1] - values[knot]);
            (transform(i, raw[i]) - at(&self.mean[i])) / at(&self.deviation[i])
        })
    }

    /// The knot below `speed`, and how far it is to the next, 0 to 1.
    fn place(&self, speed: f32) -> (usize, f32) {
        let knots = &self.speed_knots_mps;
        let knot = knots[1..KNOTS - 1].iter().filter(|k| speed >= **k).count();
        let share = (speed - knots[knot]) / (knots[knot + 1] - knots[knot]);
        (knot, share.clamp(0.0, 1.0))
    }

    /// Refuses what would make scores that are not numbers.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.speed_knots_mps != SPEED_KNOTS_MPS {
            let value = f64::from(self.speed_knots_mps[0]);
            return Err(Error::Number { what: "a speed knot of the scaling".to_owned(), value });
        }
        for (i, name) in FEATURES.iter().enumerate() {
            check_finite(&format!("the mean of {name}"), &self.mean[i])?;
            check_positive(&format!("the deviation of {name}"), &self.deviation[i])?;
        }
        check_finite("the level", &self.level)?;
        check_positive("the spread", &self.spread)
    }
}

pub(crate) fn check_finite(what: &str, values: &[f32]) -> Result<(), Error> {
    match values.iter().find(|v| !v.is_finite()) {
        Some(value) => Err(Error::Number { what: what.to_owned(), value: f64::from(*value) }),
        None => Ok(()),
    }
}

pub(crate) fn check_positive(what: &str, values: &[f32]) -> Result<(), Error> {
    check_finite(what, values)?;
    match values.iter().find(|v| **v <= 0.0) {
        Some(value) => Err(Error::Number { what: what.to_owned(), value: f64::from(*value) }),
        None => Ok(()),
    }
}

/// The value in the unit in which means and deviations are taken.
fn transform(index: usize, value: f32) -> f32 {
    match kind(index) {
        Kind::Amplitude => (value.max(0.0) + AMPLITUDE_OFFSET).ln(),
        _ => value,
    }
}

/// Gathers readings of the training split and fits [`Scaling::mean`] and [`Scaling::deviation`].
#[derive(Debug, Clone)]
pub struct ScalingFit {
    /// Per feature and knot: weight, weighted sum, weighted sum of squares.
    sums: [[[f64; 3]; KNOTS]; FEATURE_COUNT],
    place: Scaling,
}

impl Default for ScalingFit {
    fn default() -> Self {
        let place = Scaling {
            speed_knots_mps: SPEED_KNOTS_MPS,
            mean: [[0.0; KNOTS]; FEATURE_COUNT],
            deviation: [[1.0; KNOTS]; FEATURE_COUNT],
            level: [0.0; FEATURE_COUNT],
            spread: [1.0; FEATURE_COUNT],
        };
        Self { sums: [[[0.0; 3]; KNOTS]; FEATURE_COUNT], place }
    }
}

impl ScalingFit {
    /// Adds a reading. One with a value that is not finite is left out.
    pub fn add(&mut self, raw: &Row) {
        if raw.iter().any(|v| !v.is_finite()) {
            return;
        }
        let (knot, share) = self.place.place(raw[SPEED]);
        for (i, sums) in self.sums.iter_mut().enumerate() {
            let value = f64::from(transform(i, raw[i]));
            for (k, weight) in [(knot, 1.0 - f64::from(share)), (knot + 1, f64::from(share))] {
                sums[k][0] += weight;
                sums[k][1] += weight * value;
                sums[k][2] += weight * value * value;
            }
        }
    }

    /// The scaling, with [`Scaling::level`] 0 and [`Scaling::spread`] 1 until [`SpreadFit`] has measured them.
    pub fn finish(&self) -> Scaling {
        let mut scaling = self.place.clone();
        for (i, sums) in self.sums.iter().enumerate() {
            let total = sums.iter().fold([0.0; 3], |sum, k| [sum[0] + k[0], sum[1] + k[1], sum[2] + k[2]]);
            for (k, at_knot) in sums.iter().enumerate() {
                let at_any_speed = i == SPEED || i == FIRMWARE || at_knot[0] < MIN_KNOT_WEIGHT;
                let (mean, deviation) = moments(if at_any_speed { &total } else { at_knot });
                scaling.mean[i][k] = mean;
                scaling.deviation[i][k] = deviation;
            }
        }
        scaling
    }
}

/// Measures [`Scaling::level`] and [`Scaling::spread`] over what cars of the training split show after their windows.
#[derive(Debug, Clone, Default)]
pub struct SpreadFit([[f64; 3]; FEATURE_COUNT]);

impl SpreadFit {
    /// Adds a reading's values as [`crate::CarState::observe`] gave them.
    pub fn add(&mut self, values: &Row) {
        for (sums, value) in self.0.iter_mut().zip(values) {
            let value = f64::from(*value);
            sums[0] += 1.0;
            sums[1] += value;
            sums[2] += value * value;
        }
    }

    /// Writes them into `scaling`.
    pub fn finish(&self, scaling: &mut Scaling) {
        for (i, sums) in self.0.iter().enumerate() {
            (scaling.level[i], scaling.spread[i]) = moments(sums);
        }
    }
}

/// Mean and standard deviation; a deviation that is none (all values alike) counts as 1.
fn moments([weight, sum, squares]: &[f64; 3]) -> (f32, f32) {
    if *weight <= 0.0 {
        return (0.0, 1.0);
    }
    let mean = sum / weight;
    let deviation = (squares / weight - mean * mean).max(0.0).sqrt();
    let alike = deviation <= 1e-6 * (1.0 + mean.abs());
    (mean as f32, if alike { 1.0 } else { deviation as f32 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    /// Current follows the speed, everything else is noise.
    fn reading(random: &mut SplitMix64) -> Row {
        let mut raw: Row = std::array::from_fn(|_| random.uniform() as f32);
        raw[SPEED] = 40.0 * random.uniform() as f32;
        raw[5] = 3.0 * raw[SPEED] + random.uniform() as f32;
        raw[FIRMWARE] = 2000.0;
        raw
    }

    #[test]
    fn what_the_speed_explains_is_taken_away() {
        let mut random = SplitMix64::new(1);
        let mut fit = ScalingFit::default();
        (0..20_000).for_each(|_| fit.add(&reading(&mut random)));
        let scaling = fit.finish();
        scaling.check().unwrap();
        let mut raw = reading(&mut random);
        raw[SPEED] = 25.0;
        raw[5] = 75.5;
        assert!(scaling.relative(&raw)[5].abs() < 0.3, "{}", scaling.relative(&raw)[5]);
        raw[5] = 10.0;
        assert!(scaling.relative(&raw)[5] < -3.0, "a current that does not fit the speed stands out");
        assert_eq!(scaling.relative(&raw)[FIRMWARE], 0.0);
        raw[FIRMWARE] = 1000.0;
        assert_eq!(scaling.relative(&raw)[FIRMWARE], -1000.0, "a value that never varied has deviation 1");
    }

    #[test]
    fn readings_that_are_not_numbers_are_left_out_of_the_fit() {
        let mut random = SplitMix64::new(1);
        let (mut with, mut without) = (ScalingFit::default(), ScalingFit::default());
        for i in 0..1000 {
            let raw = reading(&mut random);
            with.add(&raw);
            without.add(&raw);
            let mut bad = raw;
            bad[i % FEATURE_COUNT] = [f32::NAN, f32::INFINITY][i % 2];
            with.add(&bad);
        }
        assert_eq!(with.finish(), without.finish());
    }

    #[test]
    fn speeds_beyond_the_knots_are_held_at_the_ends() {
        let scaling = ScalingFit::default().finish();
        assert_eq!(scaling.place(-1.0), (0, 0.0));
        assert_eq!(scaling.place(0.0), (0, 0.0));
        assert_eq!(scaling.place(1.0), (0, 0.5));
        assert_eq!(scaling.place(2.0), (1, 0.0));
        assert_eq!(scaling.place(36.0), (5, 0.5));
        assert_eq!(scaling.place(42.0), (5, 1.0));
        assert_eq!(scaling.place(500.0), (5, 1.0));
    }
}
