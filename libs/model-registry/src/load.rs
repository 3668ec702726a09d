//! From an announcement to a model that can be used.

use lake::Lake;
use model::Model;

use crate::announcement::{Announcement, sha256_hex};
use crate::files::get;

/// An announced model that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The record is none.
    #[error("it is not a valid model announcement")]
    Announcement(#[source] serde_json::Error),
    /// The lake holds another manifest.
    #[error("it is announced with manifest {announced}, the lake holds {found}: announce it again")]
    OtherManifest {
        /// SHA-256 in the announcement.
        announced: String,
        /// SHA-256 of the manifest in the lake.
        found: String,
    },
    /// The manifest is of another model.
    #[error("it is announced as {announced}, its manifest says {found}: announce it again")]
    OtherName {
        /// Name and version in the announcement.
        announced: String,
        /// Name and version in the manifest.
        found: String,
    },
    /// The lake does not have it, or does not answer.
    #[error("it cannot be read")]
    Lake(#[from] lake::Error),
    /// This program has no use for it.
    #[error("it cannot be used")]
    Model(#[from] model::Error),
}

impl Unusable {
    /// Whether the same attempt may succeed later.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Lake(error) if error.is_retriable())
    }
}

impl Announcement {
    /// Reads the value of a record.
    pub fn from_json(json: &[u8]) -> Result<Self, Unusable> {
        serde_json::from_slice(json).map_err(Unusable::Announcement)
    }
}

/// Reads an announced model from the lake, and checks that it is the announced one.
pub async fn load(lake: &Lake, announced: &Announcement) -> Result<Model, Unusable> {
    let files = get(lake, &announced.name, &announced.version).await?;
    let found = sha256_hex(&files.manifest);
    if found != announced.manifest_sha256 {
        return Err(Unusable::OtherManifest { announced: announced.manifest_sha256.clone(), found });
    }
    let model = Model::from_parts(&files.manifest, &files.weights)?;
    let manifest = model.manifest();
    if (&manifest.name, &manifest.version) != (&announced.name, &announced.version) {
        return Err(Unusable::OtherName {
            announced: format!("{} {}", announced.name, announced.version),
            found: format!("{} {}", manifest.name, manifest.version),
        });
    }
    Ok(model)
}
