//! The loop on an embedded log, and what Kafka does differently on a real one.
#![allow(clippy::unwrap_used)]

mod behind;
mod kafka;
mod prepare;
mod rebuild;
mod restarts;
mod state;
mod stops;
mod support;
mod troubled;
