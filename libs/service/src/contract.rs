//! `--contract DIR`: the contract of a site, read from a directory.

use std::path::{Path, PathBuf};

use contract::{Contract, Files, Problem};

use crate::ConfigError;

/// Where the site's contract is.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct ContractArgs {
    /// Read the site's streams, topics and schemas from this directory; all stages of a site need the same ones.
    ///
    /// They extend the platform's, or replace them (contract.json).
    #[arg(long, env = "CARSTREAM_CONTRACT", value_name = "DIR")]
    pub contract: Option<PathBuf>,
}

impl ContractArgs {
    /// The contract in `directory`.
    pub fn of(directory: impl Into<PathBuf>) -> Self {
        Self { contract: Some(directory.into()) }
    }

    /// The contract: the platform's without a directory. All problems are reported together, with file and line.
    pub fn load(&self) -> Result<Contract, ConfigError> {
        let Some(directory) = &self.contract else { return Ok(Contract::builtin().clone()) };
        let files = read_contract(directory).map_err(ConfigError)?;
        let describe =
            |problems: Vec<_>| ConfigError(problems.into_iter().map(|problem| self.describe(problem)).collect());
        Contract::parse(files).map_err(describe)
    }

    /// A problem of this contract, with the path that its file has here.
    pub fn describe(&self, problem: Problem) -> String {
        let path = |directory: &PathBuf| directory.join(&problem.file);
        match self.contract.as_ref().map(path).filter(|path| path.exists()) {
            Some(path) => Problem { file: path.display().to_string(), ..problem }.to_string(),
            // Of the platform's own contract, or a file that is missing.
            None => format!("contract: {problem}"),
        }
    }
}

/// The files below a directory, as a contract takes them. All that cannot be read is reported together.
pub fn read_contract(directory: &Path) -> Result<Files, Vec<String>> {
    let (mut files, mut problems) = (Files::new(), Vec::new());
    read_below(directory, "", &mut files, &mut problems);
    if problems.is_empty() { Ok(files) } else { Err(problems) }
}

/// A contract has two levels of folders; one more shows a misplaced file, and a link in a circle ends.
const MAX_DEPTH: usize = 4;

fn read_below(directory: &Path, prefix: &str, files: &mut Files, problems: &mut Vec<String>) {
    let mut cannot_read = |path: &Path, error: &dyn std::fmt::Display| {
        problems.push(format!("--contract: cannot read {}: {error}", path.display()));
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return cannot_read(directory, &error),
    };
    let mut below = Vec::new();
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                cannot_read(directory, &error);
                continue;
            }
        };
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            cannot_read(&path, &"its name is not UTF-8");
            continue;
        };
        if name.starts_with('.') || name.ends_with(".md") {
            continue;
        }
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            below.push((path, format!("{name}/")));
            continue;
        }
        match std::fs::read_to_string(&path) {
            Ok(text) => drop(files.insert(name, text)),
            Err(error) => cannot_read(&path, &error),
        }
    }
    for (path, prefix) in below.into_iter().filter(|(_, prefix)| prefix.matches('/').count() <= MAX_DEPTH) {
        read_below(&path, &prefix, files, problems);
    }
}
