//! The reading: its schemas, its decoding from JSON, its Avro, the pseudonym of its car.
//!
//! ```text
//!  bytes of a car ──► json::JsonDecoder ──┐                        ┌──► avro::AvroEncoder ──► bytes of a clean topic
//!                     (raw schema, bounds)├──► arrow RecordBatch ──┤
//!  clean topic ─────► avro::AvroDecoder ──┘                        └──► whatever a stage does with it
//!                     (any writer → reader schema)
//! ```
//!
//! Invariants: this crate does no I/O (no files, no sockets, no log), and nothing in it knows a field by name: every
//! schema, bound and personal-data tag comes from `schemas/*.avsc`, so that a new stream needs no Rust.
//!
//! Timestamps (`logicalType: timestamp-millis`) are Arrow `Timestamp(Millisecond, "+00:00")` on all paths: JSON, SQL,
//! Avro and Parquet.

pub mod avro;
mod columns;
pub mod declaration;
mod evolution;
pub mod json;
pub mod pseudonym;
pub mod schema;

/// Why a record can't be used. It is data about data: the record becomes a dead letter with this as its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// One of a small fixed set of words (see [`json::REASONS`] and [`avro::REASONS`]): fit for a metric label.
    pub reason: &'static str,
    /// For people: which field, what was found, what is allowed. Holds no value of a field that is tagged `pii`.
    pub detail: String,
}

impl Reject {
    pub(crate) fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

impl std::fmt::Display for Reject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}
