//! What is known of each reading, in four bytes.
//!
//! ```text
//!  (car, boot) ─► number ─┐
//!                         ├─► page of 64 sequence numbers ─► 64 × 32 bits
//!  sequence number / 64 ──┘
//!
//!  bits  0 known  1 acknowledged  2 broken  3 sent  4 dropped  5 refused
//!        6–15 how often seen, two bits a hop: 0, 1, more    16–20 due at a hop    21–25 excused at a hop    26 stays
//! ```
//!
//! A car numbers the readings of one boot from 0, so pages are nearly full, and a reading costs little more than its
//! four bytes; a boot of a single reading costs a page.

use std::collections::HashMap;

use super::Hop;

const PAGE_READINGS: usize = 64;
const PAGE_BITS: u32 = PAGE_READINGS.trailing_zeros();

/// Pages are allocated this many at a time, and never moved: a table that doubles would need three times its size.
const SLAB_PAGES: usize = 256;

/// Whose reading, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Identity {
    pub(crate) car: u32,
    pub(crate) boot_id: i64,
    pub(crate) seq: i64,
}

/// What is known of one reading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reading(u32);

impl Reading {
    /// In a ledger.
    pub(crate) const KNOWN: u32 = 1 << 0;
    /// The car has its PUBACK.
    pub(crate) const ACKNOWLEDGED: u32 = 1 << 1;
    /// Broken on purpose.
    pub(crate) const BROKEN: u32 = 1 << 2;
    /// It left the car at least once.
    pub(crate) const SENT: u32 = 1 << 3;
    /// The car's buffer was full.
    pub(crate) const DROPPED: u32 = 1 << 4;
    /// A raw record of it is a dead letter, or will be.
    pub(crate) const REFUSED: u32 = 1 << 5;
    /// Its car asked to be forgotten, but before it sent this.
    pub(crate) const STAYS: u32 = 1 << 26;
    const SEEN: u32 = 6;
    const DUE: u32 = 16;
    const EXCUSED: u32 = 21;

    pub(crate) fn is(self, flag: u32) -> bool {
        self.0 & flag != 0
    }

    pub(crate) fn set(&mut self, flag: u32) {
        self.0 |= flag;
    }

    /// How often it was seen at a hop: 0, 1, or 2 for more. In the raw topic only what is no dead letter counts.
    pub(crate) fn seen(self, hop: Hop) -> u32 {
        self.0 >> (Self::SEEN + 2 * hop as u32) & 3
    }

    /// Counts it once more at a hop.
    pub(crate) fn see(&mut self, hop: Hop) {
        if self.seen(hop) < 2 {
            self.0 += 1 << (Self::SEEN + 2 * hop as u32);
        }
    }

    /// Whether the stage before `hop` has passed it, so that it must be there.
    pub(crate) fn is_due(self, hop: Hop) -> bool {
        self.is(1 << (Self::DUE + hop as u32))
    }

    pub(crate) fn set_due(&mut self, hop: Hop) {
        self.set(1 << (Self::DUE + hop as u32));
    }

    /// Whether it may have been removed from `hop` by retention.
    pub(crate) fn is_excused(self, hop: Hop) -> bool {
        self.is(1 << (Self::EXCUSED + hop as u32))
    }

    pub(crate) fn excuse(&mut self, hop: Hop) {
        self.set(1 << (Self::EXCUSED + hop as u32));
    }
}

type Page = [Reading; PAGE_READINGS];

/// All readings that were met.
#[derive(Debug, Default)]
pub(crate) struct Readings {
    boots: HashMap<(u32, i64), u32>,
    /// Car and boot id by the boot's number.
    boot_ids: Vec<(u32, i64)>,
    /// Where the pages of (boot, sequence number / 64) are.
    places: HashMap<(u32, i64), u32>,
    slabs: Vec<Box<[Page]>>,
}

impl Readings {
    /// What is known of a reading, to be added to.
    pub(crate) fn entry(&mut self, of: Identity) -> &mut Reading {
        let boot = *self.boots.entry((of.car, of.boot_id)).or_insert_with(|| {
            self.boot_ids.push((of.car, of.boot_id));
            u32::try_from(self.boot_ids.len() - 1).expect("fewer than four billion boots")
        });
        let next = self.places.len();
        let place = *self.places.entry((boot, of.seq >> PAGE_BITS)).or_insert_with(|| {
            if next == self.slabs.len() * SLAB_PAGES {
                self.slabs.push(vec![[Reading::default(); PAGE_READINGS]; SLAB_PAGES].into());
            }
            u32::try_from(next).expect("fewer than four billion pages")
        }) as usize;
        let index = of.seq as usize % PAGE_READINGS;
        &mut self.slabs[place / SLAB_PAGES][place % SLAB_PAGES][index]
    }

    /// What is known of a reading, if anything is known of its neighbourhood.
    pub(crate) fn find(&mut self, of: Identity) -> Option<&mut Reading> {
        let boot = *self.boots.get(&(of.car, of.boot_id))?;
        let place = *self.places.get(&(boot, of.seq >> PAGE_BITS))? as usize;
        let index = of.seq as usize % PAGE_READINGS;
        Some(&mut self.slabs[place / SLAB_PAGES][place % SLAB_PAGES][index])
    }

    /// Everything that was met, boot by boot: cars in the order of their numbers, boots and readings of theirs.
    pub(crate) fn each_boot(&self, mut then: impl FnMut(u32, i64, &mut dyn Iterator<Item = (i64, Reading)>)) {
        let mut pages: Vec<_> = self
            .places
            .iter()
            .map(|(&(boot, page), &place)| {
                let (car, boot_id) = self.boot_ids[boot as usize];
                (car, boot_id, page, place)
            })
            .collect();
        pages.sort_unstable();
        for boot in pages.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let mut readings = boot.iter().flat_map(|&(_, _, page, place)| {
                let place = place as usize;
                let page_of = &self.slabs[place / SLAB_PAGES][place % SLAB_PAGES];
                let first = page << PAGE_BITS;
                (first..).zip(page_of).filter(|(_, reading)| reading.0 != 0).map(|(seq, reading)| (seq, *reading))
            });
            then(boot[0].0, boot[0].1, &mut readings);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_keeps_what_it_was_told_and_nothing_else() {
        let mut readings = Readings::default();
        let of = |car, boot_id, seq| Identity { car, boot_id, seq };
        let all = [of(1, 9, 63), of(0, 9, 64), of(0, 9, 0), of(0, 7, (1 << 53) - 1), of(0, 9, 63)];
        for (i, identity) in all.into_iter().enumerate() {
            let reading = readings.entry(identity);
            assert_eq!(*reading, Reading::default());
            (0..=i).for_each(|_| reading.see(Hop::ALL[i]));
            reading.set_due(Hop::Scores);
        }
        for (i, identity) in all.into_iter().enumerate() {
            let reading = *readings.entry(identity);
            for hop in Hop::ALL {
                let times = if hop == Hop::ALL[i] { (i as u32 + 1).min(2) } else { 0 };
                assert_eq!(reading.seen(hop), times, "{identity:?}");
                assert_eq!((reading.is_due(hop), reading.is_excused(hop)), (hop == Hop::Scores, false));
            }
        }
        assert!(readings.find(of(2, 9, 0)).is_none() && readings.find(of(0, 9, 128)).is_none());
        let mut in_order = Vec::new();
        readings.each_boot(|car, boot_id, readings| in_order.extend(readings.map(|(seq, _)| of(car, boot_id, seq))));
        let mut sorted = all.to_vec();
        sorted.sort();
        assert_eq!(in_order, sorted);
    }
}
