//! Alerts on their way from the log to the cars that are connected and want them.
//!
//! ```text
//! log topic `alerts` ─► Follower (a thread) ─► Directory: pseudonym → mailbox ─► AlertQueue of the session ─► PUBLISH
//!   from its end, on                            subscribed cars only              bounded: the oldest goes
//! ```
//!
//! An alert is news. It reaches the cars that are connected when it arrives. Nothing is kept for others, and alerts
//! that a car has not acknowledged when it disconnects are dropped: the log still has them, and later alerts carry the
//! current state.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use event_log::{Batch, Error, Log, Tail};
use rmqtt_codec::types::QoS;
use service::Waiting;
use tokio_util::sync::CancellationToken;

use crate::clients::Directory;
use crate::metrics::Metrics;

/// Alerts sent to one client and not acknowledged; a client may ask for fewer.
const MAX_ALERTS_IN_FLIGHT: usize = 8;

/// Records a read; alerts are few.
const MAX_RECORDS: usize = 1_000;

/// How soon the follower notices that it should stop.
const POLL_MS: u64 = 100;

/// How soon the follower tries again after an error.
const RETRY_AFTER_MS: u64 = 500;

/// The alerts of one client: those that wait, and those that it has not acknowledged.
#[derive(Debug)]
pub(crate) struct AlertQueue {
    /// As granted in SUBACK.
    pub(crate) qos: QoS,
    waiting: VecDeque<Bytes>,
    in_flight: Vec<NonZeroU16>,
    last_packet_id: u16,
}

impl Default for AlertQueue {
    fn default() -> Self {
        Self { qos: QoS::AtMostOnce, waiting: VecDeque::new(), in_flight: Vec::new(), last_packet_id: 0 }
    }
}

impl AlertQueue {
    /// Adds an alert. Returns whether the oldest one was dropped for it.
    pub(crate) fn push(&mut self, alert: Bytes, max_waiting: usize) -> bool {
        let dropped = self.waiting.len() >= max_waiting && self.waiting.pop_front().is_some();
        self.waiting.push_back(alert);
        dropped
    }

    /// The next alert that may be sent, with its packet identifier (QoS 1).
    pub(crate) fn next(&mut self, receive_maximum: u16) -> Option<(Option<NonZeroU16>, Bytes)> {
        if self.qos == QoS::AtMostOnce {
            return self.waiting.pop_front().map(|alert| (None, alert));
        }
        if self.in_flight.len() >= MAX_ALERTS_IN_FLIGHT.min(usize::from(receive_maximum)) {
            return None;
        }
        let alert = self.waiting.pop_front()?;
        let packet_id = self.free_packet_id();
        self.in_flight.push(packet_id);
        Some((Some(packet_id), alert))
    }

    /// Takes the PUBACK of an alert. Returns whether there was such an alert.
    pub(crate) fn acknowledge(&mut self, packet_id: NonZeroU16) -> bool {
        let found = self.in_flight.iter().position(|id| *id == packet_id);
        found.map(|index| self.in_flight.swap_remove(index)).is_some()
    }

    /// Alerts that have not reached the client.
    pub(crate) fn outstanding(&self) -> usize {
        self.waiting.len() + self.in_flight.len()
    }

    fn free_packet_id(&mut self) -> NonZeroU16 {
        loop {
            self.last_packet_id = self.last_packet_id.wrapping_add(1);
            // Ends: fewer are in flight than there are identifiers.
            match NonZeroU16::new(self.last_packet_id) {
                Some(id) if !self.in_flight.contains(&id) => return id,
                _ => {}
            }
        }
    }
}

/// Follows the topic with alerts, and hands each alert to the car it is for.
pub(crate) struct Follower {
    tail: Tail,
    directory: Arc<Directory>,
    metrics: Metrics,
}

impl Follower {
    /// Starts at the end of the topic.
    pub(crate) fn new(
        log: Arc<dyn Log>,
        topic: &Arc<str>,
        directory: Arc<Directory>,
        metrics: Metrics,
    ) -> Result<Self, Error> {
        let mut tail = Tail::new(log, topic.clone());
        tail.skip_to_end()?;
        Ok(Self { tail, directory, metrics })
    }

    /// Follows until shutdown. Blocking.
    pub(crate) fn run(mut self, shutdown: &CancellationToken) {
        let mut waiting = Waiting::new(format!("topic {} in {}", self.tail.topic(), self.tail.log().url()));
        while !shutdown.is_cancelled() {
            match self.tail.next(MAX_RECORDS, Duration::from_millis(POLL_MS)) {
                Ok(batch) => {
                    waiting.resolved();
                    batch.iter().for_each(|batch| self.deliver(batch));
                }
                Err(error) => {
                    waiting.note(&error);
                    if matches!(error, Error::OutOfRange { .. }) {
                        // Older alerts are no news any more. If this fails, the next read says so.
                        let _ = self.tail.skip_to_end();
                    }
                    std::thread::sleep(Duration::from_millis(RETRY_AFTER_MS));
                }
            }
        }
    }

    fn deliver(&self, batch: &Batch) {
        for record in batch.iter() {
            let Some(value) = record.value else { continue };
            self.metrics.alerts_read.inc();
            let Some(mailbox) = parse_pseudonym(record.key).and_then(|car| self.directory.subscribed(car)) else {
                continue;
            };
            if !mailbox.put_alert(Bytes::copy_from_slice(value)) {
                self.metrics.alerts_dropped.inc();
            }
        }
    }
}

/// A pseudonym is 32 hexadecimal digits; as a number it is half as long, and a fleet of them is kept.
pub(crate) fn parse_pseudonym(text: &[u8]) -> Option<u128> {
    const DIGITS: usize = 32;
    let text = std::str::from_utf8(text).ok().filter(|t| t.len() == DIGITS && t.bytes().all(|b| b.is_ascii_hexdigit()));
    text.and_then(|text| u128::from_str_radix(text, 16).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_alert_goes_when_too_many_wait() {
        let mut queue = AlertQueue::default();
        let dropped: Vec<bool> = (0..4u8).map(|i| queue.push(Bytes::from(vec![i]), 3)).collect();
        assert_eq!(dropped, [false, false, false, true]);
        let sent: Vec<u8> = std::iter::from_fn(|| queue.next(10)).map(|(_, alert)| alert[0]).collect();
        assert_eq!(sent, [1, 2, 3]);
    }

    #[test]
    fn no_more_in_flight_than_the_client_takes() {
        let mut queue = AlertQueue { qos: QoS::AtLeastOnce, last_packet_id: u16::MAX - 1, ..AlertQueue::default() };
        for i in 0..20u8 {
            queue.push(Bytes::from(vec![i]), 100);
        }
        let sent: Vec<_> = std::iter::from_fn(|| queue.next(3)).filter_map(|(id, _)| id).map(NonZeroU16::get).collect();
        assert_eq!(sent, [u16::MAX, 1, 2], "0 is no packet identifier");
        assert!(!queue.acknowledge(NonZeroU16::MAX.min(NonZeroU16::new(9).expect("not 0"))));
        assert!(queue.acknowledge(NonZeroU16::MIN));
        assert!(!queue.acknowledge(NonZeroU16::MIN), "only once");
        assert!(queue.next(3).is_some() && queue.next(3).is_none());
        assert_eq!(std::iter::from_fn(|| queue.next(u16::MAX)).count(), MAX_ALERTS_IN_FLIGHT - 3);
    }

    #[test]
    fn pseudonyms_are_32_hexadecimal_digits() {
        assert_eq!(parse_pseudonym(b"000000000000000000000000000000ff"), Some(255));
        for wrong in [&b""[..], b"ff", b"+00000000000000000000000000000ff", b"0000000000000000000000000000000g"] {
            assert_eq!(parse_pseudonym(wrong), None);
        }
    }
}
