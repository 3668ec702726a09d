//! A store with the faults of a store: refusals, answers that get lost, answers that do not come, slowness.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What happens to a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It is refused; nothing is stored.
    Refused,
    /// It is stored, but an error is reported.
    AnswerLost,
    /// Nothing is stored, and no answer comes.
    Hangs,
    /// It is stored, and no answer comes.
    HangsAfter,
    /// It is stored a little later.
    Slow,
    /// It is stored once the plan is another one.
    Waits,
}

/// Which fault a put has.
pub enum Plan {
    /// All have this one.
    All(Fault),
    /// Drawn by a seed; the share of puts that have none.
    Random { rng: Box<ChaCha8Rng>, healthy: f64 },
}

impl Plan {
    /// Faults of every kind, drawn by a seed.
    pub fn random(seed: u64, healthy: f64) -> Self {
        Self::Random { rng: Box::new(ChaCha8Rng::seed_from_u64(seed)), healthy }
    }

    fn draw(&mut self) -> Fault {
        match self {
            Self::All(fault) => *fault,
            Self::Random { rng, healthy } => {
                if rng.random_bool(*healthy) {
                    return Fault::None;
                }
                let kinds = [Fault::Refused, Fault::AnswerLost, Fault::Hangs, Fault::HangsAfter, Fault::Slow];
                kinds[rng.random_range(0..kinds.len())]
            }
        }
    }
}

/// A store over another one.
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    plan: Mutex<Plan>,
    /// Puts that were tried.
    pub puts: AtomicU64,
    /// Bytes of the puts that are under way or hang.
    pub held_bytes: AtomicUsize,
}

impl FaultyStore {
    pub fn new(inner: Arc<dyn ObjectStore>, plan: Plan) -> Arc<Self> {
        Arc::new(Self { inner, plan: Mutex::new(plan), puts: AtomicU64::new(0), held_bytes: AtomicUsize::new(0) })
    }

    /// Changes what happens from now on.
    pub fn set(&self, plan: Plan) {
        *self.plan.lock().unwrap() = plan;
    }
}

/// Counts bytes while it lives.
struct Held<'a>(&'a AtomicUsize, usize);

impl<'a> Held<'a> {
    fn new(counter: &'a AtomicUsize, bytes: usize) -> Self {
        counter.fetch_add(bytes, Ordering::Relaxed);
        Self(counter, bytes)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

fn broken() -> Error {
    Error::Generic { store: "faulty", source: "the network is down".into() }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.puts.fetch_add(1, Ordering::Relaxed);
        let _held = Held::new(&self.held_bytes, payload.content_length());
        let fault = self.plan.lock().unwrap().draw();
        match fault {
            Fault::None => self.inner.put_opts(location, payload, options).await,
            Fault::Refused => Err(broken()),
            Fault::AnswerLost => {
                self.inner.put_opts(location, payload, options).await?;
                Err(broken())
            }
            Fault::Hangs => std::future::pending().await,
            Fault::Waits => {
                while matches!(*self.plan.lock().unwrap(), Plan::All(Fault::Waits)) {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
                self.inner.put_opts(location, payload, options).await
            }
            Fault::HangsAfter => {
                self.inner.put_opts(location, payload, options).await?;
                std::future::pending().await
            }
            Fault::Slow => {
                tokio::time::sleep(Duration::from_millis(30)).await;
                self.inner.put_opts(location, payload, options).await
            }
        }
    }

    async fn put_multipart_opts(&self, location: &Path, o: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, o).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
