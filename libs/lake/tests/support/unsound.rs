//! Stores that do not do what the lake needs.
#![allow(unreachable_pub)]

use std::fmt;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What such a store does to a conditional create.
#[derive(Debug, Clone, Copy)]
pub enum Unsound {
    /// It overwrites existing objects.
    Overwrites,
    /// It refuses (S3's 409) although there is nothing: another writer was at it, and failed.
    Conflicts,
}

/// A store in memory.
#[derive(Debug)]
pub struct UnsoundStore(pub Unsound, pub InMemory);

#[async_trait]
impl ObjectStore for UnsoundStore {
    async fn put_opts(&self, at: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        match self.0 {
            Unsound::Overwrites => options.mode = PutMode::Overwrite,
            Unsound::Conflicts => {
                return Err(Error::AlreadyExists { path: at.to_string(), source: "409 Conflict".into() });
            }
        }
        self.1.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(&self, at: &Path, o: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.1.put_multipart_opts(at, o).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.1.get_opts(at, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.1.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.1.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.1.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.1.copy_opts(from, to, options).await
    }
}

impl fmt::Display for UnsoundStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a store that {:?}", self.0)
    }
}
