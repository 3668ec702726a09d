//! What can go wrong with a log, by operation.

use std::path::PathBuf;

/// A cause from a backend.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A log operation that failed. `Display` says what and where; the cause is [`std::error::Error::source`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log could not be opened.
    #[error("cannot open the log {log}")]
    Open {
        /// Its URL.
        log: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// Another process has the embedded log open.
    #[error("the log directory {} is in use by another process, and serves one: stop that one first", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// There is no such topic.
    #[error("topic {topic} does not exist in {log}")]
    UnknownTopic {
        /// The log's URL.
        log: String,
        /// The topic.
        topic: String,
    },
    /// The topic exists with other settings.
    #[error("topic {topic} in {log} has {setting} {found}, expected {wanted}: change the topic or the declaration")]
    TopicDiffers {
        /// The log's URL.
        log: String,
        /// The topic.
        topic: String,
        /// Which setting.
        setting: &'static str,
        /// As it is.
        found: String,
        /// As it was asked for.
        wanted: String,
    },
    /// The position is not in the log: retention has passed it, or it lies beyond the end.
    #[error("{topic}/{partition} offset {offset} is not in the log, which holds {first} to {next}")]
    OutOfRange {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The offset that was asked for.
        offset: u64,
        /// The first offset that can be read.
        first: u64,
        /// The offset after the last.
        next: u64,
    },
    /// The log does not answer, or refused for now; trying again may help.
    #[error("cannot {operation} on {log}")]
    Unavailable {
        /// What was tried.
        operation: &'static str,
        /// The log's URL.
        log: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// Another instance with the same group and instance name has taken over. This one must stop.
    #[error(
        "instance {instance} of group {group} was fenced: another process with this name has taken over; give every \
         process its own instance name"
    )]
    Fenced {
        /// The group.
        group: String,
        /// The instance.
        instance: String,
    },
    /// A second consumer of a group where only one can be.
    #[error("group {group} already has a consumer in {log}: the embedded log has one instance per group")]
    GroupInUse {
        /// The log's URL.
        log: String,
        /// The group.
        group: String,
    },
    /// The request can never succeed.
    #[error("cannot {operation} on {log}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// The log's URL.
        log: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// A record is larger than its topic takes. It stays so until somebody changes the topic.
    #[error("topic {topic} in {log} takes records of up to {limit} bytes, and one has {bytes}: {remedy}")]
    TooLarge {
        /// The log's URL.
        log: String,
        /// The topic.
        topic: String,
        /// As [`Record::size`](crate::Record::size) counts.
        bytes: usize,
        /// The largest that the topic takes.
        limit: usize,
        /// What an operator can do.
        remedy: &'static str,
    },
    /// The log refuses records by their time. It does so until somebody sets a clock, or changes the topic.
    #[error("topic {topic} in {log} refuses records by their time: {why}")]
    Time {
        /// The log's URL.
        log: String,
        /// The topic.
        topic: String,
        /// Which clock is wrong, and by how much.
        why: String,
    },
    /// Stored bytes are not what was written.
    #[error("{log} is damaged at {place}: {what}")]
    Corrupt {
        /// The log's URL.
        log: String,
        /// Topic, partition and offset, or file.
        place: String,
        /// What is wrong.
        what: String,
    },
}

impl Error {
    /// Whether the same operation may succeed later, unchanged.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Error::Unavailable { .. })
    }

    /// Whether it passes once an operator has changed a setting or a clock, and not before. Starting again does not
    /// help: wait where it happened, and say so.
    pub fn needs_operator(&self) -> bool {
        matches!(self, Error::TooLarge { .. } | Error::Time { .. })
    }
}
