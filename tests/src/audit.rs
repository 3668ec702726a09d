//! `carstream audit` as a process: where every reading went.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::process::Command;

use serde_json::Value;

use crate::binary;

/// What an audit said.
#[derive(Debug)]
pub struct Audit {
    /// Its JSON.
    pub said: Value,
    /// Its exit code: 0 if nothing is wrong.
    pub code: Option<i32>,
}

impl Audit {
    /// Runs it with these arguments, and `--json`.
    ///
    /// # Panics
    /// If it says anything but a line of JSON.
    pub fn of(args: &[&str]) -> Self {
        let mut command = Command::new(binary("carstream"));
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("CARSTREAM_") {
                command.env_remove(variable);
            }
        }
        let output = command.args(["audit", "--json"]).args(args).output().unwrap();
        let said = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        Self { said, code: output.status.code() }
    }

    /// Whether no stage has anything left to do.
    ///
    /// # Panics
    /// If its JSON does not say.
    pub fn caught_up(&self) -> bool {
        self.said["caught_up"].as_bool().unwrap()
    }

    /// A count of the ledger.
    ///
    /// # Panics
    /// If its JSON has none of this name.
    pub fn count(&self, key: &str) -> u64 {
        self.said["ledger"][key].as_u64().unwrap_or_else(|| panic!("no {key} in {}", self.said))
    }

    /// Fails the test if anything is wrong.
    ///
    /// # Panics
    /// If so.
    pub fn assert_clean(&self) {
        assert_eq!((self.code, self.count("lost"), self.count("doubled")), (Some(0), 0, 0), "{}", self.said);
        assert_eq!(self.said["ledger_complete"], true, "{}", self.said);
    }
}
