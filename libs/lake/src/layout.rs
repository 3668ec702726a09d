//! Names of objects that hold rows: a function of topic, partition and start offset.
//!
//! ```text
//! telemetry/date=2026-11-21/partition=3/00000000000000012345.parquet
//! topic     day (UTC) of the    Kafka's  start offset, 20 digits,
//!           log's timestamps    number   so that names sort as offsets do
//!
//! telemetry/date=2026-11-21/partition=3/compacted-00000000000000012345-00000000000000099999.parquet
//!                                       start and end offset; sorts after the objects that it takes the place of
//! telemetry/…/compacted-00000000000000012345-00000000000000099999_erased-000001.parquet
//!                                       takes the place of the one above: rows of it were erased, for the first time
//! ```
//!
//! The end offset of what a sink writes is in the footer and not in the name: two sinks that start at the same offset
//! must collide, however far each of them got. Compaction writes what is already stored: there the name says which
//! objects it takes the place of, so that a listing is enough to tell which count. It sorts last, so that a listing of
//! several pages that misses an object, because it was removed, still shows what took its place.

use std::fmt;

use chrono::{DateTime, Utc};
use object_store::path::Path;

use crate::Error;

/// What the name of a compacted object begins with. Sorts after digits.
pub(crate) const COMPACTED: &str = "compacted-";

/// What follows the range in the name of a compacted object from which rows were erased. Sorts after `.parquet`.
const ERASED: &str = "_erased-";

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
    /// Of a compacted object: the offset after the last.
    pub end: Option<u64>,
    /// Of a compacted object: how often it was replaced by one of the same range with fewer rows.
    pub erasures: u32,
}

impl ObjectName {
    /// The name of the object that starts at `start` with a record that the log has stamped `first_ms`.
    pub fn new(topic: &str, partition: u32, start: u64, first_ms: i64) -> Self {
        Self { topic: topic.to_owned(), date: day(first_ms), partition, start, end: None, erasures: 0 }
    }

    /// Whether its day is over at that time.
    pub fn is_before(&self, time_ms: i64) -> bool {
        self.date < day(time_ms)
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
        let offsets = parts.next()?.strip_suffix(".parquet")?;
        let whole = parts.next().is_none() && !topic.is_empty() && !date.is_empty();
        let (start, end, erasures) = match offsets.strip_prefix(COMPACTED) {
            Some(range) => {
                let (range, erasures) = match range.split_once(ERASED) {
                    Some((range, digits)) => (range, erasures(digits)?),
                    None => (range, 0),
                };
                let (start, end) = range.split_once('-')?;
                (offset(start)?, Some(offset(end)?), erasures)
            }
            None => (offset(offsets)?, None, 0),
        };
        (whole && end.is_none_or(|end| start < end)).then_some(Self { topic, date, partition, start, end, erasures })
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, date, partition, start, end, erasures } = self;
        write!(f, "{topic}/date={date}/partition={partition}/")?;
        match end {
            None => write!(f, "{start:020}.parquet"),
            Some(end) if *erasures == 0 => write!(f, "{COMPACTED}{start:020}-{end:020}.parquet"),
            Some(end) => write!(f, "{COMPACTED}{start:020}-{end:020}{ERASED}{erasures:06}.parquet"),
        }
    }
}

/// The day (UTC) of a time. A time that no calendar has (a broken clock) goes to the first day instead of stopping the
/// pipeline.
fn day(time_ms: i64) -> String {
    let time: DateTime<Utc> = DateTime::from_timestamp_millis(time_ms).unwrap_or_default();
    time.format("%Y-%m-%d").to_string()
}

pub(crate) fn offset(digits: &str) -> Option<u64> {
    (digits.len() == 20).then(|| digits.parse().ok())?
}

fn erasures(digits: &str) -> Option<u32> {
    (digits.len() == 6).then(|| digits.parse().ok())?.filter(|erasures| *erasures > 0)
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

/// The folder of the requests to erase rows of a topic.
pub(crate) fn requests_folder(topic: &str) -> String {
    format!("_forget/{topic}")
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
        assert_eq!(ObjectName::parse(&end.to_string()), Some(end.clone()));
        let compacted = ObjectName { start: 7, end: Some(9), ..end.clone() };
        assert_eq!(ObjectName::parse(&compacted.to_string()), Some(compacted.clone()));
        assert!(compacted.to_string() > end.to_string(), "sorts after all that it may take the place of");
        let erased = ObjectName { erasures: 1, ..compacted.clone() };
        assert_eq!(ObjectName::parse(&erased.to_string()), Some(erased.clone()));
        let again = ObjectName { erasures: 10, ..compacted.clone() };
        assert!(compacted.to_string() < erased.to_string() && erased.to_string() < again.to_string());
    }

    #[test]
    fn other_names_are_not_taken_for_rows() {
        for other in [
            "telemetry/date=2026-11-21/partition=3/12345.parquet",
            "telemetry/date=2026-11-21/partition=x/00000000000000012345.parquet",
            "telemetry/date=2026-11-21/00000000000000012345.parquet",
            "telemetry/date=2026-11-21/partition=3/00000000000000012345.parquet/x",
            "telemetry/date=2026-11-21/partition=3/00000000000000012345.parquet#1",
            "telemetry/date=2026-11-21/partition=3/compacted-00000000000000012345.parquet",
            "telemetry/date=2026-11-21/partition=3/compacted-00000000000000012345-00000000000000012345.parquet",
            "telemetry/date=2026-11-21/partition=3/compacted-00000000000000012345-00000000000000012346_erased-.parquet",
            "telemetry/date=2026-11-21/partition=3/00000000000000012345_erased-000001.parquet",
            "telemetry/date=2026-11-21/partition=3/00000000000000012345-00000000000000012346.parquet",
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
