//! What can go wrong with a lake, by operation.

/// A cause from the store or the file format.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A lake operation that failed. `Display` says what and where; the cause is [`std::error::Error::source`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The lake could not be opened.
    #[error("cannot open the lake {lake}")]
    Open {
        /// Its URL.
        lake: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// Nothing can be written there.
    #[error("cannot write to the lake {lake}: check that it exists and that this user may write to it")]
    NotWritable {
        /// Its URL.
        lake: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// The store puts one object over another although it was asked not to.
    #[error(
        "the lake {lake} does not support conditional create: it overwrote an object although it was asked to create a \
         new one (If-None-Match: *). Two sinks could destroy each other's rows; use a store with conditional writes"
    )]
    Overwrites {
        /// Its URL.
        lake: String,
    },
    /// The store does not answer, or refused; trying again may help.
    #[error("cannot {operation} {object} in the lake {lake}")]
    Store {
        /// What was tried: "create", "list", "read".
        operation: &'static str,
        /// The lake's URL.
        lake: String,
        /// The object, or the prefix that was listed.
        object: String,
        /// The cause.
        #[source]
        source: object_store::Error,
    },
    /// The store took longer than the caller waits; trying again may help.
    #[error("the lake {lake} did not answer within {after:?} when asked to {operation} {object}")]
    TimedOut {
        /// What was tried.
        operation: &'static str,
        /// The lake's URL.
        lake: String,
        /// The object, or the prefix that was listed.
        object: String,
        /// How long the lake waited.
        after: std::time::Duration,
    },
    /// An object of this name exists already, and stays unchanged.
    #[error("{object} already exists in the lake {lake}")]
    Exists {
        /// The lake's URL.
        lake: String,
        /// The object.
        object: String,
    },
    /// There is no object of this name.
    #[error("{object} does not exist in the lake {lake}")]
    NotFound {
        /// The lake's URL.
        lake: String,
        /// The object.
        object: String,
    },
    /// Between two objects of a partition offsets are missing.
    #[error("the lake {lake} has a gap: {gap}; choose a range before or after it")]
    Gap {
        /// The lake's URL.
        lake: String,
        /// Where.
        gap: crate::Gap,
    },
    /// A Parquet file that carstream did not write lies where a partition's newest objects should be.
    #[error(
        "{object} in the lake {lake} was not written by carstream: if it holds the rows of objects that were removed, \
         restore them and move it out of the lake (carstream compact merges objects); otherwise move it out"
    )]
    Foreign {
        /// The lake's URL.
        lake: String,
        /// The file.
        object: String,
    },
    /// Two objects of a partition hold the same offsets.
    #[error(
        "{topic}/{partition} has an overlap in the lake {lake}: {before} ends at offset {end}, \
         but {after} starts at {start}"
    )]
    Overlap {
        /// The lake's URL.
        lake: String,
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The object that starts first.
        before: String,
        /// The offset after its last.
        end: u64,
        /// The object that starts within it.
        after: String,
        /// Its first offset.
        start: u64,
    },
    /// The lake does not hold all of a range.
    #[error(
        "the lake {lake} lacks {topic}/{partition} offsets {missing_start} to {missing_end}: wait for the sink, or \
         choose another range"
    )]
    NotCovered {
        /// The lake's URL.
        lake: String,
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The first offset that is missing.
        missing_start: u64,
        /// The offset after the last that is missing.
        missing_end: u64,
    },
    /// An object is not what this program writes.
    #[error("{object} in the lake {lake} cannot be used: {what}")]
    Unusable {
        /// The lake's URL.
        lake: String,
        /// The object.
        object: String,
        /// What is wrong with it.
        what: String,
    },
    /// Rows could not be written as Parquet.
    #[error("rows of {object} cannot be written as Parquet")]
    Encode {
        /// The object.
        object: String,
        /// The cause.
        #[source]
        source: BoxError,
    },
    /// A name that cannot be part of an object name.
    #[error("{name:?} cannot be {what}: use letters, digits, '.', '_' and '-'")]
    BadName {
        /// What it should be part of.
        what: &'static str,
        /// The name.
        name: String,
    },
}

impl Error {
    /// Whether the same operation may succeed later, unchanged.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Store { .. } | Self::TimedOut { .. })
    }

    /// Whether there is no room for what was to be written: the same may succeed once somebody has made some.
    pub fn is_full(&self) -> bool {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let first: &(dyn std::error::Error + 'static) = self;
        std::iter::successors(Some(first), |error| error.source())
            .filter_map(|error| error.downcast_ref::<std::io::Error>())
            .any(|error| matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge))
    }
}
