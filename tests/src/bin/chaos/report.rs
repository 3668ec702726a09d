//! The results of a run: human-readable, and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

/// The result of a run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    /// Of the whole run, from the first process to the end of the audit.
    pub(crate) duration_s: u64,
    /// How often each kind was had.
    pub(crate) faults: BTreeMap<String, u32>,
    /// Processes that were started again.
    pub(crate) restarts: u32,
    /// Of these, and of those that were replaced, the ones that ended because Kafka had fenced them.
    pub(crate) fenced: u32,
    /// Transactions that Kafka had forgotten and an operator had to end, each by its place.
    pub(crate) hanging_transactions: Vec<String>,
    /// What cars sent, repeats not counted.
    pub(crate) readings: u64,
    pub(crate) lost: u64,
    /// Those that must be lost, because retention removed them unread: counted without the audit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) removed_unread: Option<u64>,
    pub(crate) doubled: u64,
    /// Readings hop by hop, as the audit says.
    pub(crate) ledger: serde_json::Map<String, Value>,
    /// What the audit found, with the first lost and doubled readings by name.
    pub(crate) discrepancies: Vec<String>,
    /// Other problems.
    pub(crate) problems: Vec<String>,
    /// The sabotage that was to be noticed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sabotage: Option<String>,
    pub(crate) passed: bool,
    /// Where everything is, if it was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) directory: Option<PathBuf>,
}

/// What a person is shown of the ledger, in the order of the flow.
const FLOW: [&str; 11] = [
    "sent",
    "acknowledged",
    "raw",
    "duplicates_removed",
    "dead_letters",
    "clean",
    "replicated",
    "parquet_rows",
    "scored",
    "lost",
    "doubled",
];

/// Discrepancies that a person is shown; all of them are in the audit's own file.
const SHOWN_DISCREPANCIES: usize = 5;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n  fault                        times      readings")?;
        writeln!(f, "  ──────────────────────────────────      ──────────────────────────────────")?;
        // Side by side: what happened, and what became of the readings.
        let faults: Vec<_> = self.faults.iter().map(|(kind, times)| (kind.as_str(), times.to_string())).collect();
        let figure = |name| self.ledger.get(name).map(|n| (name, n.to_string()));
        let figures: Vec<_> = FLOW.into_iter().filter_map(figure).collect();
        for i in 0..faults.len().max(figures.len()) {
            let cell = |column: &[(&str, String)]| match column.get(i) {
                Some((name, n)) => format!("{:<24} {n:>9}", name.replace('_', " ")),
                None => " ".repeat(34),
            };
            writeln!(f, "{}", format!("  {}      {}", cell(&faults), cell(&figures)).trim_end())?;
        }
        writeln!(f, "\n  {} s, {} restarts, {} fenced\n", self.duration_s, self.restarts, self.fenced)?;
        for place in &self.hanging_transactions {
            writeln!(f, "  a transaction that Kafka had forgotten was ended by hand in {place} (docs/limits.md)")?;
        }
        for discrepancy in self.discrepancies.iter().take(SHOWN_DISCREPANCIES) {
            writeln!(f, "  found: {discrepancy}")?;
        }
        if self.discrepancies.len() > SHOWN_DISCREPANCIES {
            writeln!(f, "  … and {} more", self.discrepancies.len() - SHOWN_DISCREPANCIES)?;
        }
        for problem in &self.problems {
            writeln!(f, "  problem: {problem}")?;
        }
        match (&self.sabotage, self.passed) {
            (None, true) if self.removed_unread.is_some() => {
                writeln!(f, "  lost is what retention removed unread, to the reading, and named; nothing doubled")?;
            }
            (None, false) if let Some(removed) = self.removed_unread => {
                writeln!(f, "  FAILED: {removed} readings were removed unread; not the same are reported, or more")?;
            }
            (None, true) => writeln!(f, "  seed {}: nothing lost, nothing doubled", self.seed)?,
            (None, false) => writeln!(f, "  seed {}: FAILED", self.seed)?,
            (Some(lie), true) => writeln!(f, "  {lie} was noticed, as it must be")?,
            (Some(lie), false) => writeln!(f, "  FAILED: {lie} was not noticed")?,
        }
        if let Some(directory) = &self.directory {
            writeln!(f, "  everything is in {}", directory.display())?;
        }
        Ok(())
    }
}
