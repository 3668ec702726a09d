//! Schema ids from a schema registry: Confluent's REST API, as Confluent's, Karapace and Apicurio's ccompat speak it.
//!
//! ```text
//!  ids.json of the contract ─────────────────► SchemaSource ──► ids of what this stage writes
//!     or                                         │    ▲          what other writers' ids mean
//!  registry ─ at the start: ours, checked ───────┘    │
//!           └ later, by an id that nobody knows ──────┘   (asked once, before its batch is transformed)
//! ```
//!
//! A stage only reads. Schemas are registered by a deployment ([`deploy()`]), which also sets [`COMPATIBILITY`] on each
//! subject. So a schema that would break a reader is refused before anything runs, and a stage whose own schema does
//! not fit the registered ones does not start.
//!
//! At the start a stage waits for an unreachable registry. Later it needs the registry only for ids that it has not
//! met.

mod args;
mod client;
mod deploy;
mod error;
mod source;

pub use args::{RegistryUrl, SchemaRegistryArgs};
pub use client::{Registered, Registry};
pub use deploy::{Deployed, deploy};
pub use error::{BoxError, Error};
pub use source::SchemaSource;

/// Every version of a subject reads what every other one wrote: half of a fleet of stages may be older or newer.
pub const COMPATIBILITY: &str = "FULL_TRANSITIVE";

/// What registries call the values of a topic (Confluent's TopicNameStrategy).
pub fn subject(topic: &str) -> String {
    format!("{topic}-value")
}
