//! Topics and the bounds of their partitions, in memory and as stored.
//!
//! ```text
//! keyspace meta   topic/NAME              → JSON: id, partitions, retention, compacted
//!                 bounds/NAME/PARTITION   → first (u64 LE) │ next at least (u64 LE)
//!                 reclaimed               → when retention last gave disk space back (i64 LE, ms since the epoch)
//! keyspace records/NAME/PARTITION         → blocks
//! ```
//!
//! Bounds are stored only when retention or compaction move them: otherwise the first offset is 0 and the next one
//! follows the last block.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use fjall::Keyspace;
use serde::{Deserialize, Serialize};

use super::store::{Store, records_options};
use super::{block, store};
use crate::{Error, PartitionDescription, TopicDescription, TopicSpec};

/// Kafka's bound, so that a name is good for both backends.
const MAX_NAME_BYTES: usize = 200;

/// A topic of an open log.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    pub(super) stored: Stored,
    pub(super) partitions: Vec<Arc<Partition>>,
}

/// A partition of an open log. Offsets from `first` to `next` can be read.
pub(super) struct Partition {
    pub(super) topic: Arc<str>,
    pub(super) index: u32,
    pub(super) records: Keyspace,
    first: AtomicU64,
    next: AtomicU64,
}

/// A topic as stored.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    id: String,
    partitions: u32,
    retention_ms: Option<u64>,
    pub(super) compacted: bool,
}

impl Stored {
    pub(super) fn retention(&self) -> Option<Duration> {
        self.retention_ms.map(Duration::from_millis)
    }
}

impl Topic {
    pub(super) fn describe(&self) -> TopicDescription {
        let partitions = self.partitions.iter().map(|p| PartitionDescription { first: p.first(), next: p.next() });
        TopicDescription {
            id: self.stored.id.clone(),
            partitions: partitions.collect(),
            compacted: self.stored.compacted,
        }
    }
}

impl Partition {
    pub(super) fn first(&self) -> u64 {
        self.first.load(Ordering::Acquire)
    }

    pub(super) fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// Forgets what lies below `first`; it must be stored already.
    pub(super) fn set_first(&self, first: u64) {
        self.first.store(first, Ordering::Release);
    }

    /// Shows readers what lies below `next`; it must be durable.
    pub(super) fn publish(&self, next: u64) {
        self.next.store(next, Ordering::Release);
    }

    pub(super) fn out_of_range(&self, offset: u64) -> Error {
        let (first, next) = (self.first(), self.next());
        Error::OutOfRange { topic: self.topic.to_string(), partition: self.index, offset, first, next }
    }

    pub(super) fn place(&self, offset: u64) -> String {
        format!("{}/{} offset {offset}", self.topic, self.index)
    }

    pub(super) fn bounds_key(&self) -> Vec<u8> {
        format!("bounds/{}/{}", self.topic, self.index).into_bytes()
    }
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} {}..{}", self.topic, self.index, self.first(), self.next())
    }
}

pub(super) fn encode_bounds(first: u64, next: u64) -> Vec<u8> {
    [first.to_le_bytes(), next.to_le_bytes()].concat()
}

fn decode_bounds(bytes: &[u8]) -> Option<(u64, u64)> {
    let (first, rest) = bytes.split_first_chunk::<8>()?;
    let (next, _) = rest.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*first), u64::from_le_bytes(*next)))
}

impl Store {
    /// The topic `name`.
    pub(super) fn topic(&self, name: &str) -> Result<Arc<Topic>, Error> {
        let unknown = || Error::UnknownTopic { log: self.url.to_string(), topic: name.to_owned() };
        self.topics().get(name).cloned().ok_or_else(unknown)
    }

    pub(super) fn ensure_topic(&self, spec: &TopicSpec) -> Result<(), Error> {
        if let Ok(topic) = self.topic(&spec.name) {
            return self.check_same(&topic, spec);
        }
        check_spec(spec).map_err(|what| self.refused("creating a topic", what))?;
        // One creates, others find it created.
        let _creating = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_writable()?;
        if let Ok(topic) = self.topic(&spec.name) {
            return self.check_same(&topic, spec);
        }
        let stored = Stored {
            id: random_id(),
            partitions: spec.partitions,
            retention_ms: spec.retention.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            compacted: spec.compacted,
        };
        let failed = |e| self.failed("creating a topic", e);
        // The partitions first: after a crash in between there is no topic, and empty partitions are taken over.
        let partitions = (0..spec.partitions)
            .map(|index| {
                let records = self.db.keyspace(&keyspace_name(&spec.name, index), records_options).map_err(failed)?;
                Ok(Arc::new(Partition {
                    topic: spec.name.clone(),
                    index,
                    records,
                    first: AtomicU64::new(0),
                    next: AtomicU64::new(0),
                }))
            })
            .collect::<Result<_, Error>>()?;
        let value = serde_json::to_vec(&stored).map_err(|e| self.refused("creating a topic", e.to_string()))?;
        let mut batch = self.durable_batch();
        batch.insert(&self.meta, topic_key(&spec.name), value);
        batch.commit().map_err(failed)?;
        let topic = Topic { name: spec.name.clone(), stored, partitions };
        self.topics_mut().insert(spec.name.clone(), Arc::new(topic));
        Ok(())
    }

    fn check_same(&self, topic: &Topic, spec: &TopicSpec) -> Result<(), Error> {
        let differs = |setting, found: &dyn ToString, wanted: &dyn ToString| Error::TopicDiffers {
            log: self.url.to_string(),
            topic: spec.name.to_string(),
            setting,
            found: found.to_string(),
            wanted: wanted.to_string(),
        };
        if topic.stored.partitions != spec.partitions {
            return Err(differs("partitions", &topic.stored.partitions, &spec.partitions));
        }
        if topic.stored.compacted != spec.compacted {
            return Err(differs("compaction", &topic.stored.compacted, &spec.compacted));
        }
        Ok(())
    }

    /// The topics that the store holds, with their bounds.
    pub(super) fn load_topics(&self) -> Result<(), Error> {
        for entry in self.meta.prefix("topic/") {
            let (key, value) = entry.into_inner().map_err(|e| store::open_error(&self.url, e))?;
            let name: Arc<str> = String::from_utf8_lossy(&key["topic/".len()..]).into();
            let stored: Stored = serde_json::from_slice(&value)
                .map_err(|e| self.corrupt(format!("the settings of topic {name}"), &e.to_string()))?;
            let partitions =
                (0..stored.partitions).map(|index| self.load_partition(&name, index)).collect::<Result<_, _>>()?;
            self.topics_mut().insert(name.clone(), Arc::new(Topic { name, stored, partitions }));
        }
        Ok(())
    }

    fn load_partition(&self, topic: &Arc<str>, index: u32) -> Result<Arc<Partition>, Error> {
        let failed = |e| store::open_error(&self.url, e);
        let name = keyspace_name(topic, index);
        if !self.db.keyspace_exists(&name) {
            return Err(self.corrupt(format!("{topic}/{index}"), "its records are missing"));
        }
        let records = self.db.keyspace(&name, records_options).map_err(failed)?;
        let partition =
            Partition { topic: topic.clone(), index, records, first: AtomicU64::new(0), next: AtomicU64::new(0) };
        let bounds = self.meta.get(partition.bounds_key()).map_err(failed)?;
        let (first, next_at_least) = match bounds {
            None => (0, 0),
            Some(bytes) => decode_bounds(&bytes)
                .ok_or_else(|| self.corrupt(format!("the bounds of {topic}/{index}"), "they are cut off"))?,
        };
        let mut next = next_at_least.max(first);
        if let Some(last) = partition.records.last_key_value() {
            let (key, value) = last.into_inner().map_err(failed)?;
            let at =
                store::offset_of(&key).ok_or_else(|| self.corrupt(format!("{topic}/{index}"), "a key is no offset"))?;
            let header = block::header(at, &value).map_err(|what| self.corrupt(partition.place(at), what))?;
            next = next.max(header.last + 1);
        }
        partition.set_first(first);
        partition.publish(next);
        Ok(Arc::new(partition))
    }
}

fn check_spec(spec: &TopicSpec) -> Result<(), String> {
    let name = &spec.name;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(allowed) || matches!(&**name, "." | "..") {
        return Err(format!(
            "{name:?} is no topic name: it may have 1 to {MAX_NAME_BYTES} letters, digits, '.', '_', '-'"
        ));
    }
    if spec.partitions == 0 {
        return Err(format!("topic {name} needs at least one partition"));
    }
    Ok(())
}

fn topic_key(name: &str) -> Vec<u8> {
    format!("topic/{name}").into_bytes()
}

fn keyspace_name(topic: &str, partition: u32) -> String {
    format!("records/{topic}/{partition}")
}

/// 128 bits that no other topic has: the hasher's keys are random.
fn random_id() -> String {
    let part = || RandomState::new().hash_one(std::time::SystemTime::now());
    format!("{:016x}{:016x}", part(), part())
}
