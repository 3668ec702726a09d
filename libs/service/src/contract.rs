//! `--contract DIR`: the contract of a site, read from a directory.

use std::path::{Path, PathBuf};

use contract::{Contract, Files, Problem, StreamDefinition};

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
        if files.is_empty() {
            return Err(ConfigError(vec![format!("--contract {}: holds no file of a contract", directory.display())]));
        }
        let describe =
            |problems: Vec<_>| ConfigError(problems.into_iter().map(|problem| self.describe(problem)).collect());
        Contract::parse(files).map_err(describe)
    }

    /// The stream `name` of the contract.
    pub fn stream<'c>(&self, contract: &'c Contract, name: &str) -> Result<&'c StreamDefinition, ConfigError> {
        let unknown = || {
            let known: Vec<_> = contract.streams().map(|stream| stream.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            ConfigError(vec![match &self.contract {
                Some(directory) => format!("--contract {}: has no stream {name}; it has {known}", directory.display()),
                None => format!(
                    "the platform's contract has no stream {name} (it has {known}); a site's own is named with \
                     --contract DIR"
                ),
            }])
        };
        contract.stream(name).ok_or_else(unknown)
    }

    /// A problem of this contract, with the path that its file has here.
    pub fn describe(&self, problem: Problem) -> String {
        let path = |directory: &PathBuf| directory.join(&problem.file);
        // A file that is missing lies in a folder that exists.
        let is_here = |path: &PathBuf| path.exists() || path.parent().is_some_and(Path::exists);
        match self.contract.as_ref().map(path).filter(is_here) {
            Some(path) => Problem { file: path.display().to_string(), ..problem }.to_string(),
            None => format!("the platform's {problem}"),
        }
    }
}

/// The files below a directory, as a contract takes them. All that cannot be read is reported together.
pub fn read_contract(directory: &Path) -> Result<Files, Vec<String>> {
    let missing = crate::missing_directory("--contract", directory);
    if let Some(problem) = missing.or_else(|| crate::not_a_directory("--contract", directory)) {
        return Err(vec![problem]);
    }
    let (mut files, mut problems) = (Files::new(), Vec::new());
    read_below(directory, "", &mut files, &mut problems);
    if problems.is_empty() { Ok(files) } else { Err(problems) }
}

/// A contract has two levels of folders; one more shows a misplaced file, and a link in a circle ends.
const MAX_DEPTH: usize = 4;

fn read_below(directory: &Path, prefix: &str, files: &mut Files, problems: &mut Vec<String>) {
    let cannot_read =
        |path: &Path, error: &dyn std::fmt::Display| format!("{}: cannot be read: {error}", path.display());
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return problems.push(cannot_read(directory, &error)),
    };
    let mut below = Vec::new();
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                problems.push(cannot_read(directory, &error));
                continue;
            }
        };
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            problems.push(cannot_read(&path, &"its name is not UTF-8"));
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
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                problems.push(cannot_read(&path, &error));
                continue;
            }
        };
        match String::from_utf8(bytes) {
            // Editors of Windows begin a file with a byte order mark.
            Ok(text) => drop(files.insert(name, text.trim_start_matches('\u{feff}').to_owned())),
            Err(error) => {
                let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
                problems.push(format!("{}:{line}: is not UTF-8", path.display()));
            }
        }
    }
    for (path, prefix) in below.into_iter().filter(|(_, prefix)| prefix.matches('/').count() <= MAX_DEPTH) {
        read_below(&path, &prefix, files, problems);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(directory: &Path) -> Vec<String> {
        ContractArgs::of(directory).load().unwrap_err().0
    }

    #[test]
    fn a_directory_that_is_no_contract_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let shown = root.display();
        assert_eq!(problems(&root.join("no")), [format!("--contract {shown}/no: the directory does not exist")]);
        assert_eq!(problems(root), [format!("--contract {shown}: holds no file of a contract")]);
        std::fs::write(root.join("README.md"), "notes").unwrap();
        std::fs::write(root.join(".hidden"), b"\xff").unwrap();
        assert_eq!(problems(root), [format!("--contract {shown}: holds no file of a contract")]);
        let file = root.join("topics.json");
        std::fs::write(&file, b"{\n\xff").unwrap();
        assert_eq!(problems(&file), [format!("--contract {shown}/topics.json: is a file: choose a directory")]);
        assert_eq!(problems(root), [format!("{shown}/topics.json:2: is not UTF-8")]);
        std::fs::write(&file, "\u{feff}{}").unwrap();
        assert!(ContractArgs::of(root).load().is_ok(), "a byte order mark is skipped");
        std::fs::create_dir_all(root.join("streams/s")).unwrap();
        std::fs::write(root.join("streams/s/query.sql"), "").unwrap();
        let missing = format!("{shown}/streams/s/stream.json: is missing: it defines the stream of this folder");
        assert_eq!(problems(root), [missing]);
    }

    #[test]
    fn a_stream_that_does_not_exist_is_named_with_those_that_do() {
        let args = ContractArgs::default();
        let error = args.stream(Contract::builtin(), "tyres").unwrap_err().to_string();
        let wanted = "the platform's contract has no stream tyres (it has faults, telemetry); a site's own is named \
                      with --contract DIR";
        assert_eq!(error, wanted);
    }
}
