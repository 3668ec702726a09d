//! When a connection is read and when not, and by when it has to end.

use std::time::Duration;

use tokio::time::Instant;

use super::{Connection, LOOK_AGAIN};
use crate::close::Close;
use crate::session::MAX_OUT_BYTES;

/// How long a packet may take while incomplete packets hold their part of the budget. A gateway at the end of a slow
/// link sends a reading within it.
const CROWDED_PACKET_TIMEOUT: Duration = Duration::from_secs(5);

/// Why nothing is read, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// Read.
    Open,
    /// Wait for the byte budget.
    Budget,
    /// Wait until incomplete packets, of which it has one, hold less of the budget.
    Crowded,
    /// Wait for room in the append queue.
    Room,
    /// Wait for mail or for the client to take what it was sent.
    Shut,
}

impl Connection {
    /// Whether a bound of this connection is reached.
    pub(super) fn is_shut(&self) -> bool {
        self.claiming.is_some()
            || self.drain_by.is_some()
            || self.held.is_some()
            || self.out.len() >= MAX_OUT_BYTES
            || self.session.as_ref().is_some_and(|session| session.is_full(&self.shared.rules.limits))
    }

    pub(super) fn gate(&self) -> Gate {
        if self.held.is_some() && self.drain_by.is_none() {
            Gate::Room
        } else if self.is_shut() {
            Gate::Shut
        } else if self.is_crowded() {
            Gate::Crowded
        } else if self.budget.is_starved() {
            Gate::Budget
        } else {
            Gate::Open
        }
    }

    pub(super) fn note_pause(&mut self, gate: Gate) {
        match (gate, self.paused_since) {
            (Gate::Open | Gate::Crowded, Some(_)) => {
                self.paused_since = None;
                self.shared.metrics.paused.dec();
                self.last_read = Instant::now(); // the client has not been silent: it was not heard
                if let Some(packet) = &mut self.unfinished {
                    packet.since = self.last_read;
                }
            }
            (Gate::Budget | Gate::Room | Gate::Shut, None) => {
                self.paused_since = Some(Instant::now());
                self.shared.metrics.paused.inc();
            }
            _ => {}
        }
    }

    /// When to look again.
    pub(super) fn deadline(&self, gate: Gate) -> Instant {
        let deadline = self.due(gate).0;
        match gate {
            Gate::Room | Gate::Crowded => deadline.min(Instant::now() + LOOK_AGAIN),
            _ => deadline,
        }
    }

    /// When this connection is to be closed, should nothing happen, and why.
    fn due(&self, gate: Gate) -> (Instant, Close) {
        let limits = &self.shared.rules.limits;
        let Some(session) = self.session.as_ref().filter(|_| self.claiming.is_none()) else {
            return self.or_drained(self.arrival.opened + limits.connect_timeout, Close::ConnectTimeout);
        };
        if let Some(since) = self.paused_since {
            return self.or_drained(since + limits.max_pause, Close::PausedTooLong);
        }
        let silent = self.last_read + Duration::from_secs(session.keep_alive_s().into()) * 3 / 2;
        let packet = self.unfinished.as_ref().map(|packet| match gate {
            Gate::Crowded => packet.since + limits.packet_timeout.min(CROWDED_PACKET_TIMEOUT),
            _ => packet.since + limits.packet_timeout,
        });
        match packet.filter(|packet| *packet < silent) {
            Some(packet) => self.or_drained(packet, Close::PacketTimeout),
            None => self.or_drained(silent, Close::KeepAlive),
        }
    }

    fn or_drained(&self, due: Instant, close: Close) -> (Instant, Close) {
        (self.drain_by.map_or(due, |by| due.min(by)), close)
    }

    pub(super) fn expired(&self, gate: Gate) -> Option<Close> {
        if self.drain_by.is_some() {
            return None; // `advance` ends the connection
        }
        let (due, close) = self.due(gate);
        (due <= Instant::now()).then_some(close)
    }
}
