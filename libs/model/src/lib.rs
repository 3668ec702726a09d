//! The anomaly model of a car: features, network, score, alert, artefact. No I/O: bytes in, bytes out.
//!
//! ```text
//!  reading ──► 18 inputs ──► autoencoder ──► residual ──► smoothed, per feature ──► score ──► alert
//!              [`CarState`]   18-14-7-7-18    in − out     and normalised by σ       largest    [`AlertState`]
//!                   ▲                                                                  of 18
//!              one per car: the car's own mean and deviation, smoothed residuals
//! ```
//!
//! The trainer and the scorer call the same functions, so a reading gets the same score from both. [`artefact`] has the
//! parts of a model and how they are stored; [`car_state`] turns a reading into inputs.

pub mod alert;
pub mod artefact;
pub mod car_state;
mod error;
pub mod features;
pub mod random;
pub mod scaling;
mod score;
pub mod weights;

pub use alert::{AlertChange, AlertRule, AlertState};
pub use artefact::Manifest;
pub use car_state::{CarState, Settings};
pub use error::Error;
pub use features::{FEATURE_COUNT, FEATURES, Readings, Row, UNITS, Values};
pub use scaling::Scaling;
pub use score::{Model, Verdict, residuals};
pub use weights::Weights;
