//! What is remembered of one car: 268 bytes that turn its next reading into the 18 inputs of the network.
//!
//! ```text
//!  reading ─► less what the ─► windows: how strongly ─► against the car's own ─► inputs, ─► network ─► residuals
//!             fleet does at    the accelerometers       slow mean and deviation  ± clip               │
//!             this speed       fluctuate                                                   smoothed ◄─┘
//!             (Scaling)        ▲ CarState               ▲ CarState                         ▲ CarState
//! ```
//!
//! *Warm-up.* A car starts with the fleet's mean and deviation as its own; they count as much as
//! [`Settings::prior_readings`] readings. Its first [`Settings::warm_up_readings`] are learnt from and not judged.
//!
//! *A standing car.* The accelerometers' windows hold still below [`MOVING_MPS`]: there is nothing to feel.
//!
//! *A late reading* (not newer than the newest seen) is judged with a copy of the state and changes nothing. A value
//! that is not a number counts as usual for that feature.
//!
//! All arithmetic is in f32 and in a fixed order: the same readings give the same state, to the bit.

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::features::{FEATURE_COUNT, FIRST_ACCELEROMETER, Kind, Row, SPEED, kind};
use crate::scaling::{Scaling, check_positive};

/// Below this speed the accelerometers' windows hold still.
pub const MOVING_MPS: f32 = 1.0;

/// A car's own deviation is at least this share of the fleet's: a car that stood for a day has none.
const MIN_DEVIATION: f32 = 0.2;

/// A reading moves a car's own mean and deviation no further than one that many deviations away: a fault is to be
/// seen, not to be learnt.
const LEARN_CLIP: f32 = 3.0;

/// Added to the energy of a window, in squares of the fleet's deviation, before its logarithm is taken.
const ENERGY_OFFSET: f32 = 1e-3;

/// How a car's state runs. Part of a model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Length of the accelerometers' windows, in readings.
    pub window_readings: f32,
    /// How long a car's own mean and deviation remember, in readings.
    pub memory_readings: f32,
    /// How many readings the fleet's mean and deviation count for in a new car.
    pub prior_readings: f32,
    /// How many readings of a car are learnt from before the first is judged.
    pub warm_up_readings: u32,
    /// Length over which residuals are smoothed, in readings.
    pub smoothing_readings: f32,
    /// Inputs and normalised residuals are clipped to ± this.
    pub clip: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window_readings: 20.0,
            memory_readings: 2000.0,
            prior_readings: 30.0,
            warm_up_readings: 60,
            smoothing_readings: 20.0,
            clip: 8.0,
        }
    }
}

impl Settings {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let lengths = [self.window_readings, self.memory_readings, self.smoothing_readings];
        check_positive("the clip of the settings", &[self.clip])?;
        check_positive("a prior of the settings", &[self.prior_readings])?;
        match lengths.iter().find(|v| !(v.is_finite() && **v >= 1.0)) {
            Some(v) => Err(Error::Number { what: "a length of the settings".to_owned(), value: f64::from(*v) }),
            None => Ok(()),
        }
    }
}

/// The running state of one car.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CarState {
    last_event_time_ms: i64,
    readings: u32,
    /// Readings that the windows have taken in.
    window_fill: u32,
    window_mean: [f32; 4],
    window_energy: [f32; 4],
    mean: Row,
    variance: Row,
    smoothed: Row,
}

impl CarState {
    /// A car that nothing is known of but its fleet.
    pub fn new(scaling: &Scaling) -> Self {
        Self {
            last_event_time_ms: i64::MIN,
            readings: 0,
            window_fill: 0,
            window_mean: [0.0; 4],
            window_energy: [0.0; 4],
            mean: scaling.level,
            variance: scaling.spread.map(|s| s * s),
            smoothed: [0.0; FEATURE_COUNT],
        }
    }

    /// Whether a reading of that time is not newer than the newest seen.
    pub fn is_late(&self, event_time_ms: i64) -> bool {
        event_time_ms <= self.last_event_time_ms
    }

    /// How many readings it has seen, late ones not counted.
    pub fn readings(&self) -> u32 {
        self.readings
    }

    /// Whether its readings are judged by now.
    pub fn is_warm(&self, settings: &Settings) -> bool {
        self.readings > settings.warm_up_readings
    }

    /// First step: takes in the car's next reading and gives its values relative to the fleet, windows applied.
    pub fn observe(&mut self, settings: &Settings, scaling: &Scaling, event_time_ms: i64, raw: &Row) -> Row {
        self.last_event_time_ms = event_time_ms;
        self.readings = self.readings.saturating_add(1);
        let mut values = scaling.relative(raw);
        let acceleration: [f32; 4] = std::array::from_fn(|a| values[FIRST_ACCELEROMETER + a]);
        if raw[SPEED] >= MOVING_MPS && acceleration.iter().all(|v| v.is_finite()) {
            self.window_fill = self.window_fill.saturating_add(1);
            let weight = 1.0 / (self.window_fill as f32).min(settings.window_readings);
            for (a, value) in acceleration.iter().enumerate() {
                let difference = (value - self.window_mean[a]).clamp(-20.0, 20.0);
                self.window_mean[a] += weight * difference;
                self.window_energy[a] += weight * (difference * difference - self.window_energy[a]);
            }
        }
        for (a, energy) in self.window_energy.iter().enumerate() {
            let i = FIRST_ACCELEROMETER + a;
            let filled = self.window_fill as f32 >= settings.window_readings;
            values[i] = if filled { 0.5 * (energy + ENERGY_OFFSET).ln() } else { scaling.level[i] };
        }
        values
    }

    /// Second step: the values against the car's own mean and deviation, which then learn from them.
    pub fn standardise(&mut self, settings: &Settings, scaling: &Scaling, values: &Row) -> Row {
        let weight = 1.0 / (settings.prior_readings + self.readings as f32).min(settings.memory_readings);
        let mut inputs = [0.0; FEATURE_COUNT];
        for i in 0..FEATURE_COUNT {
            if !values[i].is_finite() {
                continue;
            }
            let spread = scaling.spread[i];
            if kind(i) == Kind::Fleet {
                inputs[i] = ((values[i] - scaling.level[i]) / spread).clamp(-settings.clip, settings.clip);
                continue;
            }
            let deviation = self.variance[i].sqrt().max(MIN_DEVIATION * spread);
            let distance = (values[i] - self.mean[i]) / deviation;
            inputs[i] = distance.clamp(-settings.clip, settings.clip);
            let learnt = deviation * distance.clamp(-LEARN_CLIP, LEARN_CLIP);
            self.mean[i] += weight * learnt;
            self.variance[i] += weight * (learnt * learnt - self.variance[i]);
        }
        inputs
    }

    /// Third step: takes in the residuals (input less output, in deviations) and gives them smoothed.
    pub fn smooth(&mut self, settings: &Settings, residuals: &Row) -> Row {
        let weight = 1.0 / settings.smoothing_readings;
        for (smoothed, residual) in self.smoothed.iter_mut().zip(residuals) {
            *smoothed += weight * (residual.clamp(-settings.clip, settings.clip) - *smoothed);
        }
        self.smoothed
    }
}
