//! Topics and the bounds of their partitions, in memory and as stored.
//!
//! ```text
//! keyspace meta   topic/NAME              → JSON: id, number, partitions, retention, compacted
//!                 bounds/NAME/PARTITION   → first (u64 LE) │ next at least (u64 LE)
//!                 reclaimed               → when retention last gave disk space back (i64 LE, ms since the epoch)
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

use super::store::{self, Store, blocks_options};
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
    /// Shared with all topics of the same kind.
    pub(super) blocks: Keyspace,
    pub(super) compacted: bool,
    /// The topic's number in the index.
    number: u32,
    first: AtomicU64,
    next: AtomicU64,
}

/// A topic as stored.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    id: String,
    /// Small and unique, for keys.
    number: u32,
    partitions: u32,
    retention_ms: Option<u64>,
    pub(super) compacted: bool,
}

impl Stored {
    pub(super) fn retention(&self) -> Option<Duration> {
        self.retention_ms.map(Duration::from_millis)
    }

    /// Topics of one kind share a keyspace of blocks.
    fn keyspace_name(&self) -> String {
        match (self.compacted, self.retention_ms) {
            (true, _) => "blocks/compacted".to_owned(),
            (false, Some(ms)) => format!("blocks/{ms}ms"),
            (false, None) => "blocks/kept".to_owned(),
        }
    }
}

impl Topic {
    pub(super) fn describe(&self) -> TopicDescription {
        let partitions = self.partitions.iter().map(|p| PartitionDescription { first: p.first(), next: p.next() });
        TopicDescription {
            id: self.stored.id.clone(),
            partitions: partitions.collect(),
            compacted: self.stored.compacted,
            // What is compacted does not age here.
            retention: self.stored.retention().filter(|_| !self.stored.compacted),
            replicas: None,
        }
    }
}

impl Partition {
    fn new(topic: &Arc<str>, stored: &Stored, index: u32, blocks: Keyspace) -> Self {
        let (first, next) = (AtomicU64::new(0), AtomicU64::new(0));
        let (number, compacted) = (stored.number, stored.compacted);
        Self { topic: topic.clone(), index, blocks, compacted, number, first, next }
    }

    pub(super) fn index_key(&self, offset: u64) -> [u8; 16] {
        let mut key = [0; 16];
        key[..4].copy_from_slice(&self.number.to_be_bytes());
        key[4..8].copy_from_slice(&self.index.to_be_bytes());
        key[8..].copy_from_slice(&offset.to_be_bytes());
        key
    }

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
        let number = self.topics().values().map(|t| t.stored.number + 1).max().unwrap_or(0);
        let stored = Stored {
            id: random_id(),
            number,
            partitions: spec.partitions,
            retention_ms: spec.retention.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            compacted: spec.compacted,
        };
        let failed = |e| self.failed("creating a topic", e);
        // The keyspace first: after a crash in between there is no topic, and the next one of its kind takes it over.
        let blocks = self.db.keyspace(&stored.keyspace_name(), blocks_options).map_err(failed)?;
        let partition = |index| Arc::new(Partition::new(&spec.name, &stored, index, blocks.clone()));
        let partitions = (0..spec.partitions).map(partition).collect();
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
            if !self.db.keyspace_exists(&stored.keyspace_name()) {
                return Err(self.corrupt(format!("topic {name}"), "its records are missing"));
            }
            let blocks = self.db.keyspace(&stored.keyspace_name(), blocks_options);
            let blocks = blocks.map_err(|e| store::open_error(&self.url, e))?;
            if let Some(last) = blocks.last_key_value() {
                let key = last.key().map_err(|e| store::open_error(&self.url, e))?;
                let number = key.first_chunk::<8>().map_or(0, |number| u64::from_be_bytes(*number));
                self.next_block.fetch_max(number + 1, Ordering::AcqRel);
            }
            let partition = |index| self.load_partition(Partition::new(&name, &stored, index, blocks.clone()));
            let partitions = (0..stored.partitions).map(partition).collect::<Result<_, _>>()?;
            self.topics_mut().insert(name.clone(), Arc::new(Topic { name, stored, partitions }));
        }
        Ok(())
    }

    fn load_partition(&self, partition: Partition) -> Result<Arc<Partition>, Error> {
        let bounds = self.meta.get(partition.bounds_key()).map_err(|e| store::open_error(&self.url, e))?;
        let (first, next_at_least) = match bounds {
            None => (0, 0),
            Some(bytes) => decode_bounds(&bytes)
                .ok_or_else(|| self.corrupt(partition.place(0), "the bounds of the partition are cut off"))?,
        };
        let last = self.place_before(&partition, u64::MAX)?;
        partition.set_first(first);
        partition.publish(last.map_or(0, |place| place.last + 1).max(next_at_least));
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

/// 128 bits that no other topic has: the hasher's keys are random.
fn random_id() -> String {
    let part = || RandomState::new().hash_one(std::time::SystemTime::now());
    format!("{:016x}{:016x}", part(), part())
}
