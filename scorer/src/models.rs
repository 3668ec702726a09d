//! Where models come from: a fixed directory, or announcements on topic `models` with artefacts in the lake.
//!
//! ```text
//!  topic models ─► announcement ─► lake: manifest.json, weights.safetensors ─► checked ─► latest ─► scorer
//!                                   │ not there, not what was announced,         watch channel: only the
//!                                   ▼ not usable                                 newest counts
//!                                  refused: one ERROR, the model in force stays
//! ```
//!
//! Loading and checking happen here, beside the scoring; nothing here scores.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use event_log::{Error, Log, Range, Read};
use lake::Lake;
use model::Model;
use serde::Deserialize;
use service::{ConfigError, Waiting};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::MODEL_NAME;
use crate::metrics::Metrics;

const MANIFEST: &str = "manifest.json";
const WEIGHTS: &str = "weights.safetensors";

/// A new model comes into force at most this much later, beside loading and replay. Also how late a shutdown is seen.
const POLL_MS: u64 = 100;
/// Announcements per read: there are few.
const READ_RECORDS: usize = 256;

/// What is not a file of a model in `directory`: one line each, in words for the user.
pub(crate) fn missing_files(directory: &Path) -> Vec<String> {
    let place = directory.display();
    if !directory.is_dir() {
        return vec![format!("--model {place}: the directory does not exist")];
    }
    let missing = |name: &&str| !directory.join(name).is_file();
    let line =
        |name| format!("--model {place}: {name} is missing; a model is a directory with {MANIFEST} and {WEIGHTS}");
    [MANIFEST, WEIGHTS].into_iter().filter(missing).map(line).collect()
}

/// The model in `directory`. One that cannot be used is a bad setting.
pub(crate) fn load_directory(directory: &Path) -> Result<Model, ConfigError> {
    let problem = |what: String| ConfigError(vec![format!("--model {}: {what}", directory.display())]);
    let read = |name: &str| {
        std::fs::read(directory.join(name)).map_err(|error| problem(format!("cannot read {name}: {error}")))
    };
    let (manifest, weights) = (read(MANIFEST)?, read(WEIGHTS)?);
    Model::from_parts(&manifest, &weights).map_err(|error| problem(format!("{:#}", anyhow::Error::from(error))))
}

/// An announced model that is not taken.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("it is not a valid model announcement")]
    Announcement(#[source] serde_json::Error),
    #[error("it is announced with manifest {announced}, the lake holds {found}: announce it again")]
    OtherManifest { announced: String, found: String },
    #[error("it is announced as {announced}, its manifest says {found}: announce it again")]
    OtherName { announced: String, found: String },
    #[error("it cannot be read")]
    Lake(#[from] lake::Error),
    #[error("it cannot be used")]
    Model(#[from] model::Error),
}

impl Refused {
    fn is_retriable(&self) -> bool {
        matches!(self, Self::Lake(error) if error.is_retriable())
    }
}

/// No model has been announced yet.
#[derive(Debug, thiserror::Error)]
#[error("none is announced on topic {topic} in {log}; `trainer` announces one, or use --model DIR")]
struct NoneAnnounced {
    topic: Arc<str>,
    log: String,
}

/// A record of topic `models`. Its path is for humans only: name and version give the place in the lake.
#[derive(Debug, Clone, Deserialize)]
struct Announcement {
    name: String,
    version: String,
    manifest_sha256: String,
}

/// Follows topic `models`, and gives out what is announced.
pub(crate) struct Follower {
    log: Arc<dyn Log>,
    lake: Lake,
    latest: watch::Sender<Option<Arc<Model>>>,
    metrics: Metrics,
    /// Where the lake's requests run.
    runtime: Handle,
    topic: Arc<str>,
    /// The next offset of each partition.
    positions: Vec<u64>,
    /// The newest announcement, until it is taken or refused.
    newest: Option<Vec<u8>>,
}

impl Follower {
    pub(crate) fn new(
        log: Arc<dyn Log>,
        topic: Arc<str>,
        lake: Lake,
        latest: watch::Sender<Option<Arc<Model>>>,
        metrics: Metrics,
        runtime: Handle,
    ) -> Self {
        Self { log, lake, latest, metrics, runtime, topic, positions: Vec::new(), newest: None }
    }

    /// The log whose announcements it follows.
    pub(crate) fn log(&self) -> &Arc<dyn Log> {
        &self.log
    }

    /// Follows until shutdown. Blocking. The error: the log failed for good.
    pub(crate) fn run(mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        let log = self.log.url().to_string();
        let mut model = Waiting::new("a model");
        let mut topic = Waiting::new(format!("topic {} in {log}", self.topic));
        let mut artefact = Waiting::new(format!("the announced model in the lake {}", self.lake.url()));
        while !shutdown.is_cancelled() {
            match self.read_announcements() {
                Ok(()) => topic.over(),
                Err(error) if error.is_retriable() || matches!(error, Error::UnknownTopic { .. }) => topic.note(&error),
                Err(error) => return Err(error),
            }
            match self.take_newest(shutdown) {
                Ok(()) => artefact.over(),
                Err(error) => artefact.note(&error),
            }
            if self.latest.borrow().is_none() && self.newest.is_none() {
                model.note(&NoneAnnounced { topic: self.topic.clone(), log: log.clone() });
            }
            std::thread::sleep(Duration::from_millis(POLL_MS));
        }
        Ok(())
    }

    /// Reads what has been announced since the last time; the newest one counts.
    fn read_announcements(&mut self) -> Result<(), Error> {
        let partitions = self.log.describe(&self.topic)?.partitions;
        self.positions.resize(partitions.len(), 0);
        for (partition, bounds) in partitions.iter().enumerate() {
            let position = self.positions[partition];
            // Beyond the end: the topic was created anew.
            let start = if position > bounds.next { bounds.first } else { position.max(bounds.first) };
            if start >= bounds.next {
                continue;
            }
            let range = Range { topic: self.topic.clone(), partition: partition as u32, start, end: Some(bounds.next) };
            match self.read(range) {
                // Compaction went on meanwhile: from the new beginning, next time.
                Err(Error::OutOfRange { .. }) => continue,
                result => result?,
            }
            self.positions[partition] = bounds.next;
        }
        Ok(())
    }

    fn read(&mut self, range: Range) -> Result<(), Error> {
        let mut reader = self.log.clone().reader(vec![range])?;
        loop {
            match reader.next(READ_RECORDS, Duration::from_millis(POLL_MS))? {
                Read::Batch(batch) => {
                    // Models of other names are other scorers'; a tombstone withdraws nothing that is in force.
                    let ours = batch.iter().filter(|record| record.key == MODEL_NAME.as_bytes());
                    if let Some(value) = ours.filter_map(|record| record.value).last() {
                        self.newest = Some(value.to_vec());
                    }
                }
                Read::Idle => {}
                Read::End => return Ok(()),
            }
        }
    }

    /// Gives out the newest announced model, or refuses it. The error: the lake does not answer; to be tried again.
    fn take_newest(&mut self, shutdown: &CancellationToken) -> Result<(), Refused> {
        let Some(announcement) = self.newest.take() else { return Ok(()) };
        match self.load(&announcement, shutdown) {
            Ok(None) => Ok(()),
            Ok(Some(model)) => {
                self.latest.send_replace(Some(Arc::new(model)));
                Ok(())
            }
            Err(error) if error.is_retriable() => {
                self.newest = Some(announcement);
                Err(error)
            }
            Err(error) => {
                let stays = match &*self.latest.borrow() {
                    Some(model) => format!("model {} stays in force", model.manifest().version),
                    None => "no model is in force yet".to_owned(),
                };
                let announced = String::from_utf8_lossy(&announcement).into_owned();
                let error = anyhow::Error::from(error);
                tracing::error!(announced, "an announced model is refused, {stays}: {error:#}");
                self.metrics.models_refused.inc();
                Ok(())
            }
        }
    }

    /// The announced model; `None` if it is the one that was given out last, or at the shutdown.
    fn load(&self, announcement: &[u8], shutdown: &CancellationToken) -> Result<Option<Model>, Refused> {
        let announced: Announcement = serde_json::from_slice(announcement).map_err(Refused::Announcement)?;
        if self.latest.borrow().as_ref().is_some_and(|model| model.manifest().version == announced.version) {
            return Ok(None);
        }
        let read = self.lake.get_model(&announced.name, &announced.version);
        // A lake that hangs must not hang the stop.
        let Some(files) = self.runtime.block_on(shutdown.run_until_cancelled(read)) else { return Ok(None) };
        let files = files?;
        let found = hex::encode(Sha256::digest(&files.manifest));
        if found != announced.manifest_sha256 {
            return Err(Refused::OtherManifest { announced: announced.manifest_sha256, found });
        }
        let model = Model::from_parts(&files.manifest, &files.weights)?;
        let manifest = model.manifest();
        if (&manifest.name, &manifest.version) != (&announced.name, &announced.version) {
            return Err(Refused::OtherName {
                announced: format!("{} {}", announced.name, announced.version),
                found: format!("{} {}", manifest.name, manifest.version),
            });
        }
        Ok(Some(model))
    }
}
