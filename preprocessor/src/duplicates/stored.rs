//! [`Duplicates`] as bytes, and back: everything, exactly, in little room.
//!
//! ```text
//! format u8 │ clock 18 bytes │ cars varint │ car, car, …                     cars in the order of their names
//! car       │ length varint, name │ days silent varint │ boots varint, boot, … │ 0, or retired
//! retired   │ 1 + older varint │ younger varint │ since 8 bytes │ ids 8 bytes each
//! boot      │ id 8 bytes │ 2 × intervals + has floor varint │ [floor 8 bytes] │ interval, …   used last comes last
//! interval  │ first: what it is behind the last of the one before, varint │ last − first varint
//! ```
//!
//! A car with one boot under way takes about 35 bytes. The same memory always gives the same bytes. Format 1 had no
//! clock and no days.

use pipeline::RecordClock;

use super::{Boot, Car, Duplicates, MAX_BOOTS, MAX_INTERVALS, MAX_RETIRED_BOOTS, Retired};

/// What comes first. A new number whenever the same memory would make other bytes.
pub const FORMAT: u8 = 2;

/// A new number whenever the same records would make another memory: snapshots with another one are not restored.
pub const RULES: u8 = 1;

/// Still read: a memory that were lost with an upgrade would let repeats through.
const WITHOUT_TIME: u8 = 1;

/// Why bytes are not restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoredError {
    /// It was written by another version of this program.
    #[error("the memory of duplicates has format {found}, this program reads {FORMAT}")]
    Format {
        /// The format of the bytes.
        found: u8,
    },
    /// They are not what this format can be.
    #[error("the memory of duplicates is damaged at byte {at}: {what}")]
    Damaged {
        /// Where.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
}

impl Duplicates {
    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut cars: Vec<_> = self.cars.iter().collect();
        cars.sort_unstable_by_key(|(name, _)| *name);
        let today = self.clock.day();
        let mut out = vec![FORMAT];
        out.extend_from_slice(&self.clock.to_bytes());
        put_varint(&mut out, cars.len() as u64);
        for (name, car) in cars {
            put_varint(&mut out, name.len() as u64);
            out.extend_from_slice(name.as_bytes());
            put_varint(&mut out, u64::from(today.saturating_sub(car.heard)));
            car.put(&mut out);
        }
        out
    }

    /// From bytes of [`Duplicates::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoredError> {
        let mut from = Cursor { bytes, at: 0 };
        let format = from.take(1)?[0];
        let clock = match format {
            FORMAT => {
                let stored = from.take(RecordClock::STORED_BYTES)?;
                let clock = RecordClock::from_bytes(stored.try_into().expect("as many were taken"));
                clock.ok_or_else(|| from.damaged("a clock that none can be"))?
            }
            WITHOUT_TIME => RecordClock::default(),
            found => return Err(StoredError::Format { found }),
        };
        let today = clock.day();
        let count = from.count(usize::MAX, "more cars than bytes")?;
        let mut duplicates = Self { clock, ..Self::default() };
        duplicates.cars.reserve(count);
        let mut before: Option<&str> = None;
        for _ in 0..count {
            let length = from.count(usize::MAX, "a name longer than the bytes")?;
            let name = std::str::from_utf8(from.take(length)?).map_err(|_| from.damaged("a name that is not UTF-8"))?;
            if before.is_some_and(|before| before >= name) {
                return Err(from.damaged("cars out of order"));
            }
            before = Some(name);
            let silent = if format == WITHOUT_TIME { 0 } else { from.varint()? };
            let heard = u32::try_from(silent).ok().and_then(|silent| today.checked_sub(silent));
            let heard = heard.ok_or_else(|| from.damaged("a car that is older than the clock"))?;
            duplicates.cars.insert(name.into(), Car { heard, ..Car::get(&mut from)? });
        }
        if from.at < bytes.len() {
            return Err(from.damaged("bytes after the end"));
        }
        Ok(duplicates)
    }
}

impl Car {
    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.boots.len() as u64);
        for boot in &self.boots {
            boot.put(out);
        }
        match &self.retired {
            None => put_varint(out, 0),
            Some(retired) => retired.put(out),
        }
    }

    fn get(from: &mut Cursor<'_>) -> Result<Self, StoredError> {
        let boots = from.count(MAX_BOOTS, "too many boots")?;
        let boots = (0..boots).map(|_| Boot::get(from)).collect::<Result<_, _>>()?;
        let retired = match from.count(1 + MAX_RETIRED_BOOTS, "too many retired boots")? {
            0 => None,
            head => Some(Box::new(Retired::get(head - 1, from)?)),
        };
        Ok(Self { heard: 0, boots, retired })
    }
}

impl Retired {
    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, 1 + self.older.len() as u64);
        put_varint(out, self.younger.len() as u64);
        out.extend_from_slice(&self.since_ms.to_le_bytes());
        for id in self.older.iter().chain(&self.younger) {
            out.extend_from_slice(&id.to_le_bytes());
        }
    }

    fn get(older: usize, from: &mut Cursor<'_>) -> Result<Self, StoredError> {
        let younger = from.count(MAX_RETIRED_BOOTS, "too many retired boots")?;
        let since_ms = from.i64()?;
        let mut ids = |count: usize| (0..count).map(|_| from.i64()).collect::<Result<Vec<_>, _>>();
        let retired = Self { since_ms, older: ids(older)?, younger: ids(younger)? };
        let is_sorted = |ids: &[i64]| ids.windows(2).all(|pair| pair[0] < pair[1]);
        if !is_sorted(&retired.older) || !is_sorted(&retired.younger) {
            return Err(from.damaged("retired boots out of order"));
        }
        Ok(retired)
    }
}

impl Boot {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_le_bytes());
        let has_floor = self.floor != i64::MIN;
        put_varint(out, 2 * self.intervals.len() as u64 + u64::from(has_floor));
        if has_floor {
            out.extend_from_slice(&self.floor.to_le_bytes());
        }
        // Sequence numbers begin at 0, so the first interval of nearly every boot is 0 behind this.
        let mut behind = 0;
        for (first, last) in &self.intervals {
            put_varint(out, first.wrapping_sub(behind) as u64);
            put_varint(out, last.wrapping_sub(*first) as u64);
            behind = *last;
        }
    }

    fn get(from: &mut Cursor<'_>) -> Result<Self, StoredError> {
        let id = from.i64()?;
        let head = from.count(2 * MAX_INTERVALS + 1, "too many intervals")?;
        let floor = if head % 2 == 1 { from.i64()? } else { i64::MIN };
        let mut intervals: Vec<(i64, i64)> = Vec::with_capacity((head / 2).max(1));
        let mut behind = 0i64;
        for _ in 0..head / 2 {
            let first = behind.wrapping_add(from.varint()? as i64);
            let last = first.wrapping_add(from.varint()? as i64);
            let follows = intervals.last().is_none_or(|(_, before)| first > *before && first - 1 > *before);
            if last < first || !follows {
                return Err(from.damaged("intervals out of order"));
            }
            intervals.push((first, last));
            behind = last;
        }
        Ok(Self { id, floor, intervals })
    }
}

/// Seven bits a byte, the lowest first; the high bit says that more follow (LEB128).
fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn damaged(&self, what: &'static str) -> StoredError {
        StoredError::Damaged { at: self.at, what }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], StoredError> {
        let taken = self.bytes[self.at..].get(..count).ok_or_else(|| self.damaged("it ends early"))?;
        self.at += count;
        Ok(taken)
    }

    fn i64(&mut self) -> Result<i64, StoredError> {
        Ok(i64::from_le_bytes(self.take(8)?.try_into().expect("eight were taken")))
    }

    fn varint(&mut self) -> Result<u64, StoredError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            if shift == 63 && byte > 1 {
                break; // more than 64 bits
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.damaged("a number without an end"))
    }

    /// How many of something follow. Each takes at least a byte, so that damage does not make us reserve the world.
    fn count(&mut self, most: usize, what: &'static str) -> Result<usize, StoredError> {
        let count = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        if count > most || (most == usize::MAX && count > self.bytes.len() - self.at) {
            return Err(self.damaged(what));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use pipeline::ForgetAfter;
    use test_support::random::Random;

    use super::super::RETIRED_MS;
    use super::*;

    /// A walk that reaches every bound: gaps, floors, boots that come back, retired ones.
    fn step(random: &mut Random, boots: u64, span: u64) -> (String, i64, i64) {
        let boot = if random.below(50) == 0 { i64::MIN } else { random.below(boots) as i64 * 7 - 20 };
        let seq = match random.below(100) {
            0 => i64::MAX - random.below(4) as i64,
            1 => i64::MIN + random.below(4) as i64,
            _ => 2 * random.below(span) as i64 + (random.below(10) == 0) as i64 - 3,
        };
        (format!("car {}", random.below(3)), boot, seq)
    }

    /// Any walk, stored at any point: what comes back is the same memory, and says the same ever after.
    #[test]
    fn what_is_restored_goes_on_as_if_nothing_had_been() {
        let mut floors = 0;
        for seed in 0..60 {
            let mut random = Random::new(seed);
            let (boots, span) = (1 + random.below(3 * MAX_BOOTS as u64), 1 + random.below(3 * MAX_INTERVALS as u64));
            let mut straight = Duplicates::default();
            let mut restored = Duplicates::default();
            for i in 0..3000 {
                let (car, boot, seq) = step(&mut random, boots, span);
                let time_ms = i * RETIRED_MS / 700;
                straight.pass_time(time_ms, ForgetAfter::DEFAULT);
                restored.pass_time(time_ms, ForgetAfter::DEFAULT);
                let expected = straight.admit(&car, boot, seq, time_ms);
                assert_eq!(restored.admit(&car, boot, seq, time_ms), expected, "seed {seed}, step {i}");
                if random.below(100) == 0 {
                    let bytes = restored.to_bytes();
                    restored = Duplicates::from_bytes(&bytes).unwrap();
                    assert_eq!(restored.cars, straight.cars, "seed {seed}, step {i}");
                    assert_eq!(restored.clock, straight.clock, "seed {seed}, step {i}");
                    assert_eq!(restored.to_bytes(), bytes);
                }
            }
            floors += straight.cars.values().flat_map(|car| &car.boots).filter(|boot| boot.floor != i64::MIN).count();
        }
        assert!(floors > 10, "bounds were not reached");
    }

    #[test]
    fn a_usual_car_takes_little() {
        let mut seen = Duplicates::default();
        for seq in 0..100_000 {
            seen.admit("WVWZZZ1KZAW000001", 0x1234_5678_9abc_def0, seq, 0);
        }
        let bytes = seen.to_bytes();
        assert_eq!(bytes.len(), 1 + 18 + 1 + 18 + 1 + 1 + 8 + 1 + 1 + 3 + 1, "{bytes:?}");
        assert_eq!(Duplicates::from_bytes(&Duplicates::default().to_bytes()).unwrap().cars(), 0);
    }

    /// Written by a release that forgot no car.
    #[test]
    fn a_memory_of_the_first_format_is_still_known() {
        let mut bytes = vec![WITHOUT_TIME, 1, 3];
        bytes.extend(b"car");
        bytes.push(1);
        bytes.extend(7i64.to_le_bytes());
        bytes.extend([2, 0, 9, 0]);
        let mut seen = Duplicates::from_bytes(&bytes).unwrap();
        assert_eq!([9, 10].map(|seq| seen.contains("car", 7, seq)), [true, false]);
        assert_eq!(seen.pass_time(1_795_219_200_000, ForgetAfter::DEFAULT), 0);
        assert_eq!(Duplicates::from_bytes(&[WITHOUT_TIME, 0]).unwrap().cars(), 0);
    }

    /// Cut off anywhere, or with any byte changed: refused, or a memory that is within its bounds; never a panic.
    #[test]
    fn damage_is_refused_or_harmless() {
        let mut random = Random::new(7);
        let mut seen = Duplicates::default();
        for _ in 0..600 {
            let (car, boot, seq) = step(&mut random, 12, 20);
            seen.admit(&car, boot, seq, 0);
        }
        let bytes = seen.to_bytes();
        for end in 0..bytes.len() {
            assert!(Duplicates::from_bytes(&bytes[..end]).is_err(), "cut off at {end}");
        }
        assert!(Duplicates::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << random.below(8);
            if let Ok(other) = Duplicates::from_bytes(&changed) {
                assert!((&other.cars, other.clock) != (&seen.cars, seen.clock), "byte {at} says nothing");
                let in_bounds = |car: &Car| {
                    car.boots.len() <= MAX_BOOTS && car.boots.iter().all(|b| b.intervals.len() <= MAX_INTERVALS)
                };
                assert!(other.cars.values().all(in_bounds), "byte {at}");
            }
        }
        assert_eq!(Duplicates::from_bytes(&[9]).unwrap_err(), StoredError::Format { found: 9 });
    }
}
