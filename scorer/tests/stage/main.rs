//! The second ring: the scorer on an embedded log.

#![allow(clippy::unwrap_used)]

mod alerts;
mod models;
mod scores;
mod support;
