//! What an operator decided about partitions that had stopped, in a compacted topic of the target log.
//!
//! ```text
//! key     GROUP/TOPIC/PARTITION/FROM     FROM: the committed position, whose record is no longer in the log
//! value   {"topic_id": …, "accepted": "gap", "accepted_ms": …}            carstream resume: decided
//!         {"topic_id": …, "accepted": "gap", "accepted_ms": …, "to": …}   the stage, with its new position: done
//! ```
//!
//! A decision is about one position, so that it never lets another gap pass. The stage that holds the partition carries
//! it out: only that one may commit, however many instances there are. The records are never removed: whoever counts
//! readings later finds out why some are missing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use event_log::{Error, Log, Outputs, Record, append_and_wait, batches, progress};
use serde::{Deserialize, Serialize};

/// How long to wait until a decision is durable.
const APPEND_BUDGET: Duration = Duration::from_secs(30);
/// How long one read may take to come up with a record: a reader of Kafka connects first.
const READ_BUDGET: Duration = Duration::from_secs(30);
/// Records per read: each is small.
const READ_RECORDS: usize = 1000;

/// How a partition resumes that has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accept {
    /// At the first offset that is left: retention has removed records before they were processed.
    Gap,
    /// At the first offset of the topic, which ends before the position: it was deleted and created again.
    Recreated,
}

impl Accept {
    /// The setting of `carstream resume`.
    pub fn setting(self) -> &'static str {
        match self {
            Self::Gap => "--accept-gap",
            Self::Recreated => "--accept-recreated",
        }
    }
}

/// A position that its partition does not hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The group.
    pub group: Arc<str>,
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// The committed position.
    pub from: u64,
}

/// What was decided about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The identity of the source topic.
    pub topic_id: String,
    /// How the partition resumes.
    pub accepted: Accept,
    /// When that was decided.
    pub accepted_ms: i64,
    /// Where it has resumed; `None`: not carried out yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
}

impl Decision {
    /// The offsets that the group never processes: it was at `from`. `None`: not carried out yet.
    pub fn skipped(&self, from: u64) -> Option<Range<u64>> {
        let to = self.to?;
        Some(match self.accepted {
            Accept::Gap => from..to,
            // Those of another topic came before: of this one retention has removed the beginning.
            Accept::Recreated => 0..to,
        })
    }
}

/// All decisions that a log holds.
pub type Decisions = BTreeMap<Place, Decision>;

/// Reads the decisions about partitions of `topic` that `group` reads. None if there is no topic `gaps`.
pub fn load(log: &Arc<dyn Log>, gaps: &str, group: &str, topic: &str) -> Result<Decisions, Error> {
    let partitions = match log.describe(gaps) {
        Err(Error::UnknownTopic { .. }) => return Ok(Decisions::new()),
        described => described?.partitions,
    };
    let prefix = format!("{group}/{topic}/");
    let mut decisions = Decisions::new();
    for batch in batches(log, progress::held(gaps, &partitions), READ_RECORDS)?.patience(READ_BUDGET) {
        for record in batch?.iter() {
            let Some(rest) = record.key.strip_prefix(prefix.as_bytes()) else { continue };
            let place = std::str::from_utf8(rest).ok().and_then(|rest| rest.split_once('/'));
            let place = place.and_then(|(partition, from)| Some((partition.parse().ok()?, from.parse().ok()?)));
            let decision = record.value.and_then(|value| serde_json::from_slice(value).ok());
            let Some(((partition, from), decision)) = place.zip(decision) else {
                let place = format!("{gaps}/0 offset {}", record.offset);
                let (log, what) = (log.url().to_string(), "it is no decision about a partition".to_owned());
                return Err(Error::Corrupt { log, place, what });
            };
            decisions.insert(Place { group: group.into(), topic: topic.into(), partition, from }, decision);
        }
    }
    Ok(decisions)
}

/// Records a decision, for the stage to carry out. Blocking.
pub fn decide(log: &Arc<dyn Log>, gaps: &Arc<str>, place: &Place, decision: &Decision) -> Result<(), Error> {
    let (key, value) = (key(place), value(decision));
    let record = Record { key: &key, value: Some(&value), headers: &[], timestamp_ms: decision.accepted_ms };
    if append_and_wait(log, gaps, &record, APPEND_BUDGET)? {
        return Ok(());
    }
    let source = format!("not durable within {} s: try again", APPEND_BUDGET.as_secs()).into();
    Err(Error::Unavailable { operation: "record a decision", log: log.url().to_string(), source })
}

/// Adds a decision to the outputs of the transaction that carries it out.
pub(crate) fn put(outputs: &mut Outputs, gaps: &Arc<str>, place: &Place, decision: &Decision) {
    let (key, value) = (key(place), value(decision));
    let record = Record { key: &key, value: Some(&value), headers: &[], timestamp_ms: service::now_ms() };
    outputs.push(gaps, 0, &record);
}

fn key(Place { group, topic, partition, from }: &Place) -> Vec<u8> {
    format!("{group}/{topic}/{partition}/{from}").into_bytes()
}

fn value(decision: &Decision) -> Vec<u8> {
    serde_json::to_vec(decision).expect("names and numbers are JSON")
}
