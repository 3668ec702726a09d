//! The result of a training, human-readable and as JSON.

use std::fmt::Write;

use model::Manifest;
use model::artefact::Detection;
use serde::Serialize;

/// A model that was stored.
#[derive(Debug, Clone, Serialize)]
pub struct TrainedModel {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its folder in the lake.
    pub path: String,
    /// How long it took, reading included.
    pub seconds: f64,
    /// Everything about it: what it was trained on, how good it is.
    pub manifest: Manifest,
}

impl TrainedModel {
    /// A few human-readable lines.
    pub fn report(&self) -> String {
        let (training, metrics) = (&self.manifest.training, &self.manifest.metrics);
        let mut text = String::new();
        let loss = |losses: &[f64]| losses.last().copied().unwrap_or_default();
        let lines = [
            ("model", format!("{} {}", self.name, self.version)),
            ("stored in", self.path.clone()),
            (
                "trained on",
                format!(
                    "{} readings, {} findings of {} cars, {} rows of driving cars, {} epochs, {:.1} s",
                    training.rows,
                    training.findings,
                    training.split.training_cars + training.split.validation_cars + training.split.test_cars,
                    training.rows_trained,
                    training.epochs,
                    self.seconds
                ),
            ),
            ("row hash", training.row_hash.clone()),
            (
                "loss",
                format!(
                    "{:.4} training, {:.4} validation",
                    loss(&metrics.training_loss),
                    loss(&metrics.validation_loss)
                ),
            ),
            (
                "threshold",
                format!(
                    "{:.2}: {:.3} false alarms per car-day on {:.0} car-days of validation, wanted {}",
                    self.manifest.threshold,
                    metrics.validation.alarms_per_car_day,
                    metrics.validation.car_days,
                    metrics.wanted_alarms_per_car_day
                ),
            ),
            ("test", detection(&metrics.test)),
            ("later", detection(&metrics.later)),
        ];
        for (what, value) in lines {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{what:>10}  {value}");
        }
        text
    }
}

fn detection(detection: &Detection) -> String {
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.3}"));
    let delay = detection.median_delay_s.map_or("-".to_owned(), |s| format!("{:.0} min", s / 60.0));
    format!(
        "AUC {}, average precision {}, {} of {} faults found, median delay {delay}, {:.3} false alarms per car-day",
        number(detection.auc),
        number(detection.average_precision),
        detection.faults_found,
        detection.faults,
        detection.alarms_per_car_day
    )
}
