//! What a car has to send, in order: in flight at the front, not yet sent behind.
//!
//! ```text
//! push ─► [ not sent | not sent | in flight | in flight ] ─► acknowledged
//!           └ the oldest of these goes when it is full
//! ```
//!
//! Readings are kept as they were measured and written out when they are sent: a fifth of their size as JSON, and the
//! same bytes every time. After a lost connection, the readings in flight are sent again in their turn: they are still
//! at the front.

use std::collections::VecDeque;

use crate::car::{Fault, Reading};
use crate::samples::Sample;

/// Something to publish.
#[derive(Debug)]
pub(crate) enum Item {
    Reading {
        reading: Reading,
        broken: bool,
    },
    Finding(Box<Fault>),
    /// A message of a stream that only the contract knows.
    Sample(Sample),
}

/// An item with what happened to it so far.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) item: Item,
    /// On this connection; 0 as long as it was not sent on it.
    pub(crate) packet_id: u16,
    pub(crate) attempts: u16,
    pub(crate) acknowledged: bool,
    /// By the clock; 0 as long as it was never sent.
    pub(crate) first_sent_ms: i64,
}

/// The queue of one car.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    items: VecDeque<Pending>,
    in_flight: usize,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Appends; at `limit` the oldest message that is not in flight makes room and is returned. Findings stay: there is
    /// one a fault.
    pub(crate) fn push(&mut self, item: Item, limit: usize) -> Option<Pending> {
        let full = self.items.len() >= limit;
        self.items.push_back(Pending { item, packet_id: 0, attempts: 0, acknowledged: false, first_sent_ms: 0 });
        if !full {
            return None;
        }
        let oldest = (self.in_flight..self.items.len()).find(|&i| !matches!(self.items[i].item, Item::Finding(_)))?;
        self.items.remove(oldest)
    }

    /// The next to be sent, if fewer than `window` are in flight; it counts as in flight from now on.
    pub(crate) fn send_next(&mut self, window: usize) -> Option<&mut Pending> {
        if self.in_flight >= window {
            return None;
        }
        let next = self.items.get_mut(self.in_flight)?;
        self.in_flight += 1;
        Some(next)
    }

    /// The server has the publish with this packet id. Calls `done` for everything at the front that is thereby
    /// finished.
    pub(crate) fn acknowledge(&mut self, packet_id: u16, mut done: impl FnMut(Pending)) {
        // Acknowledgements come in order, so that the first one fits; a server may still do otherwise.
        let Some(at) = self.items.iter().take(self.in_flight).position(|item| item.packet_id == packet_id) else {
            return;
        };
        self.items[at].acknowledged = true;
        while self.in_flight > 0 && self.items.front().is_some_and(|front| front.acknowledged) {
            self.in_flight -= 1;
            if let Some(front) = self.items.pop_front() {
                done(front);
            }
        }
        if self.items.is_empty() {
            // A waiting car holds no memory.
            self.items = VecDeque::new();
        }
    }

    /// The connection is gone: readings in flight have to be sent again, except those acknowledged out of order.
    pub(crate) fn connection_lost(&mut self, mut done: impl FnMut(Pending)) {
        let mut kept = VecDeque::with_capacity(self.items.len());
        for mut pending in self.items.drain(..) {
            if pending.acknowledged {
                done(pending);
            } else {
                pending.packet_id = 0;
                kept.push_back(pending);
            }
        }
        self.items = kept;
        self.in_flight = 0;
    }

    /// Takes the front out if `unwanted` says so.
    pub(crate) fn remove_front_if(&mut self, unwanted: impl Fn(&Pending) -> bool) -> Option<Pending> {
        if self.in_flight == 0 && self.items.front().is_some_and(unwanted) { self.items.pop_front() } else { None }
    }

    /// Everything that is left.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Pending> {
        self.in_flight = 0;
        std::mem::take(&mut self.items).into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::car::FaultKind;

    fn finding(began_ms: i64) -> Item {
        Item::Finding(Box::new(Fault {
            vin: String::new(),
            kind: FaultKind::BearingWear,
            component: String::new(),
            began_ms,
            repaired_ms: 0,
        }))
    }

    fn reading(seq: u32) -> Item {
        let reading = Reading {
            boot_id: 1,
            seq,
            event_time_ms: 0,
            trip_id: None,
            latitude: 0,
            longitude: 0,
            features: [0; 18],
            ambient: None,
            faulty: false,
            coverage: crate::car::Coverage::Online,
        };
        Item::Reading { reading, broken: false }
    }

    fn seq(pending: &Pending) -> u32 {
        match &pending.item {
            Item::Reading { reading, .. } => reading.seq,
            Item::Finding(_) | Item::Sample(_) => u32::MAX,
        }
    }

    fn send(queue: &mut Queue, packet_id: u16) -> Option<u32> {
        let pending = queue.send_next(2)?;
        pending.packet_id = packet_id;
        Some(seq(pending))
    }

    #[test]
    fn sends_in_order_within_the_window_and_again_after_a_loss() {
        let mut queue = Queue::default();
        for number in 0..4 {
            assert!(queue.push(reading(number), 10).is_none());
        }
        assert_eq!((send(&mut queue, 1), send(&mut queue, 2), send(&mut queue, 3)), (Some(0), Some(1), None));
        let mut done = Vec::new();
        queue.acknowledge(1, |p| done.push(seq(&p)));
        queue.acknowledge(77, |p| done.push(seq(&p)));
        assert_eq!(done, [0]);
        assert_eq!(send(&mut queue, 3), Some(2));
        queue.connection_lost(|p| done.push(seq(&p)));
        assert_eq!((queue.in_flight(), queue.len()), (0, 3));
        assert_eq!((send(&mut queue, 1), send(&mut queue, 2)), (Some(1), Some(2)), "in order, from the first lost one");
    }

    #[test]
    fn acknowledgements_out_of_order_are_kept() {
        let mut queue = Queue::default();
        queue.push(reading(0), 10);
        queue.push(reading(1), 10);
        send(&mut queue, 1);
        send(&mut queue, 2);
        let mut done = Vec::new();
        queue.acknowledge(2, |p| done.push(seq(&p)));
        assert!(done.is_empty());
        queue.connection_lost(|p| done.push(seq(&p)));
        assert_eq!(done, [1]);
        assert_eq!(send(&mut queue, 1), Some(0));
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn a_full_queue_drops_the_oldest_reading_that_is_not_in_flight() {
        let mut queue = Queue::default();
        queue.push(reading(0), 3);
        send(&mut queue, 1);
        queue.push(finding(5), 3);
        queue.push(reading(1), 3);
        assert_eq!(queue.push(reading(2), 3).map(|p| seq(&p)), Some(1));
        assert_eq!(queue.drain().map(|p| seq(&p)).collect::<Vec<_>>(), [0, u32::MAX, 2]);
    }
}
