//! The audit's report: human-readable, and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::discrepancies::{Discrepancy, Kind};

/// Readings, hop by hop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// Readings that cars sent, broken ones included, repeats not.
    pub sent: u64,
    /// Of these, acknowledged to the car.
    pub acknowledged: u64,
    /// Records in the raw topic.
    pub raw: u64,
    /// Of these, repeats of a reading that was there before.
    pub duplicates_removed: u64,
    /// Of these, set aside as unusable.
    pub dead_letters: u64,
    /// Records in the clean topic at the edge.
    pub clean: u64,
    /// Records in the clean topic in the cloud.
    pub replicated: u64,
    /// Rows in Parquet.
    pub parquet_rows: u64,
    /// Scores.
    pub scored: u64,
    /// Readings that are missing at a hop where they must be.
    pub lost: u64,
    /// Readings that are more than once at any hop past the duplicate filter, or that no car sent.
    pub doubled: u64,
}

/// One hop, as it was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct HopReport {
    /// `raw`, `dead-letters`, `clean`, `cloud`, `parquet` or `scores`.
    pub hop: &'static str,
    /// The topic and its log, or the lake.
    pub place: String,
    /// Records or rows.
    pub records: u64,
    /// Partitions that do not begin at 0, and the offset where they do.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub begins_at: BTreeMap<u32, u64>,
    /// Records that the stage before this hop has not reached.
    pub lag: u64,
}

/// The result of an audit.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The stream that was audited.
    pub stream: String,
    /// Its raw topic and its clean topic.
    pub topics: [String; 2],
    /// Readings, hop by hop.
    pub ledger: Ledger,
    /// The hops that were looked at.
    pub hops: Vec<HopReport>,
    /// Whether no stage has records to go. If not, what is on its way is not counted as lost.
    pub caught_up: bool,
    /// Dead letters by reason, most frequent first.
    pub dead_letters_by_reason: Vec<(String, u64)>,
    /// Whether the ledgers say of themselves that they are complete; none without a ledger.
    pub ledger_complete: Option<bool>,
    /// Readings that the ledgers do not know. Discrepancies only if the ledgers are complete.
    pub unknown: u64,
    /// Without a ledger: numbers missing in the middle of cars' readings.
    pub gaps: u64,
    /// Readings that could not be checked at every hop: retention removed them there, after the next stage had read
    /// them.
    pub excused: u64,
    /// Rows that were erased from the lake because their cars asked to be forgotten: objects name them, and requests in
    /// the lake cover them.
    pub erased: u64,
    /// Readings that cars dropped because their buffer was full.
    pub dropped: u64,
    /// Readings that cars still had, unacknowledged, when they stopped.
    pub unacknowledged: u64,
    /// Objects in the lake.
    pub objects: u64,
    /// How many discrepancies of each kind there are.
    pub counts: BTreeMap<Kind, u64>,
    /// The first of each kind, with their places.
    pub discrepancies: Vec<Discrepancy>,
    /// What a person should know about this audit.
    pub notes: Vec<String>,
}

impl Report {
    /// One line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a report has no map keys that JSON cannot hold")
    }

    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }

    /// The report as it is printed.
    pub(crate) fn shown(&self, json: bool) -> String {
        if json { self.to_json() + "\n" } else { self.to_string() }
    }

    /// An error if anything is wrong.
    pub(crate) fn verdict(&self) -> anyhow::Result<()> {
        let counts: Vec<_> =
            self.counts.iter().map(|(kind, count)| format!("{} {}", kind.name(), thousands(*count))).collect();
        let found = [(self.ledger.lost, "lost"), (self.ledger.doubled, "doubled")];
        let found = found.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| match count {
            1 => format!("1 reading is {what}; "),
            count => format!("{} readings are {what}; ", thousands(count)),
        });
        let found: String = found.collect();
        anyhow::ensure!(self.is_clean(), "{found}discrepancies by kind: {}", counts.join(", "));
        Ok(())
    }

    /// The table, line by line; `scores` is printed beside the scores.
    pub(crate) fn table(&self, f: &mut fmt::Formatter<'_>, scores: &str) -> fmt::Result {
        let l = &self.ledger;
        let [raw, clean] = &self.topics;
        let mut row = |name: &str, count: u64, note: String| {
            let line = format!("  {name:<34}{:>12}   {note}", thousands(count));
            writeln!(f, "{}", line.trim_end())
        };
        let given = |hop: &str| self.hops.iter().any(|given| given.hop == hop);
        if self.ledger_complete.is_some() {
            row("sent by the cars", l.sent, self.car_note())?;
            row("acknowledged to the cars", l.acknowledged, "PUBACK, after the log had committed".into())?;
        }
        if given("raw") {
            row(raw, l.raw, "the edge's log, as sent".into())?;
            row("  duplicates removed", l.duplicates_removed, "repeated by cars after a lost connection".into())?;
            row("  dead letters", l.dead_letters, reasons(&self.dead_letters_by_reason))?;
            row(&format!("{clean}, clean"), l.clean, "validated, joined, pseudonymised".into())?;
        }
        if given("cloud") {
            row(&format!("{clean}, in the cloud's log"), l.replicated, String::new())?;
        }
        if given("parquet") {
            row("Parquet rows", l.parquet_rows, format!("in {} objects", self.objects))?;
        }
        if given("scores") || !scores.is_empty() {
            row("scores", l.scored, scores.to_owned())?;
        }
        row("lost", l.lost, "missing at a hop where they must be".into())?;
        row("doubled", l.doubled, "more than once at some hop past the duplicate filter".into())?;
        if self.excused > 0 {
            row(
                "not checked",
                self.excused,
                "removed by retention from a hop, after the next stage: see above".into(),
            )?;
        }
        if self.erased > 0 {
            row("erased on request", self.erased, "rows of cars that asked to be forgotten: see above".into())?;
        }
        if self.gaps > 0 {
            row("gaps", self.gaps, "numbers that cars left out, or that were lost before the first hop".into())?;
        }
        for (kind, count) in &self.counts {
            let of_kind = self.discrepancies.iter().filter(|discrepancy| discrepancy.kind == *kind);
            for discrepancy in of_kind.clone() {
                writeln!(f, "    {discrepancy}")?;
            }
            let others = count.saturating_sub(of_kind.count() as u64);
            if others > 0 && *kind != Kind::Gap && *kind != Kind::BrokenMissing {
                writeln!(f, "    and {} more like these", thousands(others))?;
            }
        }
        Ok(())
    }

    fn car_note(&self) -> String {
        let mut note = Vec::new();
        if self.dropped > 0 {
            note.push(format!("{} more dropped by cars whose buffer was full", thousands(self.dropped)));
        }
        if self.unacknowledged > 0 {
            note.push(format!("{} left with the cars, unacknowledged", thousands(self.unacknowledged)));
        }
        note.join("; ")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for hop in &self.hops {
            writeln!(f, "{:<14}{}", hop.hop, hop.place)?;
        }
        for note in &self.notes {
            writeln!(f, "  ! {note}")?;
        }
        writeln!(f, "\nWhere each reading went")?;
        self.table(f, "")
    }
}

/// The most frequent reasons, and how many others there are.
fn reasons(by_reason: &[(String, u64)]) -> String {
    let (named, others) = by_reason.split_at(by_reason.len().min(2));
    let mut text: Vec<_> = named.iter().map(|(reason, count)| format!("{reason} {}", thousands(*count))).collect();
    if !others.is_empty() {
        let count = others.iter().map(|(_, count)| count).sum();
        let reasons =
            if others.len() == 1 { "another reason".to_owned() } else { format!("{} other reasons", others.len()) };
        text.push(format!("{} for {reasons}", thousands(count)));
    }
    text.join(", ")
}

/// 1234567 as 1,234,567.
pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_digits() {
        assert_eq!(thousands(7), "7");
        assert_eq!(thousands(1_000), "1,000");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }

    #[test]
    fn json_has_the_promised_keys() {
        let value: serde_json::Value = serde_json::from_str(&Report::default().to_json()).expect("valid JSON");
        let keys = |v: &serde_json::Value| v.as_object().map(|o| o.keys().cloned().collect::<Vec<_>>().join(" "));
        assert_eq!(
            keys(&value["ledger"]).as_deref(),
            Some(
                "acknowledged clean dead_letters doubled duplicates_removed lost parquet_rows raw replicated scored \
                 sent"
            )
        );
        assert!(value["hops"].is_array() && value["discrepancies"].is_array());
    }
}
