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
    pub(crate) sent: u64,
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) findings: Vec<String>,
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
    let figure =
        |key: &str| said["ledger"][key].as_u64().with_context(|| format!("carstream audit --json has no ledger.{key}"));
    let findings = said["findings"].as_array().context("carstream audit --json has no findings")?;
    Ok(Audit {
        sent: figure("sent")?,
        acknowledged: figure("acknowledged")?,
        lost: figure("lost")?,
        doubled: figure("doubled")?,
        findings: findings.iter().map(|f| f.as_str().map_or_else(|| f.to_string(), str::to_owned)).collect(),
    })
}
