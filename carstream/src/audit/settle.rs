//! The judgement: from what was seen of each reading to what is missing, doubled or unknown.
//!
//! ```text
//!  acknowledged ─► must be in the first hop
//!  in a hop, and the stage behind it has passed it ─► must be in the next one
//!  in a hop ─► must be in every hop before it
//!  behind the duplicate filter ─► no more than once
//! ```
//!
//! A reading that retention may have removed from a hop is not expected there, but still at the later hops. That it may
//! have been is a matter of times, and clocks can be wrong; so no more readings are excused at a hop than offsets were
//! removed there. And what was removed before the next stage had read it is lost, whoever removed it.

use std::collections::HashMap;

use super::Hop;
use super::discrepancies::{Discrepancies, Discrepancy, Kind};
use super::extent::Unread;
use super::numbers::Numbers;
use super::readings::{Identity, Reading};
use super::report::Ledger;
use super::tally::{HopsPresent, Tally};

/// Sums over the ledgers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) ledger: Ledger,
    pub(crate) dropped: u64,
    pub(crate) unacknowledged: u64,
    /// Readings at the hops that are in no ledger.
    pub(crate) unknown: u64,
    /// Numbers that are missing between others, without a ledger.
    pub(crate) gaps: u64,
    /// Acknowledged or passed on by some stage, but perhaps removed by retention from a hop.
    pub(crate) excused: u64,
}

/// Judges every reading. Discrepancies are added to those of the tally.
pub(crate) fn settle(tally: &mut Tally) -> Sums {
    let mut judge = Judge {
        discrepancies: std::mem::take(&mut tally.discrepancies),
        sums: Sums::default(),
        broken: HashMap::new(),
        unidentified: tally.unidentified.clone(),
        removed: tally.removed,
        erased: tally.erased.rows,
        untraced: 0,
        missing_at: Default::default(),
        unchecked_at: Default::default(),
        tally,
    };
    judge.tally.readings.each_boot(|car, boot_id, readings| judge.boot(car, boot_id, readings));
    judge.broken_ones();
    let removed_unread = judge.removed_unread();
    let Judge { discrepancies, mut sums, .. } = judge;
    let by_kind = |kinds: &[Kind]| kinds.iter().map(|kind| discrepancies.count(*kind)).sum::<u64>();
    let unknown = if tally.ledgers.as_ref().is_some_and(|ledgers| ledgers.complete) { sums.unknown } else { 0 };
    let [raw, clean, cloud, lake, scores] = tally.records;
    sums.ledger = Ledger {
        raw,
        duplicates_removed: tally.duplicates_removed,
        dead_letters: tally.dead_letters.values().sum(),
        clean,
        replicated: cloud,
        parquet_rows: lake,
        scored: scores,
        lost: by_kind(&[Kind::Missing, Kind::BrokenMissing, Kind::NoDeadLetter]) + removed_unread,
        doubled: by_kind(&[Kind::Doubled, Kind::DoubledDeadLetter]) + unknown,
        ..sums.ledger
    };
    tally.discrepancies = discrepancies;
    sums
}

struct Judge<'t> {
    tally: &'t Tally,
    discrepancies: Discrepancies,
    sums: Sums,
    /// By car: acknowledged broken readings that no dead letter names.
    broken: HashMap<u32, Broken>,
    /// The part of [`Tally::unidentified`] that explains no reading yet.
    unidentified: HashMap<u32, u64>,
    /// The part of [`Tally::removed`] that explains no reading yet.
    removed: [u64; Hop::ALL.len()],
    /// The part of the rows that were erased that explains no reading yet.
    erased: u64,
    /// Readings that the ledgers have as acknowledged and that are at no hop any more.
    untraced: u64,
    /// Readings that are missing at a hop.
    missing_at: [u64; Hop::ALL.len()],
    /// Readings that retention excuses at a hop, and that did not come by there as a later hop shows.
    unchecked_at: [u64; Hop::ALL.len()],
}

/// Acknowledged broken readings of one car that no dead letter names.
#[derive(Debug, Default)]
struct Broken {
    /// Those that must be in the raw topic, and the first of them.
    unmatched: u64,
    first: Option<Identity>,
    /// Those that retention may have removed from it.
    excused: u64,
}

impl Judge<'_> {
    fn boot(&mut self, car: u32, boot_id: i64, readings: &mut dyn Iterator<Item = (i64, Reading)>) {
        let Some(first) = self.tally.present.chain.first().copied() else { return };
        let from_zero = !self.tally.kept_since.iter().any(|(hop, _)| *hop == first);
        let mut numbers = Numbers::new(from_zero.then_some(0));
        let has_asked = self.tally.erased.has_asked(self.tally.cars.name(car));
        for (seq, reading) in readings {
            let identity = Identity { car, boot_id, seq };
            self.ledger(identity, reading);
            self.hops(identity, reading, has_asked);
            if self.tally.ledgers.is_none()
                && let Some((from, mut missing)) = numbers.follow(seq, reading)
            {
                if has_asked && first == Hop::Lake {
                    missing -= self.erased(missing);
                }
                self.gap(Identity { seq: from, ..identity }, seq, missing, first);
            }
        }
    }

    fn ledger(&mut self, identity: Identity, reading: Reading) {
        if !reading.is(Reading::KNOWN) {
            return;
        }
        let acknowledged = reading.is(Reading::ACKNOWLEDGED);
        self.sums.ledger.sent += u64::from(reading.is(Reading::SENT));
        self.sums.ledger.acknowledged += u64::from(acknowledged);
        if !acknowledged {
            let dropped = reading.is(Reading::DROPPED);
            self.sums.dropped += u64::from(dropped);
            self.sums.unacknowledged += u64::from(!dropped);
        }
        let at_the_edge = self.tally.present.chain.contains(&Hop::Raw);
        let there = reading.seen(Hop::Raw) > 0 || reading.is(Reading::REFUSED);
        if acknowledged && reading.is(Reading::BROKEN) && at_the_edge && !there {
            let broken = self.broken.entry(identity.car).or_default();
            if reading.is_excused(Hop::Raw) {
                broken.excused += 1;
            } else {
                broken.unmatched += 1;
                broken.first.get_or_insert(identity);
            }
        }
    }

    /// How many of these were erased from the lake.
    fn erased(&mut self, readings: u64) -> u64 {
        let erased = readings.min(self.erased);
        self.erased -= erased;
        erased
    }

    fn hops(&mut self, identity: Identity, mut reading: Reading, has_asked: bool) {
        let Tally { present, .. } = self.tally;
        let is_erased = has_asked && !reading.is(Reading::STAYS) && missing(reading, present).0 == Some(Hop::Lake);
        if is_erased && self.erased(1) == 1 {
            // It had reached the lake, and was erased there.
            reading.see(Hop::Lake);
        }
        let (mut missing, excused) = missing(reading, present);
        // One that is missing at a later hop is told of there.
        let counted = if missing.is_none() { excused } else { 0 };
        for hop in Hop::ALL.into_iter().filter(|hop| counted & 1 << *hop as u32 != 0) {
            match self.removed[hop as usize].checked_sub(1) {
                Some(left) => self.removed[hop as usize] = left,
                // Times said that it was removed, but fewer were: some clock was wrong.
                None => missing = missing.or(Some(hop)),
            }
        }
        self.sums.excused += u64::from(excused != 0 && missing.is_none());
        let nowhere = Hop::ALL.into_iter().all(|hop| reading.seen(hop) == 0);
        self.untraced += u64::from(nowhere && excused != 0 && missing.is_none() && reading.is(Reading::KNOWN));
        for hop in Hop::ALL.into_iter().filter(|hop| missing.is_none() && excused & 1 << *hop as u32 != 0) {
            let came_by = hop == Hop::Cloud && reading.seen(Hop::Lake) > 0;
            self.unchecked_at[hop as usize] += u64::from(!came_by);
        }
        if let Some(hop) = missing {
            self.missing_at[hop as usize] += 1;
            let what = if reading.is(Reading::ACKNOWLEDGED) { "was acknowledged and" } else { "is at other hops, but" };
            self.add(Kind::Missing, identity, hop, &format!("{what} is missing in {}", self.tally.flow.name(hop)));
        }
        if let Some(hop) = doubled(reading, &self.tally.present) {
            self.add(Kind::Doubled, identity, hop, &format!("is in {} more than once", self.tally.flow.name(hop)));
        }
        if let Some(ledgers) = &self.tally.ledgers
            && !reading.is(Reading::KNOWN)
            && let Some(hop) = Hop::ALL.into_iter().find(|hop| reading.seen(*hop) > 0)
        {
            self.sums.unknown += 1;
            if ledgers.complete {
                self.add(
                    Kind::Unknown,
                    identity,
                    hop,
                    &format!("is in {}, but no car sent it", self.tally.flow.name(hop)),
                );
            }
        }
    }

    fn gap(&mut self, from: Identity, next: i64, missing: u64, hop: Hop) {
        // Refused records that do not say which they are may be these.
        let unidentified = self.unidentified.entry(from.car).or_default();
        let explained = missing.min(*unidentified);
        *unidentified -= explained;
        let missing = missing - explained;
        if missing == 0 {
            return;
        }
        self.sums.gaps += missing;
        let what =
            format!("begins a gap: {missing} numbers before {next} are missing in {}", self.tally.flow.name(hop));
        let discrepancy = self.named(Kind::Gap, from, hop, &what);
        self.discrepancies.add(Kind::Gap, missing, || discrepancy);
    }

    /// Broken readings that do not say which they are can only be counted, car by car.
    fn broken_ones(&mut self) {
        let mut cars: Vec<_> = self.broken.drain().collect();
        cars.sort_unstable_by_key(|(car, _)| *car);
        for (car, Broken { unmatched, first, excused }) in cars {
            let unidentified = self.tally.unidentified.get(&car).copied().unwrap_or(0);
            let missing = unmatched.saturating_sub(unidentified);
            self.untraced += excused.saturating_sub(unidentified.saturating_sub(unmatched));
            if missing > 0
                && let Some(example) = first
            {
                let what = format!(
                    "is broken, was acknowledged, and is neither in {} nor a dead letter ({missing} of this car)",
                    self.tally.flow.name(Hop::Raw)
                );
                let discrepancy = self.named(Kind::BrokenMissing, example, Hop::Raw, &what);
                self.discrepancies.add(Kind::BrokenMissing, missing, || discrepancy);
            }
        }
    }

    /// Records that retention removed before the next stage had read them. Returns how many readings are lost with
    /// them, besides those that are missing at a later hop.
    ///
    /// Without a ledger every removed offset counts: that is an upper bound where some were repeats, were filtered out,
    /// or were markers of Kafka's transactions. With one, no more than the readings that nothing accounts for.
    fn removed_unread(&mut self) -> u64 {
        let has_ledgers = self.tally.ledgers.is_some();
        let (mut records, mut skipped) = (0, [0; Hop::ALL.len()]);
        for Unread { hop, partition, offsets, reader, accepted, may_be_markers } in &self.tally.unread {
            if *may_be_markers && (self.untraced == 0 || !has_ledgers) {
                continue; // said in a note
            }
            let flow = &self.tally.flow;
            let topic = if *hop == Hop::Raw { flow.raw() } else { flow.clean() };
            let (count, last) = (offsets.end - offsets.start, offsets.end - 1);
            let removed = format!("retention removed {topic}/{partition} offsets {} to {last}", offsets.start);
            let what = match reader {
                Some(reader) if accepted.is_some() => {
                    format!("{removed} before the {reader} had read them, and an operator accepted that")
                }
                Some(reader) => format!("{removed} before the {reader} had read them"),
                None => format!("{removed}, and nothing shows that they were passed on: name the next hop, too"),
            };
            let places = vec![format!("{topic}/{partition}{} begins at offset {}", hop.side(), offsets.end)];
            let (car, boot_id, seq, about) = (None, None, None, None);
            // Past the first hop a reading may still be at other hops; the one that lacks it tells.
            *accepted.filter(|_| *hop != Hop::Raw).map_or(&mut records, |lacking| &mut skipped[lacking as usize]) +=
                count;
            let (kind, hop) = (Kind::RemovedUnread, hop.key());
            self.discrepancies.add(kind, count, || Discrepancy { kind, hop, what, car, boot_id, seq, places, about });
        }
        if !has_ledgers {
            return records + skipped.iter().sum::<u64>();
        }
        // Those that are missing are told of one by one.
        let besides =
            |(hop, count): (usize, u64)| count.saturating_sub(self.missing_at[hop]).min(self.unchecked_at[hop]);
        records.min(self.untraced) + skipped.into_iter().enumerate().map(besides).sum::<u64>()
    }

    fn add(&mut self, kind: Kind, identity: Identity, hop: Hop, what: &str) {
        let tally = self.tally;
        self.discrepancies.add(kind, 1, || named(tally, kind, identity, hop, what));
    }

    fn named(&self, kind: Kind, identity: Identity, hop: Hop, what: &str) -> Discrepancy {
        named(self.tally, kind, identity, hop, what)
    }
}

fn named(tally: &Tally, kind: Kind, identity: Identity, hop: Hop, what: &str) -> Discrepancy {
    let Identity { car, boot_id, seq } = identity;
    let car = tally.cars.name(car).to_string();
    Discrepancy {
        kind,
        hop: hop.key(),
        what: format!("car {car} boot {boot_id} seq {seq} {what}"),
        car: Some(car),
        boot_id: Some(boot_id),
        seq: Some(seq),
        places: Vec::new(),
        about: Some((identity, hop)),
    }
}

/// The first hop where a reading should be and is not; and at which hops retention excuses that, a bit each.
fn missing(reading: Reading, present: &HopsPresent) -> (Option<Hop>, u32) {
    let in_hop = |hop: &Hop| reading.seen(*hop) > 0;
    // A broken one has no claim to go further than to the dead letters.
    let mut due = reading.is(Reading::ACKNOWLEDGED) && !reading.is(Reading::BROKEN);
    let mut excused = 0;
    let mut due_scores = false;
    for (index, hop) in present.chain.iter().enumerate() {
        let rest = &present.chain[index + 1..];
        let scores_follow = present.scores && *hop <= Hop::Clean;
        let later = rest.iter().any(in_hop) || scores_follow && in_hop(&Hop::Scores);
        if in_hop(hop) {
            due = rest.first().is_some_and(|next| reading.is_due(*next));
            due_scores |= *hop == Hop::Clean && reading.is_due(Hop::Scores);
        } else if *hop == Hop::Raw && reading.is(Reading::REFUSED) && !later {
            // Its dead letter is where it ends.
            due = false;
        } else if reading.is_excused(*hop) {
            excused |= u32::from(due || later) << *hop as u32;
            due_scores |= *hop == Hop::Clean && due;
        } else if due || later {
            return (Some(*hop), excused);
        }
    }
    if present.scores && due_scores && !in_hop(&Hop::Scores) {
        if !reading.is_excused(Hop::Scores) {
            return (Some(Hop::Scores), excused);
        }
        excused |= 1 << Hop::Scores as u32;
    }
    (None, excused)
}

/// The first hop behind the duplicate filter where a reading is more than once.
fn doubled(reading: Reading, present: &HopsPresent) -> Option<Hop> {
    let hops = present.chain.iter().copied().filter(|hop| *hop != Hop::Raw);
    hops.chain(present.scores.then_some(Hop::Scores)).find(|hop| reading.seen(*hop) > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: [Hop; 4] = [Hop::Raw, Hop::Clean, Hop::Cloud, Hop::Lake];

    fn present(chain: &[Hop], scores: bool) -> HopsPresent {
        HopsPresent { chain: chain.to_vec(), scores }
    }

    /// A reading that went through all stages, but for `not`.
    fn everywhere_but(not: &[Hop], flags: u32) -> Reading {
        let mut reading = Reading::default();
        reading.set(flags);
        for hop in Hop::ALL.into_iter().filter(|hop| !not.contains(hop)) {
            reading.see(hop);
        }
        CHAIN[1..].iter().chain(&[Hop::Scores]).for_each(|hop| reading.set_due(*hop));
        reading
    }

    #[test]
    fn what_is_due_and_absent_is_missing_at_the_first_hop_that_lacks_it() {
        let all = present(&CHAIN, true);
        for flags in [0, Reading::ACKNOWLEDGED] {
            assert_eq!(missing(everywhere_but(&[], flags), &all), (None, 0));
            for hop in Hop::ALL {
                assert_eq!(missing(everywhere_but(&[hop], flags), &all), (Some(hop), 0), "{hop:?}");
            }
        }
        let two = everywhere_but(&[Hop::Cloud, Hop::Lake], 0);
        assert_eq!(missing(two, &all).0, Some(Hop::Cloud));
        assert_eq!(missing(everywhere_but(&[Hop::Scores], 0), &present(&CHAIN, false)).0, None);
        assert_eq!(
            missing(everywhere_but(&[Hop::Cloud], 0), &present(&[Hop::Raw, Hop::Clean, Hop::Lake], false)).0,
            None
        );
        let nowhere = everywhere_but(&Hop::ALL, 0);
        assert_eq!(missing(nowhere, &all).0, None, "not acknowledged, and nowhere");
        assert_eq!(
            missing(everywhere_but(&Hop::ALL, Reading::ACKNOWLEDGED), &present(&[Hop::Lake], false)).0,
            Some(Hop::Lake)
        );
    }

    #[test]
    fn what_the_next_stage_has_not_come_to_is_not_missing() {
        let mut reading = Reading::default();
        reading.set(Reading::ACKNOWLEDGED);
        reading.see(Hop::Raw);
        assert_eq!(missing(reading, &present(&CHAIN, true)), (None, 0));
        reading.set_due(Hop::Clean);
        assert_eq!(missing(reading, &present(&CHAIN, true)), (Some(Hop::Clean), 0));
    }

    #[test]
    fn retention_excuses_a_hop_and_none_behind_it() {
        let all = present(&CHAIN, true);
        for hop in Hop::ALL {
            let mut reading = everywhere_but(&[hop], Reading::ACKNOWLEDGED);
            reading.excuse(hop);
            assert_eq!(missing(reading, &all), (None, 1 << hop as u32), "{hop:?}");
        }
        let mut reading = everywhere_but(&[Hop::Raw, Hop::Clean], Reading::ACKNOWLEDGED);
        reading.excuse(Hop::Raw);
        assert_eq!(missing(reading, &all), (Some(Hop::Clean), 0b1));
        reading.excuse(Hop::Clean);
        assert_eq!(missing(reading, &all), (None, 0b11));
    }

    #[test]
    fn a_dead_letter_is_where_a_reading_ends() {
        let all = present(&CHAIN, true);
        let refused = everywhere_but(&Hop::ALL, Reading::ACKNOWLEDGED | Reading::REFUSED);
        assert_eq!(missing(refused, &all), (None, 0));
        let both = everywhere_but(&[Hop::Raw], Reading::ACKNOWLEDGED | Reading::REFUSED);
        assert_eq!(missing(both, &all).0, Some(Hop::Raw), "clean, though its only raw record was refused");
    }

    #[test]
    fn twice_is_too_often_everywhere_but_in_the_raw_topic() {
        let all = present(&CHAIN, true);
        for hop in Hop::ALL {
            let mut reading = everywhere_but(&[], 0);
            reading.see(hop);
            assert_eq!(doubled(reading, &all), (hop != Hop::Raw).then_some(hop));
            assert_eq!(doubled(reading, &present(&[Hop::Raw], false)), None);
        }
    }
}
