//! The loop on an embedded log.
#![allow(clippy::unwrap_used)]

mod restarts;
mod state;
mod support;
mod troubled;
