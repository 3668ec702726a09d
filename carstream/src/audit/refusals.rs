//! Which raw records are dead letters, by position.
//!
//! Two bits per offset, in pages: a hundred bytes for a lonely dead letter, a quarter of one among many.

use std::collections::HashMap;

const PAGE_OFFSETS: u64 = 256;
const PER_BYTE: u64 = 4;
const NONE: u8 = 0;
const DEAD_LETTER: u8 = 1;
const MATCHED: u8 = 2;

/// The raw records that dead letters name.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    pages: HashMap<(u32, u64), [u8; (PAGE_OFFSETS / PER_BYTE) as usize]>,
}

impl Refusals {
    /// Notes a dead letter of this raw record. Returns whether it is the first.
    pub(crate) fn note(&mut self, partition: u32, offset: u64) -> bool {
        self.change(partition, offset, NONE, DEAD_LETTER)
    }

    /// Whether this existing raw record is a dead letter.
    pub(crate) fn meet(&mut self, partition: u32, offset: u64) -> bool {
        self.pages.contains_key(&(partition, offset / PAGE_OFFSETS))
            && self.change(partition, offset, DEAD_LETTER, MATCHED)
    }

    /// Raw records that dead letters name and that were not met, in order.
    pub(crate) fn unmet(&self) -> Vec<(u32, u64)> {
        let mut unmet = Vec::new();
        for (&(partition, page), states) in &self.pages {
            let offsets = page * PAGE_OFFSETS..(page + 1) * PAGE_OFFSETS;
            let state = |offset: &u64| states[(offset % PAGE_OFFSETS / PER_BYTE) as usize] >> shift(*offset) & 3;
            unmet.extend(offsets.filter(|offset| state(offset) == DEAD_LETTER).map(|offset| (partition, offset)));
        }
        unmet.sort_unstable();
        unmet
    }

    fn change(&mut self, partition: u32, offset: u64, from: u8, to: u8) -> bool {
        let empty = [0; (PAGE_OFFSETS / PER_BYTE) as usize];
        let page = self.pages.entry((partition, offset / PAGE_OFFSETS)).or_insert(empty);
        let states = &mut page[(offset % PAGE_OFFSETS / PER_BYTE) as usize];
        if *states >> shift(offset) & 3 != from {
            return false;
        }
        *states = *states & !(3 << shift(offset)) | to << shift(offset);
        true
    }
}

fn shift(offset: u64) -> u32 {
    (offset % PER_BYTE) as u32 * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letters_and_raw_records_are_matched_one_to_one() {
        let mut refusals = Refusals::default();
        for (partition, offset) in [(0, 0), (0, 1), (3, 255), (3, 256), (3, 1 << 40)] {
            assert!(refusals.note(partition, offset));
        }
        assert!(!refusals.note(3, 256), "twice");
        assert!(refusals.meet(3, 255) && refusals.meet(3, 1 << 40) && refusals.meet(0, 1));
        assert!(!refusals.meet(0, 2) && !refusals.meet(1, 0) && !refusals.meet(9, 9));
        assert_eq!(refusals.unmet(), [(0, 0), (3, 256)]);
    }
}
