//! What a log holds, and whether each record that was put in has had one effect, in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use event_log::{Log, Outputs, Range, Read, Record, partition_for_key};
use pipeline::DeadLetterHeader;

/// A partition and an offset.
pub(crate) type Place = (u32, u64);

/// A record that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) timestamp_ms: i64,
}

impl Found {
    pub(crate) fn place(&self) -> Place {
        (self.partition, self.offset)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.value).into_owned()
    }

    /// The last header of this name.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let found = self.headers.iter().rev().find(|(n, _)| n == name)?;
        Some(String::from_utf8_lossy(&found.1).into_owned())
    }

    /// Where a dead letter came from.
    pub(crate) fn origin(&self) -> Option<Place> {
        let number = |name| self.header(name)?.parse().ok();
        Some((number(DeadLetterHeader::PARTITION)? as u32, number(DeadLetterHeader::OFFSET)?))
    }
}

/// Every record of a topic, by partition and offset.
pub(crate) fn contents(log: &Arc<dyn Log>, topic: &str) -> Vec<Found> {
    let ranges = (0..).zip(log.describe(topic).unwrap().partitions).map(|(partition, bounds)| Range {
        topic: topic.into(),
        partition,
        start: bounds.first,
        end: Some(bounds.next),
    });
    let mut reader = log.clone().reader(ranges.collect()).unwrap();
    let mut records = Vec::new();
    loop {
        match reader.next(1000, Duration::from_secs(60)).unwrap() {
            Read::Batch(batch) => records.extend(batch.iter().map(|r| Found {
                partition: batch.partition(),
                offset: r.offset,
                key: String::from_utf8_lossy(r.key).into_owned(),
                value: r.value.unwrap_or_default().to_vec(),
                headers: r.headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect(),
                timestamp_ms: r.timestamp_ms,
            })),
            Read::Idle => {}
            Read::End => break,
        }
    }
    records.sort_by_key(Found::place);
    records
}

/// Adds a record for the partition of its key.
pub(crate) fn put(outputs: &mut Outputs, topic: &Arc<str>, partitions: u32, key: &str, value: &[u8]) {
    let record = Record { key: key.as_bytes(), value: Some(value), headers: &[], timestamp_ms: 5 };
    outputs.push(topic, partition_for_key(key.as_bytes(), partitions), &record);
}

/// Compares the effects of a topic's records with what they should be: exactly those expected, each once. `effects` are
/// places of the topic that something was made of.
pub(crate) fn once_each<'f>(
    topic: &str,
    expected: impl Iterator<Item = &'f Found>,
    effects: impl Iterator<Item = Place>,
) -> Vec<String> {
    let mut times: BTreeMap<Place, u32> = BTreeMap::new();
    for place in effects {
        *times.entry(place).or_default() += 1;
    }
    let mut findings = Vec::new();
    for found in expected {
        let (partition, offset) = found.place();
        let what = format!("{topic}/{partition} offset {offset} (key {}, {})", found.key, found.text());
        match times.remove(&found.place()) {
            Some(1) => {}
            None => findings.push(format!("{what} has no effect")),
            Some(times) => findings.push(format!("{what} has {times} effects")),
        }
    }
    findings.extend(times.keys().map(|(partition, offset)| format!("{topic}/{partition} has no offset {offset}")));
    findings
}

/// Checks that what was made of the records of one key lies in the order of these records. `made`: key, the source's
/// offset, in the order of the output.
pub(crate) fn in_order<'f>(topic: &str, made: impl Iterator<Item = (&'f str, u64)>) -> Vec<String> {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    let mut findings = Vec::new();
    for (key, offset) in made {
        if let Some(before) = last.insert(key, offset).filter(|before| *before >= offset) {
            findings.push(format!("{topic} offset {offset} (key {key}) has its effect after offset {before}"));
        }
    }
    findings
}
