//! Where the demo keeps its files, and how a run that was interrupted finds them again.
//!
//! ```text
//! demo.json                 of which run, and whether it is finished: {"seed":7,"cars":500,…,"finished":null}
//! ledger.csv, .run          what each car sent
//! edge-log/ cloud-log/ lake/
//! report.txt report.json    the last run's end
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use contract::{Contract, StreamDefinition};
use event_log::{Error, LogArgs, LogUrl};
use lake::{Lake, LakeUrl};
use model::Manifest;
use model_registry::{Announcement, Announcements};
use serde::{Deserialize, Serialize};
use service::{ConfigError, ContractArgs};
use sha2::{Digest, Sha256};
use telemetry::pseudonym::PseudonymKey;

use super::{Args, Finished, Report, Trained};

/// A directory with two logs, a lake, a ledger and a key.
#[derive(Debug, Clone)]
pub(crate) struct RunDirectory {
    pub(crate) path: PathBuf,
    /// An interrupted run resumes.
    pub(crate) resumed: bool,
    /// What the site has.
    pub(crate) contract: Contract,
    pub(crate) contract_args: ContractArgs,
    run: Run,
}

/// `demo.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    seed: u64,
    cars: u32,
    duration: Duration,
    speedup: u32,
    /// Ended, and whether every reading was accounted for.
    #[serde(default)]
    finished: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    clean: bool,
}

impl Run {
    fn new(args: &Args) -> Self {
        let Args { seed, cars, duration, speedup, .. } = *args;
        Self { seed, cars, duration, speedup, finished: None }
    }

    /// How the run of `directory` differs from this one.
    fn problems(&self, found: &Self, directory: &Path) -> Vec<String> {
        [
            ("seed", found.seed.to_string(), self.seed.to_string()),
            ("cars", found.cars.to_string(), self.cars.to_string()),
            ("duration", format!("{:?}", found.duration), format!("{:?}", self.duration)),
            ("speedup", found.speedup.to_string(), self.speedup.to_string()),
        ]
        .into_iter()
        .filter(|(_, theirs, ours)| theirs != ours)
        .map(|(setting, theirs, _)| {
            let shown = directory.display();
            format!(
                "--keep {shown}: belongs to another run; continue it with --{setting} {theirs}, or name a new \
                     directory"
            )
        })
        .collect()
    }

    fn read(directory: &Path) -> anyhow::Result<Option<Self>> {
        let file = directory.join(RUN_FILE);
        match std::fs::read(&file) {
            Ok(json) => Ok(Some(serde_json::from_slice(&json).with_context(|| file.display().to_string())?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }
}

const RUN_FILE: &str = "demo.json";

impl RunDirectory {
    /// Makes the directory, takes that of `--keep` if it is new or empty, or resumes in it if that run was interrupted.
    pub(crate) fn prepare(args: &Args) -> anyhow::Result<Self> {
        let directory = match &args.keep {
            Some(directory) => directory.to_owned(),
            None => {
                let now = chrono::Utc::now().format("%Y%m%dT%H%M%S");
                std::env::temp_dir().join(format!("carstream-demo-{now}-{}", std::process::id()))
            }
        };
        let shown = directory.display();
        ConfigError::check(service::not_a_directory("--keep", &directory))?;
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {shown}: choose another directory with --keep"))?;
        let run = Run::new(args);
        let found = Run::read(&directory)?;
        if let Some(found) = &found {
            ConfigError::check(run.problems(found, &directory))?;
            if found.finished.is_some() {
                let problem = format!("--keep {shown}: that run is finished, its report is in {shown}/report.txt");
                return Err(ConfigError(vec![problem]).into());
            }
        } else {
            let mut entries = std::fs::read_dir(&directory).with_context(|| format!("cannot read {shown}"))?;
            if entries.any(|entry| !entry.is_ok_and(|entry| entry.file_name() == new_name(RUN_FILE).as_str())) {
                let problem = format!("--keep {shown}: is not empty; name a new directory, or remove that one");
                return Err(ConfigError(vec![problem]).into());
            }
        }
        let (contract, contract_args) = (args.contract.load()?, args.contract.clone());
        let resumed = found.is_some();
        let directory = Self { path: directory.canonicalize()?, resumed, contract, contract_args, run };
        directory.check_contract()?;
        directory.write(RUN_FILE, &serde_json::to_string(&directory.run)?)?;
        // From the seed, so that a seed gives the same pseudonyms. A real site's key comes from /dev/urandom.
        let key = Sha256::new().chain_update(b"carstream demo").chain_update(args.seed.to_le_bytes()).finalize();
        directory.write(KEY_FILE, &hex::encode(key))?;
        Ok(directory)
    }

    /// Keeps the report as text and as JSON. `finished`: the run is complete, so there is nothing to resume.
    pub(crate) fn keep_report(&self, report: &Report, finished: bool) -> anyhow::Result<()> {
        self.write(REPORT_TEXT, &report.to_string())?;
        self.write(REPORT_JSON, &(report.to_json() + "\n"))?;
        let finished = finished.then_some(End { clean: report.is_clean() });
        self.write(RUN_FILE, &serde_json::to_string(&Run { finished, ..self.run.clone() })?)
    }

    /// Replaces a file atomically: if the process is killed, either the old or the new one exists.
    fn write(&self, name: &str, contents: &str) -> anyhow::Result<()> {
        let (new, path) = (self.path.join(new_name(name)), self.path.join(name));
        std::fs::write(&new, contents)
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The demo is about the platform's readings and their model; a contract may have more, and not less.
    fn check_contract(&self) -> Result<(), ConfigError> {
        let (stream, model) = (contract::READINGS, contract::MODEL);
        let problem = |what: &str, name: &str| format!("--contract: has no {what} {name}, which the demo is about");
        let stream = self.contract.stream(stream).is_none().then(|| problem("stream", stream));
        let model = self.contract.model(model).is_none().then(|| problem("model", model));
        ConfigError::check(stream.into_iter().chain(model))
    }

    /// The clean topic of the readings.
    pub(crate) fn clean_topic(&self) -> &Arc<str> {
        &self.stream().output_topic
    }

    /// The stream of readings.
    pub(crate) fn stream(&self) -> &StreamDefinition {
        self.contract.stream(contract::READINGS).expect("prepare() has looked")
    }

    /// Rows of readings that are in the lake.
    pub(crate) async fn rows_in_lake(&self) -> anyhow::Result<u64> {
        let covered = Lake::open(&self.lake())?.coverage(self.clean_topic()).await?;
        Ok(covered.ranges.iter().map(|range| range.end - range.start).sum())
    }

    /// The model that was trained and announced, if one was.
    pub(crate) async fn announced_model(&self) -> anyhow::Result<Option<Trained>> {
        let place = self.contract.model(contract::MODEL).context("the demo needs the platform's model")?;
        let topic = place.announcements.name.clone();
        let mut announcements = Announcements::follow(self.cloud().open()?, topic, scorer::MODEL_NAME);
        let newest = match announcements.newest() {
            Err(Error::UnknownTopic { .. }) => None,
            newest => newest?,
        };
        let Some(newest) = newest else { return Ok(None) };
        let announced = Announcement::from_json(&newest)?;
        let lake = Lake::open(&self.lake())?;
        let files = model_registry::get(&lake, &announced.name, &announced.version).await?;
        Ok(Some(Trained::of(&Manifest::from_json(&files.manifest)?, &place.readings.name)))
    }

    pub(crate) fn edge(&self) -> LogArgs {
        LogArgs::new(LogUrl::Directory(self.path.join("edge-log")))
    }

    pub(crate) fn cloud(&self) -> LogArgs {
        LogArgs::new(LogUrl::Directory(self.path.join("cloud-log")))
    }

    pub(crate) fn lake(&self) -> LakeUrl {
        LakeUrl::Directory(self.path.join("lake"))
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.path.join("ledger.csv")
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.path.join(KEY_FILE)
    }

    pub(crate) fn key(&self) -> anyhow::Result<PseudonymKey> {
        let bytes = std::fs::read(self.key_file()).context("cannot read the key back")?;
        Ok(PseudonymKey::from_bytes(&bytes)?)
    }
}

const KEY_FILE: &str = "pseudonym.key";
const REPORT_TEXT: &str = "report.txt";
const REPORT_JSON: &str = "report.json";

/// The report of this run, if it is finished.
pub(crate) fn finished(args: &Args) -> anyhow::Result<Option<Finished>> {
    let Some(directory) = args.keep.as_ref().filter(|directory| directory.is_dir()) else { return Ok(None) };
    let Some(run @ Run { finished: Some(End { clean }), .. }) = Run::read(directory)? else { return Ok(None) };
    if !Run::new(args).problems(&run, directory).is_empty() {
        return Ok(None);
    }
    let read = |name: &str| {
        let file = directory.join(name);
        std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
    };
    Ok(Some(Finished { text: read(REPORT_TEXT)?, json: read(REPORT_JSON)?, clean }))
}

/// The name of a file until it is complete.
fn new_name(name: &str) -> String {
    format!("{name}.new")
}
