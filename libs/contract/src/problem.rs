//! What is wrong with a contract, and where.

use std::fmt;

/// One problem, with its place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file, relative to the contract's directory.
    pub file: String,
    /// The line in it, from 1. Without it the problem is about the file as a whole.
    pub line: Option<usize>,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl Problem {
    /// A problem of a whole file.
    pub fn of_file(file: &str, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: None, what: what.into() }
    }

    /// A problem where `text`, the content of `file`, first has `word` (as JSON: in quotes); of the whole file if it
    /// does not have it.
    pub fn at(file: &str, text: &str, word: &str, what: impl Into<String>) -> Self {
        let quoted = format!("\"{word}\"");
        let found = text.lines().position(|line| line.contains(&quoted));
        let found = found.or_else(|| text.lines().position(|line| line.contains(word)));
        Self { file: file.to_owned(), line: found.map(|at| at + 1), what: what.into() }
    }

    /// What `serde_json` found, at the line where it found it.
    pub(crate) fn json(file: &str, text: &str, error: &serde_json::Error) -> Self {
        let (line, what) = telemetry::declaration::explain(text, error);
        Self { file: file.to_owned(), line, what }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.what),
            None => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

/// The problems as text, one each.
pub fn describe(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}
