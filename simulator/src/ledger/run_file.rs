//! `LEDGER.run`: whose ledger it is, and how its last run ended; one line of JSON.
//!
//! ```text
//! {"fleet":{"seed":7,"cars":500,…},"complete":true,"covered":true,"unacknowledged":0}
//! ```
//!
//! `complete`: the last run ended cleanly, and every reading that it took has its row. `false` during a run, and after
//! a killed one: then the server may have readings without a row. `covered`: the whole span was sent.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use service::ConfigError;

use super::beside;
use crate::args::FleetArgs;

/// How a run ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    /// Every reading that was taken has its row.
    pub(crate) complete: bool,
    /// All readings of the span were taken.
    pub(crate) covered: bool,
    /// Readings and findings that were not acknowledged.
    pub(crate) unacknowledged: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    fleet: Map<String, Value>,
    #[serde(flatten)]
    end: End,
}

/// The file.
#[derive(Debug)]
pub(super) struct RunFile {
    ledger: PathBuf,
    path: PathBuf,
    fleet: Map<String, Value>,
}

impl RunFile {
    pub(super) fn new(ledger: &Path, fleet: &FleetArgs) -> Self {
        Self { ledger: ledger.to_owned(), path: beside(ledger, ".run"), fleet: described(fleet) }
    }

    /// Event time at which the fleet began, if the file says it.
    pub(super) fn start_ms(ledger: &Path) -> Option<i64> {
        let contents: Contents = serde_json::from_slice(&std::fs::read(beside(ledger, ".run")).ok()?).ok()?;
        contents.fleet.get("start-time")?.as_i64()
    }

    /// How the last run ended; a [`ConfigError`] if that was another fleet's.
    pub(super) fn check_and_read(&self) -> anyhow::Result<End> {
        let (ledger, shown) = (self.ledger.display(), self.path.display());
        if !self.path.exists() {
            let problem = format!("--resume: {ledger} has no {shown}, which identifies its fleet: name another file");
            return Err(ConfigError(vec![problem]).into());
        }
        let text = std::fs::read(&self.path).with_context(|| format!("cannot read {shown}"))?;
        let contents: Contents = serde_json::from_slice(&text)
            .with_context(|| format!("{shown} is not what a run writes: name another ledger"))?;
        let problems: Vec<_> = self
            .fleet
            .iter()
            .filter(|(setting, ours)| contents.fleet.get(*setting) != Some(*ours))
            .map(|(setting, ours)| {
                let theirs = contents.fleet.get(setting).unwrap_or(&Value::Null);
                format!("--resume: {ledger} belongs to another fleet: --{setting} was {theirs}, now it is {ours}")
            })
            .collect();
        ConfigError::check(problems)?;
        Ok(contents.end)
    }

    /// A run starts, or is resumed.
    pub(super) fn began(&mut self) -> anyhow::Result<()> {
        self.write(End::default())
    }

    /// A run has ended.
    pub(super) fn ended(&mut self, end: End) -> anyhow::Result<()> {
        self.write(end)
    }

    /// Replaces the file as a whole, so that whenever the process is killed there is one.
    fn write(&self, end: End) -> anyhow::Result<()> {
        let contents = Contents { fleet: self.fleet.clone(), end };
        let new = beside(&self.path, ".new");
        let replace = || {
            let mut file = std::fs::File::create(&new)?;
            serde_json::to_writer(&mut file, &contents)?;
            file.write_all(b"\n")?;
            std::fs::rename(&new, &self.path)
        };
        replace().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// The settings that decide which readings there are, by the names of their flags.
fn described(fleet: &FleetArgs) -> Map<String, Value> {
    let settings = json!({
        "seed": fleet.seed,
        "cars": fleet.cars,
        "first-car": fleet.first_car,
        "duration": fleet.duration.map(|duration| duration.as_secs_f64()),
        "speedup": fleet.speedup,
        "interval": fleet.interval.as_secs_f64(),
        "start-time": fleet.start_ms(),
        "fault-share": fleet.fault_share,
        "newer-schema-share": fleet.newer_schema_share,
        "broken-share": fleet.broken_share,
        "broken-bytes": fleet.broken_bytes,
    });
    // There and back, so that a fraction compares equal to the same one read from a file.
    serde_json::from_str(&settings.to_string()).expect("it was written a moment ago")
}
