//! What the target knows of a topic's copies besides their positions: the compacted topic `replicator.state`.
//!
//! ```text
//! SOURCE/TOPIC                    Origin     which source topic the positions belong to, since which target offsets
//! SOURCE/TOPIC/accepted/TIME_MS   Accepted   what an operator let pass: a gap, another topic, more partitions
//! SOURCE/TOPIC/empty/PARTITION    Empty      offsets behind the position that hold no record
//! ```
//!
//! The first two are written in the transaction that writes the positions they are about. The last one is a fact about
//! the source, true whoever says it. It is needed because Kafka's transactions take an offset behind their records:
//! once retention has removed that too, only this tells it from a record that was never copied.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use event_log::{Error, Log, Outputs, Range, Record, append_and_wait};
use serde::{Deserialize, Serialize};

use crate::copies::{READ_RECORDS, visit};

/// The topic of the target log that holds what this module describes.
pub const STATE_TOPIC: &str = contract::own::REPLICATOR_STATE;

/// How long to wait until a note is written.
const APPEND_BUDGET: Duration = Duration::from_secs(2);

/// The source topic that was copied up to the positions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// Its identity.
    pub(crate) topic_id: String,
    /// By partition: no copy is before this offset of the target.
    pub(crate) target_from: Vec<u64>,
}

/// What an operator accepted. Never removed, so that whoever counts records later finds out why some are missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "accepted", rename_all = "kebab-case")]
pub enum Accepted {
    /// Records that retention had removed before they were copied.
    Gap {
        /// Where.
        partitions: Vec<Gap>,
    },
    /// The source topic was deleted and created again.
    Recreated {
        /// The identity of the topic that was copied before.
        old_topic_id: String,
        /// How far it was copied, by partition.
        old_positions: Vec<Option<u64>>,
        /// The identity of the one that is copied since.
        topic_id: String,
        /// Where copying began in it, by partition.
        source_from: Vec<u64>,
        /// Where its copies begin in the target, by partition.
        target_from: Vec<u64>,
    },
    /// Partitions were added.
    Partitions {
        /// How many there were.
        from: usize,
        /// How many there are.
        to: usize,
    },
    /// Positions that the target had forgotten were found again by the copies.
    Positions {
        /// By partition.
        positions: Vec<u64>,
    },
}

/// Offsets of one partition that were never copied, and are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The partition.
    pub partition: u32,
    /// The first offset that is gone.
    pub from: u64,
    /// The offset after the last.
    pub to: u64,
}

/// Offsets of a source partition that hold no record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Empty {
    /// Of the topic with this identity.
    pub(crate) topic_id: String,
    /// The first of them.
    pub(crate) from: u64,
    /// The offset after the last.
    pub(crate) to: u64,
}

/// The state of the copies of one topic, as the target has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct CopyState {
    /// None: nothing was ever copied.
    pub(crate) origin: Option<Origin>,
    /// By partition.
    pub(crate) empty: BTreeMap<u32, Empty>,
}

/// Reads the state of the copies from the target.
pub(crate) fn load(target: &Arc<dyn Log>, source_name: &str, topic: &str) -> Result<CopyState, Error> {
    let (key, empty) = (key(source_name, topic), format!("{}/empty/", key(source_name, topic)));
    let bounds = target.describe(STATE_TOPIC)?.partitions[0];
    let range = Range { topic: STATE_TOPIC.into(), partition: 0, start: bounds.first, end: Some(bounds.next) };
    let mut state = CopyState::default();
    let mut take = |record_key: &str, value: &[u8]| -> serde_json::Result<()> {
        if record_key == key {
            state.origin = Some(serde_json::from_slice(value)?);
        } else if let Some(partition) = record_key.strip_prefix(&empty).and_then(|p| p.parse().ok()) {
            state.empty.insert(partition, serde_json::from_slice(value)?);
        }
        Ok(())
    };
    let unreadable = visit(target, range, READ_RECORDS, |record| {
        let record_key = String::from_utf8_lossy(record.key);
        let error = take(&record_key, record.value?).err()?;
        Some(Error::Corrupt {
            log: target.url().to_string(),
            place: format!("{STATE_TOPIC}/0 offset {}", record.offset),
            what: format!("what it says about {record_key} cannot be read: {error}"),
        })
    })?;
    unreadable.map_or(Ok(state), Err)
}

/// The gaps of a topic that an operator accepted, since the source topic that is copied now was created.
pub fn accepted_gaps(target: &Arc<dyn Log>, source_name: &str, topic: &str) -> Result<Vec<Gap>, Error> {
    let prefix = format!("{}/accepted/", key(source_name, topic));
    let bounds = target.describe(STATE_TOPIC)?.partitions[0];
    let range = Range { topic: STATE_TOPIC.into(), partition: 0, start: bounds.first, end: Some(bounds.next) };
    let mut gaps = Vec::new();
    visit(target, range, READ_RECORDS, |record| {
        if record.key.starts_with(prefix.as_bytes()) {
            match serde_json::from_slice(record.value?) {
                Ok(Accepted::Gap { partitions }) => gaps.extend(partitions),
                Ok(Accepted::Recreated { .. }) => gaps.clear(),
                _ => {}
            }
        }
        None::<()>
    })?;
    Ok(gaps)
}

/// Notes that offsets hold no record. Best effort: without it, a later start may ask about a gap that is none.
pub(crate) fn append_empty(target: &Arc<dyn Log>, source_name: &str, topic: &str, partition: u32, empty: &Empty) {
    let key = format!("{}/empty/{partition}", key(source_name, topic));
    let value = to_json(empty);
    let record = Record { key: key.as_bytes(), value: Some(&value), headers: &[], timestamp_ms: service::now_ms() };
    if let Err(error) = append_and_wait(target, &STATE_TOPIC.into(), &record, APPEND_BUDGET) {
        tracing::debug!(%topic, partition, "cannot record that offsets hold no record: {error}");
    }
}

pub(crate) fn put_origin(outputs: &mut Outputs, source_name: &str, topic: &str, origin: &Origin) {
    put(outputs, &key(source_name, topic), origin);
}

pub(crate) fn put_accepted(outputs: &mut Outputs, source_name: &str, topic: &str, accepted: &Accepted) {
    put(outputs, &format!("{}/accepted/{}", key(source_name, topic), service::now_ms()), accepted);
}

fn put(outputs: &mut Outputs, key: &str, value: &impl Serialize) {
    let value = to_json(value);
    let record = Record { key: key.as_bytes(), value: Some(&value), headers: &[], timestamp_ms: service::now_ms() };
    outputs.push(&STATE_TOPIC.into(), 0, &record);
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("names, numbers and lists of them are JSON")
}

fn key(source_name: &str, topic: &str) -> String {
    format!("{source_name}/{topic}")
}
