//! The log: append, read, transform atomically; on Apache Kafka, or embedded in the process.
//!
//! ```text
//!             ┌──────────── Log ────────────┐
//!  bridge ──► │ Appender   append → durable │
//!  stages ◄─► │ Processor  batch → commit   │   Processor = Consumer of the source log
//!  reads  ◄── │ Reader     range → batches  │             + Transactor of the target log
//!             └─────────────────────────────┘
//! ```
//!
//! This crate knows topics, partitions, offsets and bytes. It does not know what a reading is.
//!
//! Both backends keep the same promises, and one conformance suite (`tests/conformance.rs`) holds them to it:
//!
//! - An offset that was acknowledged stays, in order, until retention removes it.
//! - [`Processor::commit`] makes outputs and positions visible together or not at all.
//! - A reader sees committed records only.
//! - A position that retention has passed is an [`Error::OutOfRange`], never a silent jump.
//!
//! Appending a record, and reading it back:
//!
//! ```
//! use std::time::Duration;
//!
//! use event_log::{LogUrl, Range, Read, Record, TopicSpec};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let directory = tempfile::tempdir()?;
//! let log = event_log::open(&LogUrl::Directory(directory.path().into()), &[])?;
//! log.ensure_topic(&TopicSpec { name: "notes".into(), partitions: 1, retention: None, compacted: false })?;
//!
//! let appender = log.clone().appender(Box::new(|done| assert!(done.iter().all(|record| record.durable))))?;
//! let note = Record { key: b"car 1", value: Some(b"a note"), headers: &[], timestamp_ms: 0 };
//! appender.append(&"notes".into(), &note, 1)?;
//! assert!(appender.flush(Duration::from_secs(10)));
//!
//! let mut reader = log.reader(vec![Range { topic: "notes".into(), partition: 0, start: 0, end: Some(1) }])?;
//! let Read::Batch(batch) = reader.next(100, Duration::from_secs(10))? else { panic!("no record") };
//! assert_eq!(batch.get(0).value, Some(&b"a note"[..]));
//! # Ok(())
//! # }
//! ```

mod append;
mod args;
mod batch;
mod clock;
mod embedded;
mod error;
mod kafka;
mod processor;
pub mod progress;
mod tail;

use std::any::Any;
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use append::append_and_wait;
pub use args::{CloudLogArgs, EdgeLogArgs, KafkaOption, LogArgs, LogUrl};
pub use batch::{Batch, Headers, Outputs, Record, RecordRef};
pub use clock::Clock;
pub use embedded::CONTROL_SOCKET;
pub use error::{BoxError, Error};
pub use processor::{Event, Processor, ProcessorOptions};
pub use tail::{Batches, Tail, batches};

/// Opens the log at `url`.
///
/// Opening the same embedded directory again in one process gives the same log; opening it in another process is
/// [`Error::InUse`]. A Kafka log is returned without waiting for a broker: the first operation that needs one says
/// what it is waiting for.
pub fn open(url: &LogUrl, kafka_options: &[KafkaOption]) -> Result<Arc<dyn Log>, Error> {
    match url {
        LogUrl::Kafka { .. } => kafka::open(url, kafka_options),
        LogUrl::Directory(path) => embedded::open(path, Clock::default()),
    }
}

/// Opens the embedded log in `path`, which goes by `clock`: for tests that let days pass.
///
/// If this process has it open already, the clock stays the one that it was opened with.
pub fn open_with_clock(path: &Path, clock: Clock) -> Result<Arc<dyn Log>, Error> {
    embedded::open(path, clock)
}

/// A log: topics of partitions of records.
pub trait Log: Send + Sync + Debug {
    /// Where this log is.
    fn url(&self) -> &LogUrl;

    /// Creates the topic if it does not exist. A topic that exists with another partition count or clean-up policy
    /// is [`Error::TopicDiffers`]; other differences are left as they are.
    fn ensure_topic(&self, spec: &TopicSpec) -> Result<(), Error>;

    /// Like [`ensure_topic`](Self::ensure_topic), with this number of replicas per partition if the topic has to be
    /// created and the log has replicas. Otherwise a Kafka cluster creates as many as its administrator chose.
    fn ensure_topic_replicated(&self, spec: &TopicSpec, _replicas: u16) -> Result<(), Error> {
        self.ensure_topic(spec)
    }

    /// The topic as it is now. [`Error::UnknownTopic`] if there is none.
    fn describe(&self, topic: &str) -> Result<TopicDescription, Error>;

    /// What a partition holds now. [`Error::Unavailable`] if the topic does not have it: it may have been added, and
    /// this cluster not have heard of it yet, or not be the one that it was added to first.
    fn bounds(&self, topic: &str, partition: u32) -> Result<PartitionDescription, Error> {
        let partitions = self.describe(topic)?.partitions;
        partitions.get(partition as usize).copied().ok_or_else(|| Error::Unavailable {
            operation: "find a partition",
            log: self.url().to_string(),
            source: format!(
                "{topic} has {} partitions there, and partition {partition} is asked for",
                partitions.len()
            )
            .into(),
        })
    }

    /// Whether records can be appended to the topic now, as far as that can be known without appending one: the log
    /// answers, and no earlier write has ended it. An error that is not retriable stays until the log is opened again.
    fn check_writable(&self, topic: &str) -> Result<(), Error> {
        self.describe(topic).map(drop)
    }

    /// The committed positions of `group`, one per partition of `topic`; `None` where it has committed nothing.
    fn committed(&self, group: &str, topic: &str) -> Result<Vec<Option<u64>>, Error>;

    /// An appender that calls `on_completion` with every token exactly once, from a thread of its own.
    ///
    /// `on_completion` must not block: everybody's acknowledgements wait behind it.
    fn appender(self: Arc<Self>, on_completion: OnCompletion) -> Result<Arc<dyn Appender>, Error>;

    /// Reads the given ranges, committed records only.
    fn reader(self: Arc<Self>, ranges: Vec<Range>) -> Result<Box<dyn Reader>, Error>;

    /// The reading half of a [`Processor`] on this log alone; use [`Processor::new`].
    fn consumer(self: Arc<Self>, options: &ProcessorOptions) -> Result<Box<dyn Consumer>, Error>;

    /// The reading half of a [`Processor`] that reads `source`, and commits here. Where several instances can share a
    /// group, they share the one that is here: what fences them must be where the transactions are.
    ///
    /// If `source` is another log, its topics must be here as well, with as many partitions.
    fn consumer_of(
        self: Arc<Self>,
        source: Arc<dyn Log>,
        options: &ProcessorOptions,
    ) -> Result<Box<dyn Consumer>, Error> {
        source.consumer(options)
    }

    /// What tells one log from another, however it was reached.
    fn identity(&self) -> String {
        self.url().to_string()
    }

    /// The committing half of a [`Processor`]; use [`Processor::new`].
    fn transactor(self: Arc<Self>, options: &ProcessorOptions) -> Result<Box<dyn Transactor>, Error>;

    /// Makes `group` known as a reader of `topic`, with these positions, one per partition as
    /// [`committed`](Self::committed) gives them: for a group that has not joined yet, or that keeps its positions in
    /// another log. The embedded log's retention keeps what a known group has not read; positions may be behind, never
    /// ahead. Kafka's retention knows no groups: there it does nothing.
    fn keep_for(&self, _group: &str, _topic: &str, _positions: &[Option<u64>]) -> Result<(), Error> {
        Ok(())
    }

    /// The groups that retention waits for, by name and topic. None on Kafka, whose retention waits for nobody.
    fn groups(&self) -> Result<Vec<Group>, Error> {
        Ok(Vec::new())
    }

    /// Forgets `group` and its positions; retention no longer waits for it. If it joins again, it begins anew. Returns
    /// whether it was known.
    ///
    /// Kafka has its own tool for its groups: there it does nothing.
    fn forget_group(&self, _group: &str) -> Result<bool, Error> {
        Ok(false)
    }

    /// What an operator should know of an embedded log.
    fn health(&self) -> Health {
        Health::default()
    }

    /// Applies retention and compaction now where the log does that itself, as the embedded one does every few
    /// seconds. Kafka's brokers do it in their own time: there it does nothing.
    fn maintain(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// Appends single records and reports when they are durable.
pub trait Appender: Send + Sync {
    /// Queues one record for the partition that its key belongs to ([`partition_for_key`]).
    ///
    /// Never blocks. [`AppendError::Full`] means that the bounded queue is full: try again after a completion.
    /// Records of one key that one thread appends keep their order.
    fn append(&self, topic: &Arc<str>, record: &Record<'_>, token: u64) -> Result<(), AppendError>;

    /// Waits until every queued record has completed, at most `timeout`. Returns whether all have.
    fn flush(&self, timeout: Duration) -> bool;
}

/// Why a record was not queued. Nothing was appended, and its token will not come back.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The queue is at its bound.
    #[error("the append queue is full")]
    Full,
    /// The record can never be appended (unknown topic, too large), or the log has failed for good.
    #[error(transparent)]
    Refused(#[from] Error),
}

/// What became of one appended record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The token that came with the record.
    pub token: u64,
    /// Whether the record is durable. `false`: it may or may not be in the log; do not acknowledge it.
    pub durable: bool,
}

/// Receives completions, many at a time.
pub type OnCompletion = Box<dyn Fn(&[Completion]) + Send + Sync>;

/// Reads ranges of partitions in offset order.
pub trait Reader: Send {
    /// The next records of one partition, at most `max_records`; [`Read::Idle`] after `timeout` without any.
    fn next(&mut self, max_records: usize, timeout: Duration) -> Result<Read, Error>;
}

/// What a [`Reader`] found.
#[derive(Debug)]
pub enum Read {
    /// Records of one partition.
    Batch(Batch),
    /// Nothing within the time-out; more may come.
    Idle,
    /// Every range has been read to its end.
    End,
}

/// The reading half of a [`Processor`]: the partitions that this instance holds in its group.
pub trait Consumer: Send {
    /// The next event. After `Assigned` nothing comes from those partitions before [`Consumer::seek`].
    fn poll(&mut self, max_records: usize, timeout: Duration) -> Result<Event, Error>;
    /// Goes on from these positions.
    fn seek(&mut self, positions: &[Position]) -> Result<(), Error>;
    /// Reads nothing more from these partitions until they are sought. They stay with this instance.
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), Error>;
    /// What a [`Transactor`] of the same log needs to fence an instance that has lost its partitions.
    fn membership(&self) -> Membership;
}

/// The committing half of a [`Processor`].
pub trait Transactor: Send {
    /// The committed positions of the group, in the order asked for.
    fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, Error>;
    /// Makes `outputs` and `positions` durable and visible together.
    ///
    /// After [`Outcome::RolledBack`] the transactor has recovered, and [`Transactor::committed`] says what holds.
    fn commit(&mut self, outputs: &Outputs, positions: &[Position], membership: &Membership) -> Result<Outcome, Error>;
}

/// A consumer's place in its group, as its backend knows it: only that backend's transactor looks into it. The default
/// is no place in any group, as on the embedded log, whose groups have one instance.
#[derive(Default)]
pub struct Membership(Option<Box<dyn Any + Send>>);

impl Membership {
    /// This place, of a type of the backend's own.
    pub fn of(place: impl Any + Send) -> Self {
        Self(Some(Box::new(place)))
    }

    /// The place, if there is one and it is of this type.
    pub fn place<T: Any>(&self) -> Option<&T> {
        self.0.as_ref()?.downcast_ref()
    }
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Outputs and positions are durable and visible.
    Committed,
    /// Neither is, or an earlier, unknown outcome turned out to be a commit: what holds is in the committed positions.
    RolledBack,
}

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition, from 0.
    pub partition: u32,
}

/// The offset of the next record to be processed in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition, from 0.
    pub partition: u32,
    /// The next offset.
    pub offset: u64,
}

impl Position {
    /// The partition that it is a position of.
    pub fn at(&self) -> TopicPartition {
        TopicPartition { topic: self.topic.clone(), partition: self.partition }
    }
}

/// A part of a partition to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition, from 0.
    pub partition: u32,
    /// The first offset.
    pub start: u64,
    /// The offset after the last, or `None` to follow the partition as it grows.
    pub end: Option<u64>,
}

/// What a topic should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// The name.
    pub name: Arc<str>,
    /// How many partitions.
    pub partitions: u32,
    /// Remove what is older than this; `None` keeps everything.
    pub retention: Option<Duration>,
    /// Keep the last record of each key instead of all.
    pub compacted: bool,
}

/// What a topic is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicDescription {
    /// Its identity: another one after the topic was deleted and created again.
    pub id: String,
    /// Its partitions, in order.
    pub partitions: Vec<PartitionDescription>,
    /// Whether it is compacted.
    pub compacted: bool,
    /// The log removes records that are older than this, some time after; `None`: age removes nothing.
    pub retention: Option<Duration>,
    /// Whether the log lets this user read the topic's settings. If not, it is taken to be neither compacted nor to
    /// have a retention.
    pub settings_known: bool,
    /// The largest record that a commit can write to it, as [`Record::size`] counts.
    pub max_record_bytes: usize,
    /// How many replicas each partition has, at least; `None` where there is no such thing.
    pub replicas: Option<u16>,
}

/// A group that reads a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: Arc<str>,
    /// The topic.
    pub topic: Arc<str>,
    /// Its positions, one per partition; `None` where it has committed nothing.
    pub positions: Vec<Option<u64>>,
}

/// What has happened to an embedded log since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Health {
    /// How often the wall clock was found to have been set.
    pub clock_steps: u64,
    /// Records that retention removed though a group had not read them, because the disk was almost full.
    pub records_given_up: u64,
    /// Records past their retention that are kept for a group that has not read them.
    pub records_held: u64,
}

/// The bounds of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionDescription {
    /// The first offset that can still be read.
    pub first: u64,
    /// The offset that the next committed record will have at the earliest.
    pub next: u64,
}

/// The partition of a key: Kafka's default partitioner (murmur2), on both backends.
///
/// Source: `org.apache.kafka.common.utils.Utils.murmur2` and `BuiltInPartitioner.partitionForKey`.
pub fn partition_for_key(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions
}

fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    let mut h = SEED ^ data.len() as u32;
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_agree_with_kafka() {
        // Expected hashes: Apache Kafka's own UtilsTest.testMurmur2.
        for (key, hash) in [
            ("21", -973_932_308i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }
}
