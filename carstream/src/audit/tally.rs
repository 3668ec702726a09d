//! The first pass: everything that is at the hops, counted reading by reading.
//!
//! ```text
//!  ledgers ─► dead letters ─► raw ─► clean ─► cloud ─► objects ─► scores
//!     │            │           │       │        │         │          │
//!     └────────────┴───────────┴───────┴────────┴─────────┴──────────┴──► four bytes a reading
//! ```
//!
//! A defect of a single record is a discrepancy here. A defect of a reading is found when all records have been read:
//! [`super::settle`].

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use telemetry::pseudonym::PseudonymKey;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::cars::Cars;
use super::discrepancies::{Discrepancies, Discrepancy, Kind};
use super::erased::Erased;
use super::extent::{Extents, LakeExtent, LakeObject, TopicExtent, Unread};
use super::flow::Flow;
use super::ledger::{self, Outcome};
use super::read::{self, DeadLetter, HopRecord, RecordKind};
use super::readings::{Identity, Reading, Readings};
use super::refusals::Refusals;
use super::{DEAD_LETTERS_HOP, Hop, Sources};

/// Records that retention has just removed may be newer than the remaining ones by this much: a log drops many records
/// at a time, and the send time of a reading comes from the car's clock, not the log's.
const RETENTION_MARGIN_MS: i64 = 10 * 60 * 1000;

/// Which hops are looked at.
#[derive(Debug, Clone)]
pub(crate) struct HopsPresent {
    /// From raw to Parquet, in the order of the flow.
    pub(crate) chain: Vec<Hop>,
    /// Whether each clean reading must have a score.
    pub(crate) scores: bool,
}

impl HopsPresent {
    fn of(extents: &Extents) -> Self {
        let present = [
            (Hop::Raw, extents.raw.is_some()),
            (Hop::Clean, extents.clean.is_some()),
            (Hop::Cloud, extents.cloud.is_some()),
            (Hop::Lake, extents.lake.is_some()),
        ];
        let chain = present.into_iter().filter_map(|(hop, present)| present.then_some(hop)).collect();
        Self { chain, scores: extents.scores.is_some() }
    }
}

/// What is known of the ledgers as such.
#[derive(Debug, Default)]
pub(crate) struct Ledgers {
    pub(crate) complete: bool,
    /// Readings that were dropped without having been sent.
    pub(crate) never_sent: u64,
    /// Rows of readings that an earlier row has as acknowledged.
    pub(crate) repeated: u64,
    pub(crate) torn: Vec<PathBuf>,
}

/// The count.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) flow: Flow,
    pub(crate) cars: Cars,
    pub(crate) readings: Readings,
    pub(crate) present: HopsPresent,
    pub(crate) discrepancies: Discrepancies,
    pub(crate) ledgers: Option<Ledgers>,
    /// Records and rows by hop.
    pub(crate) records: [u64; Hop::ALL.len()],
    /// Records that the stage before a hop has not reached.
    pub(crate) lag: [u64; Hop::ALL.len()],
    pub(crate) duplicates_removed: u64,
    pub(crate) dead_letters: BTreeMap<String, u64>,
    /// Refused records of a car that do not say which of its readings they are.
    pub(crate) unidentified: HashMap<u32, u64>,
    /// By hop: records written later than this still exist. Only for hops where records were removed.
    pub(crate) kept_since: Vec<(Hop, i64)>,
    /// By hop: how many offsets retention has removed. No more readings than that can be missing because of it.
    pub(crate) removed: [u64; Hop::ALL.len()],
    /// Offsets that were removed before the next stage had read them.
    pub(crate) unread: Vec<Unread>,
    dead_letters_kept_since: Option<i64>,
    refusals: Refusals,
    /// The proof that rows were erased from the lake on request.
    pub(crate) erased: Erased,
}

impl Tally {
    /// Reads the ledgers. Before the hops are looked at, so that what they have as acknowledged must be there.
    pub(crate) fn of_ledgers(flow: &Flow, files: &[PathBuf], key: Option<PseudonymKey>) -> anyhow::Result<Self> {
        let mut tally = Self {
            flow: flow.clone(),
            cars: Cars::new(key),
            readings: Readings::default(),
            present: HopsPresent { chain: Vec::new(), scores: false },
            discrepancies: Discrepancies::default(),
            ledgers: None,
            records: [0; Hop::ALL.len()],
            lag: [0; Hop::ALL.len()],
            duplicates_removed: 0,
            dead_letters: BTreeMap::new(),
            unidentified: HashMap::new(),
            kept_since: Vec::new(),
            removed: [0; Hop::ALL.len()],
            unread: Vec::new(),
            dead_letters_kept_since: None,
            refusals: Refusals::default(),
            erased: Erased::default(),
        };
        if files.is_empty() {
            return Ok(tally);
        }
        let mut ledgers = Ledgers { complete: true, ..Ledgers::default() };
        for file in files {
            ledgers.complete &= ledger::is_complete(file)?;
            let torn = ledger::read(file, |row| {
                tally.row(row, &mut ledgers);
                Ok(())
            })?;
            if torn {
                ledgers.torn.push(file.clone());
            }
        }
        tally.ledgers = Some(ledgers);
        Ok(tally)
    }

    pub(crate) fn row(&mut self, row: &ledger::Row<'_>, ledgers: &mut Ledgers) {
        if row.first_sent_ms.is_none() && row.outcome == Outcome::Dropped {
            ledgers.never_sent += 1;
            return;
        }
        let car = self.cars.of_vin(row.vin);
        let reading = self.readings.entry(Identity { car, boot_id: row.boot_id, seq: row.seq });
        ledgers.repeated += u64::from(reading.is(Reading::ACKNOWLEDGED));
        reading.set(Reading::KNOWN);
        if row.broken {
            reading.set(Reading::BROKEN);
        }
        if row.first_sent_ms.is_some() {
            reading.set(Reading::SENT);
        }
        match row.outcome {
            Outcome::Acknowledged => reading.set(Reading::ACKNOWLEDGED),
            Outcome::Dropped => reading.set(Reading::DROPPED),
            Outcome::Unacknowledged => {}
        }
    }

    /// Excuses a reading from this time at the hops that may have had it and have it no longer.
    fn excuse(reading: &mut Reading, kept_since: &[(Hop, i64)], time_ms: i64) {
        for (hop, since_ms) in kept_since {
            if time_ms <= since_ms.saturating_add(RETENTION_MARGIN_MS) {
                reading.excuse(*hop);
            }
        }
    }

    /// Notes which hops there are, and what retention has removed from them.
    ///
    /// The ledgers are read once more for that if it matters: only then their times do.
    pub(crate) fn begin(&mut self, extents: &Extents, files: &[PathBuf]) -> anyhow::Result<()> {
        self.present = HopsPresent::of(extents);
        let topics = [
            (Hop::Raw, &extents.raw),
            (Hop::Clean, &extents.clean),
            (Hop::Cloud, &extents.cloud),
            (Hop::Scores, &extents.scores),
        ];
        let of_topic = |extent: &Option<TopicExtent>| extent.as_ref().and_then(|extent| extent.kept_since_ms);
        self.kept_since = topics.iter().filter_map(|(hop, extent)| Some((*hop, of_topic(extent)?))).collect();
        let lake = extents.lake.as_ref().and_then(|extent| extent.kept_since_ms);
        self.kept_since.extend(lake.map(|since_ms| (Hop::Lake, since_ms)));
        self.dead_letters_kept_since = of_topic(&extents.dead_letters);
        for (hop, extent) in &topics {
            let first = |extent: &TopicExtent| extent.partitions.iter().map(|bounds| bounds.first).sum();
            self.removed[*hop as usize] = extent.as_ref().map_or(0, first);
        }
        let before_lake = |extent: &LakeExtent| extent.covered.values().map(|covered| covered.0).sum();
        self.removed[Hop::Lake as usize] = extents.lake.as_ref().map_or(0, before_lake);
        self.unread = extents.unread.clone();
        self.erased = extents.lake.as_ref().map(Erased::of).unwrap_or_default();
        if self.kept_since.is_empty() {
            return Ok(());
        }
        for file in files {
            ledger::read(file, |row| {
                let Some(sent_ms) = row.first_sent_ms else { return Ok(()) };
                let car = self.cars.of_vin(row.vin);
                let reading = self.readings.entry(Identity { car, boot_id: row.boot_id, seq: row.seq });
                Self::excuse(reading, &self.kept_since, sent_ms);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Reads every hop.
    pub(crate) fn count(
        &mut self,
        sources: &Sources,
        extents: &Extents,
        runtime: &Handle,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        if let (Some(edge), Some(raw), Some(dead_letters)) = (&sources.edge, &extents.raw, &extents.dead_letters) {
            read::dead_letters(edge, dead_letters, stop, |letter| {
                self.dead_letter(letter);
                Ok(())
            })?;
            read::raw(&sources.flow, edge, raw, stop, |record| {
                self.raw(record, extents);
                Ok(())
            })?;
            self.stray_dead_letters(extents);
        }
        let topics = [
            (Hop::Clean, &sources.edge, &extents.clean),
            (Hop::Cloud, &sources.cloud, &extents.cloud),
            (Hop::Scores, &sources.edge, &extents.scores),
        ];
        for (hop, log, extent) in topics {
            let (Some(log), Some(extent)) = (log, extent) else { continue };
            read::avro(&sources.flow, hop, log, &sources.schemas, extent, stop, |record| {
                self.seen(record, extents);
                Ok(())
            })?;
        }
        if let (Some(lake), Some(extent)) = (&sources.lake, &extents.lake) {
            let mut unusable = extent.unusable.clone();
            let broken = |name: &str, what| unusable.push((name.to_owned(), what));
            read::objects(
                &sources.flow,
                lake,
                extent,
                runtime,
                stop,
                |record| {
                    self.seen(record, extents);
                    Ok(())
                },
                broken,
            )?;
            self.objects(extent, unusable);
        }
        Ok(())
    }

    /// Whether no car of the raw topic or of a ledger is at any later hop under its pseudonym, though others are.
    pub(crate) fn is_other_key(&self) -> bool {
        // Cars whose first readings are in transit have no pseudonym anywhere yet.
        let all_in_transit = self.present.chain.contains(&Hop::Raw)
            && self.ledgers.is_none()
            && self.records[Hop::Raw as usize] == self.lag[Hop::Clean as usize];
        self.cars.is_other_key() && !all_in_transit
    }

    fn dead_letter(&mut self, letter: &DeadLetter<'_>) {
        let hop = DEAD_LETTERS_HOP;
        let source = match letter.source {
            Some((topic, partition, offset)) if *topic == **self.flow.raw() => (partition, offset),
            // Of another topic: nothing that is accounted for here.
            Some(_) => return,
            None => {
                let what = "a dead letter does not say where it was read from".to_owned();
                self.discrepancies
                    .add(Kind::StrayDeadLetter, 1, || Discrepancy::at(Kind::StrayDeadLetter, hop, what, letter.place));
                return;
            }
        };
        match self.dead_letters.get_mut(letter.reason) {
            Some(count) => *count += 1,
            None => drop(self.dead_letters.insert(letter.reason.to_owned(), 1)),
        }
        if !self.refusals.note(source.0, source.1) {
            let what = format!("{}/{} offset {} is a dead letter twice", self.flow.raw(), source.0, source.1);
            let kind = Kind::DoubledDeadLetter;
            self.discrepancies.add(kind, 1, || Discrepancy::at(kind, hop, what, letter.place));
            return;
        }
        self.refused(letter.key, letter.value, letter.replayed);
    }

    /// Notes that a car's record was refused. Its bytes may say which reading it is. If they don't, it stands for any
    /// one that is missing: so a repeat of one could hide the loss of another.
    fn refused(&mut self, key: &[u8], value: &[u8], replayed: bool) {
        let Ok(vin) = std::str::from_utf8(key) else { return };
        let [_, boot_id, seq] = self.flow.raw_identity();
        let guess = read::guess(value, [boot_id, seq]);
        if self.ledgers.is_none() {
            let car = self.cars.of_vin(vin);
            if let Some((boot_id, seq)) = guess {
                self.readings.entry(Identity { car, boot_id, seq }).set(Reading::REFUSED);
                return;
            }
        }
        let Some(car) = self.cars.find_vin(vin) else { return };
        let known = guess.and_then(|(boot_id, seq)| self.readings.find(Identity { car, boot_id, seq }));
        match known {
            Some(reading) if reading.is(Reading::KNOWN) => reading.set(Reading::REFUSED),
            // The one that was replayed stands for it already.
            _ if replayed => {}
            _ => *self.unidentified.entry(car).or_default() += 1,
        }
    }

    fn raw(&mut self, record: &HopRecord<'_>, extents: &Extents) {
        let place = record.place;
        let waits = !has_passed(&extents.preprocessor, place.partition, place.offset);
        let is_dead_letter = self.refusals.meet(place.partition, place.offset);
        self.records[Hop::Raw as usize] += 1;
        self.lag[Hop::Clean as usize] += u64::from(waits);
        match record.kind {
            RecordKind::Reading { car, boot_id, seq } => {
                let car = self.cars.of_vin(car);
                let reading = self.readings.entry(Identity { car, boot_id, seq });
                Self::excuse(reading, &self.kept_since, record.timestamp_ms);
                if is_dead_letter {
                    reading.set(Reading::REFUSED);
                    return;
                }
                self.duplicates_removed += u64::from(reading.seen(Hop::Raw) > 0);
                reading.see(Hop::Raw);
                if !waits {
                    reading.set_due(Hop::Clean);
                }
            }
            RecordKind::Unusable(why) if !is_dead_letter => {
                let since = self.dead_letters_kept_since;
                let excused = since.is_some_and(|since| record.timestamp_ms <= since + RETENTION_MARGIN_MS);
                if !waits && !excused {
                    let what = format!("a raw record that cannot be processed ({why}) has no dead letter");
                    let kind = Kind::NoDeadLetter;
                    self.discrepancies.add(kind, 1, || Discrepancy::at(kind, Hop::Raw.key(), what, place));
                }
                let (key, value) = record.raw.unwrap_or_default();
                self.refused(key, value, false);
            }
            RecordKind::Unusable(_) => {}
        }
    }

    /// Dead letters whose raw record is missing, although it should exist.
    fn stray_dead_letters(&mut self, extents: &Extents) {
        let partitions = extents.raw.as_ref().map_or(&[][..], |extent| &extent.partitions);
        for (partition, offset) in self.refusals.unmet() {
            let gone = partitions.get(partition as usize).is_some_and(|bounds| offset < bounds.first);
            if !gone {
                let topic = self.flow.raw();
                let what = format!("a dead letter names {topic}/{partition} offset {offset}, which holds no record");
                let place = read::PlaceRef { topic, partition, offset, row: None };
                let kind = Kind::StrayDeadLetter;
                self.discrepancies.add(kind, 1, || Discrepancy::at(kind, DEAD_LETTERS_HOP, what, place));
            }
        }
    }

    fn seen(&mut self, record: &HopRecord<'_>, extents: &Extents) {
        let (hop, place) = (record.hop, record.place);
        self.records[hop as usize] += 1;
        let RecordKind::Reading { car, boot_id, seq } = record.kind else {
            let RecordKind::Unusable(why) = record.kind else { return };
            let what = format!("a record of {} cannot be read: {why}", self.flow.name(hop));
            self.discrepancies.add(Kind::Unreadable, 1, || Discrepancy::at(Kind::Unreadable, hop.key(), what, place));
            return;
        };
        let pseudonym = car;
        let car = self.cars.of_pseudonym(pseudonym);
        let reading = self.readings.entry(Identity { car, boot_id, seq });
        reading.see(hop);
        self.erased.see(hop, place, (car, pseudonym), reading);
        // A score has the time when it was made, which is later than the reading's and would excuse too little.
        if hop != Hop::Scores {
            Self::excuse(reading, &self.kept_since, record.timestamp_ms);
        }
        let mut onward = |to: Hop, passed: bool| {
            if passed {
                reading.set_due(to);
            } else {
                self.lag[to as usize] += 1;
            }
        };
        match hop {
            Hop::Clean => {
                if extents.cloud.is_some() {
                    onward(Hop::Cloud, has_passed(&extents.replicator, place.partition, place.offset));
                } else if extents.lake.is_some() {
                    onward(Hop::Lake, true);
                }
                if extents.scores.is_some() {
                    onward(Hop::Scores, has_passed(&extents.scorer, place.partition, place.offset));
                }
            }
            Hop::Cloud => {
                let Some(lake) = &extents.lake else { return };
                match lake.covered.get(&place.partition) {
                    // The sink began later, when retention had removed this.
                    Some((start, _)) if place.offset < *start => reading.excuse(Hop::Lake),
                    covered => onward(Hop::Lake, covered.is_some_and(|(_, end)| place.offset < *end)),
                }
            }
            Hop::Raw | Hop::Lake | Hop::Scores => {}
        }
    }

    /// What is wrong with objects as such.
    fn objects(&mut self, extent: &LakeExtent, unusable: Vec<(String, String)>) {
        let hop = Hop::Lake.key();
        let discrepancy = |kind, what: String, object: String| {
            let (car, boot_id, seq, about) = (None, None, None, None);
            Discrepancy { kind, hop, what, car, boot_id, seq, places: vec![object], about }
        };
        for (object, why) in unusable {
            let what = format!("an object cannot be read: {why}");
            self.discrepancies.add(Kind::Unreadable, 1, || discrepancy(Kind::Unreadable, what, object));
        }
        for LakeObject { name, footer } in &extent.objects {
            if footer.erased > 0 && !extent.requests.reach(name.partition, name.start) {
                let rows = footer.erased;
                let what =
                    format!("{name} says that {rows} of its rows were erased, but no request in the lake asks for it");
                self.discrepancies.add(Kind::Objects, 1, || discrepancy(Kind::Objects, what, name.to_string()));
            }
        }
        for pair in extent.objects.windows(2) {
            let (before, after) = (&pair[0], &pair[1]);
            if before.name.partition != after.name.partition || before.footer.end == after.name.start {
                continue;
            }
            let does = if before.footer.end < after.name.start { "leaves offsets out" } else { "overlaps the next" };
            let what = format!("{} ends at offset {} and {does}", before.name, before.footer.end);
            self.discrepancies.add(Kind::Objects, 1, || discrepancy(Kind::Objects, what, after.name.to_string()));
        }
    }
}

fn has_passed(positions: &[u64], partition: u32, offset: u64) -> bool {
    positions.get(partition as usize).is_some_and(|position| offset < *position)
}
