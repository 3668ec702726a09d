//! A store whose user dies at some request: from then on none has an effect.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// A user's connection to a store in memory.
#[derive(Debug, Clone)]
pub struct Mortal {
    inner: Arc<InMemory>,
    life: Arc<Mutex<Life>>,
    after_its_effect: bool,
}

#[derive(Debug)]
struct Life {
    requests_left: u64,
    /// Draws how long the others run before each request.
    random: Option<u64>,
    /// Somebody else stores this just before its first put.
    faster: Option<(Path, PutPayload)>,
}

impl Mortal {
    /// Dies at the request after this many, before or after that has its effect.
    pub fn shared(inner: Arc<InMemory>, requests: u64, after_its_effect: bool) -> Self {
        Self {
            inner,
            life: Arc::new(Mutex::new(Life { requests_left: requests, random: None, faster: None })),
            after_its_effect,
        }
    }

    /// Lets others run before its requests.
    pub fn yielding(self, seed: u64) -> Self {
        self.life.lock().unwrap().random = Some(seed);
        self
    }

    /// Somebody else stores an object just before its first put.
    pub fn with_faster(self, name: Path, bytes: impl Into<PutPayload>) -> Self {
        self.life.lock().unwrap().faster = Some((name, bytes.into()));
        self
    }

    /// Before a request. `true`: it has its effect, but its user dies of it.
    async fn request(&self) -> Result<bool> {
        let pauses = self.life.lock().unwrap().random.as_mut().map_or(0, |state| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*state >> 60) / 2
        });
        for _ in 0..pauses {
            tokio::task::yield_now().await;
        }
        let mut life = self.life.lock().unwrap();
        match life.requests_left.checked_sub(1) {
            Some(left) => {
                life.requests_left = left;
                Ok(left == 0 && self.after_its_effect)
            }
            None => Err(dead()),
        }
    }
}

fn dead() -> Error {
    Error::Generic { store: "mortal", source: "its user is dead".into() }
}

fn unless<T>(dies: bool, result: Result<T>) -> Result<T> {
    if dies { Err(dead()) } else { result }
}

#[async_trait]
impl ObjectStore for Mortal {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let dies = self.request().await?;
        let faster = self.life.lock().unwrap().faster.take();
        if let Some((name, bytes)) = faster {
            self.inner.put(&name, bytes).await?;
        }
        unless(dies, self.inner.put_opts(at, payload, options).await)
    }

    async fn put_multipart_opts(&self, at: &Path, o: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, o).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let dies = self.request().await?;
        unless(dies, self.inner.get_opts(at, options).await)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let delete = move |location: Path| {
            let this = this.clone();
            async move {
                let dies = this.request().await?;
                let deleted = this.inner.delete(&location).await;
                unless(dies, deleted.map(|()| location))
            }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listing(prefix.cloned(), None)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listing(prefix.cloned(), Some(offset.clone()))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let dies = self.request().await?;
        unless(dies, self.inner.list_with_delimiter(prefix).await)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

impl Mortal {
    fn listing(&self, prefix: Option<Path>, offset: Option<Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let this = self.clone();
        let listed = async move {
            let dies = this.request().await?;
            let names = match &offset {
                Some(offset) => this.inner.list_with_offset(prefix.as_ref(), offset),
                None => this.inner.list(prefix.as_ref()),
            };
            let found: Vec<_> = names.try_collect().await?;
            unless(dies, Ok(stream::iter(found.into_iter().map(Ok))))
        };
        stream::once(listed).try_flatten().boxed()
    }
}

impl fmt::Display for Mortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a store whose user may die")
    }
}
