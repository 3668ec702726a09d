//! Asks `carstream audit` where each reading went.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::plan::Role;
use crate::site::Site;

/// What to hold against each other.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Scope {
    pub(crate) cloud: bool,
    pub(crate) lake: bool,
}

/// What the audit says.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    /// Readings, hop by hop, as the audit calls them.
    pub(crate) ledger: serde_json::Map<String, Value>,
    /// In sentences; of each kind the first ones.
    pub(crate) discrepancies: Vec<String>,
}

impl Audit {
    /// A figure of the ledger.
    pub(crate) fn figure(&self, name: &str) -> anyhow::Result<u64> {
        let figure = self.ledger.get(name).and_then(Value::as_u64);
        figure.with_context(|| format!("carstream audit --json has no ledger.{name}"))
    }
}

/// Runs the audit; its result is kept beside the logs.
pub(crate) fn run(site: &Site, scope: Scope) -> anyhow::Result<Audit> {
    let words = File::create(site.logs().join("audit.log"))?;
    let mut command = Command::new(site.binary("carstream"));
    command.args(["audit", "--json", "--edge-log", &site.edge_log(), "--pseudonym-key-file", &site.key_file()]);
    for ledger in [Role::Cars, Role::LearningCars].map(|fleet| site.ledger(fleet)) {
        if Path::new(&ledger).exists() {
            command.args(["--ledger", &ledger]);
        }
    }
    if scope.cloud {
        command.args(["--cloud-log", &site.cloud_log()]);
    }
    if scope.lake {
        command.args(["--lake", &site.lake()]).envs(site.direct_store_settings());
    }
    let output = command.stdin(Stdio::null()).stderr(words).output().context("cannot run carstream audit")?;
    std::fs::write(site.directory.join("audit.json"), &output.stdout)?;
    if !matches!(output.status.code(), Some(0 | 1)) {
        bail!("carstream audit failed ({}): see {}", output.status, site.logs().join("audit.log").display());
    }
    let said: Value = serde_json::from_slice(&output.stdout).context("carstream audit --json did not print JSON")?;
    let ledger = said["ledger"].as_object().context("carstream audit --json has no ledger")?;
    let discrepancies = said["discrepancies"].as_array().context("carstream audit --json has no discrepancies")?;
    Ok(Audit { ledger: ledger.clone(), discrepancies: discrepancies.iter().map(sentence).collect() })
}

/// A discrepancy for a person: what, which reading, and where.
fn sentence(discrepancy: &Value) -> String {
    let text = |key: &str| discrepancy[key].as_str().unwrap_or_default();
    let mut sentence = format!("{} at {}: {}", text("kind"), text("hop"), text("what"));
    let places: Vec<_> = discrepancy["places"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !places.is_empty() {
        sentence.push_str(&format!(": {}", places.join(", ")));
    }
    sentence
}
