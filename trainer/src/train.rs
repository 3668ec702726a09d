//! From a fleet's rows to a model. No I/O.
//!
//! ```text
//!  training cars ──► scaling ──► inputs ──► network ──► sigmas ──┐
//!  (first 80% of time)                                           ├──► model
//!  validation cars ──────────────────────► scores ──► threshold ─┘      │
//!  test cars, later time ──────────────────────────────────────────────►└──► metrics
//! ```

use anyhow::Context;
use chrono::DateTime;
use model::artefact::{FORMAT, Metrics, Split, Training, TrainingRange};
use model::random::SplitMix64;
use model::{AlertRule, CarState, FEATURE_COUNT, Manifest, Model, Row, Scaling, Settings, Values, Weights};
use tokio_util::sync::CancellationToken;

use crate::Args;
use crate::evaluate::{self, Scored};
use crate::fit::{Fit, Fitted, fit};
use crate::fleet::{Car, Fleet};
use crate::split::{self, Part};

/// With fewer readings of warm, driving cars, 571 parameters are not learnt but remembered.
pub(crate) const MIN_TRAINING_ROWS: usize = 1_000;

/// There are too few readings for a model; more may be enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooLittle {
    /// Too few readings that can be learnt from.
    #[error(
        "{found} readings of driving cars after warm-up ({warm_up} readings a car) are too few to train on, which \
         takes {MIN_TRAINING_ROWS}: wait for more, or name longer ranges"
    )]
    Readings {
        /// Readings that could be learnt from.
        found: usize,
        /// Readings of each car that come before these.
        warm_up: u32,
    },
    /// A split has no car.
    #[error(
        "too few cars: {training} to train on, {validation} to validate, {test} to test; each needs one, which takes \
         about 20 cars in all (or another --seed)"
    )]
    Cars {
        /// Cars to train on.
        training: u64,
        /// Cars to set the threshold with.
        validation: u64,
        /// Cars to test on.
        test: u64,
    },
}

/// Rows that the loss on the validation split is taken from.
const VALIDATION_ROWS: usize = 20_000;

/// A smoothed residual at this quantile counts as much as a normal one of that many deviations does: features with
/// heavy tails then alarm no more often than others.
const TAIL_QUANTILE: f64 = 0.999;
const TAIL_DEVIATIONS: f64 = 3.29;

/// A model before it is stored.
#[derive(Debug, Clone)]
pub struct Trained {
    /// Manifest and weights, as a scorer would hold them.
    pub model: Model,
    /// The manifest.
    pub manifest: Vec<u8>,
    /// The weights.
    pub weights: Vec<u8>,
    /// Residuals of the training split, in sigmas, a sample: for the histogram.
    pub residuals: Vec<Values>,
}

/// Trains. `None`: shut down meanwhile.
///
/// The same rows and the same settings give the same bytes.
pub fn train(
    args: &Args,
    fleet: &Fleet,
    ranges: Vec<TrainingRange>,
    row_hash: String,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Trained>> {
    let event_time_ms = fleet.event_time_ms().context("the ranges hold no readings: name others with --range")?;
    let until_ms = split::training_until_ms(event_time_ms);
    let split = split::describe(fleet, args.seed, until_ms);
    check_cars(&split)?;
    let settings = Settings::default();
    let training: Vec<_> = cars(fleet, args.seed, Part::Training).map(|car| before(car, until_ms)).collect();
    let scaling = Scaling::fit(training.iter().map(|(_, rows)| *rows));
    let inputs: Vec<_> = training.iter().map(|(times, rows)| inputs(&settings, &scaling, times, rows)).collect();
    let rows: Vec<Values> = inputs.iter().flat_map(|car| warm(&settings, car)).copied().collect();
    if rows.len() < MIN_TRAINING_ROWS {
        return Err(TooLittle::Readings { found: rows.len(), warm_up: settings.warm_up_readings }.into());
    }
    let validation: Vec<Values> = cars(fleet, args.seed, Part::Validation)
        .flat_map(|car| warm(&settings, &self::inputs(&settings, &scaling, &car.times_ms, &car.rows)).to_vec())
        .collect();
    let sample = sample(&rows, args.sample_rows, args.seed);
    let how = Fit {
        seed: args.seed,
        epochs: args.epochs,
        batch_size: args.batch_size as usize,
        learning_rate: args.learning_rate,
    };
    let Some(fitted) = fit(&how, &sample, &self::sample(&validation, VALIDATION_ROWS, args.seed), shutdown) else {
        return Ok(None);
    };
    let residual_sigma = residual_sigma(&fitted.weights, &rows);
    let smoothed_sigma = smoothed_sigma(&settings, &scaling, &fitted.weights, &residual_sigma, &inputs);
    let training = Training {
        ranges,
        row_hash,
        rows: fleet.rows,
        findings: fleet.findings,
        event_time_ms,
        seed: args.seed,
        epochs: args.epochs,
        batch_size: args.batch_size,
        learning_rate: args.learning_rate,
        rows_trained: sample.len() as u64,
        split,
    };
    let mut manifest = Manifest {
        format: FORMAT,
        name: args.name.clone(),
        version: String::new(),
        code_version: env!("CARGO_PKG_VERSION").to_owned(),
        features: Manifest::features(),
        architecture: Manifest::architecture(),
        settings,
        scaling,
        residual_sigma,
        smoothed_sigma,
        threshold: 1.0,
        alert: AlertRule::default(),
        training,
        metrics: unmeasured(args, &fitted),
        weights_sha256: String::new(),
    };
    measure(&mut manifest, args, fleet, &fitted.weights);
    let residuals = self::sample(&rows, VALIDATION_ROWS, args.seed)
        .iter()
        .map(|row| model::residuals(&fitted.weights, &residual_sigma, row))
        .collect();
    finish(manifest, &fitted.weights, residuals).map(Some)
}

/// The cars of a split, by pseudonym.
pub(crate) fn cars(fleet: &Fleet, seed: u64, part: Part) -> impl Iterator<Item = &Car> {
    fleet.cars.iter().filter(move |(name, _)| split::part(seed, name) == part).map(|(_, car)| car)
}

fn check_cars(split: &Split) -> Result<(), TooLittle> {
    let counts = [split.training_cars, split.validation_cars, split.test_cars];
    if counts.contains(&0) {
        let [training, validation, test] = counts;
        return Err(TooLittle::Cars { training, validation, test });
    }
    Ok(())
}

/// What of a car is trained on.
fn before(car: &Car, until_ms: i64) -> (&[i64], &[Row]) {
    let end = car.times_ms.iter().position(|time_ms| *time_ms >= until_ms).unwrap_or(car.times_ms.len());
    (&car.times_ms[..end], &car.rows[..end])
}

/// The network's inputs of a car, from its first reading on.
fn inputs(settings: &Settings, scaling: &Scaling, times_ms: &[i64], rows: &[Row]) -> Vec<Values> {
    let mut state = CarState::new(scaling);
    let input = |(time_ms, row): (&i64, &Row)| {
        if state.is_late(*time_ms) { None } else { state.observe(settings, scaling, *time_ms, row) }
    };
    times_ms.iter().zip(rows).filter_map(input).collect()
}

/// The inputs after the car's warm-up.
fn warm<'a>(settings: &Settings, inputs: &'a [Values]) -> &'a [Values] {
    inputs.get(settings.warm_up_readings as usize..).unwrap_or_default()
}

/// At most `most` of the rows, drawn by the seed, in their order.
fn sample(rows: &[Values], most: usize, seed: u64) -> Vec<Values> {
    if rows.len() <= most {
        return rows.to_vec();
    }
    // Selection sampling (Knuth, The Art of Computer Programming, volume 2, 3.4.2, algorithm S).
    let mut random = SplitMix64::new(seed ^ 0x7361_6d70_6c65);
    let mut sample = Vec::with_capacity(most);
    for (i, row) in rows.iter().enumerate() {
        if random.below(rows.len() - i) < most - sample.len() {
            sample.push(*row);
        }
    }
    sample
}

fn residual_sigma(weights: &Weights, rows: &[Values]) -> Row {
    let mut squares = [0.0f64; FEATURE_COUNT];
    for row in rows {
        for (sum, residual) in squares.iter_mut().zip(model::residuals(weights, &[1.0; FEATURE_COUNT], row)) {
            *sum += residual * residual;
        }
    }
    squares.map(|sum| ((sum / rows.len() as f64).sqrt() as f32).max(1e-3))
}

fn smoothed_sigma(settings: &Settings, scaling: &Scaling, weights: &Weights, sigma: &Row, cars: &[Vec<Values>]) -> Row {
    let mut sizes: Vec<Vec<f64>> = vec![Vec::new(); FEATURE_COUNT];
    for car in cars {
        let mut state = CarState::new(scaling);
        for (i, row) in car.iter().enumerate() {
            let smoothed = state.smooth(settings, &model::residuals(weights, sigma, row));
            if i >= settings.warm_up_readings as usize {
                sizes.iter_mut().zip(smoothed).for_each(|(sizes, value)| sizes.push(value.abs()));
            }
        }
    }
    std::array::from_fn(|i| {
        let sizes = &mut sizes[i];
        let place = ((sizes.len() - 1) as f64 * TAIL_QUANTILE) as usize;
        let (_, quantile, _) = sizes.select_nth_unstable_by(place, f64::total_cmp);
        ((*quantile / TAIL_DEVIATIONS) as f32).max(1e-3)
    })
}

fn unmeasured(args: &Args, fitted: &Fitted) -> Metrics {
    Metrics {
        training_loss: fitted.training_loss.clone(),
        validation_loss: fitted.validation_loss.clone(),
        wanted_alarms_per_car_day: args.alarms_per_car_day,
        test: Default::default(),
        validation: Default::default(),
        later: Default::default(),
    }
}

/// Sets the threshold, and finds out how good the model is.
fn measure(manifest: &mut Manifest, args: &Args, fleet: &Fleet, weights: &Weights) {
    let model = Model::new(manifest.clone(), weights.clone());
    let scored = |part, from_ms| -> Vec<Scored<'_>> {
        cars(fleet, args.seed, part).map(|car| evaluate::score(&model, car, from_ms)).collect()
    };
    let rule = manifest.alert;
    let validation = scored(Part::Validation, i64::MIN);
    manifest.threshold = evaluate::threshold(&validation, &rule, args.alarms_per_car_day);
    let threshold = manifest.threshold;
    let metrics = &mut manifest.metrics;
    metrics.validation = evaluate::detection(&validation, &rule, threshold);
    metrics.test = evaluate::detection(&scored(Part::Test, i64::MIN), &rule, threshold);
    let until_ms = manifest.training.split.training_until_ms;
    metrics.later = evaluate::detection(&scored(Part::Training, until_ms), &rule, threshold);
}

/// Seals the model, and reads it as a scorer will.
fn finish(mut manifest: Manifest, weights: &Weights, residuals: Vec<Values>) -> anyhow::Result<Trained> {
    let weights = weights.to_safetensors();
    let newest = DateTime::from_timestamp_millis(manifest.training.event_time_ms[1]).unwrap_or_default();
    manifest.seal(&weights, &newest.format("%Y%m%dT%H%M%SZ").to_string());
    let manifest = manifest.to_json();
    let model = Model::from_parts(&manifest, &weights).context("the trained model cannot be used")?;
    Ok(Trained { model, manifest, weights, residuals })
}
