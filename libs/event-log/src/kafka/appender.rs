//! Appends single records through an idempotent producer.
//!
//! ```text
//! append ──► librdkafka's queue (bounded) ──5 ms──► broker, acks=all
//!                                                      │
//! on_completion(&[…]) ◄── thread "kafka-appender" ◄── delivery reports
//! ```
//!
//! The producer is idempotent: librdkafka sends again what was not acknowledged, in order and without doubling it. If
//! the broker's log contradicts what it has acknowledged (a disk that lost its end), librdkafka gives the producer up
//! for good. Then everything that is queued completes as not durable, and a new producer takes its place: who waits for
//! an acknowledgement sends again, and nothing is silently left out.
//!
//! librdkafka chooses the partition from its own, refreshed count of partitions, with the function that
//! [`crate::partition_for_key`] is; so no append waits for metadata. Only a topic that was never ensured, described or
//! appended to through this log is looked up once, so that an unknown one is refused at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig};

use super::clients::{self, Plain};
use super::{KafkaLog, topics};
use crate::{AppendError, Appender, Completion, Error, OnCompletion, Record};

/// A record that could not be written for this long is reported as not durable. Long enough for a broker to restart and
/// for a partition to find a new leader; a car that waits longer has sent the reading again anyway.
const DELIVERY_TIMEOUT_MS: &str = "120000";
/// Records wait this long for others to share a request with.
const LINGER_MS: &str = "5";
/// Bounds of the queue: at either, append answers "full".
const QUEUE_RECORDS: &str = "200000";
const QUEUE_KIB: &str = "131072";
/// Records of a topic that has vanished wait this long for it to come back.
const UNKNOWN_TOPIC_MS: &str = "5000";

/// How long completions may collect before the thread hands them on.
const COLLECT: Duration = Duration::from_millis(1);
/// With nothing in flight the thread sleeps, and looks this often what librdkafka has to say.
const IDLE: Duration = Duration::from_millis(200);
/// The last owner waits this long for what is queued: for a broker that answers it takes milliseconds.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a purge all completions are at hand; this bounds the wait for a librdkafka that does not hand them over.
const PURGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often [`Appender::flush`] looks.
const FLUSH_POLL: Duration = Duration::from_millis(1);

pub(super) struct KafkaAppender {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    config: ClientConfig,
    /// Written only to replace a producer that has failed for good.
    producer: RwLock<BaseProducer<Deliveries>>,
    log: Arc<KafkaLog>,
    /// Records whose completion has not been handed on yet.
    outstanding: AtomicUsize,
    /// The thread sleeps, and wants to be woken by the next append.
    idle: AtomicBool,
    stop: AtomicBool,
}

impl KafkaAppender {
    pub(super) fn start(log: Arc<KafkaLog>, on_completion: OnCompletion) -> Result<Self, Error> {
        let config = log.clients.config(&[
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("partitioner", "murmur2"),
            ("compression.type", "lz4"),
            ("linger.ms", LINGER_MS),
            ("message.timeout.ms", DELIVERY_TIMEOUT_MS),
            ("queue.buffering.max.messages", QUEUE_RECORDS),
            ("queue.buffering.max.kbytes", QUEUE_KIB),
            ("topic.metadata.propagation.max.ms", UNKNOWN_TOPIC_MS),
        ]);
        let producer =
            config.create_with_context(Deliveries::default()).map_err(|e| log.refused("create a producer", &e))?;
        let shared = Arc::new(Shared {
            config,
            producer: RwLock::new(producer),
            log: log.clone(),
            outstanding: AtomicUsize::new(0),
            idle: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let thread = thread::Builder::new()
            .name("kafka-appender".into())
            .spawn({
                let shared = shared.clone();
                move || shared.serve(&on_completion)
            })
            .map_err(|e| Error::Unavailable {
                operation: "start a thread",
                log: log.url.to_string(),
                source: e.into(),
            })?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

impl Appender for KafkaAppender {
    fn append(&self, topic: &Arc<str>, record: &Record<'_>, token: u64) -> Result<(), AppendError> {
        let shared = &*self.shared;
        if !shared.log.knows(topic) {
            topics::partition_ids(&shared.log, topic)?;
        }
        let message = BaseRecord {
            topic,
            partition: None,
            payload: record.value,
            key: Some(record.key),
            timestamp: Some(record.timestamp_ms), // librdkafka takes 0 for "now"
            headers: headers(record.headers.iter().copied()),
            delivery_opaque: token as usize,
        };
        // Locked for writing: it is being replaced.
        let Some(producer) = shared.producer.try_read() else { return Err(AppendError::Full) };
        shared.outstanding.fetch_add(1, Ordering::AcqRel);
        if let Err((error, _)) = producer.send(message) {
            shared.outstanding.fetch_sub(1, Ordering::AcqRel);
            return Err(shared.append_error(topic, &error));
        }
        drop(producer);
        if shared.idle.swap(false, Ordering::AcqRel)
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
        Ok(())
    }

    fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while self.shared.outstanding() > 0 {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(FLUSH_POLL);
        }
        true
    }
}

impl Drop for KafkaAppender {
    /// Waits for what is queued; what cannot be written in time completes as not durable.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The last owner may be the completion itself; a thread cannot wait for its own end.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    /// The thread: collects delivery reports and hands them on, many at a time.
    fn serve(&self, on_completion: &OnCompletion) {
        let mut batch = Vec::new();
        while !self.stop.load(Ordering::Acquire) {
            if self.outstanding() > 0 {
                self.collect(COLLECT, &mut batch, on_completion);
                continue;
            }
            self.collect(Duration::ZERO, &mut batch, on_completion); // logs and errors
            self.idle.store(true, Ordering::Release);
            if self.outstanding() == 0 && !self.stop.load(Ordering::Acquire) {
                thread::park_timeout(IDLE);
            }
            self.idle.store(false, Ordering::Release);
        }
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        while self.outstanding() > 0 && Instant::now() < deadline {
            self.collect(COLLECT, &mut batch, on_completion);
        }
        let producer = self.producer.read();
        self.give_up(&producer, &mut batch, on_completion);
    }

    fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Acquire)
    }

    fn collect(&self, time: Duration, batch: &mut Vec<Completion>, on_completion: &OnCompletion) {
        thread::sleep(time); // see `clients::serve`
        let producer = self.producer.read();
        clients::serve(&producer, |deliveries| deliveries.reported.lock().completions.len());
        self.hand_on(producer.context(), batch, on_completion);
        let fatal = producer.client().fatal_error();
        drop(producer);
        if let Some((code, reason)) = fatal {
            tracing::error!(log = %self.log.url, %code, reason, "the producer has failed: starting another one");
            self.replace(batch, on_completion);
        }
    }

    /// Completes what was queued as not durable, and starts over.
    fn replace(&self, batch: &mut Vec<Completion>, on_completion: &OnCompletion) {
        let mut producer = self.producer.write();
        self.give_up(&producer, batch, on_completion);
        match self.config.create_with_context(Deliveries::default()) {
            Ok(new) => *producer = new,
            Err(error) => tracing::error!(log = %self.log.url, %error, "cannot start another producer"),
        }
    }

    /// Completes what is queued, as not durable unless a broker has said otherwise.
    fn give_up(&self, producer: &BaseProducer<Deliveries>, batch: &mut Vec<Completion>, on_completion: &OnCompletion) {
        producer.purge(PurgeConfig::default().queue().inflight());
        let deadline = Instant::now() + PURGE_TIMEOUT;
        while self.outstanding() > 0 && Instant::now() < deadline {
            thread::sleep(COLLECT);
            clients::serve(producer, |deliveries| deliveries.reported.lock().completions.len());
            self.hand_on(producer.context(), batch, on_completion);
        }
    }

    fn hand_on(&self, deliveries: &Deliveries, batch: &mut Vec<Completion>, on_completion: &OnCompletion) {
        let cause = {
            let mut reported = deliveries.reported.lock();
            std::mem::swap(&mut reported.completions, batch);
            reported.failure.take()
        };
        if batch.is_empty() {
            return;
        }
        if let Some(cause) = cause {
            let records = batch.iter().filter(|c| !c.durable).count();
            tracing::warn!(log = %self.log.url, records, cause = %Plain::of(&cause), "records were not written");
        }
        on_completion(batch);
        self.outstanding.fetch_sub(batch.len(), Ordering::AcqRel);
        batch.clear();
    }

    fn append_error(&self, topic: &str, error: &KafkaError) -> AppendError {
        use RDKafkaErrorCode::{Fatal, QueueFull, UnknownPartition, UnknownTopic, UnknownTopicOrPartition};
        let log = self.log.url.to_string();
        match error.rdkafka_error_code() {
            Some(QueueFull | Fatal) => AppendError::Full, // the thread is about to start another producer
            Some(UnknownTopic | UnknownPartition | UnknownTopicOrPartition) => {
                AppendError::Refused(Error::UnknownTopic { log, topic: topic.to_owned() })
            }
            _ => {
                let source = Plain::of(error).into();
                AppendError::Refused(Error::Refused { operation: "append a record", log, source })
            }
        }
    }
}

/// Headers as librdkafka takes them.
pub(super) fn headers<'h>(headers: impl ExactSizeIterator<Item = (&'h str, &'h [u8])>) -> Option<OwnedHeaders> {
    if headers.len() == 0 {
        return None;
    }
    let owned = OwnedHeaders::new_with_capacity(headers.len());
    Some(headers.fold(owned, |owned, (key, value)| owned.insert(Header { key, value: Some(value) })))
}

/// Collects delivery reports. A token travels through librdkafka as the opaque pointer itself: no allocation.
#[derive(Default)]
struct Deliveries {
    reported: Mutex<Reported>,
}

#[derive(Default)]
struct Reported {
    completions: Vec<Completion>,
    failure: Option<KafkaError>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        clients::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, token: usize) {
        let mut reported = self.reported.lock();
        reported.completions.push(Completion { token: token as u64, durable: result.is_ok() });
        if let Err((error, _)) = result
            && error.rdkafka_error_code() != Some(RDKafkaErrorCode::PurgeQueue)
        {
            reported.failure.get_or_insert_with(|| error.clone());
        }
    }
}
