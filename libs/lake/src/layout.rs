//! Names of objects that hold rows: a function of topic, partition and start offset.
//!
//! ```text
//! telemetry/date=2026-11-21/partition=3/00000000000000012345.parquet
//! topic     day (UTC) of the    Kafka's  start offset, 20 digits,
//!           log's timestamps    number   so that names sort as offsets do
//! ```
//!
//! The end offset is in the footer and not in the name: two writers that start at the same offset must collide,
//! however far each of them got.

use std::fmt;

use chrono::{DateTime, Utc};
use object_store::path::Path;

use crate::Error;

/// The name of an object that holds rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ObjectName {
    /// The topic that the rows come from.
    pub topic: String,
    /// The day, `YYYY-MM-DD`, of the first record's timestamp in the log.
    pub date: String,
    /// The partition.
    pub partition: u32,
    /// The first offset.
    pub start: u64,
}

impl ObjectName {
    /// The name of the object that starts at `start` with a record that the log has stamped `first_ms`.
    pub fn new(topic: &str, partition: u32, start: u64, first_ms: i64) -> Self {
        // A time that no calendar has (a broken clock) goes to the first day instead of stopping the pipeline.
        let time: DateTime<Utc> = DateTime::from_timestamp_millis(first_ms).unwrap_or_default();
        Self { topic: topic.to_owned(), date: time.format("%Y-%m-%d").to_string(), partition, start }
    }

    /// The name in the store.
    pub fn path(&self) -> Path {
        Path::from(self.to_string())
    }

    /// Reads a name; `None` if it is not of this form.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('/');
        let topic = parts.next()?.to_owned();
        let date = parts.next()?.strip_prefix("date=")?.to_owned();
        let partition = parts.next()?.strip_prefix("partition=")?.parse().ok()?;
        let digits = parts.next()?.strip_suffix(".parquet")?;
        let whole = parts.next().is_none() && digits.len() == 20 && !topic.is_empty() && !date.is_empty();
        whole.then_some(Self { topic, date, partition, start: digits.parse().ok()? })
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/date={}/partition={}/{:020}.parquet", self.topic, self.date, self.partition, self.start)
    }
}

/// A part of a partition: offsets from `start` up to, and without, `end`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OffsetRange {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The first offset.
    pub start: u64,
    /// The offset after the last.
    pub end: u64,
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} offsets {} to {}", self.topic, self.partition, self.start, self.end)
    }
}

/// The name of an object that keeps records which could not be decoded, from offset `first` to offset `last`.
///
/// Two writers that found the same records give it the same name; the content is a function of the name.
pub fn undecodable_name(topic: &str, partition: u32, first: u64, last: u64) -> String {
    format!("_undecodable/{topic}/partition={partition}/{first:020}-{last:020}.jsonl")
}

/// Refuses what would change the shape of an object name.
pub fn check_name(what: &'static str, name: &str) -> Result<(), Error> {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(safe) {
        return Err(Error::BadName { what, name: name.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back() {
        let name = ObjectName::new("telemetry", 3, 12345, 1_795_219_200_000);
        assert_eq!(name.to_string(), "telemetry/date=2026-11-21/partition=3/00000000000000012345.parquet");
        assert_eq!(name.path().as_ref(), name.to_string());
        assert_eq!(ObjectName::parse(&name.to_string()), Some(name));
        let end = ObjectName::new("t", u32::MAX, u64::MAX, i64::MAX);
        assert_eq!(ObjectName::parse(&end.to_string()), Some(end));
    }

    #[test]
    fn other_names_are_not_taken_for_rows() {
        for other in [
            "telemetry/date=2026-11-21/partition=3/12345.parquet",
            "telemetry/date=2026-11-21/partition=x/00000000000000012345.parquet",
            "telemetry/date=2026-11-21/00000000000000012345.parquet",
            "telemetry/date=2026-11-21/partition=3/00000000000000012345.parquet/x",
            "telemetry/date=2026-11-21/partition=3/00000000000000012345.parquet#1",
            "models/a/b/manifest.json",
            "",
        ] {
            assert_eq!(ObjectName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn names_that_would_leave_their_folder_are_refused() {
        for bad in ["", "..", ".hidden", "a/b", "a b", "é"] {
            assert!(check_name("a topic", bad).is_err(), "{bad}");
        }
        assert!(check_name("a topic", "telemetry.dead-letter_2").is_ok());
    }
}
