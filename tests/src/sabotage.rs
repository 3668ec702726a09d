//! Lies about what is durable: stages on top of these must lose or double readings, and every proof must notice.
//!
//! ```text
//! puback_first      append ─► "durable", at once              … and in the queue until the log really has it
//! positions_first   commit(positions) ─► pause ─► commit(outputs)      instead of both in one
//! plain_put         create(object) ─► put(object), whatever lies there
//! ```
//!
//! They wrap a log or a lake from outside, so that no stage needs a switch for them. They stay in the tests: a chaos
//! run or an in-process schedule that ends well although its stage stands on one of these proves nothing.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use event_log::{
    AppendError, Appender, Completion, Error, Log, Membership, OnCompletion, Outcome, Outputs, Position,
    ProcessorOptions, Record, TopicPartition, Transactor,
};
use futures_util::stream::BoxStream;
use lake::Lake;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// A log that reports every record as durable as soon as it is queued.
pub fn puback_first(log: Arc<dyn Log>) -> Arc<dyn Log> {
    Arc::new(LyingLog { inner: log, lie: Lie::PubackFirst })
}

/// A log that commits positions first, and the outputs they belong to after `pause`.
pub fn positions_first(log: Arc<dyn Log>, pause: Duration) -> Arc<dyn Log> {
    Arc::new(LyingLog { inner: log, lie: Lie::PositionsFirst(pause) })
}

/// A lake that overwrites where it should refuse.
pub fn plain_put(lake: &Lake) -> Lake {
    Lake::with_store(Arc::new(PlainPut(lake.store().clone())), lake.url().clone())
}

/// What a [`LyingLog`] does otherwise than it says.
#[derive(Debug, Clone, Copy)]
enum Lie {
    PubackFirst,
    PositionsFirst(Duration),
}

#[derive(Debug)]
struct LyingLog {
    inner: Arc<dyn Log>,
    lie: Lie,
}

impl Log for LyingLog {
    test_support::passes_on!(inner: url identity ensure_topic describe committed reader consumer consumer_of maintain);

    fn appender(self: Arc<Self>, on_completion: OnCompletion) -> std::result::Result<Arc<dyn Appender>, Error> {
        if !matches!(self.lie, Lie::PubackFirst) {
            return self.inner.clone().appender(on_completion);
        }
        // The real fate of a record, which is not reported.
        let inner = self.inner.clone().appender(Box::new(|_| {}))?;
        Ok(Arc::new(HastyAppender::start(inner, on_completion)))
    }

    fn transactor(self: Arc<Self>, options: &ProcessorOptions) -> std::result::Result<Box<dyn Transactor>, Error> {
        let inner = self.inner.clone().transactor(options)?;
        Ok(match self.lie {
            Lie::PositionsFirst(pause) => Box::new(HastyTransactor { inner, pause }),
            Lie::PubackFirst => inner,
        })
    }
}

/// Completes every record as soon as the queue has it. Completions come from a thread of their own, as promised.
struct HastyAppender {
    inner: Arc<dyn Appender>,
    queued: Mutex<mpsc::Sender<u64>>,
    outstanding: Arc<AtomicU64>,
}

impl HastyAppender {
    fn start(inner: Arc<dyn Appender>, on_completion: OnCompletion) -> Self {
        let (queued, tokens) = mpsc::channel();
        let outstanding = Arc::new(AtomicU64::new(0));
        let left = outstanding.clone();
        // It ends with the appender that feeds it.
        std::thread::spawn(move || {
            while let Ok(first) = tokens.recv() {
                let completions: Vec<_> = std::iter::once(first)
                    .chain(tokens.try_iter())
                    .map(|token| Completion { token, durable: true })
                    .collect();
                on_completion(&completions);
                left.fetch_sub(completions.len() as u64, Ordering::Release);
            }
        });
        Self { inner, queued: Mutex::new(queued), outstanding }
    }
}

impl Appender for HastyAppender {
    fn append(&self, topic: &Arc<str>, record: &Record<'_>, token: u64) -> std::result::Result<(), AppendError> {
        self.inner.append(topic, record, token)?;
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        let queued = self.queued.lock().unwrap_or_else(PoisonError::into_inner);
        queued.send(token).expect("the thread lives as long as its sender");
        Ok(())
    }

    fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let flushed = self.inner.flush(timeout);
        while self.outstanding.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        flushed && self.outstanding.load(Ordering::Acquire) == 0
    }
}

/// Two transactions where there should be one.
struct HastyTransactor {
    inner: Box<dyn Transactor>,
    pause: Duration,
}

impl Transactor for HastyTransactor {
    fn committed(&mut self, partitions: &[TopicPartition]) -> std::result::Result<Vec<Option<u64>>, Error> {
        self.inner.committed(partitions)
    }

    fn commit(
        &mut self,
        outputs: &Outputs,
        positions: &[Position],
        membership: &Membership,
    ) -> std::result::Result<Outcome, Error> {
        if self.inner.commit(&Outputs::default(), positions, membership)? == Outcome::RolledBack {
            return Ok(Outcome::RolledBack);
        }
        if !self.pause.is_zero() {
            std::thread::sleep(self.pause);
        }
        // If this one fails, the positions are past what it should have written.
        self.inner.commit(outputs, &[], membership)
    }
}

/// A store whose conditional create overwrites.
#[derive(Debug)]
struct PlainPut(Arc<dyn ObjectStore>);

#[async_trait]
impl ObjectStore for PlainPut {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        if matches!(options.mode, PutMode::Create) {
            options.mode = PutMode::Overwrite;
        }
        self.0.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(&self, location: &Path, o: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(location, o).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

impl fmt::Display for PlainPut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "overwriting {}", self.0)
    }
}
