//! Topics and the bounds of their partitions, in memory and as stored.
//!
//! ```text
//! keyspace meta   topic/NAME              → JSON: id, number, partitions, retention, compacted
//!                 bounds/NAME/PARTITION   → first (u64 LE) │ next at least (u64 LE)
//!                 reclaimed               → when retention last gave disk space back (i64 LE, log time)
//!                 time                    → log time and wall clock, now and then: see `time` (i64 LE │ i64 LE)
//!                 group/GROUP NUL TOPIC   → see `groups`
//! ```
//!
//! Bounds are stored only when retention or compaction move them: otherwise the first offset is 0 and the next one
//! follows the last block.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fjall::Keyspace;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use super::block::MAX_RECORD_BYTES;
use super::disk::Disk;
use super::partition::Partition;
use crate::{Error, PartitionDescription, TopicDescription, TopicSpec};

/// Kafka's bound, so that a name is good for both backends.
const MAX_NAME_BYTES: usize = 200;

/// The topics of an open log, by name.
pub(super) struct Topics {
    by_name: RwLock<HashMap<Arc<str>, Arc<Topic>>>,
    /// Held while a topic is created.
    creating: Mutex<()>,
}

/// A topic of an open log.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    pub(super) stored: Stored,
    pub(super) partitions: Vec<Arc<Partition>>,
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

    fn partition(&self, topic: &Arc<str>, index: u32, blocks: &Keyspace) -> Partition {
        Partition::new(topic.clone(), self.number, index, blocks.clone(), self.compacted)
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
            settings_known: true,
            max_record_bytes: MAX_RECORD_BYTES,
            replicas: None,
        }
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

impl Topics {
    /// The topics that the database holds, with their bounds.
    pub(super) fn load(disk: &Disk) -> Result<Self, Error> {
        let mut by_name = HashMap::new();
        for entry in disk.meta.prefix("topic/") {
            let (key, value) = entry.into_inner().map_err(|e| disk.unopened(e))?;
            let name: Arc<str> = String::from_utf8_lossy(&key["topic/".len()..]).into();
            let stored: Stored = serde_json::from_slice(&value)
                .map_err(|e| disk.corrupt(format!("the settings of topic {name}"), &e.to_string()))?;
            if !disk.db.keyspace_exists(&stored.keyspace_name()) {
                return Err(disk.corrupt(format!("topic {name}"), "its records are missing"));
            }
            let blocks = disk.blocks(&stored.keyspace_name()).map_err(|e| disk.unopened(e))?;
            if let Some(last) = blocks.last_key_value() {
                let key = last.key().map_err(|e| disk.unopened(e))?;
                let number = key.first_chunk::<8>().map_or(0, |number| u64::from_be_bytes(*number));
                disk.next_block.fetch_max(number + 1, Ordering::AcqRel);
            }
            let partition = |index| load_bounds(disk, stored.partition(&name, index, &blocks)).map(Arc::new);
            let partitions = (0..stored.partitions).map(partition).collect::<Result<_, _>>()?;
            by_name.insert(name.clone(), Arc::new(Topic { name, stored, partitions }));
        }
        Ok(Self { by_name: by_name.into(), creating: Mutex::default() })
    }

    /// The topic `name`.
    pub(super) fn get(&self, name: &str) -> Option<Arc<Topic>> {
        self.by_name.read().get(name).cloned()
    }

    /// All topics.
    pub(super) fn all(&self) -> Vec<Arc<Topic>> {
        self.by_name.read().values().cloned().collect()
    }

    /// Creates a topic, or checks the one that exists.
    pub(super) fn ensure(&self, disk: &Disk, spec: &TopicSpec) -> Result<(), Error> {
        if let Some(topic) = self.get(&spec.name) {
            return check_same(disk, &topic, spec);
        }
        check_spec(spec).map_err(|what| disk.refused("create a topic", what))?;
        // One creates, others find it created.
        let _creating = self.creating.lock();
        disk.check_writable()?;
        if let Some(topic) = self.get(&spec.name) {
            return check_same(disk, &topic, spec);
        }
        let stored = Stored {
            id: random_id(),
            number: self.all().iter().map(|t| t.stored.number + 1).max().unwrap_or(0),
            partitions: spec.partitions,
            retention_ms: spec.retention.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            compacted: spec.compacted,
        };
        let failed = |e| disk.failed("create a topic", e);
        // The keyspace first: after a crash in between there is no topic, and the next one of its kind takes it over.
        let blocks = disk.blocks(&stored.keyspace_name()).map_err(failed)?;
        let partition = |index| Arc::new(stored.partition(&spec.name, index, &blocks));
        let partitions = (0..spec.partitions).map(partition).collect();
        let value = serde_json::to_vec(&stored).map_err(|e| disk.refused("create a topic", e.to_string()))?;
        let mut batch = disk.durable_batch();
        batch.insert(&disk.meta, topic_key(&spec.name), value);
        batch.commit().map_err(failed)?;
        let topic = Topic { name: spec.name.clone(), stored, partitions };
        let mut by_name = self.by_name.write();
        by_name.insert(spec.name.clone(), Arc::new(topic));
        Ok(())
    }
}

fn load_bounds(disk: &Disk, partition: Partition) -> Result<Partition, Error> {
    let bounds = disk.meta.get(partition.bounds_key()).map_err(|e| disk.unopened(e))?;
    let (first, next_at_least) = match bounds {
        None => (0, 0),
        Some(bytes) => decode_bounds(&bytes)
            .ok_or_else(|| disk.corrupt(partition.location(0), "the bounds of the partition are cut off"))?,
    };
    let last = disk.place_before(&partition, u64::MAX)?;
    partition.set_first(first);
    partition.publish(last.map_or(0, |place| place.last + 1).max(next_at_least));
    Ok(partition)
}

fn check_same(disk: &Disk, topic: &Topic, spec: &TopicSpec) -> Result<(), Error> {
    let differs = |setting, found: &dyn ToString, wanted: &dyn ToString| Error::TopicDiffers {
        log: disk.url.to_string(),
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

fn check_spec(spec: &TopicSpec) -> Result<(), String> {
    let name = &spec.name;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(allowed) || matches!(&**name, "." | "..") {
        return Err(format!(
            "{name:?} is not a valid topic name: use 1 to {MAX_NAME_BYTES} letters, digits, '.', '_', '-'"
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
