//! Uploads one segment, until it is stored.

use std::sync::Arc;
use std::time::Duration;

use event_log::TopicPartition;
use lake::{Error, Lake, Object, ObjectName};
use parking_lot::Mutex;
use service::Waiting;
use telemetry::avro::AvroDecoder;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::Metrics;
use crate::buffer::Segment;
use crate::encode::{Encoded, Undecodable, encode, undecodable_lines};
use crate::stream::Stream;

/// The first pause before an upload is tried again; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// How a segment's upload ended.
#[derive(Debug)]
pub(crate) enum Uploaded {
    /// The lake holds everything before `end`.
    Stored { end: u64 },
    /// Stored up to `end`; the record there stops the topic.
    StoppedAt { end: u64, record: Box<Undecodable> },
    /// Another sink has stored other records under this name. What this one holds of the partition is void.
    Elsewhere(Box<ObjectName>),
    /// The time to drain is over. Nothing is known of the object.
    GaveUp,
    /// It can never succeed.
    Failed(anyhow::Error),
}

/// What all uploads share.
#[derive(Debug, Clone)]
pub(crate) struct Uploader {
    pub(crate) lake: Lake,
    pub(crate) metrics: Metrics,
    pub(crate) skip_undecodable: bool,
    /// An attempt that takes longer is given up and made again.
    pub(crate) timeout: Duration,
    /// Ends all waiting.
    pub(crate) give_up: CancellationToken,
    /// As many segments are encoded at once as there are cores.
    pub(crate) encoders: Arc<Semaphore>,
    pub(crate) waiting: Arc<Mutex<Waiting>>,
}

impl Uploader {
    /// Encodes and stores a segment.
    pub(crate) async fn upload(self, stream: Stream, at: TopicPartition, segment: Segment) -> Uploaded {
        let started = segment.start;
        let give_up = self.give_up.clone();
        tokio::select! {
            uploaded = self.store(stream, &at, segment) => uploaded.unwrap_or_else(|error| {
                let TopicPartition { topic, partition } = &at;
                Uploaded::Failed(error.context(format!("cannot write {topic}/{partition} from offset {started} on")))
            }),
            () = give_up.cancelled() => Uploaded::GaveUp,
        }
    }

    async fn store(self, stream: Stream, at: &TopicPartition, segment: Segment) -> anyhow::Result<Uploaded> {
        let start = segment.start;
        let oldest_ms = segment.iter().map(|record| record.timestamp_ms).min();
        let Encoded { object, undecodable, requests, stopped_at } = self.encode(stream, at, segment).await?;
        // First what is beside, then what says that it was dealt with.
        if let (Some(first), Some(last)) = (undecodable.first(), undecodable.last()) {
            let name = lake::undecodable_name(&at.topic, at.partition, first.offset, last.offset);
            let lines = bytes::Bytes::from(undecodable_lines(&at.topic, at.partition, &undecodable));
            // The name determines the records in it, so an existing object is the same.
            self.retry(|| exists_is_fine(self.lake.create(&name, lines.clone()))).await?;
        }
        for (offset, car) in &requests {
            self.retry(|| self.lake.request_erasure(&at.topic, at.partition, *offset, car)).await?;
        }
        let mut end = start;
        if let Some(object) = object {
            let created = self.retry(|| async {
                match self.lake.put_object(&object).await {
                    Ok(()) => Ok(true),
                    Err(Error::Exists { .. }) => self.is_same(&object).await,
                    Err(error) => Err(error),
                }
            });
            if !created.await? {
                self.metrics.conflicts.inc();
                return Ok(Uploaded::Elsewhere(Box::new(object.name)));
            }
            // What this sink had under way for days may have been compacted, with what another sink wrote meanwhile.
            if object.name.is_before(service::now_ms()) && self.retry(|| self.lake.is_compacted(&object.name)).await? {
                self.metrics.conflicts.inc();
                return Ok(Uploaded::Elsewhere(Box::new(object.name)));
            }
            let waited_ms = service::now_ms() - oldest_ms.unwrap_or_else(service::now_ms);
            self.metrics.stored(&at.topic, &object, undecodable.len(), waited_ms);
            end = object.footer.end;
        }
        Ok(match stopped_at {
            Some(record) => Uploaded::StoppedAt { end, record: Box::new(record) },
            None => Uploaded::Stored { end },
        })
    }

    async fn encode(&self, stream: Stream, at: &TopicPartition, segment: Segment) -> anyhow::Result<Encoded> {
        let segment = Arc::new(segment);
        let decoder = decoder(&stream, &segment).await?;
        let _permit = self.encoders.acquire().await?;
        let (at, skip) = (at.clone(), self.skip_undecodable);
        tokio::task::spawn_blocking(move || encode(&stream, decoder, &at.topic, at.partition, &segment, skip)).await?
    }

    /// Whether the existing object holds the same rows: then an earlier attempt succeeded after all, or another sink
    /// got as far as this one.
    async fn is_same(&self, object: &Object) -> Result<bool, Error> {
        Ok(self.lake.footer(&object.name).await? == object.footer)
    }

    /// Retries until it succeeds, or can never succeed. Waits for a store that fails, is full or does not answer.
    async fn retry<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut pause = FIRST_PAUSE;
        loop {
            match tokio::time::timeout(self.timeout, attempt()).await {
                Ok(Ok(value)) => {
                    self.waiting.lock().resolved();
                    return Ok(value);
                }
                Ok(Err(error)) if !error.is_retriable() => return Err(error),
                Ok(Err(error)) => self.waiting.lock().note(&error),
                Err(elapsed) => self.waiting.lock().note(&elapsed),
            }
            self.metrics.retries.inc();
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LAST_PAUSE);
        }
    }
}

/// A decoder with the writers' schemas of the segment, as far as they are known. Waits for an unreachable schema
/// registry.
async fn decoder(stream: &Stream, segment: &Arc<Segment>) -> anyhow::Result<AvroDecoder> {
    loop {
        let (stream, segment) = (stream.clone(), segment.clone());
        let resolved = tokio::task::spawn_blocking(move || {
            let mut decoder = stream.schemas.decoder(&stream.schema.file)?;
            let values = segment.iter().filter_map(|record| record.value);
            anyhow::Ok(stream.schemas.resolve(&mut decoder, values).map(|()| decoder))
        });
        match resolved.await?? {
            // The wait was logged, so its end is, too.
            Err(error) if error.is_retriable() => {}
            resolved => return Ok(resolved?),
        }
    }
}

async fn exists_is_fine(create: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    match create.await {
        Err(Error::Exists { .. }) => Ok(()),
        result => result,
    }
}
