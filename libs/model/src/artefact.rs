//! The artefact: a trained model as files in a store.
//!
//! ```text
//!  manifest.json        features in order, settings, scaling, sigmas, threshold, alert rule, network,
//!     │                 what it was trained on (ranges and their hash), how good it is, by which code
//!     └─ weights_sha256
//!  weights.safetensors  see [`crate::weights`]
//! ```
//!
//! Nothing in it says when it was written, so that the same rows and the same seed give the same bytes. Its version
//! comes from its contents ([`Manifest::seal`]).

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::alert::AlertRule;
use crate::car_state::Settings;
use crate::error::Error;
use crate::features::{FEATURES, Row, UNITS};
use crate::scaling::{Scaling, check_positive};
use crate::weights::{ACTIVATIONS, LAYERS};

/// The format that this program reads and writes.
pub const FORMAT: u32 = 1;

/// Everything about a model but its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// What the model is called, for example `telemetry-anomaly`.
    pub name: String,
    /// Which one of that name: newest training reading, then a hash of the contents; sorts by time.
    pub version: String,
    /// The version of the program that trained it.
    pub code_version: String,
    /// The features, in the order of the network's inputs.
    pub features: Vec<Feature>,
    /// The network.
    pub architecture: Architecture,
    /// How a car's state runs.
    pub settings: Settings,
    /// What the fleet does, from the training split.
    pub scaling: Scaling,
    /// Standard deviation of each feature's residual on the training split.
    pub residual_sigma: Row,
    /// Size of each feature's smoothed residual that counts as one, from the training split.
    pub smoothed_sigma: Row,
    /// A reading is anomalous if its score is above.
    pub threshold: f32,
    /// When alerts open and close.
    pub alert: AlertRule,
    /// What it was trained on, and how.
    pub training: Training,
    /// How good it is.
    pub metrics: Metrics,
    /// SHA-256 of `weights.safetensors`, in hex.
    pub weights_sha256: String,
}

/// A feature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// Its unit, as cars send it.
    pub unit: String,
}

/// The shape of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Widths, inputs first.
    pub layers: Vec<usize>,
    /// What follows each affine map.
    pub activations: Vec<String>,
}

/// What a model was trained on, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// The readings and the findings: all rows of these ranges, in this order.
    pub ranges: Vec<TrainingRange>,
    /// The hash of all rows of the readings, as the lake defines it.
    pub row_hash: String,
    /// How many readings that is.
    pub rows: u64,
    /// How many findings.
    pub findings: u64,
    /// First and last event time of the readings, in ms since the epoch.
    pub event_time_ms: [i64; 2],
    /// The seed of splits, first weights and order.
    pub seed: u64,
    /// Passes over the training split.
    pub epochs: u32,
    /// Rows per step.
    pub batch_size: u32,
    /// The learning rate of the first step; it falls to 0 along half a cosine.
    pub learning_rate: f64,
    /// Rows of the training split that the network was trained on (a sample, if there were more).
    pub rows_trained: u64,
    /// How cars and time were split.
    pub split: Split,
}

/// A part of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingRange {
    /// The topic.
    pub topic: String,
    /// The partition, from 0.
    pub partition: u32,
    /// The first offset.
    pub start: u64,
    /// The offset after the last.
    pub end: u64,
}

/// How cars and time were split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// In words.
    pub description: String,
    /// Readings of training cars from this time on (ms since the epoch) were not trained on.
    pub training_until_ms: i64,
    /// Cars in each split.
    pub training_cars: u64,
    /// Cars that the threshold was set with.
    pub validation_cars: u64,
    /// Cars that the metrics come from.
    pub test_cars: u64,
}

/// How good a model is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Mean squared error on the training split after each epoch.
    pub training_loss: Vec<f64>,
    /// The same on the validation split.
    pub validation_loss: Vec<f64>,
    /// False alarms per car-day that the threshold was set for.
    pub wanted_alarms_per_car_day: f64,
    /// Cars that neither the network nor the threshold has seen.
    pub test: Detection,
    /// Cars that the threshold was set with.
    pub validation: Detection,
    /// Training cars, after the time until which they were trained on.
    pub later: Detection,
}

/// Verdicts compared with the workshop's findings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detection {
    /// Readings judged (after warm-up).
    pub readings: u64,
    /// Of these, while a fault was there.
    pub faulty_readings: u64,
    /// Time covered by the cars, first to last reading of each.
    pub car_days: f64,
    /// The chance that a faulty reading scores higher than one that is not; absent without both kinds.
    pub auc: Option<f64>,
    /// Precision, averaged over recall; absent without both kinds.
    pub average_precision: Option<f64>,
    /// Alerts opened.
    pub alerts: u64,
    /// Of these, while no fault was there.
    pub false_alarms: u64,
    /// False alarms per car-day.
    pub alarms_per_car_day: f64,
    /// Faults with at least one judged reading.
    pub faults: u64,
    /// Of these, with an alert that opened between beginning and repair.
    pub faults_found: u64,
    /// Half of the faults found were found within this time from their beginning; absent if none was.
    pub median_delay_s: Option<f64>,
    /// The same per kind of fault: found, of how many.
    pub by_kind: std::collections::BTreeMap<String, [u64; 2]>,
}

impl Manifest {
    /// The features of this program.
    pub fn features() -> Vec<Feature> {
        let feature = |(name, unit): (&&str, &&str)| Feature { name: (*name).to_owned(), unit: (*unit).to_owned() };
        FEATURES.iter().zip(&UNITS).map(feature).collect()
    }

    /// The network of this program.
    pub fn architecture() -> Architecture {
        Architecture { layers: LAYERS.to_vec(), activations: ACTIVATIONS.map(str::to_owned).to_vec() }
    }

    /// Names the weights, and gives the model its version: `{newest training reading, UTC}-{hash of the contents}`,
    /// where `newest` has the form `20261121T080000Z`.
    pub fn seal(&mut self, weights: &[u8], newest: &str) {
        self.weights_sha256 = hex::encode(Sha256::digest(weights));
        self.version = String::new();
        let hash = hex::encode(Sha256::digest(self.to_json()));
        self.version = format!("{newest}-{}", &hash[..12]);
    }

    /// `manifest.json`.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("a manifest holds nothing that JSON has no form for");
        json.push(b'\n');
        json
    }

    /// Reads `manifest.json`, and refuses what this program cannot use.
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Probe {
            format: u32,
        }
        let Probe { format } = serde_json::from_slice(json).map_err(Error::Manifest)?;
        if format != FORMAT {
            let advice =
                if format > FORMAT { "use a newer version of this program" } else { "train a model with this version" };
            return Err(Error::Format { found: format, wanted: FORMAT, advice });
        }
        let manifest: Self = serde_json::from_slice(json).map_err(Error::Manifest)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Refuses weights that the manifest does not name.
    pub fn check_weights(&self, weights: &[u8]) -> Result<(), Error> {
        let found = hex::encode(Sha256::digest(weights));
        if found == self.weights_sha256 {
            return Ok(());
        }
        Err(Error::WeightsHash { found, wanted: self.weights_sha256.clone() })
    }

    fn check(&self) -> Result<(), Error> {
        let wanted = Self::features();
        for index in 0..wanted.len().max(self.features.len()) {
            let (found, wanted) = (self.features.get(index), wanted.get(index));
            if found != wanted {
                let words = |f: Option<&Feature>| f.map(|f| format!("{} ({})", f.name, f.unit)).unwrap_or_default();
                return Err(Error::Features { index, found: words(found), wanted: words(wanted) });
            }
        }
        let wanted = Self::architecture();
        if self.architecture != wanted {
            let words = |a: &Architecture| format!("{:?} with {:?}", a.layers, a.activations);
            return Err(Error::Architecture { found: words(&self.architecture), wanted: words(&wanted) });
        }
        self.settings.check()?;
        self.scaling.check()?;
        check_positive("a residual's deviation", &self.residual_sigma)?;
        check_positive("a smoothed residual's deviation", &self.smoothed_sigma)?;
        check_positive("the threshold", &[self.threshold])?;
        check_positive("the share at which alerts close", &[self.alert.close_below])
    }
}
