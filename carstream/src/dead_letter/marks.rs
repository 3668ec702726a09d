//! Which dead letters have been replayed: a compacted topic, keyed by TOPIC/PARTITION/OFFSET.
//!
//! A mark names the topic's identity too, so that it means nothing for a topic of the same name that was created
//! later. Marks of dead letters that retention has removed are removed with the next replay.

use std::collections::HashMap;
use std::sync::Arc;

use event_log::{Error, Log, batches, progress};
use serde::{Deserialize, Serialize};

use super::MARKS;
use super::args::Position;
use super::letters::{Letter, READ_RECORDS, Topic};

/// What is known of one replayed dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The identity of the dead-letter topic.
    pub(super) topic_id: String,
    /// When it was replayed.
    pub(super) replayed_ms: i64,
}

/// All marks.
#[derive(Debug, Default)]
pub(super) struct Marks(HashMap<Position, Mark>);

impl Marks {
    /// Reads the marks as they are now; none if there is no such topic.
    pub(super) fn read(log: &Arc<dyn Log>) -> anyhow::Result<Self> {
        let bounds = match log.describe(MARKS) {
            Ok(described) => described.partitions,
            Err(Error::UnknownTopic { .. }) => return Ok(Self::default()),
            Err(error) => return Err(error.into()),
        };
        let mut marks = HashMap::new();
        for batch in batches(log, progress::held(MARKS, &bounds), READ_RECORDS)? {
            let batch = batch?;
            for record in batch.iter() {
                let position = std::str::from_utf8(record.key).ok().and_then(|key| key.parse::<Position>().ok());
                let mark = record.value.map(serde_json::from_slice);
                match (position, mark) {
                    (Some(position), Some(Ok(mark))) => drop(marks.insert(position, mark)),
                    (Some(position), None) => drop(marks.remove(&position)),
                    // To take it for no mark could replay something twice.
                    _ => anyhow::bail!("{MARKS}/{} offset {} is no mark", batch.partition(), record.offset),
                }
            }
        }
        Ok(Self(marks))
    }

    /// When a dead letter was replayed, if it was.
    pub(super) fn replayed_ms(&self, letter: &Letter<'_>) -> Option<i64> {
        let mark = self.0.get(&letter.position())?;
        (mark.topic_id == letter.topic.described.id).then_some(mark.replayed_ms)
    }

    /// Marks of this topic whose dead letters retention has removed. A mark of an earlier topic of this name stays: the
    /// mark of the present letter will replace it.
    pub(super) fn outlived(&self, topic: &Topic) -> Vec<Position> {
        let first = |partition: u32| topic.described.partitions.get(partition as usize).map(|bounds| bounds.first);
        let gone = |position: &&Position| first(position.partition).is_none_or(|first| position.offset < first);
        self.0.keys().filter(|position| position.topic == *topic.name).filter(gone).cloned().collect()
    }

    /// Forgets marks that were removed.
    pub(super) fn forget(&mut self, removed: &[Position]) {
        removed.iter().for_each(|position| drop(self.0.remove(position)));
    }
}
