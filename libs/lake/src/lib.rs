//! The lake: the layout of the object store, and how each object is stored exactly once.
//!
//! ```text
//! LAKE/telemetry/date=2026-11-21/partition=3/00000000000000012345.parquet    rows of the log          rows.rs
//! LAKE/models/telemetry-anomaly/20261121T081500Z-3f2a9c01b4d7/…              models: the crate `model-registry`
//! LAKE/_undecodable/telemetry/partition=3/…                                  records kept as they came
//! LAKE/_forget/telemetry/partition=3/…                                       cars whose rows are to go     erasure.rs
//! LAKE/.incoming/                                                            half-written, never listed local.rs
//! ```
//!
//! Every object is created with a conditional put and never changed; compaction (compact.rs) puts large objects in the
//! place of small ones, and objects without the rows of a car in the place of those with them. The store is the only
//! source of truth: the position of a partition is read from its objects. So no bookkeeping can disagree with them, and
//! a writer that was thought dead cannot overwrite them.
//!
//! It does not know the log, the schemas or the models: offsets, Arrow columns and bytes come in and go out.

mod args;
mod compact;
mod erasure;
mod error;
mod layout;
mod listing;
mod local;
mod object;
mod row_hash;
mod rows;
mod s3;
mod skip;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode};

pub use args::{LakeArgs, LakeUrl};
pub use compact::Compacted;
pub use erasure::ErasureRequests;
pub use error::{BoxError, Error};
pub use layout::{ObjectName, OffsetRange, check_name, undecodable_name};
pub use listing::Days;
pub use object::{Encodings, Footer, LOG_OFFSET, LOG_TIMESTAMP_MS, Object, ObjectWriter, Rows, event_time_column};
pub use row_hash::{RowHash, UnhashableType};
pub use rows::{Coverage, Gap, NextOffsets, RangeReader};
pub use s3::S3Args;

/// An object store with the layout of this module. Cheap to clone. Its methods need a tokio runtime.
#[derive(Debug, Clone)]
pub struct Lake {
    store: Arc<dyn ObjectStore>,
    url: LakeUrl,
    /// For one request of a listing, and for one footer.
    patience: Option<Duration>,
}

impl Lake {
    /// Opens the lake at `url`. A directory is created if it does not exist. A bucket is not contacted; how it is
    /// reached is up to the environment. Stages use [`LakeArgs::open`].
    pub fn open(url: &LakeUrl) -> Result<Self, Error> {
        Self::open_at(url, &S3Args::default(), args::REQUEST_TIMEOUT)
    }

    fn open_at(url: &LakeUrl, s3: &S3Args, request_timeout: Duration) -> Result<Self, Error> {
        let store: Result<Arc<dyn ObjectStore>, BoxError> = match url {
            LakeUrl::Directory(path) => {
                local::Directory::open(path).map(|store| Arc::new(store) as _).map_err(Into::into)
            }
            LakeUrl::S3 { bucket, prefix } => s3.open(bucket, prefix, request_timeout),
        };
        let store = store.map_err(|source| Error::Open { lake: url.to_string(), source })?;
        Ok(Self { store, url: url.clone(), patience: None })
    }

    /// A lake over another store: for stores that this crate does not know, and to inject faults. `url` is what
    /// errors call it.
    pub fn with_store(store: Arc<dyn ObjectStore>, url: LakeUrl) -> Self {
        Self { store, url, patience: None }
    }

    /// The same lake; one request of a listing, or a footer, that takes longer than `patience` is
    /// [`Error::TimedOut`]. A listing as a whole may take longer: it grows with the lake.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self }
    }

    /// Where this lake is.
    pub fn url(&self) -> &LakeUrl {
        &self.url
    }

    /// The store underneath, to wrap it.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Finds out at start, rather than at the first object, whether objects can be created, and whether the store
    /// refuses to create one twice: with a store that does not, two sinks would overwrite each other's objects.
    pub async fn check_writable(&self) -> Result<(), Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let probe = Path::from(format!("_probe-{}-{nanos}-{n}", std::process::id()));
        let create = async || self.store.put_opts(&probe, Bytes::new().into(), PutMode::Create.into()).await;
        let not_writable =
            |source: object_store::Error| Error::NotWritable { lake: self.url.to_string(), source: source.into() };
        match create().await {
            // That one is ours: an answer got lost, and the store's client tried again.
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(not_writable(error)),
        }
        let again = create().await;
        // Without the permission to delete, an empty object stays behind, which nothing reads.
        let _ = self.store.delete(&probe).await;
        match again {
            Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Ok(_) => Err(Error::Overwrites { lake: self.url.to_string() }),
            Err(error) => Err(not_writable(error)),
        }
    }

    /// Creates an object; [`Error::Exists`] if there is one of this name.
    ///
    /// After [`Error::Exists`] there is one, but whose? An earlier attempt of ours may have succeeded although it was
    /// reported as failed. After any other error it is not known whether there is one.
    pub async fn create(&self, name: &str, bytes: Bytes) -> Result<(), Error> {
        let path = Path::from(name);
        match self.store.put_opts(&path, bytes.into(), PutMode::Create.into()).await {
            Ok(_) => Ok(()),
            // S3 also refuses (409) while another writer is at it, who may yet fail.
            Err(conflict @ object_store::Error::AlreadyExists { .. }) => match self.store.head(&path).await {
                Ok(_) => Err(Error::Exists { lake: self.url.to_string(), object: name.to_owned() }),
                Err(object_store::Error::NotFound { .. }) => Err(self.not_created(name, conflict)),
                Err(source) => Err(self.not_created(name, source)),
            },
            Err(source) => Err(self.not_created(name, source)),
        }
    }

    /// Also if it is the bucket that was not found.
    fn not_created(&self, name: &str, source: object_store::Error) -> Error {
        Error::Store { operation: "create", lake: self.url.to_string(), object: name.to_owned(), source }
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
        let read = async { read.await.map_err(|source| self.store_error("read", name, source)) };
        self.in_time("read", name, read).await
    }

    /// The names of all objects under the folder `prefix`, sorted.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        self.each_name(prefix, None, |name| names.push(name.to_owned())).await?;
        names.sort_unstable();
        Ok(names)
    }

    async fn in_time<T>(
        &self,
        operation: &'static str,
        object: &str,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let Some(after) = self.patience else { return request.await };
        tokio::time::timeout(after, request).await.unwrap_or_else(|_| {
            let (lake, object) = (self.url.to_string(), object.to_owned());
            Err(Error::TimedOut { operation, lake, object, after })
        })
    }

    fn store_error(&self, operation: &'static str, object: &str, source: object_store::Error) -> Error {
        let (lake, object) = (self.url.to_string(), object.to_owned());
        match source {
            object_store::Error::NotFound { .. } => Error::NotFound { lake, object },
            source => Error::Store { operation, lake, object, source },
        }
    }
}
