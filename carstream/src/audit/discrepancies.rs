//! What was found to be wrong: counted in full, and the first of each kind with their places.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::Hop;
use super::read::PlaceRef;
use super::readings::Identity;

/// How many discrepancies of each kind are named.
pub(crate) const NAMED: usize = 10;

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A reading should be at a hop and is not.
    Missing,
    /// A reading is more than once at a hop behind the duplicate filter.
    Doubled,
    /// A reading that is in no ledger, though they are complete.
    Unknown,
    /// Broken readings of a car were acknowledged and are no dead letters.
    BrokenMissing,
    /// A raw record that cannot be used is no dead letter.
    NoDeadLetter,
    /// A raw record is a dead letter twice.
    DoubledDeadLetter,
    /// A dead letter does not name an existing raw record.
    StrayDeadLetter,
    /// Retention removed records that the next stage had not read.
    RemovedUnread,
    /// Without a ledger: numbers are missing in the middle of a car's readings.
    Gap,
    /// A record or an object that cannot be read.
    Unreadable,
    /// Objects of the lake that leave offsets out, or overlap.
    Objects,
}

impl Kind {
    /// As in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Doubled => "doubled",
            Self::Unknown => "unknown",
            Self::BrokenMissing => "broken-missing",
            Self::NoDeadLetter => "no-dead-letter",
            Self::DoubledDeadLetter => "doubled-dead-letter",
            Self::StrayDeadLetter => "stray-dead-letter",
            Self::RemovedUnread => "removed-unread",
            Self::Gap => "gap",
            Self::Unreadable => "unreadable",
            Self::Objects => "objects",
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, Serialize)]
pub struct Discrepancy {
    /// What kind.
    pub kind: Kind,
    /// Where: `raw`, `dead-letters`, `clean`, `cloud`, `parquet` or `scores`.
    pub hop: &'static str,
    /// The discrepancy in a sentence.
    pub what: String,
    /// The pseudonym of the car, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub car: Option<String>,
    /// The boot, if it is about one reading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<i64>,
    /// The sequence number, if it is about one reading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<i64>,
    /// Where it is, or where its neighbours are: "in telemetry.raw/2 offset 51".
    pub places: Vec<String>,
    #[serde(skip)]
    pub(crate) about: Option<(Identity, Hop)>,
}

impl Discrepancy {
    /// Something at a place.
    pub(crate) fn at(kind: Kind, hop: &'static str, what: String, place: PlaceRef<'_>) -> Self {
        let places = vec![place.to_string()];
        Self { kind, hop, what, car: None, boot_id: None, seq: None, places, about: None }
    }
}

impl fmt::Display for Discrepancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        for place in &self.places {
            write!(f, "\n      {place}")?;
        }
        Ok(())
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Discrepancies(BTreeMap<Kind, (u64, Vec<Discrepancy>)>);

impl Discrepancies {
    /// Counts `times` more of a kind, and names it if few have been.
    pub(crate) fn add(&mut self, kind: Kind, times: u64, discrepancy: impl FnOnce() -> Discrepancy) {
        let (count, named) = self.0.entry(kind).or_default();
        *count += times;
        if named.len() < NAMED {
            named.push(discrepancy());
        }
    }

    /// How many there are of a kind.
    pub(crate) fn count(&self, kind: Kind) -> u64 {
        self.0.get(&kind).map_or(0, |(count, _)| *count)
    }

    /// How many there are of each kind that there is, and the first of them.
    pub(crate) fn into_parts(self) -> (BTreeMap<Kind, u64>, Vec<Discrepancy>) {
        let counts = self.0.iter().map(|(kind, (count, _))| (*kind, *count)).collect();
        (counts, self.0.into_values().flat_map(|(_, named)| named).collect())
    }
}
