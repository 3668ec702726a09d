//! Why a model or a batch was refused.

/// A model or a batch that cannot be used. `Display` says what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifest is not JSON, or lacks something.
    #[error("the manifest of the model cannot be read: fetch the model again, or train a new one")]
    Manifest(#[source] serde_json::Error),
    /// The artefact has another format.
    #[error("the model has format {found}, this program reads format {wanted}: {advice}")]
    Format {
        /// As the manifest says.
        found: u32,
        /// As this program knows.
        wanted: u32,
        /// Which of the two is too old.
        advice: &'static str,
    },
    /// The model was trained on other features.
    #[error(
        "the model's feature {index} is {found:?}, this program computes {wanted:?} there: train a model with this \
         version"
    )]
    Features {
        /// Position, from 0.
        index: usize,
        /// As the manifest says; empty if it ends before.
        found: String,
        /// As this program has it; empty if it ends before.
        wanted: String,
    },
    /// The network has another shape.
    #[error("the model's network is {found}, this program runs {wanted}: train a model with this version")]
    Architecture {
        /// As the manifest says.
        found: String,
        /// As this program has it.
        wanted: String,
    },
    /// The weights are not those that the manifest names.
    #[error(
        "the weights have SHA-256 {found}, the manifest names {wanted}: the two do not belong together, or one is \
         damaged; fetch the model again"
    )]
    WeightsHash {
        /// Of the bytes given.
        found: String,
        /// In the manifest.
        wanted: String,
    },
    /// The weights file is damaged.
    #[error("the weights are not a readable safetensors file: fetch the model again")]
    Weights(#[source] safetensors::SafeTensorError),
    /// A tensor is missing or has another shape or type.
    #[error("tensor {tensor} of the weights {problem}: train a model with this version")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// A number that must be finite is not, or one that must be positive is not.
    #[error("{what} of the model is {value}, which is impossible: train a new model")]
    Number {
        /// Which one.
        what: String,
        /// Its value.
        value: f64,
    },
    /// A batch lacks a column.
    #[error("the batch has no column {column} of type {wanted} without nulls: it must be of schema telemetry.v2")]
    Column {
        /// Its name.
        column: &'static str,
        /// The type it must have.
        wanted: &'static str,
    },
}
