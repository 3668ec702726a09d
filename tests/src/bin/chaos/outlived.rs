//! What retention removes from the raw topic while the preprocessor is stopped, counted without the audit.
//!
//! The driver copies the topic before each removal. What the preprocessor then skips, by the decisions that it carries
//! out, and what is nowhere else in the topic, nobody can have processed: exactly these readings are lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use contract::{Contract, own};
use event_log::{Log, batches, progress};
use pipeline::gaps;

/// The raw topic of the readings.
pub(crate) const TOPIC: &str = "telemetry.raw";
/// Who reads it.
const GROUP: &str = "preprocessor-telemetry";
/// Records per read, and how long one may take to come: a reader connects first.
const READ_RECORDS: usize = 8192;
const READ_PATIENCE: Duration = Duration::from_secs(60);

/// Key and bytes of each record that the topic has held, by partition and offset. A car repeats a reading with the same
/// bytes.
#[derive(Debug, Default)]
pub(crate) struct Copies(BTreeMap<(u32, u64), Vec<u8>>);

impl Copies {
    /// Copies what the topic holds. Returns the offset after the last copied record, for each partition.
    pub(crate) fn take(&mut self, log: &Arc<dyn Log>) -> anyhow::Result<Vec<u64>> {
        let partitions = log.describe(TOPIC)?.partitions;
        for batch in batches(log, progress::held(TOPIC, &partitions), READ_RECORDS)?.patience(READ_PATIENCE) {
            let batch = batch?;
            for record in batch.iter() {
                let bytes = [record.key, record.value.unwrap_or_default()].concat();
                self.0.insert((batch.at().partition, record.offset), bytes);
            }
        }
        Ok(partitions.iter().map(|bounds| bounds.next).collect())
    }

    /// How many readings are lost, once the pipeline has drained: skipped, and nowhere else in the topic.
    pub(crate) fn lost(&mut self, log: &Arc<dyn Log>) -> anyhow::Result<u64> {
        self.take(log)?;
        let gaps = &Contract::builtin().expect_topic(own::GAPS).name;
        let mut skipped = Vec::new();
        for (place, decision) in gaps::load(log, gaps, GROUP, TOPIC)? {
            let offsets = decision.skipped(place.from);
            skipped.push((place.partition, offsets.with_context(|| format!("not carried out: {place:?}"))?));
        }
        ensure!(!skipped.is_empty(), "the preprocessor has skipped nothing: retention removed nothing unread");
        let is_skipped = |partition: u32, offset: u64| {
            skipped.iter().any(|(skipping, offsets)| *skipping == partition && offsets.contains(&offset))
        };
        let (gone, left): (Vec<_>, Vec<_>) =
            self.0.iter().partition(|((partition, offset), _)| is_skipped(*partition, *offset));
        let left: BTreeSet<_> = left.into_iter().map(|(_, bytes)| bytes).collect();
        let lost: BTreeSet<_> =
            gone.into_iter().map(|(_, bytes)| bytes).filter(|bytes| !left.contains(bytes)).collect();
        Ok(lost.len() as u64)
    }
}
