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
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use event_log::{Log, LogUrl};
use lake::Lake;
use model::Model;
use model_registry::{Announcement, Announcements, MANIFEST, Unusable, WEIGHTS};
use service::{ConfigError, Waiting};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::MODEL_NAME;
use crate::metrics::Metrics;

/// A new model is prepared at most this much later, beside the time to load it. Also how late a shutdown is seen.
const POLL_MS: u64 = 100;

/// What is not a file of a model in `directory`: one line each, in words for the user.
pub(crate) fn missing_files(directory: &Path) -> Vec<String> {
    let place = directory.display();
    if directory.is_file() {
        return vec![format!("--model {place}: is a file; name the directory that holds it")];
    }
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

/// No model has been announced yet.
#[derive(Debug, thiserror::Error)]
#[error("none is announced on topic {topic} in {log}; {remedy}")]
struct NoneAnnounced {
    topic: Arc<str>,
    log: String,
    remedy: &'static str,
}

/// What helps while no model is announced in `log`.
fn remedy(log: &LogUrl) -> &'static str {
    match log {
        LogUrl::Kafka { .. } => "`trainer` announces one, or use --model DIR",
        // This process has it open, so that no trainer can.
        LogUrl::Directory(_) => "a box without an uplink (--cloud-log) needs --model DIR",
    }
}

/// The models that readings are to be scored with, as far as they are known.
#[derive(Debug, Clone)]
pub(crate) struct Models {
    newest: watch::Receiver<Option<Arc<Model>>>,
    /// See [`looks`](Self::looks).
    looks: Arc<AtomicU64>,
}

impl Models {
    /// This one, for ever.
    pub(crate) fn fixed(model: Arc<Model>) -> Self {
        // The value outlives the sender.
        Self { newest: watch::channel(Some(model)).1, looks: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    /// The first one, once there is any; `None`: there will be none.
    pub(crate) async fn first(&mut self) -> Option<Arc<Model>> {
        self.newest.wait_for(Option::is_some).await.ok().and_then(|newest| newest.clone())
    }

    /// The newest one.
    ///
    /// # Panics
    /// If there is none yet.
    pub(crate) fn newest(&self) -> Arc<Model> {
        self.newest.borrow().clone().expect("nothing is scored before there is a model")
    }

    /// How often the follower has looked, and found nothing newer than [`newest`](Self::newest): a model that is in
    /// force elsewhere, and is neither, was announced later than the last look began.
    pub(crate) fn looks(&self) -> u64 {
        self.looks.load(Ordering::Acquire)
    }
}

/// Follows topic `models`, and gives out what is announced.
pub(crate) struct ModelFollower {
    announcements: Announcements,
    lake: Lake,
    latest: watch::Sender<Option<Arc<Model>>>,
    looks: Arc<AtomicU64>,
    metrics: Metrics,
    /// Where the lake's requests run.
    runtime: Handle,
    topic: Arc<str>,
    /// The newest announcement, until it is taken or refused.
    newest: Option<Vec<u8>>,
}

impl ModelFollower {
    pub(crate) fn new(log: Arc<dyn Log>, topic: Arc<str>, lake: Lake, metrics: Metrics, runtime: Handle) -> Self {
        let announcements = Announcements::follow(log, topic.clone(), MODEL_NAME);
        let latest = watch::Sender::new(None);
        Self { announcements, lake, latest, looks: Arc::default(), metrics, runtime, topic, newest: None }
    }

    /// What it gives out.
    pub(crate) fn models(&self) -> Models {
        Models { newest: self.latest.subscribe(), looks: self.looks.clone() }
    }

    /// The log whose announcements it follows.
    pub(crate) fn log(&self) -> &Arc<dyn Log> {
        self.announcements.log()
    }

    /// Follows until shutdown, whatever the log says: it may be the cloud's, and the model in force scores on. What
    /// fails for good in the log of the readings ends the scoring itself. Blocking.
    pub(crate) fn run(mut self, shutdown: &CancellationToken) {
        let log = self.log().url().to_string();
        let mut model = Waiting::new("a model");
        let mut topic = Waiting::new(format!("topic {} in {log}", self.topic));
        let mut artefact = Waiting::new(format!("the announced model in the lake {}", self.lake.url()));
        while !shutdown.is_cancelled() {
            let looked = self.announcements.newest().map(|newest| self.newest = newest.or(self.newest.take()));
            let taken = self.take_newest(shutdown);
            if looked.is_ok() && taken.is_ok() {
                self.looks.fetch_add(1, Ordering::Release);
            }
            match looked {
                Ok(()) => topic.resolved(),
                Err(error) => topic.note(&error),
            }
            match taken {
                Ok(()) => artefact.resolved(),
                Err(error) => artefact.note(&error),
            }
            if self.latest.borrow().is_none() && self.newest.is_none() {
                let remedy = remedy(self.announcements.log().url());
                model.note(&NoneAnnounced { topic: self.topic.clone(), log: log.clone(), remedy });
            }
            std::thread::sleep(Duration::from_millis(POLL_MS));
        }
    }

    /// Gives out the newest announced model, or refuses it. The error: the lake does not answer; to be tried again.
    fn take_newest(&mut self, shutdown: &CancellationToken) -> Result<(), Unusable> {
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
    fn load(&self, announcement: &[u8], shutdown: &CancellationToken) -> Result<Option<Model>, Unusable> {
        let announced = Announcement::from_json(announcement)?;
        if self.latest.borrow().as_ref().is_some_and(|model| model.manifest().version == announced.version) {
            return Ok(None);
        }
        // A lake that hangs must not hang the stop.
        let load = model_registry::load(&self.lake, &announced);
        self.runtime.block_on(shutdown.run_until_cancelled(load)).transpose()
    }
}
