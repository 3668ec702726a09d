//! The publishes of one connection that the log has not yet decided on, in the order they came.
//!
//! ```text
//! received  ──►  [ 7 durable │ 8 pending │ 9 durable │ 10 refused ]  ◄── completions, in any order
//!                  └► PUBACK    └─ 9 and 10 wait for 8: PUBACKs go out in the order of the PUBLISHes (MQTT-4.6.0-2)
//! ```

use std::collections::VecDeque;
use std::time::Instant;

/// What is known of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The log has it and has not said more.
    Pending,
    /// It is durable.
    Durable,
    /// The log could not say that it is durable.
    Failed,
    /// It was never given to the log; the MQTT 5 reason code of its PUBACK.
    Refused(u8),
}

/// One publish.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    /// 0: QoS 0, or a will; nothing to acknowledge.
    pub(crate) packet_id: u16,
    /// What is known of it.
    pub(crate) fate: Fate,
    /// What it holds of the byte budget.
    pub(crate) bytes: u32,
    /// When it was given to the log.
    pub(crate) since: Instant,
}

/// The publishes of one connection that have not been answered.
#[derive(Debug, Default)]
pub(crate) struct Window {
    entries: VecDeque<Entry>,
    /// The sequence number of the first entry; they wrap around.
    first: u32,
    /// Entries that will be answered with a PUBACK.
    to_acknowledge: usize,
}

impl Window {
    /// The sequence number that the next entry gets: its half of the completion token.
    pub(crate) fn next_sequence(&self) -> u32 {
        self.first.wrapping_add(self.entries.len() as u32)
    }

    /// Adds an entry at the end.
    pub(crate) fn push(&mut self, packet_id: u16, fate: Fate, bytes: u32, since: Instant) {
        self.entries.push_back(Entry { packet_id, fate, bytes, since });
        self.to_acknowledge += usize::from(packet_id != 0);
    }

    /// Takes a completion. One that belongs to no pending entry is ignored, and is `false`.
    pub(crate) fn complete(&mut self, sequence: u32, durable: bool) -> bool {
        let index = sequence.wrapping_sub(self.first) as usize;
        let Some(entry) = self.entries.get_mut(index).filter(|e| e.fate == Fate::Pending) else { return false };
        entry.fate = if durable { Fate::Durable } else { Fate::Failed };
        true
    }

    /// The first entry, once it is decided.
    pub(crate) fn pop_decided(&mut self) -> Option<Entry> {
        let entry = *self.entries.front().filter(|e| e.fate != Fate::Pending)?;
        self.entries.pop_front();
        self.first = self.first.wrapping_add(1);
        self.to_acknowledge -= usize::from(entry.packet_id != 0);
        Some(entry)
    }

    /// Entries that will be answered with a PUBACK.
    pub(crate) fn to_acknowledge(&self) -> usize {
        self.to_acknowledge
    }

    /// All entries.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_in_order_though_completions_do_not_come_in_order() {
        let mut window = Window { first: u32::MAX - 1, ..Window::default() }; // wraps on the way
        let sequences: Vec<u32> = (1..=4)
            .map(|id| {
                let sequence = window.next_sequence();
                window.push(id, Fate::Pending, 10, Instant::now());
                sequence
            })
            .collect();
        assert_eq!(sequences, [u32::MAX - 1, u32::MAX, 0, 1]);
        assert!(window.complete(sequences[2], true));
        assert!(window.complete(sequences[1], false));
        assert!(window.pop_decided().is_none());
        assert!(window.complete(sequences[0], true));
        let ids: Vec<_> = std::iter::from_fn(|| window.pop_decided()).map(|e| (e.packet_id, e.fate)).collect();
        assert_eq!(ids, [(1, Fate::Durable), (2, Fate::Failed), (3, Fate::Durable)]);
        assert_eq!((window.len(), window.to_acknowledge()), (1, 1));
        assert!(!window.complete(sequences[0], true), "already gone");
        assert!(!window.complete(2, true), "never given");
        assert!(window.complete(sequences[3], true));
        assert!(!window.complete(sequences[3], false), "decided once");
    }

    #[test]
    fn qos_0_and_refused_entries_keep_their_place() {
        let mut window = Window::default();
        window.push(0, Fate::Pending, 1, Instant::now());
        window.push(5, Fate::Refused(0x90), 1, Instant::now());
        assert_eq!((window.len(), window.to_acknowledge()), (2, 1));
        assert!(window.pop_decided().is_none());
        assert!(!window.complete(1, true), "a refused entry has no completion");
        assert!(window.complete(0, true));
        assert_eq!(window.pop_decided().map(|e| e.packet_id), Some(0));
        assert_eq!(window.pop_decided().map(|e| e.fate), Some(Fate::Refused(0x90)));
        assert_eq!(window.len(), 0);
    }
}
