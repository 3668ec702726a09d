//! Topics: created, and described as they are.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::types::RDKafkaRespErr;

use super::limits::Limit;
use super::native::{self, NewTopic, NotCreated, topic_id};
use super::{KafkaLog, REQUEST_TIMEOUT, hear};
use crate::{Error, PartitionDescription, TopicDescription, TopicSpec};

/// A topic that was just created is not at once known to every broker, and its partitions have no leaders yet.
const CREATION_TIMEOUT: Duration = Duration::from_secs(15);
/// How often to look whether it is.
const CREATION_POLL: Duration = Duration::from_millis(25);

/// For a look in the middle of something else, with a broker that has just answered.
const LIMITS_TIMEOUT: Duration = Duration::from_secs(2);

/// As many replicas as the cluster's administrator chose (`default.replication.factor`).
const BROKER_DEFAULT: i32 = -1;

/// A compacted topic is read as a whole by whoever needs what it holds, so it is to hold little else. A broker compacts
/// closed segments only, and by default closes one at 1 GiB or after a week, and compacts once half of it is old.
const COMPACTED: [(&str, &str); 3] =
    [("segment.bytes", "33554432"), ("segment.ms", "3600000"), ("min.cleanable.dirty.ratio", "0.2")];

pub(super) fn ensure(log: &KafkaLog, spec: &TopicSpec, replicas: Option<u16>) -> Result<(), Error> {
    match describe(log, &spec.name) {
        Ok(found) => return same(log, spec, &found),
        Err(Error::UnknownTopic { .. }) => {}
        Err(e) => return Err(e),
    }
    create(log, spec, replicas.map_or(BROKER_DEFAULT, i32::from))?;
    let deadline = Instant::now() + CREATION_TIMEOUT;
    loop {
        match describe(log, &spec.name) {
            Ok(found) => return same(log, spec, &found),
            Err(e) if Instant::now() > deadline => return Err(e),
            Err(Error::UnknownTopic { .. } | Error::Unavailable { .. }) => thread::sleep(CREATION_POLL),
            Err(e) => return Err(e),
        }
    }
}

fn create(log: &KafkaLog, spec: &TopicSpec, replicas: i32) -> Result<(), Error> {
    let retention_ms = spec.retention.map_or("-1".to_owned(), |r| r.as_millis().to_string());
    let policy = match (spec.compacted, spec.retention) {
        (true, None) => "compact",
        (true, Some(_)) => "compact,delete",
        (false, _) => "delete",
    };
    let mut settings = vec![("cleanup.policy", policy), ("retention.ms", &*retention_ms)];
    if spec.compacted {
        settings.extend(COMPACTED);
    }
    let create = |settings: &[(&str, &str)]| {
        let topic = NewTopic { name: &spec.name, partitions: spec.partitions as i32, replicas, settings };
        let created = native::create_topic(log.admin.inner(), &topic, REQUEST_TIMEOUT);
        created.map_err(|e| log.unavailable("create a topic", &e))
    };
    let mut created = create(&settings)?;
    if let Err(NotCreated { code: RDKafkaErrorCode::InvalidConfig | RDKafkaErrorCode::PolicyViolation, why }) = &created
        && spec.compacted
    {
        // They only make compaction sooner, and clusters that others run may not want them.
        tracing::warn!(log = %log.url, topic = %spec.name, "creating the topic without {}: {why}", listed(&COMPACTED));
        settings.truncate(settings.len() - COMPACTED.len());
        created = create(&settings)?;
    }
    match created {
        // Another stage was first.
        Ok(()) | Err(NotCreated { code: RDKafkaErrorCode::TopicAlreadyExists, .. }) => Ok(()),
        Err(refused) => Err(not_created(log, spec, &settings, &refused)),
    }
}

fn not_created(log: &KafkaLog, spec: &TopicSpec, settings: &[(&str, &str)], refused: &NotCreated) -> Error {
    use RDKafkaErrorCode as Code;
    let (operation, log) = ("create a topic", log.url.to_string());
    let (name, partitions, settings) = (&spec.name, spec.partitions, listed(settings));
    let source = format!(
        "topic {name}: {}; it may also be created by hand, with {partitions} partitions and {settings}",
        refused.why
    );
    match refused.code {
        Code::InvalidPartitions
        | Code::InvalidTopic
        | Code::InvalidConfig
        | Code::InvalidReplicationFactor
        | Code::InvalidArgument
        | Code::PolicyViolation => Error::Refused { operation, log, source: source.into() },
        // It may not be there yet; and whoever may create it does so, or grants Create, while this waits.
        _ => Error::Unavailable { operation, log, source: source.into() },
    }
}

fn listed(settings: &[(&str, &str)]) -> String {
    settings.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ")
}

/// Whether the topic that exists is the one that is wanted. Retention may differ: it is the administrator's.
fn same(log: &KafkaLog, spec: &TopicSpec, found: &TopicDescription) -> Result<(), Error> {
    let differs = |setting, found: String, wanted: String| {
        Err(Error::TopicDiffers { log: log.url.to_string(), topic: spec.name.to_string(), setting, found, wanted })
    };
    if found.partitions.len() != spec.partitions as usize {
        return differs("partitions", found.partitions.len().to_string(), spec.partitions.to_string());
    }
    if found.settings_known && found.compacted != spec.compacted {
        return differs("compaction", found.compacted.to_string(), spec.compacted.to_string());
    }
    Ok(())
}

pub(super) fn describe(log: &KafkaLog, topic: &str) -> Result<TopicDescription, Error> {
    let Layout { ids, replicas } = layout(log, topic)?;
    let mut partitions = Vec::with_capacity(ids.len());
    for partition in ids {
        let (first, next) = log.bounds(topic, partition)?;
        partitions.push(PartitionDescription { first, next });
    }
    let id = topic_id(log.probe.client(), topic, REQUEST_TIMEOUT).map_err(|e| match e.rdkafka_error_code() {
        Some(RDKafkaErrorCode::UnknownTopicOrPartition) => log.unknown_topic(topic),
        _ => log.unavailable("read the id of a topic", &e),
    })?;
    let cleanup = look(log, topic, REQUEST_TIMEOUT)?;
    let settings_known = cleanup.is_some();
    let Cleanup { compacted, retention } = cleanup.unwrap_or_default();
    let max_record_bytes = log.max_record_bytes(topic, log.clients.max_record_bytes());
    Ok(TopicDescription {
        id,
        partitions,
        compacted,
        retention,
        settings_known,
        max_record_bytes,
        replicas: Some(replicas),
    })
}

/// The partitions of a topic, all of which have a leader: 0, 1, …
pub(super) fn partition_ids(log: &KafkaLog, topic: &str) -> Result<Vec<u32>, Error> {
    Ok(layout(log, topic)?.ids)
}

struct Layout {
    /// 0, 1, …
    ids: Vec<u32>,
    /// Of the partition with the fewest.
    replicas: u16,
}

fn layout(log: &KafkaLog, topic: &str) -> Result<Layout, Error> {
    let operation = "read the partitions of a topic";
    let failed = |code: RDKafkaRespErr| match code {
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART | RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC => {
            log.unknown_topic(topic)
        }
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED => {
            // It may be granted at any time, or it may not exist.
            let source = format!("not allowed to see topic {topic}: grant Describe on it, if it exists").into();
            Error::Unavailable { operation, log: log.url.to_string(), source }
        }
        code => log.unavailable(operation, &rdkafka::error::KafkaError::MetadataFetch(code.into())),
    };
    hear(&log.probe);
    let metadata =
        log.probe.fetch_metadata(Some(topic), REQUEST_TIMEOUT).map_err(|e| match e.rdkafka_error_code() {
            Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => {
                log.unknown_topic(topic)
            }
            _ => log.unavailable(operation, &e),
        })?;
    let found = metadata.topics().iter().find(|t| t.name() == topic).ok_or_else(|| log.unknown_topic(topic))?;
    if let Some(code) = found.error() {
        return Err(failed(code));
    }
    if let Some(code) = found.partitions().iter().find(|p| p.leader() < 0).map(|p| p.error()) {
        return Err(failed(code.unwrap_or(RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE)));
    }
    if found.partitions().is_empty() {
        return Err(log.unknown_topic(topic));
    }
    log.limits.know(topic);
    let mut ids: Vec<_> = found.partitions().iter().map(|p| p.id() as u32).collect();
    ids.sort_unstable();
    let replicas = found.partitions().iter().map(|p| p.replicas().len()).min().unwrap_or_default();
    Ok(Layout { ids, replicas: u16::try_from(replicas).unwrap_or(u16::MAX) })
}

/// What a topic keeps.
#[derive(Default)]
struct Cleanup {
    compacted: bool,
    retention: Option<Duration>,
}

/// Looks up what these topics take. What cannot be had now stays as it was.
pub(super) fn look_at_limits(log: &KafkaLog, topics: &[Box<str>]) {
    for topic in topics {
        if let Err(error) = look(log, topic, LIMITS_TIMEOUT) {
            tracing::debug!(log = %log.url, %topic, %error, "cannot look up what the topic takes");
        }
    }
}

/// Looks up the settings of a topic, and notes what it takes. `None`: this user may not read them.
fn look(log: &KafkaLog, topic: &str, timeout: Duration) -> Result<Option<Cleanup>, Error> {
    let operation = "read the settings of a topic";
    let options = AdminOptions::new().request_timeout(Some(timeout));
    let results = block_on(log.admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options))
        .map_err(|e| log.unavailable(operation, &e))?;
    let missing = || log.unavailable(operation, &rdkafka::error::KafkaError::NoMessageReceived);
    let resource = match results.into_iter().next().ok_or_else(missing)? {
        Ok(resource) if !resource.entries.is_empty() => resource,
        // The binding passes on no error of a single topic: what may not be read has no settings at all.
        Ok(_) => {
            if log.unreadable.lock().insert(topic.into()) {
                tracing::warn!(
                    log = %log.url,
                    "not allowed to read the settings of topic {topic}, so Kafka's defaults are assumed: grant \
                     DescribeConfigs on it"
                );
            }
            return Ok(None);
        }
        Err(code) => return Err(log.unavailable(operation, &rdkafka::error::KafkaError::AdminOp(code))),
    };
    log.limits.set(topic, Limit::of(&resource));
    let setting = |name: &str| resource.get(name).and_then(|entry| entry.value.as_deref()).unwrap_or_default();
    let has_policy = |name: &str| setting("cleanup.policy").split(',').any(|policy| policy.trim() == name);
    // -1: for ever.
    let retention = setting("retention.ms").parse().ok().map(Duration::from_millis);
    Ok(Some(Cleanup { compacted: has_policy("compact"), retention: retention.filter(|_| has_policy("delete")) }))
}

/// Waits for a future of librdkafka, which completes from a thread of its own: no runtime is needed.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
