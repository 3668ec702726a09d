//! Records in memory: one partition's records as columns over one buffer.
//!
//! ```text
//! buffer  │key│value│headers│key│value│headers│…      headers: (u16 len, name, u32 len, value)*
//! entries │offset, timestamp, where key/value/headers end│…
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::TopicPartition;

/// A record to be written. No value: a tombstone, which removes its key from a compacted topic.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The payload.
    pub value: Option<&'a [u8]>,
    /// Names and values, in order.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Milliseconds since the epoch.
    pub timestamp_ms: i64,
}

/// What a batch of a single record takes at most beside key, value and headers: its own header in Kafka's format, 61
/// bytes, and the lengths, times and offset of the record, each as a number of variable length.
const FRAME_BYTES: usize = 61 + 31;
/// The two lengths of a header.
const HEADER_FRAME_BYTES: usize = 10;

impl Record<'_> {
    /// The bytes that it takes in a log at most, before compression.
    pub fn size(&self) -> usize {
        size(self.key, self.value, self.headers.iter().copied())
    }
}

fn size<'h>(key: &[u8], value: Option<&[u8]>, headers: impl Iterator<Item = (&'h str, &'h [u8])>) -> usize {
    let headers: usize = headers.map(|(name, value)| HEADER_FRAME_BYTES + name.len() + value.len()).sum();
    FRAME_BYTES + key.len() + value.map_or(0, <[u8]>::len) + headers
}

impl RecordRef<'_> {
    /// The bytes that it takes in a log at most, before compression.
    pub fn size(&self) -> usize {
        size(self.key, self.value, self.headers)
    }
}

/// A record that was read.
#[derive(Debug, Clone, Copy)]
pub struct RecordRef<'a> {
    /// Its offset in the partition.
    pub offset: u64,
    /// Milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// The key; empty if it has none.
    pub key: &'a [u8],
    /// The payload; `None` for a tombstone.
    pub value: Option<&'a [u8]>,
    /// The headers.
    pub headers: Headers<'a>,
}

/// One partition's records.
#[derive(Debug, Clone)]
pub struct Batch {
    topic: Arc<str>,
    partition: u32,
    buffer: Vec<u8>,
    entries: Vec<Entry>,
}

/// Where one record lies in the buffer; `start` is where the one before it ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) offset: u64,
    pub(crate) timestamp_ms: i64,
    pub(crate) start: u32,
    pub(crate) key_end: u32,
    pub(crate) value_end: u32,
    pub(crate) headers_end: u32,
    pub(crate) tombstone: bool,
}

impl Batch {
    /// An empty batch.
    pub fn new(topic: Arc<str>, partition: u32) -> Self {
        Self { topic, partition, buffer: Vec::new(), entries: Vec::new() }
    }

    /// The topic.
    pub fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// The partition.
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// Topic and partition.
    pub fn at(&self) -> TopicPartition {
        TopicPartition { topic: self.topic.clone(), partition: self.partition }
    }

    /// How many records.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of keys, values and headers.
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The offset after the last record: the position once the batch is processed.
    pub fn next_offset(&self) -> Option<u64> {
        self.entries.last().map(|e| e.offset + 1)
    }

    /// Appends a record.
    ///
    /// # Panics
    /// If the batch would pass 4 GiB.
    pub fn push<'h>(
        &mut self,
        offset: u64,
        timestamp_ms: i64,
        key: &[u8],
        value: Option<&[u8]>,
        headers: impl IntoIterator<Item = (&'h str, &'h [u8])>,
    ) {
        let start = self.end();
        self.buffer.extend_from_slice(key);
        let key_end = self.end();
        self.buffer.extend_from_slice(value.unwrap_or_default());
        let value_end = self.end();
        for (name, value) in headers {
            self.buffer.extend_from_slice(&(name.len() as u16).to_le_bytes());
            self.buffer.extend_from_slice(name.as_bytes());
            self.buffer.extend_from_slice(&(value.len() as u32).to_le_bytes());
            self.buffer.extend_from_slice(value);
        }
        let headers_end = self.end();
        self.entries.push(Entry {
            offset,
            timestamp_ms,
            start,
            key_end,
            value_end,
            headers_end,
            tombstone: value.is_none(),
        });
    }

    /// Gives back the memory that was kept for more records: for batches that are held for long.
    pub fn shrink_to_fit(&mut self) {
        self.buffer.shrink_to_fit();
        self.entries.shrink_to_fit();
    }

    /// Appends the records `range` of `other`, which is of the same partition.
    ///
    /// # Panics
    /// If the batch would pass 4 GiB.
    pub(crate) fn extend_from(&mut self, other: &Batch, range: std::ops::Range<usize>) {
        let Some(last) = range.end.checked_sub(1).filter(|last| *last >= range.start) else { return };
        let (from, to) = (other.entries[range.start].start, other.entries[last].headers_end);
        let base = self.end();
        self.buffer.extend_from_slice(&other.buffer[from as usize..to as usize]);
        self.end(); // below 4 GiB, so the sums below are too
        let moved = |place: u32| place - from + base;
        self.entries.extend(other.entries[range].iter().map(|e| Entry {
            start: moved(e.start),
            key_end: moved(e.key_end),
            value_end: moved(e.value_end),
            headers_end: moved(e.headers_end),
            ..*e
        }));
    }

    /// The columns, for those that store or restore them.
    pub(crate) fn columns(&self) -> (&[Entry], &[u8]) {
        (&self.entries, &self.buffer)
    }

    /// The columns to be filled anew, emptied but with their memory.
    pub(crate) fn reset_columns(&mut self) -> (&mut Vec<Entry>, &mut Vec<u8>) {
        self.entries.clear();
        self.buffer.clear();
        (&mut self.entries, &mut self.buffer)
    }

    fn end(&self) -> u32 {
        u32::try_from(self.buffer.len()).expect("a batch stays below 4 GiB")
    }

    /// The record at `index`.
    ///
    /// # Panics
    /// If there is none.
    pub fn get(&self, index: usize) -> RecordRef<'_> {
        let e = &self.entries[index];
        let slice = |from: u32, to: u32| &self.buffer[from as usize..to as usize];
        RecordRef {
            offset: e.offset,
            timestamp_ms: e.timestamp_ms,
            key: slice(e.start, e.key_end),
            value: (!e.tombstone).then(|| slice(e.key_end, e.value_end)),
            headers: Headers(slice(e.value_end, e.headers_end)),
        }
    }

    /// All records, in offset order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = RecordRef<'_>> {
        (0..self.len()).map(|i| self.get(i))
    }
}

/// The headers of a record, in order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Headers<'a>(&'a [u8]);

impl<'a> Headers<'a> {
    /// The value of the last header with this name.
    pub fn get(self, name: &str) -> Option<&'a [u8]> {
        self.filter(|(n, _)| *n == name).last().map(|(_, value)| value)
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (len, rest) = self.0.split_first_chunk::<2>()?;
        let (name, rest) = rest.split_at_checked(u16::from_le_bytes(*len) as usize)?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        self.0 = rest;
        Some((std::str::from_utf8(name).unwrap_or_default(), value))
    }
}

/// What one commit writes, by target partition. The offsets of its batches mean nothing yet.
#[derive(Debug, Default)]
pub struct Outputs(BTreeMap<TopicPartition, Batch>);

impl Outputs {
    /// Adds a record to a partition.
    pub fn push(&mut self, topic: &Arc<str>, partition: u32, record: &Record<'_>) {
        let key = TopicPartition { topic: topic.clone(), partition };
        self.0.entry(key).or_insert_with(|| Batch::new(topic.clone(), partition)).push(
            0,
            record.timestamp_ms,
            record.key,
            record.value,
            record.headers.iter().copied(),
        );
    }

    /// The batches, in a fixed order.
    pub fn batches(&self) -> impl Iterator<Item = &Batch> {
        self.0.values()
    }

    /// How many records.
    pub fn len(&self) -> usize {
        self.0.values().map(Batch::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_gives_back_what_was_pushed() {
        let mut batch = Batch::new("t".into(), 3);
        batch.push(7, 11, b"k", Some(b"value"), [("a", &b"1"[..]), ("b", b""), ("a", b"2")]);
        batch.push(9, 12, b"", None, []);
        assert_eq!((batch.len(), batch.next_offset()), (2, Some(10)));
        let first = batch.get(0);
        assert_eq!((first.offset, first.timestamp_ms, first.key, first.value), (7, 11, &b"k"[..], Some(&b"value"[..])));
        assert_eq!(first.headers.collect::<Vec<_>>(), [("a", &b"1"[..]), ("b", b""), ("a", b"2")]);
        assert_eq!(first.headers.get("a"), Some(&b"2"[..]));
        assert_eq!(batch.get(1).value, None);
        assert_eq!(batch.get(1).headers.count(), 0);
    }

    #[test]
    fn a_part_of_a_batch_can_be_copied() {
        let mut whole = Batch::new("t".into(), 0);
        for offset in 0..10u64 {
            whole.push(offset, 5, format!("key {offset}").as_bytes(), Some(b"value"), [("h", &b"1"[..])]);
        }
        let mut part = Batch::new("t".into(), 0);
        part.extend_from(&whole, 7..9);
        part.extend_from(&whole, 3..3);
        part.extend_from(&whole, 0..1);
        assert_eq!(part.iter().map(|r| r.offset).collect::<Vec<_>>(), [7, 8, 0]);
        assert_eq!(part.get(2).key, b"key 0");
        assert_eq!(part.get(1).headers.get("h"), Some(&b"1"[..]));
    }
}
