//! Commands on a log that a running edge box has open. The log serves one process, so the box carries them out.
//!
//! ```text
//!  carstream dead-letter, audit, ─── request: one line of JSON ──► LOG/control ──► the box, on its open log
//!  forget, groups, resume        ◄── answer: JSON, then the end ─────────────────┘
//! ```
//!
//! The socket lies in the log's directory: who may write there may ask, and what is answered does not leave the machine
//! (`dead-letter show` prints personal data). A client that goes away ends its command. One command runs at a time.
//!
//! The box answers for itself: with its own contract, key and names. It opens no other log for a client, nor a lake.

mod client;
mod server;

use std::path::PathBuf;
use std::time::Duration;

use event_log::LogUrl;
use serde::{Deserialize, Serialize};
use service::ConfigError;

pub(crate) use client::{ask, is_served};
pub(crate) use server::{Site, serve};

use crate::audit::Scores;
use crate::dead_letter::Question;
use crate::resume;

/// The longest request that is read.
const REQUEST_BYTES: u64 = 1 << 20;

/// What a client wants.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Request {
    /// `carstream dead-letter`.
    DeadLetter(Question),
    /// `carstream forget`.
    Forget { vin: String, former: Vec<String>, wait: Duration },
    /// `carstream groups`: forget these, or list all.
    Groups { forget: Vec<String> },
    /// `carstream resume preprocessor` and `scorer`.
    Resume(resume::Question),
    /// `carstream audit`, of the site's own hops.
    Audit {
        stream: String,
        /// Absolute paths; the box reads them.
        ledgers: Vec<PathBuf>,
        wait: Option<Duration>,
        scores: Scores,
        json: bool,
    },
}

/// What the box says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// For standard output.
    said: String,
    /// Why the command failed.
    error: Option<String>,
    /// If it failed because of its settings: what is wrong with them.
    problems: Vec<String>,
}

impl Answer {
    fn of(said: String, result: anyhow::Result<()>) -> Self {
        let Err(error) = result else { return Self { said, ..Self::default() } };
        let problems = error.downcast_ref::<ConfigError>().map(|error| error.0.clone()).unwrap_or_default();
        Self { said, error: Some(format!("{error:#}")), problems }
    }

    /// Prints what was said; fails as the command did.
    pub(crate) fn print(mut self) -> anyhow::Result<()> {
        print!("{}", std::mem::take(&mut self.said));
        self.said().map(drop)
    }

    /// What was said, unless the command failed.
    pub(crate) fn said(self) -> anyhow::Result<String> {
        ConfigError::check(self.problems)?;
        self.error.map_or(Ok(self.said), |error| Err(anyhow::anyhow!(error)))
    }
}

/// Where the box that has this log open listens, if it is a directory.
fn socket(log: &LogUrl) -> Option<PathBuf> {
    match log {
        LogUrl::Directory(path) => Some(path.join(event_log::CONTROL_SOCKET)),
        LogUrl::Kafka { .. } => None,
    }
}
