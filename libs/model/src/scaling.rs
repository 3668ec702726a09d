//! What the fleet does: how a reading is made comparable between speeds and cars. Fitted on the training split only.
//!
//! ```text
//!  reading ─► prepared ─► less what the fleet does at this speed, in the fleet's deviations ─► relative values
//!             │                │        ·  ∙ ╱─      mean and deviation are kept at a few speeds (knots) and
//!             │                │   ·  ∙ ╱──          interpolated; speed itself and the firmware have one value
//!             │                │ ──╱──  ·
//!             │                └─┴──┴───┴────┴─ speed
//!             ├ coolant:   not below 84 °C: an engine that warms up says nothing of its cooling
//!             ├ voltage:   less what charge and current explain (open-circuit voltage and Ohm's law)
//!             └ vibration: its logarithm; a fault multiplies what was there
//! ```
//!
//! Each of the three was measured on simulated cars with faults (docs/decisions/0007-anomaly-score.md).

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::features::is_parked;
use crate::features::{
    CHARGE, COOLANT, CURRENT, FEATURE_COUNT, FEATURES, FIRMWARE, Row, SPEED, VIBRATION, VOLTAGE, Values,
};

/// How many speeds the fleet's behaviour is kept at.
pub const KNOTS: usize = 7;

/// These speeds: standing, creeping, city, town limit, country road, motorway, fast.
pub const SPEED_KNOTS_MPS: [f32; KNOTS] = [0.0, 2.0, 6.0, 12.0, 20.0, 30.0, 42.0];

/// About where thermostats begin to open.
pub const WARM_COOLANT_C: f32 = 84.0;

/// Added before taking the logarithm of the vibration, in mm/s: no vibration is not minus infinity.
pub const VIBRATION_OFFSET: f64 = 0.05;

/// A knot with less weight than this many readings takes the mean and deviation over all speeds instead.
const MIN_KNOT_WEIGHT: f64 = 30.0;

/// A car with fewer readings says little of how a car varies.
const MIN_CAR_READINGS: usize = 20;

/// Consecutive readings are alike: this many count as one when a car's mean is estimated.
const READINGS_ALIKE: f64 = 10.0;

/// What the fleet's mean counts for in a new car, in readings, at least and at most.
const PRIOR_READINGS: (f64, f64) = (0.2, 60.0);

/// The fleet's behaviour. Part of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scaling {
    /// Volts that a percent of charge adds to the battery's voltage.
    pub volts_per_percent: f32,
    /// Volts that an ampere drawn takes from it, as a (negative) gain.
    pub volts_per_ampere: f32,
    /// The speeds, in m/s, ascending.
    pub speed_knots_mps: [f32; KNOTS],
    /// Per feature: the mean of the prepared value at each speed.
    pub mean: [[f32; KNOTS]; FEATURE_COUNT],
    /// Per feature: its standard deviation at each speed; positive.
    pub deviation: [[f32; KNOTS]; FEATURE_COUNT],
    /// Per feature: mean relative value of a car, over the cars.
    pub level: Row,
    /// Per feature: standard deviation of the relative value within a car; positive.
    pub spread: Row,
    /// Per feature: how many readings the fleet's level counts for in a new car. Much where cars are alike, little
    /// where they differ more from each other than from themselves (empirical Bayes).
    pub level_readings: Row,
}

impl Scaling {
    /// A scaling that changes nothing but the speed dependence it does not know yet.
    fn neutral() -> Self {
        Self {
            volts_per_percent: 0.0,
            volts_per_ampere: 0.0,
            speed_knots_mps: SPEED_KNOTS_MPS,
            mean: [[0.0; KNOTS]; FEATURE_COUNT],
            deviation: [[1.0; KNOTS]; FEATURE_COUNT],
            level: [0.0; FEATURE_COUNT],
            spread: [1.0; FEATURE_COUNT],
            level_readings: [PRIOR_READINGS.1 as f32; FEATURE_COUNT],
        }
    }

    /// Fits it on the readings of some cars, a slice per car. Parked readings and those with a value that is not
    /// finite are left out.
    pub fn fit<'a>(cars: impl Iterator<Item = &'a [Row]> + Clone) -> Self {
        let usable = |car: &'a [Row]| car.iter().filter(|raw| !is_parked(raw) && raw.iter().all(|v| v.is_finite()));
        let mut scaling = Self::neutral();
        let battery = cars.clone().fold(Battery::default(), |mut fit, car| {
            fit.add(usable(car));
            fit
        });
        (scaling.volts_per_percent, scaling.volts_per_ampere) = battery.finish();
        let mut at_speed = [[Moments::default(); KNOTS]; FEATURE_COUNT];
        for raw in cars.clone().flat_map(usable) {
            let (knot, share) = scaling.place(raw[SPEED]);
            let values = scaling.prepare(raw);
            for (value, moments) in values.iter().zip(&mut at_speed) {
                moments[knot].add(1.0 - share, *value);
                moments[knot + 1].add(share, *value);
            }
        }
        scaling.set_at_speed(&at_speed);
        scaling.set_cars(cars.map(|car| car_moments(usable(car).map(|raw| scaling.relative(raw)))).collect());
        scaling
    }

    fn set_at_speed(&mut self, at_speed: &[[Moments; KNOTS]; FEATURE_COUNT]) {
        for (i, moments) in at_speed.iter().enumerate() {
            let total = moments.iter().fold(Moments::default(), Moments::plus);
            for (k, at_knot) in moments.iter().enumerate() {
                let one_for_all = i == SPEED || i == FIRMWARE || at_knot.weight < MIN_KNOT_WEIGHT;
                let fitted = if one_for_all { &total } else { at_knot };
                (self.mean[i][k], self.deviation[i][k]) = fitted.mean_and_deviation();
            }
        }
    }

    fn set_cars(&mut self, cars: Vec<[Moments; FEATURE_COUNT]>) {
        for i in 0..FEATURE_COUNT {
            let enough = |car: &&[Moments; FEATURE_COUNT]| car[i].weight >= MIN_CAR_READINGS as f64;
            let (mut between, mut within, mut all) = (Moments::default(), Moments::default(), Moments::default());
            for car in cars.iter().filter(enough) {
                between.add(1.0, car[i].mean());
                within.add(1.0, car[i].variance());
                all = all.plus(&car[i]);
            }
            if i == FIRMWARE {
                (self.level[i], self.spread[i]) = all.mean_and_deviation();
                continue;
            }
            self.level[i] = between.mean() as f32;
            let spread = within.mean().sqrt();
            self.spread[i] = if spread > 1e-6 { spread as f32 } else { 1.0 };
            let alike = READINGS_ALIKE * within.mean() / between.variance().max(1e-12);
            self.level_readings[i] = alike.clamp(PRIOR_READINGS.0, PRIOR_READINGS.1) as f32;
        }
    }

    /// The features, less what the fleet does at this speed, in the fleet's deviations.
    pub fn relative(&self, raw: &Row) -> Values {
        let (knot, share) = self.place(raw[SPEED]);
        let values = self.prepare(raw);
        std::array::from_fn(|i| {
            let at = |knots: &[f32; KNOTS]| {
                let (below, above) = (f64::from(knots[knot]), f64::from(knots[knot + 1]));
                below + share * (above - below)
            };
            (values[i] - at(&self.mean[i])) / at(&self.deviation[i])
        })
    }

    fn prepare(&self, raw: &Row) -> Values {
        let mut values = raw.map(f64::from);
        // Not `max`, which would turn a value that is not a number into one that looks usual.
        if raw[COOLANT] < WARM_COOLANT_C {
            values[COOLANT] = f64::from(WARM_COOLANT_C);
        }
        values[VOLTAGE] -= f64::from(self.volts_per_percent) * values[CHARGE];
        values[VOLTAGE] -= f64::from(self.volts_per_ampere) * values[CURRENT];
        values[VIBRATION] = (values[VIBRATION] + VIBRATION_OFFSET).ln();
        values
    }

    /// The knot below `speed`, and how far it is to the next, 0 to 1.
    fn place(&self, speed: f32) -> (usize, f64) {
        let knots = &self.speed_knots_mps;
        let knot = knots[1..KNOTS - 1].iter().filter(|k| speed >= **k).count();
        let (below, above) = (f64::from(knots[knot]), f64::from(knots[knot + 1]));
        (knot, ((f64::from(speed) - below) / (above - below)).clamp(0.0, 1.0))
    }

    /// Refuses what would make scores that are not numbers.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.speed_knots_mps != SPEED_KNOTS_MPS {
            let value = f64::from(self.speed_knots_mps[0]);
            return Err(Error::Number { what: "a speed knot of the scaling".to_owned(), value });
        }
        check_finite("the battery's line", &[self.volts_per_percent, self.volts_per_ampere])?;
        for (i, name) in FEATURES.iter().enumerate() {
            check_finite(&format!("the mean of {name}"), &self.mean[i])?;
            check_positive(&format!("the deviation of {name}"), &self.deviation[i])?;
        }
        check_finite("the level", &self.level)?;
        check_positive("the spread", &self.spread)?;
        check_positive("a weight of the level", &self.level_readings)
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

/// Weighted sums of a value and its square.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    weight: f64,
    sum: f64,
    squares: f64,
}

impl Moments {
    fn add(&mut self, weight: f64, value: f64) {
        self.weight += weight;
        self.sum += weight * value;
        self.squares += weight * value * value;
    }

    fn plus(self, other: &Self) -> Self {
        Self { weight: self.weight + other.weight, sum: self.sum + other.sum, squares: self.squares + other.squares }
    }

    fn mean(&self) -> f64 {
        if self.weight > 0.0 { self.sum / self.weight } else { 0.0 }
    }

    fn variance(&self) -> f64 {
        if self.weight > 0.0 { (self.squares / self.weight - self.mean() * self.mean()).max(0.0) } else { 1.0 }
    }

    /// A deviation that is none (all values alike) counts as 1.
    fn mean_and_deviation(&self) -> (f32, f32) {
        let (mean, deviation) = (self.mean(), self.variance().sqrt());
        let alike = deviation <= 1e-6 * (1.0 + mean.abs());
        (mean as f32, if alike { 1.0 } else { deviation as f32 })
    }
}

fn car_moments(values: impl Iterator<Item = Values>) -> [Moments; FEATURE_COUNT] {
    let mut moments = [Moments::default(); FEATURE_COUNT];
    for row in values {
        for (moments, value) in moments.iter_mut().zip(row) {
            moments.add(1.0, value);
        }
    }
    moments
}

/// Least squares of voltage on charge and current, each less its mean in the car: what a battery does, not how
/// batteries differ.
#[derive(Debug, Default)]
struct Battery {
    /// Sums of products: charge², charge·current, current², charge·voltage, current·voltage.
    sums: [f64; 5],
}

impl Battery {
    fn add<'a>(&mut self, car: impl Iterator<Item = &'a Row> + Clone) {
        let count = car.clone().count();
        if count < MIN_CAR_READINGS {
            return;
        }
        let mean = |i: usize| car.clone().map(|raw| f64::from(raw[i])).sum::<f64>() / count as f64;
        let (charge_mean, current_mean, voltage_mean) = (mean(CHARGE), mean(CURRENT), mean(VOLTAGE));
        for raw in car {
            let charge = f64::from(raw[CHARGE]) - charge_mean;
            let current = f64::from(raw[CURRENT]) - current_mean;
            let voltage = f64::from(raw[VOLTAGE]) - voltage_mean;
            let products = [charge * charge, charge * current, current * current, charge * voltage, current * voltage];
            for (sum, product) in self.sums.iter_mut().zip(products) {
                *sum += product;
            }
        }
    }

    /// Volts per percent and per ampere; 0 where charge and current do not vary.
    fn finish(&self) -> (f32, f32) {
        let [cc, ci, ii, cv, iv] = self.sums;
        let determinant = cc * ii - ci * ci;
        if determinant <= 1e-9 * cc * ii || determinant <= 0.0 {
            return (0.0, 0.0);
        }
        (((cv * ii - iv * ci) / determinant) as f32, ((iv * cc - cv * ci) / determinant) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    /// Throttle follows the speed, the voltage charge and current; cars differ in tyre pressure; the rest is noise.
    fn fleet(seed: u64, cars: usize) -> Vec<Vec<Row>> {
        let mut random = SplitMix64::new(seed);
        let mut uniform = move || random.uniform() as f32;
        let car = |_| {
            let pressure = 30.0 + 5.0 * uniform();
            let reading = |_| {
                let mut raw: Row = std::array::from_fn(|_| uniform());
                raw[COOLANT] = 60.0 + 40.0 * uniform();
                raw[SPEED] = 1.0 + 39.0 * uniform();
                raw[8] = 0.02 * raw[SPEED] + 0.01 * uniform();
                raw[CHARGE] = 40.0 + 40.0 * uniform();
                raw[CURRENT] = 80.0 * uniform();
                raw[VOLTAGE] = 300.0 + 0.8 * raw[CHARGE] - 0.1 * raw[CURRENT] + 0.1 * uniform();
                raw[9] = pressure + 0.1 * uniform();
                raw[FIRMWARE] = 2000.0;
                raw
            };
            (0..200).map(reading).collect()
        };
        (0..cars).map(car).collect()
    }

    fn fit(fleet: &[Vec<Row>]) -> Scaling {
        Scaling::fit(fleet.iter().map(Vec::as_slice))
    }

    #[test]
    fn what_speed_charge_and_current_explain_is_taken_away() {
        let fleet = fleet(1, 100);
        let scaling = fit(&fleet);
        scaling.check().unwrap();
        assert!((scaling.volts_per_percent - 0.8).abs() < 0.01, "{}", scaling.volts_per_percent);
        assert!((scaling.volts_per_ampere + 0.1).abs() < 0.01, "{}", scaling.volts_per_ampere);
        let mut raw = fleet[0][0];
        (raw[SPEED], raw[8]) = (25.0, 0.505);
        assert!(scaling.relative(&raw)[8].abs() < 0.3, "{}", scaling.relative(&raw)[8]);
        raw[8] = 0.1;
        assert!(scaling.relative(&raw)[8] < -3.0, "a throttle that does not fit the speed stands out");
    }

    #[test]
    fn an_engine_that_warms_up_is_like_a_warm_one() {
        let fleet = fleet(1, 10);
        let scaling = fit(&fleet);
        let mut raw = fleet[0][0];
        raw[COOLANT] = 20.0;
        let cold = scaling.relative(&raw)[COOLANT];
        raw[COOLANT] = WARM_COOLANT_C;
        assert_eq!(cold, scaling.relative(&raw)[COOLANT]);
        raw[COOLANT] = 120.0;
        assert!(scaling.relative(&raw)[COOLANT] > cold + 4.0);
    }

    #[test]
    fn the_fleet_counts_for_much_where_cars_are_alike_and_for_little_where_they_differ() {
        let scaling = fit(&fleet(1, 100));
        assert_eq!(scaling.level_readings[9], 0.2, "every car has its own tyre pressure");
        assert!(scaling.level_readings[10] > 20.0, "the noise of the next tyre is the same in all cars");
        assert_eq!((scaling.spread[FIRMWARE], scaling.deviation[FIRMWARE][0]), (1.0, 1.0), "it never varied");
    }

    #[test]
    fn readings_that_are_parked_or_not_numbers_are_left_out_of_the_fit() {
        let fleet = fleet(2, 30);
        let mut with = fleet.clone();
        for (i, car) in with.iter_mut().enumerate() {
            let mut bad = car[i];
            bad[i % FEATURE_COUNT] = [f32::NAN, f32::INFINITY][i % 2];
            car.push(bad);
            car.push([0.0; FEATURE_COUNT]);
        }
        assert_eq!(fit(&with), fit(&fleet));
    }

    #[test]
    fn speeds_beyond_the_knots_are_held_at_the_ends() {
        let scaling = Scaling::neutral();
        for (speed, place) in [
            (-1.0, (0, 0.0)),
            (0.0, (0, 0.0)),
            (1.0, (0, 0.5)),
            (2.0, (1, 0.0)),
            (36.0, (5, 0.5)),
            (42.0, (5, 1.0)),
            (500.0, (5, 1.0)),
        ] {
            assert_eq!(scaling.place(speed), place, "{speed}");
        }
    }

    #[test]
    fn no_readings_fit_a_scaling_that_can_be_used() {
        fit(&[]).check().unwrap();
        fit(&[vec![[1.0; FEATURE_COUNT]]]).check().unwrap();
    }
}
