//! What is remembered of one car: 448 bytes that turn its next reading into the 18 inputs of the network.
//!
//! ```text
//!  reading ─► relative to ─► against the car's own ─► inputs, ─► network ─► residuals ─► smoothed
//!             the fleet      slow mean and deviation  ± clip
//!             (Scaling)      ▲ CarState                                                  ▲ CarState
//! ```
//!
//! *Warm-up.* A car starts with the fleet's mean and deviation as its own. Its first [`Settings::warm_up_readings`] are
//! learnt from and not judged.
//!
//! *A parked car* ([`crate::features::is_parked`]) is neither judged nor learnt from: its state holds still.
//!
//! *A late reading* (not newer than the newest seen) is judged with a copy of the state and changes nothing. A value
//! that is not a number counts as usual for that feature.
//!
//! *A clock that was wrong once* must not make all later readings late for ever: once [`RESYNC_READINGS`] readings in a
//! row are late by more than [`RESYNC_AFTER_MS`], the newest time seen was not a time, and the car goes on from here.
//!
//! All arithmetic is in a fixed order: the same readings give the same state, to the bit.

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::features::{FEATURE_COUNT, FIRMWARE, Row, Values, is_parked};
use crate::scaling::{Scaling, check_positive};

/// A car's own deviation is at least this share of the fleet's.
const MIN_DEVIATION: f64 = 0.2;

/// After warm-up a reading moves a car's own mean no further than one that many deviations away, and its deviation
/// never: a fault is to be seen, not to be learnt.
const LEARN_CLIP: f64 = 3.0;

/// So many readings in a row, each late by more than [`RESYNC_AFTER_MS`], show that the newest time was wrong. Cars
/// that send what they have stored oldest first never have one; with newest first a store is smaller than this, or its
/// readings are then learnt from in their order, which does no harm.
const RESYNC_READINGS: u8 = 20;

/// Clocks that are set while a car drives jump by less than this.
const RESYNC_AFTER_MS: i64 = 3_600_000;

/// How a car's state runs. Part of a model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How long a car's own mean and deviation remember, in readings.
    pub memory_readings: f32,
    /// How many readings the fleet's deviation counts for in a new car.
    pub prior_readings: f32,
    /// How many readings of a driving car are learnt from before the first is judged.
    pub warm_up_readings: u32,
    /// Length over which residuals are smoothed, in readings.
    pub smoothing_readings: f32,
    /// Inputs and normalised residuals are clipped to ± this.
    pub clip: f32,
}

impl Default for Settings {
    /// Measured on simulated cars (docs/decisions/0007-anomaly-score.md).
    fn default() -> Self {
        Self {
            memory_readings: 2000.0,
            prior_readings: 150.0,
            warm_up_readings: 60,
            smoothing_readings: 8.0,
            clip: 8.0,
        }
    }
}

impl Settings {
    pub(crate) fn check(&self) -> Result<(), Error> {
        check_positive("the clip of the settings", &[self.clip])?;
        let lengths = [self.memory_readings, self.prior_readings, self.smoothing_readings];
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
    /// Of the driving car.
    readings: u32,
    /// Readings in a row that were late by more than [`RESYNC_AFTER_MS`].
    far_late: u8,
    mean: Values,
    variance: Values,
    smoothed: Values,
}

impl CarState {
    /// The length of a stored state.
    pub const STORED_BYTES: usize = 8 + 4 + 1 + 3 * 8 * FEATURE_COUNT;

    /// To be stored: the time and the count of readings, then mean, variance and smoothed residual of each feature; all
    /// little-endian, and exact to the bit.
    pub fn to_bytes(&self) -> [u8; Self::STORED_BYTES] {
        let mut bytes = [0; Self::STORED_BYTES];
        let (head, values) = bytes.split_at_mut(13);
        head[..8].copy_from_slice(&self.last_event_time_ms.to_le_bytes());
        head[8..12].copy_from_slice(&self.readings.to_le_bytes());
        head[12] = self.far_late;
        let all = self.mean.iter().chain(&self.variance).chain(&self.smoothed);
        for (to, value) in values.chunks_exact_mut(8).zip(all) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// From [`CarState::to_bytes`].
    pub fn from_bytes(bytes: &[u8; Self::STORED_BYTES]) -> Self {
        let eight = |at: usize| std::array::from_fn::<u8, 8, _>(|i| bytes[at + i]);
        let values =
            |nth: usize| std::array::from_fn(|i| f64::from_le_bytes(eight(13 + 8 * (nth * FEATURE_COUNT + i))));
        Self {
            last_event_time_ms: i64::from_le_bytes(eight(0)),
            readings: u32::from_le_bytes(std::array::from_fn(|i| bytes[8 + i])),
            far_late: bytes[12],
            mean: values(0),
            variance: values(1),
            smoothed: values(2),
        }
    }

    /// A car that nothing is known of but its fleet.
    pub fn new(scaling: &Scaling) -> Self {
        Self {
            last_event_time_ms: i64::MIN,
            readings: 0,
            far_late: 0,
            mean: scaling.level.map(f64::from),
            variance: scaling.spread.map(|s| f64::from(s) * f64::from(s)),
            smoothed: [0.0; FEATURE_COUNT],
        }
    }

    /// Whether a reading of that time is not newer than the newest seen. To be asked once for each reading, in order:
    /// this is where a newest time that was wrong is noticed.
    pub fn is_late(&mut self, event_time_ms: i64) -> bool {
        if event_time_ms > self.last_event_time_ms {
            self.far_late = 0;
            return false;
        }
        if self.last_event_time_ms.saturating_sub(event_time_ms) <= RESYNC_AFTER_MS {
            return true;
        }
        self.far_late += 1;
        if self.far_late < RESYNC_READINGS {
            return true;
        }
        (self.far_late, self.last_event_time_ms) = (0, i64::MIN);
        false
    }

    /// Whether it has driven long enough to be judged.
    pub fn is_warm(&self, settings: &Settings) -> bool {
        self.readings > settings.warm_up_readings
    }

    /// First step: takes in the car's next reading and gives the network's inputs; none while it is parked.
    ///
    /// The reading is compared with the car's own mean and deviation as they were before it; then these learn from it.
    pub fn observe(&mut self, settings: &Settings, scaling: &Scaling, event_time_ms: i64, raw: &Row) -> Option<Values> {
        self.last_event_time_ms = event_time_ms;
        if is_parked(raw) {
            return None;
        }
        self.readings = self.readings.saturating_add(1);
        let learn_clip = if self.is_warm(settings) { LEARN_CLIP } else { f64::INFINITY };
        let values = scaling.relative(raw);
        let readings = f64::from(self.readings);
        let (memory, clip) = (f64::from(settings.memory_readings), f64::from(settings.clip));
        let variance_weight = 1.0 / (f64::from(settings.prior_readings) + readings).min(memory);
        let mut inputs = [0.0; FEATURE_COUNT];
        for i in 0..FEATURE_COUNT {
            if !values[i].is_finite() {
                continue;
            }
            let spread = f64::from(scaling.spread[i]);
            if i == FIRMWARE {
                // It is constant in a car, so the car's own past would hide it: only the fleet tells.
                inputs[i] = ((values[i] - f64::from(scaling.level[i])) / spread).clamp(-clip, clip);
                continue;
            }
            let deviation = self.variance[i].sqrt().max(MIN_DEVIATION * spread);
            let distance = (values[i] - self.mean[i]) / deviation;
            inputs[i] = distance.clamp(-clip, clip);
            let mean_weight = 1.0 / (f64::from(scaling.level_readings[i]) + readings).min(memory);
            self.mean[i] += mean_weight * deviation * distance.clamp(-learn_clip, learn_clip);
            let learnt = deviation * distance.clamp(-LEARN_CLIP, LEARN_CLIP);
            self.variance[i] += variance_weight * (learnt * learnt - self.variance[i]);
        }
        Some(inputs)
    }

    /// Second step: takes in the residuals (input less output, in deviations) and gives them smoothed.
    pub fn smooth(&mut self, settings: &Settings, residuals: &Values) -> Values {
        let (weight, clip) = (1.0 / f64::from(settings.smoothing_readings), f64::from(settings.clip));
        for (smoothed, residual) in self.smoothed.iter_mut().zip(residuals) {
            *smoothed += weight * (residual.clamp(-clip, clip) - *smoothed);
        }
        self.smoothed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::SPEED;

    fn scaling() -> Scaling {
        Scaling::fit(std::iter::empty())
    }

    fn driving(value: f32) -> Row {
        let mut raw = [value; FEATURE_COUNT];
        raw[SPEED] = 10.0;
        raw
    }

    #[test]
    fn a_parked_car_learns_nothing_but_the_time() {
        let (settings, scaling) = (Settings::default(), scaling());
        let mut state = CarState::new(&scaling);
        assert!(state.observe(&settings, &scaling, 1, &driving(1.0)).is_some());
        let mut before = state.clone();
        assert_eq!(state.observe(&settings, &scaling, 2, &[0.0; FEATURE_COUNT]), None);
        assert!(state.is_late(2) && !before.is_late(2));
        assert_eq!(CarState { last_event_time_ms: 1, ..state }, before);
    }

    #[test]
    fn one_reading_of_a_wrong_clock_does_not_silence_a_car() {
        let (settings, scaling) = (Settings::default(), scaling());
        let (now, future, second) = (1_700_000_000_000, 4_102_444_799_999, 1_000);
        let mut state = CarState::new(&scaling);
        for time in [now, future] {
            assert!(!state.is_late(time));
            state.observe(&settings, &scaling, time, &driving(1.0));
        }
        let late: Vec<i64> = (1..100)
            .filter(|i| {
                let time = now + i * second;
                let late = state.is_late(time);
                if !late {
                    state.observe(&settings, &scaling, time, &driving(1.0));
                }
                late
            })
            .collect();
        assert_eq!(late, (1..i64::from(RESYNC_READINGS)).collect::<Vec<_>>(), "it goes on after a few");
        // What is late by less stays late, however much of it there is, and so does a backlog between live readings.
        assert!((1..100).all(|_| state.is_late(now)));
        for i in 100..200 {
            assert!(!state.is_late(now + i * second), "live");
            state.observe(&settings, &scaling, now + i * second, &driving(1.0));
            assert!(state.is_late(now - i * RESYNC_AFTER_MS), "stored");
        }
        let mut again = CarState::from_bytes(&state.to_bytes());
        assert_eq!(again, state);
        assert!((1..RESYNC_READINGS - 1).all(|_| again.is_late(0)) && !again.is_late(0), "the count is stored, too");
    }

    #[test]
    fn what_is_usual_for_a_car_becomes_small_and_a_change_is_large() {
        let (settings, scaling) = (Settings::default(), scaling());
        let mut state = CarState::new(&scaling);
        let mut inputs = [0.0; FEATURE_COUNT];
        for t in 0..500 {
            inputs = state.observe(&settings, &scaling, t, &driving(20.0 + (t % 2) as f32)).unwrap_or_default();
        }
        assert!(state.is_warm(&settings));
        assert!(inputs[9].abs() < 2.0, "{}", inputs[9]);
        let changed = state.observe(&settings, &scaling, 500, &driving(25.0)).unwrap_or_default();
        assert!(changed[9] > 4.0, "{}", changed[9]);
    }

    #[test]
    fn a_value_that_is_no_number_counts_as_usual_and_leaves_no_trace() {
        let (settings, scaling) = (Settings::default(), scaling());
        let mut state = CarState::new(&scaling);
        for t in 0..100 {
            state.observe(&settings, &scaling, t, &driving(20.0));
        }
        for (t, bad) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
            let mut raw = driving(20.0);
            raw[9] = bad;
            let inputs = state.observe(&settings, &scaling, 100 + t as i64, &raw).unwrap_or([1.0; FEATURE_COUNT]);
            assert_eq!(inputs[9], 0.0);
            assert!(inputs.iter().all(|v| v.is_finite()));
        }
        assert!(state.mean.iter().chain(&state.variance).all(|v| v.is_finite()));
    }

    #[test]
    fn a_state_survives_being_stored() {
        let (settings, scaling) = (Settings::default(), scaling());
        let mut state = CarState::new(&scaling);
        state.observe(&settings, &scaling, 7, &driving(0.1));
        // Numbers that text forms and comparisons lose.
        (state.mean[0], state.variance[17], state.smoothed[3]) = (-0.0, f64::MIN_POSITIVE / 4.0, 0.1 + 0.2);
        let stored = state.to_bytes();
        let restored = CarState::from_bytes(&stored);
        assert_eq!(restored, state);
        assert!(restored.mean[0].is_sign_negative());
        assert_eq!(restored.to_bytes(), stored);
        assert_eq!(CarState::from_bytes(&CarState::new(&scaling).to_bytes()), CarState::new(&scaling));
        assert!(size_of::<CarState>() <= 448, "{}", size_of::<CarState>());
    }
}
