//! The files of a model in the lake. Their contents are the model's own.

use bytes::Bytes;
use lake::{Error, Lake, check_name};

/// The file that describes a model.
pub const MANIFEST: &str = "manifest.json";
/// The file with its parameters.
pub const WEIGHTS: &str = "weights.safetensors";

/// The files of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// [`MANIFEST`].
    pub manifest: Bytes,
    /// [`WEIGHTS`].
    pub weights: Bytes,
    /// `plots/NAME`: file names and PNGs. Not read back by [`get`].
    pub plots: Vec<(String, Bytes)>,
}

/// Stores a model, and returns its folder in the lake. Storing the same files again changes nothing; other files under
/// the same name and version are [`Error::Exists`].
pub async fn put(lake: &Lake, name: &str, version: &str, files: &ModelFiles) -> Result<String, Error> {
    let folder = folder(name, version)?;
    for (plot, bytes) in &files.plots {
        check_name("a plot", plot)?;
        create_same(lake, &format!("{folder}/plots/{plot}"), bytes).await?;
    }
    create_same(lake, &format!("{folder}/{WEIGHTS}"), &files.weights).await?;
    create_same(lake, &format!("{folder}/{MANIFEST}"), &files.manifest).await?;
    Ok(folder)
}

/// Manifest and weights of a model; [`Error::NotFound`] if there is none of this name and version.
pub async fn get(lake: &Lake, name: &str, version: &str) -> Result<ModelFiles, Error> {
    let folder = folder(name, version)?;
    let manifest = lake.get(&format!("{folder}/{MANIFEST}")).await?;
    let weights = lake.get(&format!("{folder}/{WEIGHTS}")).await?;
    Ok(ModelFiles { manifest, weights, plots: Vec::new() })
}

/// Creates an object, or finds the same one.
async fn create_same(lake: &Lake, name: &str, bytes: &Bytes) -> Result<(), Error> {
    match lake.create(name, bytes.clone()).await {
        Err(Error::Exists { .. }) if lake.get(name).await? == *bytes => Ok(()),
        result => result,
    }
}

fn folder(name: &str, version: &str) -> Result<String, Error> {
    check_name("a model", name)?;
    check_name("a model version", version)?;
    Ok(format!("models/{name}/{version}"))
}

#[cfg(test)]
mod tests {
    use lake::LakeUrl;

    use super::*;

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
        let path = put(&lake, "m", "1", &files(b"w")).await.unwrap();
        assert_eq!(path, "models/m/1");
        put(&lake, "m", "1", &files(b"w")).await.unwrap();
        let other = put(&lake, "m", "1", &files(b"other")).await.unwrap_err();
        assert!(matches!(other, Error::Exists { .. }), "{other}");
        let names = ["manifest.json", "plots/loss.png", "weights.safetensors"].map(|name| format!("models/m/1/{name}"));
        assert_eq!(lake.list("models").await.unwrap(), names);
        assert_eq!(get(&lake, "m", "1").await.unwrap(), ModelFiles { plots: vec![], ..files(b"w") });
        let missing = get(&lake, "m", "2").await.unwrap_err();
        assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    }

    #[tokio::test]
    async fn a_model_without_its_manifest_does_not_exist() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::open(&LakeUrl::Directory(folder.path().into())).unwrap();
        lake.create("models/m/1/weights.safetensors", Bytes::from_static(b"w")).await.unwrap();
        assert!(matches!(get(&lake, "m", "1").await.unwrap_err(), Error::NotFound { .. }));
        assert!(put(&lake, "m/..", "1", &files(b"w")).await.is_err());
    }
}
