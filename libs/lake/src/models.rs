//! The model registry: models under their name and version, written once.
//!
//! ```text
//! models/NAME/VERSION/plots/*.png ─► weights.safetensors ─► manifest.json      written in this order:
//!                                                                              with its manifest a model is there
//! ```
//!
//! What is in the files is the model's own.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use crate::layout::check_name;
use crate::{Error, Lake};

const MANIFEST: &str = "manifest.json";
const WEIGHTS: &str = "weights.safetensors";

/// The files of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// `manifest.json`.
    pub manifest: Bytes,
    /// `weights.safetensors`.
    pub weights: Bytes,
    /// `plots/NAME`: file names and PNGs. Not read back by [`Lake::get_model`].
    pub plots: Vec<(String, Bytes)>,
}

/// The version of a model: when it was made, in UTC, and the first 8 hex digits of its weights' SHA-256. Versions sort
/// by time.
pub fn model_version(created_ms: i64, weights: &[u8]) -> String {
    let created: DateTime<Utc> = DateTime::from_timestamp_millis(created_ms).unwrap_or_default();
    let hash = hex::encode(Sha256::digest(weights));
    format!("{}-{}", created.format("%Y%m%dT%H%M%S"), &hash[..8])
}

impl Lake {
    /// Stores a model, and returns its folder in the lake. Storing the same files again changes nothing; other files
    /// under the same name and version are [`Error::Exists`].
    pub async fn put_model(&self, name: &str, version: &str, files: &ModelFiles) -> Result<String, Error> {
        let folder = model_folder(name, version)?;
        for (plot, bytes) in &files.plots {
            check_name("a plot", plot)?;
            self.create_same(&format!("{folder}/plots/{plot}"), bytes).await?;
        }
        self.create_same(&format!("{folder}/{WEIGHTS}"), &files.weights).await?;
        self.create_same(&format!("{folder}/{MANIFEST}"), &files.manifest).await?;
        Ok(folder)
    }

    /// Manifest and weights of a model; [`Error::NotFound`] if there is none of this name and version.
    pub async fn get_model(&self, name: &str, version: &str) -> Result<ModelFiles, Error> {
        let folder = model_folder(name, version)?;
        let manifest = self.get(&format!("{folder}/{MANIFEST}")).await?;
        let weights = self.get(&format!("{folder}/{WEIGHTS}")).await?;
        Ok(ModelFiles { manifest, weights, plots: Vec::new() })
    }

    /// The versions of a model, oldest first.
    pub async fn model_versions(&self, name: &str) -> Result<Vec<String>, Error> {
        check_name("a model", name)?;
        let names = self.list(&format!("models/{name}")).await?;
        let version = |path: &String| {
            let rest = path.strip_prefix("models/")?.strip_prefix(name)?.strip_prefix('/')?;
            Some(rest.strip_suffix(MANIFEST)?.strip_suffix('/')?.to_owned()).filter(|v| !v.contains('/'))
        };
        let mut versions: Vec<_> = names.iter().filter_map(version).collect();
        versions.sort_unstable();
        Ok(versions)
    }

    /// The newest version of a model; `None` if there is none.
    pub async fn latest_model(&self, name: &str) -> Result<Option<String>, Error> {
        Ok(self.model_versions(name).await?.pop())
    }

    /// The names of the models that have a version.
    pub async fn model_names(&self) -> Result<Vec<String>, Error> {
        let names = self.list("models").await?;
        let model = |path: &String| {
            let mut parts = path.strip_prefix("models/")?.split('/');
            let (name, _version, file) = (parts.next()?, parts.next()?, parts.next()?);
            (file == MANIFEST).then(|| name.to_owned())
        };
        let mut names: Vec<_> = names.iter().filter_map(model).collect();
        names.dedup();
        Ok(names)
    }

    /// Creates an object, or finds an identical one.
    async fn create_same(&self, name: &str, bytes: &Bytes) -> Result<(), Error> {
        match self.create(name, bytes.clone()).await {
            Err(Error::Exists { .. }) if self.get(name).await? == *bytes => Ok(()),
            result => result,
        }
    }
}

fn model_folder(name: &str, version: &str) -> Result<String, Error> {
    check_name("a model", name)?;
    check_name("a model version", version)?;
    Ok(format!("models/{name}/{version}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::LakeUrl;

    fn files(weights: &'static [u8]) -> ModelFiles {
        ModelFiles {
            manifest: Bytes::from_static(b"{}"),
            weights: Bytes::from_static(weights),
            plots: vec![("loss.png".into(), Bytes::from_static(b"png"))],
        }
    }

    #[tokio::test]
    async fn a_model_is_stored_once_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::open(&LakeUrl::Directory(folder.path().into())).unwrap();
        assert_eq!(lake.latest_model("m").await.unwrap(), None);
        let (old, new) = (model_version(1_795_219_200_000, b"b"), model_version(1_795_219_201_000, b"a"));
        assert_eq!(old, "20261121T000000-3e23e816");
        for version in [&new, &old] {
            let path = lake.put_model("m", version, &files(b"w")).await.unwrap();
            assert_eq!(path, format!("models/m/{version}"));
        }
        lake.put_model("m", &old, &files(b"w")).await.unwrap();
        let other = lake.put_model("m", &old, &files(b"other")).await.unwrap_err();
        assert!(matches!(other, Error::Exists { .. }), "{other}");
        assert_eq!(lake.model_versions("m").await.unwrap(), [old.clone(), new.clone()]);
        assert_eq!(lake.latest_model("m").await.unwrap(), Some(new));
        assert_eq!(lake.model_names().await.unwrap(), ["m"]);
        assert_eq!(lake.get_model("m", &old).await.unwrap().weights, files(b"w").weights);
        let missing = lake.get_model("m", "20200101T000000-00000000").await.unwrap_err();
        assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    }

    #[tokio::test]
    async fn a_model_without_its_manifest_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::open(&LakeUrl::Directory(folder.path().into())).unwrap();
        lake.create("models/m/1/weights.safetensors", Bytes::from_static(b"w")).await.unwrap();
        assert_eq!(lake.latest_model("m").await.unwrap(), None);
        assert!(lake.put_model("m/..", "1", &files(b"w")).await.is_err());
    }
}
