//! A partition of an open log: its bounds in memory, and its keys on disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fjall::Keyspace;

use crate::Error;

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

impl Partition {
    /// An empty partition of the topic with this number.
    pub(super) fn new(topic: Arc<str>, number: u32, index: u32, blocks: Keyspace, compacted: bool) -> Self {
        let (first, next) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { topic, index, blocks, compacted, number, first, next }
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

    /// Forgets records below `first`, which must be stored already.
    pub(super) fn set_first(&self, first: u64) {
        self.first.store(first, Ordering::Release);
    }

    /// Shows readers the records below `next`, which must be durable.
    pub(super) fn publish(&self, next: u64) {
        self.next.store(next, Ordering::Release);
    }

    pub(super) fn out_of_range(&self, offset: u64) -> Error {
        let (first, next) = (self.first(), self.next());
        Error::OutOfRange { topic: self.topic.to_string(), partition: self.index, offset, first, next }
    }

    pub(super) fn location(&self, offset: u64) -> String {
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
