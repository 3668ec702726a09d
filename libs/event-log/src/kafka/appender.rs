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
//! A batch that a topic refuses as too large is sent again in smaller ones, since its records may come from many cars:
//! see [`super::limits`]. A record that its topic can never take is refused at once, and alone.
//!
//! librdkafka chooses the partition from its own, refreshed count of partitions, with the function that
//! [`crate::partition_for_key`] is; so no append waits for metadata. Only a topic that was never ensured, described or
//! appended to through this log is looked up once, so that an unknown one is refused at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, PurgeConfig};

use super::clients::{self, Plain, Warned};
use super::deliveries::{Deliveries, Failure, Refusal, TooLarge};
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
/// librdkafka's own `message.max.bytes`.
const MAX_RECORD_BYTES: usize = 1_000_000;
/// How soon new partitions are written to.
const METADATA_REFRESH_MS: &str = "30000";
/// How often to look whether topics take larger records by now, while records are refused as too large.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
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
    /// Written only to replace a producer that has failed for good, or whose batches are too large.
    producer: RwLock<BaseProducer<Deliveries>>,
    /// The bound of its batches.
    batch_bytes: AtomicUsize,
    /// The largest record that it takes.
    message_max_bytes: usize,
    /// A record was refused as too large, and its topic may take larger ones by now.
    look_again: AtomicBool,
    warned: Warned,
    log: Arc<KafkaLog>,
    /// Records whose completion has not been handed on yet.
    outstanding: AtomicUsize,
    /// The thread sleeps, and wants to be woken by the next append.
    idle: AtomicBool,
    stop: AtomicBool,
}

impl KafkaAppender {
    pub(super) fn start(log: Arc<KafkaLog>, on_completion: OnCompletion) -> Result<Self, Error> {
        let batch_bytes = log.limits.smallest();
        let config = config(&log, batch_bytes);
        let producer =
            config.create_with_context(Deliveries::default()).map_err(|e| log.refused("create a producer", &e))?;
        let shared = Arc::new(Shared {
            producer: RwLock::new(producer),
            batch_bytes: AtomicUsize::new(batch_bytes),
            message_max_bytes: clients::number(&config, "message.max.bytes").unwrap_or(MAX_RECORD_BYTES),
            look_again: AtomicBool::new(false),
            warned: Warned::default(),
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

fn config(log: &KafkaLog, batch_bytes: usize) -> ClientConfig {
    let settings = [
        ("enable.idempotence", "true"),
        ("acks", "all"),
        ("partitioner", "murmur2"),
        ("compression.type", "lz4"),
        ("linger.ms", LINGER_MS),
        ("message.timeout.ms", DELIVERY_TIMEOUT_MS),
        ("queue.buffering.max.messages", QUEUE_RECORDS),
        ("queue.buffering.max.kbytes", QUEUE_KIB),
        ("topic.metadata.propagation.max.ms", UNKNOWN_TOPIC_MS),
        ("topic.metadata.refresh.interval.ms", METADATA_REFRESH_MS),
    ];
    log.clients.producer(&settings, batch_bytes)
}

impl Appender for KafkaAppender {
    fn append(&self, topic: &Arc<str>, record: &Record<'_>, token: u64) -> Result<(), AppendError> {
        let shared = &*self.shared;
        if !shared.log.limits.knows(topic) {
            topics::partition_ids(&shared.log, topic)?;
        }
        let (bytes, limit) = (record.size(), shared.log.max_record_bytes(topic, shared.message_max_bytes));
        if bytes > limit {
            shared.look_again.store(true, Ordering::Release);
            return Err(shared.log.too_large(topic, bytes, limit).into());
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
        let mut looked = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            if looked.elapsed() > LOOK_AGAIN && self.look_again.swap(false, Ordering::AcqRel) {
                topics::look_at_limits(&self.log, &self.log.limits.topics());
                looked = Instant::now();
            }
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
        clients::serve(&producer, Deliveries::reports);
        self.hand_on(producer.context(), batch, on_completion);
        let too_large = producer.context().take_too_large();
        let fatal = producer.client().fatal_error();
        drop(producer);
        if let Some((code, reason)) = fatal {
            tracing::error!(log = %self.log.url, %code, reason, "the producer has failed: starting another one");
            self.replace(batch, on_completion);
        }
        if !too_large.is_empty() || self.batch_bytes.load(Ordering::Acquire) > self.log.limits.smallest() {
            self.send_in_smaller_batches(too_large, batch, on_completion);
        }
    }

    /// Completes what was queued as not durable, and starts over.
    fn replace(&self, batch: &mut Vec<Completion>, on_completion: &OnCompletion) {
        let mut producer = self.producer.write();
        self.give_up(&producer, batch, on_completion);
        let too_large = producer.context().take_too_large();
        self.start_another(&mut producer);
        self.not_durable(&too_large, on_completion);
    }

    fn start_another(&self, producer: &mut BaseProducer<Deliveries>) {
        let batch_bytes = self.log.limits.smallest();
        match config(&self.log, batch_bytes).create_with_context(Deliveries::default()) {
            Ok(new) => {
                *producer = new;
                self.batch_bytes.store(batch_bytes, Ordering::Release);
            }
            Err(error) => tracing::error!(log = %self.log.url, %error, "cannot start another producer"),
        }
    }

    /// Starts a producer whose batches their topics take, and sends through it what was refused. Meanwhile the queue is
    /// "full".
    fn send_in_smaller_batches(
        &self,
        mut again: Vec<TooLarge>,
        batch: &mut Vec<Completion>,
        on_completion: &OnCompletion,
    ) {
        let refusing: BTreeSet<Box<str>> = again.iter().map(|record| (*record.topic).into()).collect();
        refusing.iter().for_each(|topic| self.log.narrow(topic, self.batch_bytes.load(Ordering::Acquire)));
        let mut producer = self.producer.write();
        // What is in flight in larger batches comes to its end, one way or the other.
        let deadline = Instant::now() + PURGE_TIMEOUT;
        while self.outstanding() > again.len() && Instant::now() < deadline {
            thread::sleep(COLLECT);
            clients::serve(&producer, Deliveries::reports);
            self.hand_on(producer.context(), batch, on_completion);
            again.extend(producer.context().take_too_large());
        }
        if self.outstanding() > again.len() {
            self.give_up(&producer, batch, on_completion);
        }
        self.start_another(&mut producer);
        let mut failed = Vec::new();
        for record in again {
            let (bytes, limit) = (record.size, self.log.max_record_bytes(&record.topic, self.message_max_bytes));
            if bytes > limit {
                let error = self.log.too_large(&record.topic, bytes, limit).to_string();
                if self.warned.is_due(&record.topic) {
                    tracing::warn!("a record was not written: {error}");
                }
                failed.push(record);
            } else if producer.send(record.to_send()).is_err() {
                failed.push(record);
            }
        }
        self.not_durable(&failed, on_completion);
    }

    fn not_durable(&self, records: &[TooLarge], on_completion: &OnCompletion) {
        let completions: Vec<_> =
            records.iter().map(|record| Completion { token: record.token as u64, durable: false }).collect();
        if !completions.is_empty() {
            on_completion(&completions);
            self.outstanding.fetch_sub(completions.len(), Ordering::AcqRel);
        }
    }

    /// Completes what is queued, as not durable unless a broker has said otherwise.
    fn give_up(&self, producer: &BaseProducer<Deliveries>, batch: &mut Vec<Completion>, on_completion: &OnCompletion) {
        producer.purge(PurgeConfig::default().queue().inflight());
        let deadline = Instant::now() + PURGE_TIMEOUT;
        loop {
            clients::serve(producer, Deliveries::reports);
            self.hand_on(producer.context(), batch, on_completion);
            if producer.in_flight_count() == 0 || Instant::now() >= deadline {
                return;
            }
            thread::sleep(COLLECT);
        }
    }

    fn hand_on(&self, deliveries: &Deliveries, batch: &mut Vec<Completion>, on_completion: &OnCompletion) {
        let failure = {
            let mut reported = deliveries.reported.lock();
            std::mem::swap(&mut reported.completions, batch);
            reported.failure.take()
        };
        if batch.is_empty() {
            return;
        }
        let records = batch.iter().filter(|c| !c.durable).count();
        if records < batch.len() {
            self.log.refusal.lock().take();
        }
        if let Some(failure) = failure {
            self.warn(&failure, records);
        }
        on_completion(batch);
        self.outstanding.fetch_sub(batch.len(), Ordering::AcqRel);
        batch.clear();
    }

    /// Says why records were not written, and notes a cause that others will meet as well.
    fn warn(&self, failure: &Failure, records: usize) {
        use RDKafkaErrorCode as Code;
        let Failure { topic, error } = failure;
        let plain = Plain::of(error).to_string();
        if !self.warned.is_due(&format!("{topic}: {plain}")) {
            // Said already, and still so.
            self.log.refusal.lock().iter_mut().for_each(|refusal| refusal.since = Instant::now());
            return;
        }
        let (cause, lasts) = match error.rdkafka_error_code() {
            Some(Code::InvalidTimestamp | Code::InvalidRecord | Code::InvalidDifferentRecord) => {
                (self.log.refused_time(topic, None).to_string(), true)
            }
            Some(Code::TopicAuthorizationFailed) => (format!("{plain}: grant Write on topic {topic}"), true),
            Some(Code::ClusterAuthorizationFailed) => (format!("{plain}: grant IdempotentWrite"), true),
            _ => (plain, false),
        };
        tracing::warn!(log = %self.log.url, %topic, records, "records were not written: {cause}");
        if lasts {
            *self.log.refusal.lock() = Some(Refusal { since: Instant::now(), cause });
        }
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
