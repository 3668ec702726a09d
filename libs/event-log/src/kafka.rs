//! The log on Apache Kafka, through librdkafka.
//!
//! ```text
//! Appender    idempotent producer, acks=all ─────────────► topics
//! Transactor  transactional producer ── outputs ─────────► topics              ┐ one
//!             id GROUP-INSTANCE      └─ positions of GROUP ► __consumer_offsets ┘ transaction
//! Consumer    static member GROUP-INSTANCE ◄── topics, read_committed; commits nothing itself
//! Foreign     the same member, which reads the partitions it is given from another log ◄── that log's Reader
//! Reader      assigned partitions, no group ◄── topics, read_committed
//! KafkaLog    a probe (metadata, offsets) and an admin client, shared by all of the above
//! ```
//!
//! [`open`] checks the settings and waits for nothing: librdkafka connects in the background, and every operation that
//! needs a broker says so when it does not get one ([`Error::Unavailable`]). This module does not retry forever: each
//! call has a budget, and the caller, who can be told to stop, calls again.

mod appender;
mod calls;
mod clients;
mod consumer;
mod deliveries;
mod foreign;
mod limits;
mod member;
mod native;
mod reader;
mod rebalances;
mod topics;
mod transactor;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::admin::AdminClient;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::{
    Appender, Batch, BoxError, Consumer, Error, KafkaOption, Log, LogUrl, OnCompletion, ProcessorOptions, Range,
    Reader, TopicDescription, TopicPartition, TopicSpec, Transactor,
};
use clients::{Clients, Diagnostics, Plain};
use deliveries::Refusal;
use limits::Limits;

/// How long one request to the cluster may take. Requests are answered in milliseconds; a broker that restarts needs
/// some seconds; and a stopping stage may have to wait this long.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(8);

/// How long to wait for a group's positions. Longer than a request: the broker answers only after a transaction that is
/// being completed.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait for the name of the cluster, which every client learns with its first connection.
const CLUSTER_ID_TIMEOUT: Duration = Duration::from_secs(2);

/// How many reports are taken at a time: more than come between two requests, and nothing when there are none.
const REPORTS: usize = 64;

/// One batch holds at most this much. Bounds the memory of a stage when records are large, and keeps a batch far below
/// its limit of 4 GiB.
const MAX_BATCH_BYTES: usize = 16 << 20;

/// Opens the Kafka log at `url`. `kafka_options` are librdkafka properties, set last on every client.
pub(crate) fn open(url: &LogUrl, kafka_options: &[KafkaOption]) -> Result<Arc<dyn Log>, Error> {
    Ok(Arc::new(KafkaLog::new(url, kafka_options)?))
}

struct KafkaLog {
    url: LogUrl,
    clients: Clients,
    /// Creates topics, and reads their settings.
    admin: AdminClient<Diagnostics>,
    /// Asks for metadata and offsets. It reads committed records only, so the end of a partition is, to it, the last
    /// stable offset.
    probe: BaseConsumer<Diagnostics>,
    /// One client per group whose positions were asked for. They join nothing.
    groups: Mutex<HashMap<String, Arc<BaseConsumer<Diagnostics>>>>,
    /// Topics that were seen to exist, and what they take.
    limits: Limits,
    /// Topics whose settings this user may not read.
    unreadable: Mutex<HashSet<Box<str>>>,
    /// Why the last records that were appended were refused, until others are written.
    refusal: Mutex<Option<Refusal>>,
    cluster_id: OnceLock<String>,
}

impl fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KafkaLog({})", self.url)
    }
}

impl Log for KafkaLog {
    fn url(&self) -> &LogUrl {
        &self.url
    }

    fn ensure_topic(&self, spec: &TopicSpec) -> Result<(), Error> {
        topics::ensure(self, spec, None)
    }

    fn ensure_topic_replicated(&self, spec: &TopicSpec, replicas: u16) -> Result<(), Error> {
        topics::ensure(self, spec, Some(replicas))
    }

    fn describe(&self, topic: &str) -> Result<TopicDescription, Error> {
        topics::describe(self, topic)
    }

    fn check_writable(&self, topic: &str) -> Result<(), Error> {
        self.describe(topic)?;
        let refusal = self.refusal.lock();
        let Some(cause) = refusal.as_ref().and_then(Refusal::cause) else { return Ok(()) };
        Err(Error::Unavailable { operation: "append records", log: self.url.to_string(), source: cause.into() })
    }

    fn committed(&self, group: &str, topic: &str) -> Result<Vec<Option<u64>>, Error> {
        let topic: Arc<str> = topic.into();
        let partitions: Vec<_> = topics::partition_ids(self, &topic)?
            .into_iter()
            .map(|partition| TopicPartition { topic: topic.clone(), partition })
            .collect();
        self.positions(group, &partitions)
    }

    fn appender(self: Arc<Self>, on_completion: OnCompletion) -> Result<Arc<dyn Appender>, Error> {
        Ok(Arc::new(appender::KafkaAppender::start(self, on_completion)?))
    }

    fn reader(self: Arc<Self>, ranges: Vec<Range>) -> Result<Box<dyn Reader>, Error> {
        Ok(Box::new(reader::KafkaReader::new(self, ranges)?))
    }

    fn consumer(self: Arc<Self>, options: &ProcessorOptions) -> Result<Box<dyn Consumer>, Error> {
        Ok(Box::new(consumer::KafkaConsumer::join(self, options)?))
    }

    fn consumer_of(
        self: Arc<Self>,
        source: Arc<dyn Log>,
        options: &ProcessorOptions,
    ) -> Result<Box<dyn Consumer>, Error> {
        if source.identity() == self.identity() {
            return source.consumer(options);
        }
        Ok(Box::new(foreign::ForeignConsumer::join(self, source, options)?))
    }

    fn identity(&self) -> String {
        self.cluster_id()
    }

    fn transactor(self: Arc<Self>, options: &ProcessorOptions) -> Result<Box<dyn Transactor>, Error> {
        Ok(Box::new(transactor::KafkaTransactor::new(self, options)?))
    }
}

impl KafkaLog {
    fn new(url: &LogUrl, kafka_options: &[KafkaOption]) -> Result<Self, Error> {
        let refuse = |source: BoxError| Error::Open { log: url.to_string(), source };
        let LogUrl::Kafka { bootstrap } = url else {
            return Err(refuse("it is not a Kafka URL".into()));
        };
        let clients = Clients::new(bootstrap, kafka_options).map_err(refuse)?;
        Ok(KafkaLog {
            url: url.clone(),
            admin: clients.admin().map_err(|e| refuse(Plain::of(&e).into()))?,
            probe: clients.probe().map_err(|e| refuse(Plain::of(&e).into()))?,
            clients,
            groups: Mutex::default(),
            limits: Limits::default(),
            unreadable: Mutex::default(),
            refusal: Mutex::default(),
            cluster_id: OnceLock::new(),
        })
    }

    /// A failure that may pass. If librdkafka knows why it has no connection, that is the cause.
    fn unavailable(&self, operation: &'static str, error: &KafkaError) -> Error {
        hear(&self.probe);
        let source = self.probe.context().explain(error);
        Error::Unavailable { operation, log: self.url.to_string(), source }
    }

    /// A failure that will not pass.
    fn refused(&self, operation: &'static str, error: &KafkaError) -> Error {
        Error::Refused { operation, log: self.url.to_string(), source: Plain::of(error).into() }
    }

    /// A topic has refused a batch that had at most `batch_bytes`: finds out what it takes.
    fn narrow(&self, topic: &str, batch_bytes: usize) {
        topics::look_at_limits(self, &[topic.into()]);
        if self.limits.of(topic).max_bytes >= batch_bytes {
            self.limits.halve(topic, batch_bytes);
        }
        tracing::info!(log = %self.url, topic, "batches have at most {} bytes from now on", self.limits.smallest());
    }

    /// A topic has refused records by their time. `oldest_ms`: of the oldest, if it is not of now.
    fn refused_time(&self, topic: &str, oldest_ms: Option<i64>) -> Error {
        topics::look_at_limits(self, &[topic.into()]);
        let now_ms = crate::clock::now_ms();
        let why = self.limits.of(topic).explain(oldest_ms.unwrap_or(now_ms), now_ms);
        Error::Time { log: self.url.to_string(), topic: topic.to_owned(), why }
    }

    fn unknown_topic(&self, topic: &str) -> Error {
        Error::UnknownTopic { log: self.url.to_string(), topic: topic.to_owned() }
    }

    /// A right that is missing. `right`: which, and on what.
    fn denied(&self, operation: &'static str, error: &KafkaError, right: &str) -> Error {
        let source = format!("{}: grant {right}", Plain::of(error)).into();
        Error::Refused { operation, log: self.url.to_string(), source }
    }

    /// The same, for a member of a group.
    fn denied_in_group(&self, options: &ProcessorOptions, error: &KafkaError) -> Error {
        let right = format!("Read on group {} and on topic {}", options.group, options.topics.join(", "));
        self.denied("read in a group", error, &right)
    }

    /// The largest record that a producer with this setting can write to the topic.
    fn max_record_bytes(&self, topic: &str, message_max_bytes: usize) -> usize {
        self.limits.of(topic).max_bytes.min(message_max_bytes)
    }

    fn too_large(&self, topic: &str, bytes: usize, limit: usize) -> Error {
        let remedy = "raise the topic's max.message.bytes, and for records above 1,000,000 bytes also set \
                      --kafka-option message.max.bytes; or make such records smaller";
        Error::TooLarge { log: self.url.to_string(), topic: topic.to_owned(), bytes, limit, remedy }
    }

    /// The first offset of a partition and the one after its last committed record.
    fn bounds(&self, topic: &str, partition: u32) -> Result<(u64, u64), Error> {
        use RDKafkaErrorCode::{UnknownPartition, UnknownTopic, UnknownTopicOrPartition};
        let operation = "read the first and last offsets";
        let bounds = self.probe.fetch_watermarks(topic, partition as i32, REQUEST_TIMEOUT);
        let (first, next) = bounds.map_err(|e| match e.rdkafka_error_code() {
            Some(UnknownTopic | UnknownPartition | UnknownTopicOrPartition) => self.unknown_topic(topic),
            _ => self.unavailable(operation, &e),
        })?;
        Ok((first.max(0) as u64, next.max(0) as u64))
    }

    /// A client that can ask for the positions of `group`.
    fn group_client(&self, group: &str) -> Result<Arc<BaseConsumer<Diagnostics>>, Error> {
        let mut groups = self.groups.lock();
        if let Some(client) = groups.get(group) {
            return Ok(client.clone());
        }
        let client = self.clients.group_probe(group).map_err(|e| self.refused("create a client", &e))?;
        let client = Arc::new(client);
        groups.insert(group.to_owned(), client.clone());
        Ok(client)
    }

    /// The committed positions of `group`, in the order asked for. Waits for transactions that are being completed.
    fn positions(&self, group: &str, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, Error> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let client = self.group_client(group)?;
        hear(&client);
        let mut wanted = TopicPartitionList::with_capacity(partitions.len());
        for p in partitions {
            wanted.add_partition(&p.topic, p.partition as i32);
        }
        let operation = "read the committed positions";
        let found = client.committed_offsets(wanted, COMMITTED_TIMEOUT).map_err(|e| match e.rdkafka_error_code() {
            Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {
                let source = format!("not allowed to see group {group}: grant Describe on it").into();
                Error::Unavailable { operation, log: self.url.to_string(), source }
            }
            _ => self.unavailable(operation, &e),
        })?;
        partitions
            .iter()
            .map(|p| {
                let found = found.find_partition(&p.topic, p.partition as i32);
                let found = found.ok_or_else(|| self.unavailable(operation, &KafkaError::Canceled))?;
                found.error().map_err(|e| self.unavailable(operation, &e))?;
                Ok(match found.offset() {
                    Offset::Offset(offset) => u64::try_from(offset).ok(),
                    _ => None,
                })
            })
            .collect()
    }

    /// What tells one cluster from another: its own name for itself, or how we reach it if it does not tell.
    fn cluster_id(&self) -> String {
        if let Some(id) = self.cluster_id.get() {
            return id.clone();
        }
        match self.probe.client().fetch_cluster_id(CLUSTER_ID_TIMEOUT) {
            Some(id) => self.cluster_id.get_or_init(|| id).clone(),
            None => self.url.to_string(),
        }
    }
}

/// Hands what librdkafka has reported to [`Diagnostics`], where nobody polls for records.
fn hear(client: &BaseConsumer<Diagnostics>) {
    for _ in 0..REPORTS {
        let _ = client.poll(Duration::ZERO);
    }
}

/// Copies a message to the end of a batch.
fn push(batch: &mut Batch, message: &BorrowedMessage<'_>) {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    batch.push(
        message.offset() as u64,
        message.timestamp().to_millis().unwrap_or_default(),
        message.key().unwrap_or_default(),
        message.payload(),
        headers.map(|h| (h.key, h.value.unwrap_or_default())),
    );
}
