//! Announcements: records that name the newest version of a model.

use std::sync::Arc;
use std::time::Duration;

use event_log::{Error, Log, Record, Tail, append_and_wait};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Records per read: there are few.
const READ_RECORDS: usize = 256;

/// The value of a record on the topic of models, as JSON; its key is the name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The name of the model.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The folder in the lake, for human readers: name and version determine it.
    #[serde(default)]
    pub path: String,
    /// SHA-256 of its manifest, in hex.
    pub manifest_sha256: String,
}

impl Announcement {
    /// Announces the model in the folder `path` of the lake.
    pub fn new(name: &str, version: &str, path: &str, manifest: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            path: path.to_owned(),
            manifest_sha256: sha256_hex(manifest),
        }
    }

    /// Appends the announcement. Returns whether it is durable; if not, it may or may not be in the log. Blocking.
    pub fn append(
        &self,
        log: &Arc<dyn Log>,
        topic: &Arc<str>,
        timestamp_ms: i64,
        timeout: Duration,
    ) -> Result<bool, Error> {
        let value = serde_json::to_vec(self).expect("strings always have a JSON form");
        let record = Record { key: self.name.as_bytes(), value: Some(&value), headers: &[], timestamp_ms };
        append_and_wait(log, topic, &record, timeout)
    }
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The announcements of one model.
pub struct Announcements {
    tail: Tail,
    name: String,
    /// Read and not given out: the log failed before all was read.
    newest: Option<Vec<u8>>,
}

impl Announcements {
    /// Follows `topic` from its beginning. Announcements of other names are left out.
    pub fn follow(log: Arc<dyn Log>, topic: Arc<str>, name: &str) -> Self {
        Self { tail: Tail::new(log, topic), name: name.to_owned(), newest: None }
    }

    /// The log whose announcements these are.
    pub fn log(&self) -> &Arc<dyn Log> {
        self.tail.log()
    }

    /// The newest announcement that came since the last call, as bytes; `None` if none came. Blocking.
    ///
    /// A tombstone withdraws nothing: it is left out.
    pub fn newest(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let Self { tail, name, newest } = self;
        tail.catch_up(READ_RECORDS, |batch| {
            let ours = batch.iter().filter(|record| record.key == name.as_bytes());
            if let Some(value) = ours.filter_map(|record| record.value).last() {
                *newest = Some(value.to_vec());
            }
            Ok::<_, Error>(())
        })?;
        Ok(newest.take())
    }
}
