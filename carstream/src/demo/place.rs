//! Where the demo keeps its files.

use std::path::{Path, PathBuf};

use anyhow::Context;
use event_log::{LogArgs, LogUrl};
use lake::LakeUrl;
use service::ConfigError;
use sha2::{Digest, Sha256};
use telemetry::pseudonym::PseudonymKey;

/// A directory with two logs, a lake, a ledger and a key.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) directory: PathBuf,
}

impl Place {
    /// Makes the directory, or takes `keep` if it is new or empty.
    pub(crate) fn prepare(keep: Option<&Path>, seed: u64) -> anyhow::Result<Self> {
        let directory = match keep {
            Some(directory) => directory.to_owned(),
            None => {
                let now = chrono::Utc::now().format("%Y%m%dT%H%M%S");
                std::env::temp_dir().join(format!("carstream-demo-{now}-{}", std::process::id()))
            }
        };
        let shown = directory.display();
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {shown}: choose another directory with --keep"))?;
        let mut entries = std::fs::read_dir(&directory).with_context(|| format!("cannot read {shown}"))?;
        if entries.next().is_some() {
            let problem = format!("--keep {shown}: is not empty; name a new directory, or remove that one");
            return Err(ConfigError(vec![problem]).into());
        }
        let place = Self { directory: directory.canonicalize()? };
        // From the seed, so that a seed gives the same pseudonyms. A real site's key comes from /dev/urandom.
        let key = Sha256::new().chain_update(b"carstream demo").chain_update(seed.to_le_bytes()).finalize();
        std::fs::write(place.key_file(), hex::encode(key)).with_context(|| format!("cannot write to {shown}"))?;
        Ok(place)
    }

    pub(crate) fn edge(&self) -> LogArgs {
        LogArgs::new(LogUrl::Directory(self.directory.join("edge-log")))
    }

    pub(crate) fn cloud(&self) -> LogArgs {
        LogArgs::new(LogUrl::Directory(self.directory.join("cloud-log")))
    }

    pub(crate) fn lake(&self) -> LakeUrl {
        LakeUrl::Directory(self.directory.join("lake"))
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.directory.join("ledger.csv")
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.directory.join("pseudonym.key")
    }

    pub(crate) fn key(&self) -> anyhow::Result<PseudonymKey> {
        let bytes = std::fs::read(self.key_file()).context("cannot read the key back")?;
        Ok(PseudonymKey::from_bytes(&bytes)?)
    }
}
