//! What a run has shown: for people, and as JSON for machines.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

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
    /// What cars sent, repeats not counted.
    pub(crate) readings: u64,
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    /// What the audit says, first of all the lost and the doubled readings.
    pub(crate) findings: Vec<String>,
    /// What else was not as it should be.
    pub(crate) problems: Vec<String>,
    /// The sabotage that was to be noticed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sabotage: Option<String>,
    pub(crate) passed: bool,
    /// Where everything is, if it was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) directory: Option<PathBuf>,
}

/// Findings that a person is shown; all of them are in the audit's own file.
const SHOWN_FINDINGS: usize = 10;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n  fault                      times")?;
        writeln!(f, "  ───────────────────────────────")?;
        for (kind, times) in &self.faults {
            writeln!(f, "  {kind:<26} {times:>4}")?;
        }
        writeln!(f, "  ───────────────────────────────")?;
        for (what, n) in [
            ("restarts", u64::from(self.restarts)),
            ("readings", self.readings),
            ("acknowledged", self.acknowledged),
            ("lost", self.lost),
            ("doubled", self.doubled),
        ] {
            writeln!(f, "  {what:<22} {n:>8}")?;
        }
        writeln!(f)?;
        for finding in self.findings.iter().take(SHOWN_FINDINGS) {
            writeln!(f, "  found: {finding}")?;
        }
        if self.findings.len() > SHOWN_FINDINGS {
            writeln!(f, "  … and {} more", self.findings.len() - SHOWN_FINDINGS)?;
        }
        for problem in &self.problems {
            writeln!(f, "  problem: {problem}")?;
        }
        match (&self.sabotage, self.passed) {
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
