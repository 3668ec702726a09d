//! What a transform gives out during one transaction.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use event_log::{Batch, Error, Log, Outputs, Record, RecordRef, partition_for_key};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

/// The headers that a dead letter has besides those that the record came with.
#[derive(Debug)]
pub struct DeadLetterHeader;

impl DeadLetterHeader {
    /// Why: a short fixed word such as `malformed-json`.
    pub const REASON: &'static str = "dead-letter.reason";
    /// What exactly, for a person.
    pub const DETAIL: &'static str = "dead-letter.detail";
    /// The topic that it was read from.
    pub const TOPIC: &'static str = "dead-letter.source.topic";
    /// The partition, in decimal.
    pub const PARTITION: &'static str = "dead-letter.source.partition";
    /// The offset, in decimal.
    pub const OFFSET: &'static str = "dead-letter.source.offset";
    /// When it was set aside: milliseconds since the epoch, in decimal.
    pub const TIME_MS: &'static str = "dead-letter.time_ms";
}

/// Collects outputs and dead letters, and what is to be counted once they are committed.
#[derive(Debug)]
pub struct Emit {
    partitions: HashMap<Arc<str>, u32>,
    dead_letter: Option<Arc<str>>,
    origin: (Arc<str>, u32),
    emitted: Emitted,
}

/// What was emitted since the last commit.
#[derive(Debug, Default)]
pub(crate) struct Emitted {
    pub(crate) outputs: Outputs,
    pub(crate) dead_letters: BTreeMap<&'static str, u64>,
    pub(crate) counts: Vec<(Counter, u64)>,
    pub(crate) observations: Vec<(Histogram, Vec<f64>)>,
}

impl Emit {
    pub(crate) fn new(target: &dyn Log, outputs: &[Arc<str>], dead_letter: Option<&Arc<str>>) -> Result<Self, Error> {
        let mut partitions = HashMap::new();
        for topic in outputs.iter().chain(dead_letter) {
            partitions.insert(topic.clone(), target.describe(topic)?.partitions.len() as u32);
        }
        let origin = ("".into(), 0);
        Ok(Self { partitions, dead_letter: dead_letter.cloned(), origin, emitted: Emitted::default() })
    }

    /// Counts the partitions of the outputs anew: added ones are to be written to.
    pub(crate) fn count_partitions(&mut self, target: &dyn Log) -> Result<(), Error> {
        for (topic, count) in &mut self.partitions {
            let found = target.describe(topic)?.partitions.len() as u32;
            if found != *count {
                tracing::warn!(
                    log = %target.url(),
                    %topic,
                    "topic {topic} has {found} partitions now, and had {count}: records of some keys are in another \
                     partition than before"
                );
                *count = found;
            }
        }
        Ok(())
    }

    pub(crate) fn begin(&mut self, batch: &Batch) {
        self.origin = (batch.topic().clone(), batch.partition());
    }

    pub(crate) fn take(&mut self) -> Emitted {
        std::mem::take(&mut self.emitted)
    }

    /// Emits a record to the partition of its key.
    ///
    /// # Panics
    /// If `topic` is not among [`crate::Options::outputs`].
    pub fn send(&mut self, topic: &Arc<str>, record: &Record<'_>) {
        let partitions = *self.partitions.get(topic).unwrap_or_else(|| panic!("{topic} is not a declared output"));
        self.emitted.outputs.push(topic, partition_for_key(record.key, partitions), record);
    }

    /// Emits a record to a given partition.
    pub fn send_to(&mut self, topic: &Arc<str>, partition: u32, record: &Record<'_>) {
        self.emitted.outputs.push(topic, partition, record);
    }

    /// Adds to a counter when the emitted records are committed: a batch that is rolled back and repeated counts once.
    pub fn count(&mut self, counter: &Counter, by: u64) {
        self.emitted.counts.push((counter.clone(), by));
    }

    /// The same for a histogram.
    pub fn observe(&mut self, histogram: &Histogram, values: Vec<f64>) {
        self.emitted.observations.push((histogram.clone(), values));
    }

    /// Puts a record of the current batch aside: as it came, with where it came from and why it cannot be used.
    ///
    /// # Panics
    /// If the stage has no dead-letter topic.
    pub fn dead_letter(&mut self, record: &RecordRef<'_>, reason: &'static str, detail: &str) {
        let topic = self.dead_letter.clone().expect("a stage that makes dead letters has a topic for them");
        let (origin_topic, origin_partition) = self.origin.clone();
        let partition = origin_partition.to_string();
        let offset = record.offset.to_string();
        let time_ms = service::now_ms().to_string();
        let mut headers: Vec<(&str, &[u8])> = record.headers.collect();
        headers.extend([
            (DeadLetterHeader::REASON, reason.as_bytes()),
            (DeadLetterHeader::DETAIL, detail.as_bytes()),
            (DeadLetterHeader::TOPIC, origin_topic.as_bytes()),
            (DeadLetterHeader::PARTITION, partition.as_bytes()),
            (DeadLetterHeader::OFFSET, offset.as_bytes()),
            (DeadLetterHeader::TIME_MS, time_ms.as_bytes()),
        ]);
        let letter =
            Record { key: record.key, value: record.value, headers: &headers, timestamp_ms: record.timestamp_ms };
        self.send(&topic, &letter);
        *self.emitted.dead_letters.entry(reason).or_default() += 1;
    }
}
