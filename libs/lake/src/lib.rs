//! The lake: what lies where in the object store, and how it gets there once.
//!
//! ```text
//! LAKE/telemetry/date=2026-11-21/partition=3/00000000000000012345.parquet    rows of the log          rows.rs
//! LAKE/models/telemetry-anomaly/20261121T081500-3f2a9c01/manifest.json …     the model registry       models.rs
//! LAKE/_undecodable/telemetry/partition=3/…                                  records kept as they came
//! LAKE/.incoming/                                                            half-written, never listed local.rs
//! ```
//!
//! Every object is created with a conditional put and never changed. The store is the only source of truth: where a
//! partition goes on is read from its objects, so that no bookkeeping can disagree with them and no writer that was
//! thought dead can overwrite.
//!
//! It does not know the log, the schemas or the models: offsets, Arrow columns and bytes come in and go out.

mod args;
mod error;
mod layout;
mod local;
mod models;
mod object;
mod row_hash;
mod rows;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode};

pub use args::{LakeArgs, LakeUrl};
pub use error::{BoxError, Error};
pub use layout::{ObjectName, OffsetRange, undecodable_name};
pub use models::{ModelFiles, model_version};
pub use object::{
    Footer, LOG_OFFSET, LOG_TIMESTAMP_MS, Object, ObjectWriter, Rows, event_time_column, first_event_time_ms,
};
pub use row_hash::{RowHash, UnhashableType};
pub use rows::RangeReader;

/// An object store with the layout of this module. Cheap to clone. Its methods need a tokio runtime.
#[derive(Debug, Clone)]
pub struct Lake {
    store: Arc<dyn ObjectStore>,
    url: LakeUrl,
}

impl Lake {
    /// Opens the lake at `url`. A directory is created if it does not exist. A bucket is not contacted.
    pub fn open(url: &LakeUrl) -> Result<Self, Error> {
        let store = open_store(url).map_err(|source| Error::Open { lake: url.to_string(), source })?;
        Ok(Self { store, url: url.clone() })
    }

    /// A lake over another store: for stores that this crate does not know, and to inject faults. `url` is what
    /// errors call it.
    pub fn with_store(store: Arc<dyn ObjectStore>, url: LakeUrl) -> Self {
        Self { store, url }
    }

    /// Where this lake is.
    pub fn url(&self) -> &LakeUrl {
        &self.url
    }

    /// The store underneath, to wrap it.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Finds out at start, rather than at the first object, whether anything can be written.
    pub async fn check_writable(&self) -> Result<(), Error> {
        let probe = Path::from("_probe");
        let written = self.store.put_opts(&probe, Bytes::new().into(), PutMode::Overwrite.into()).await;
        written.map_err(|source| Error::NotWritable { lake: self.url.to_string(), source: source.into() })?;
        // Who may not delete leaves an empty object behind, which nothing reads.
        let _ = self.store.delete(&probe).await;
        Ok(())
    }

    /// Creates an object; [`Error::Exists`] if there is one of this name.
    pub async fn create(&self, name: &str, bytes: Bytes) -> Result<(), Error> {
        match self.store.put_opts(&Path::from(name), bytes.into(), PutMode::Create.into()).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => {
                Err(Error::Exists { lake: self.url.to_string(), object: name.to_owned() })
            }
            Err(source) => Err(self.store_error("create", name, source)),
        }
    }

    /// The bytes of an object.
    pub async fn get(&self, name: &str) -> Result<Bytes, Error> {
        let read = async { self.store.get(&Path::from(name)).await?.bytes().await };
        read.await.map_err(|source| self.store_error("read", name, source))
    }

    /// The last bytes of an object, at most `n`, and how long it is.
    async fn get_tail(&self, name: &str, n: u64) -> Result<(Bytes, u64), Error> {
        let options = GetOptions::new().with_range(Some(GetRange::Suffix(n)));
        let read = async {
            let result = self.store.get_opts(&Path::from(name), options).await?;
            let size = result.meta.size;
            Ok((result.bytes().await?, size))
        };
        read.await.map_err(|source| self.store_error("read", name, source))
    }

    /// The names of all objects under the folder `prefix`, sorted.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let path = Path::from(prefix);
        let names = self.store.list(Some(&path)).map_ok(|object| object.location.to_string());
        let mut names: Vec<_> = names.try_collect().await.map_err(|source| self.store_error("list", prefix, source))?;
        names.sort_unstable();
        Ok(names)
    }

    fn store_error(&self, operation: &'static str, object: &str, source: object_store::Error) -> Error {
        let (lake, object) = (self.url.to_string(), object.to_owned());
        match source {
            object_store::Error::NotFound { .. } => Error::NotFound { lake, object },
            source => Error::Store { operation, lake, object, source },
        }
    }
}

fn open_store(url: &LakeUrl) -> Result<Arc<dyn ObjectStore>, BoxError> {
    match url {
        LakeUrl::Directory(path) => Ok(Arc::new(local::Directory::open(path)?)),
        #[cfg(feature = "s3")]
        LakeUrl::S3 { bucket, prefix } => {
            let s3 = object_store::aws::AmazonS3Builder::from_env().with_bucket_name(bucket).build()?;
            Ok(Arc::new(object_store::prefix::PrefixStore::new(s3, prefix.as_str())))
        }
        #[cfg(not(feature = "s3"))]
        LakeUrl::S3 { .. } => Err("this build has no S3 support; build with --features lake/s3".into()),
    }
}
