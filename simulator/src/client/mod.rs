//! A lean MQTT 3.1.1 client, one per car: a queue, a connection now and then, and the task that drives both.

mod connection;
mod link;
mod queue;
mod shared;
mod tls;
mod transport;

pub(crate) use link::Link;
pub(crate) use shared::{Shared, Totals};
pub(crate) use tls::Tls;
