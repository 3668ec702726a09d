//! A model, ready to judge readings.

use std::collections::HashMap;

use arrow::array::RecordBatch;

use crate::artefact::Manifest;
use crate::car_state::CarState;
use crate::error::Error;
use crate::features::{FEATURE_COUNT, Readings, Row, Values};
use crate::weights::Weights;

/// What the model says about one reading.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// The largest smoothed normalised residual of the 18 features; 0 if the reading was not judged.
    pub score: f32,
    /// The model's threshold.
    pub threshold: f32,
    /// Whether the score is above the threshold.
    pub anomalous: bool,
    /// Whether the reading was not newer than the car's newest: it changed neither state nor alert.
    pub late: bool,
    /// Whether there is a score: not while the car is parked or in warm-up.
    pub judged: bool,
    /// The three features that contribute most, largest first: position in [`crate::FEATURES`] and the size of its
    /// smoothed normalised residual.
    pub contributors: [(usize, f32); 3],
}

/// A model.
#[derive(Debug, Clone)]
pub struct Model {
    manifest: Manifest,
    weights: Weights,
}

impl Model {
    /// Reads a model, and refuses one that this program would not score rightly with: other features or another
    /// network, weights that are not those of the manifest, damaged files, numbers that cannot be.
    pub fn from_parts(manifest_json: &[u8], weights: &[u8]) -> Result<Self, Error> {
        let manifest = Manifest::from_json(manifest_json)?;
        manifest.check_weights(weights)?;
        Ok(Self { manifest, weights: Weights::from_safetensors(weights)? })
    }

    /// A model from its parts in memory, as the trainer makes it.
    pub fn new(manifest: Manifest, weights: Weights) -> Self {
        Self { manifest, weights }
    }

    /// What is known of the model.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its parameters.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Whether both have the same version and score alike. How good they are, and what they come from, is not compared.
    pub fn is_same(&self, other: &Self) -> bool {
        let (one, two) = (&self.manifest, &other.manifest);
        one.version == two.version
            && self.weights == other.weights
            && (&one.settings, &one.scaling) == (&two.settings, &two.scaling)
            && (one.residual_sigma, one.smoothed_sigma) == (two.residual_sigma, two.smoothed_sigma)
            && (one.threshold, one.alert) == (two.threshold, two.alert)
    }

    /// The state of a car that has not been seen yet.
    pub fn new_car(&self) -> CarState {
        CarState::new(&self.manifest.scaling)
    }

    /// Judges every reading of a batch (schema telemetry.v2), in order. `states` holds one state per car (pseudonym);
    /// cars that are new are added.
    ///
    /// [`Error::Column`] if the batch lacks a column; nothing has changed then.
    pub fn score(&self, batch: &RecordBatch, states: &mut HashMap<String, CarState>) -> Result<Vec<Verdict>, Error> {
        let readings = Readings::new(batch)?;
        let verdict = |index| {
            let car = readings.car(index);
            if !states.contains_key(car) {
                states.insert(car.to_owned(), self.new_car());
            }
            let state = states.get_mut(car).expect("it was inserted if it was missing");
            self.score_reading(state, readings.event_time_ms(index), &readings.row(index))
        };
        Ok((0..readings.len()).map(verdict).collect())
    }

    /// Judges the next reading of a car.
    pub fn score_reading(&self, state: &mut CarState, event_time_ms: i64, raw: &Row) -> Verdict {
        if state.is_late(event_time_ms) {
            let verdict = self.score_next(&mut state.clone(), event_time_ms, raw);
            return Verdict { late: true, ..verdict };
        }
        self.score_next(state, event_time_ms, raw)
    }

    fn score_next(&self, state: &mut CarState, event_time_ms: i64, raw: &Row) -> Verdict {
        let m = &self.manifest;
        let Some(inputs) = state.observe(&m.settings, &m.scaling, event_time_ms, raw) else {
            return Verdict::none(m.threshold);
        };
        let residuals = residuals(&self.weights, &m.residual_sigma, &inputs);
        let smoothed = state.smooth(&m.settings, &residuals);
        if !state.is_warm(&m.settings) {
            return Verdict::none(m.threshold);
        }
        Verdict::new(&smoothed, &m.smoothed_sigma, m.threshold)
    }
}

impl Verdict {
    /// The verdict on smoothed residuals.
    pub fn new(smoothed: &Values, smoothed_sigma: &Row, threshold: f32) -> Self {
        let mut contributors = [(0, f32::NEG_INFINITY); 3];
        for i in 0..FEATURE_COUNT {
            let size = (smoothed[i].abs() / f64::from(smoothed_sigma[i])) as f32;
            if let Some(place) = contributors.iter().position(|(_, other)| size > *other) {
                contributors[place..].rotate_right(1);
                contributors[place] = (i, size);
            }
        }
        let score = contributors[0].1;
        Self { score, threshold, anomalous: score > threshold, late: false, judged: true, contributors }
    }

    /// No verdict.
    pub fn none(threshold: f32) -> Self {
        let contributors = [(0, 0.0), (1, 0.0), (2, 0.0)];
        Self { score: 0.0, threshold, anomalous: false, late: false, judged: false, contributors }
    }
}

/// What the network does not explain of the inputs, in deviations.
pub fn residuals(weights: &Weights, residual_sigma: &Row, inputs: &Values) -> Values {
    let outputs = weights.forward(inputs);
    std::array::from_fn(|i| (inputs[i] - outputs[i]) / f64::from(residual_sigma[i]))
}
