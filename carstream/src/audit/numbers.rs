//! Gaps in the cars' own numbering, which tell of losses where there is no ledger.

use super::Hop;
use super::readings::Reading;

/// Follows the numbers of one boot.
#[derive(Debug)]
pub(crate) struct Numbers {
    next: Option<i64>,
    /// Refused ones since `next`, which are no gap.
    refused: u64,
}

impl Numbers {
    /// The next number should be this one, if it is known.
    pub(crate) fn new(next: Option<i64>) -> Self {
        Self { next, refused: 0 }
    }

    /// Returns where a gap before this reading began, and how many numbers it left out.
    pub(crate) fn follow(&mut self, seq: i64, reading: Reading) -> Option<(i64, u64)> {
        let seen = Hop::ALL.into_iter().any(|hop| reading.seen(hop) > 0);
        if !seen {
            // Its number is what a broken payload says: no ground to claim that others before it are missing.
            self.refused += u64::from(reading.is(Reading::REFUSED));
            return None;
        }
        let refused = std::mem::take(&mut self.refused);
        let from = self.next.replace(seq + 1)?;
        let missing = u64::try_from(seq - from).ok()?.saturating_sub(refused);
        (missing > 0).then_some((from, missing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_found_from_the_numbers() {
        let (mut seen, mut refused) = (Reading::default(), Reading::default());
        seen.see(Hop::Raw);
        refused.set(Reading::REFUSED);
        let gaps = |next, readings: &[(i64, Reading)]| -> Vec<_> {
            let mut numbers = Numbers::new(next);
            readings.iter().filter_map(|(seq, reading)| numbers.follow(*seq, *reading)).collect()
        };
        assert_eq!(gaps(Some(0), &[(0, seen), (1, seen), (2, seen)]), []);
        assert_eq!(gaps(Some(0), &[(2, seen), (3, seen), (7, seen)]), [(0, 2), (4, 3)]);
        assert_eq!(gaps(None, &[(2, seen), (4, seen)]), [(3, 1)]);
        assert_eq!(gaps(Some(0), &[(0, seen), (1, refused), (3, seen)]), [(1, 1)]);
        assert_eq!(gaps(Some(0), &[(0, seen), (1, refused), (2, seen), (1 << 50, refused)]), []);
    }
}
