//! How far behind a topic is, and whether it is still the topic that it was.
//!
//! ```text
//!            committed position      end
//! source  ───────────┴───────────────┴──►     lag in records: offsets between the two
//!                    ▲                         lag in seconds: the age of the first record there
//!                    └─ one read at most per   time left: retention less that age
//!                       look, and none where
//!                       nothing has moved
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{Error, Log, PartitionDescription, Range};

use crate::copies::visit;
use crate::metrics::TopicMetrics;
use crate::state::{self, Empty};

/// Warn when less than this share of the retention is left.
const WARN_BELOW_SHARE: f64 = 0.2;
/// How often to say so.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// Offsets without a record are noted once nothing has followed them for this long: rare enough to cost nothing, soon
/// enough for any retention.
const NOTE_EMPTY_AFTER: Duration = Duration::from_secs(60);

/// What was seen of one topic at the last look.
pub(crate) struct Lag {
    topic: Arc<str>,
    source_name: String,
    source: Arc<dyn Log>,
    target: Arc<dyn Log>,
    partitions: BTreeMap<u32, Front>,
    warned: Option<Instant>,
}

/// The first offsets of a partition that are not copied.
#[derive(Debug, Clone, Copy)]
struct Front {
    position: u64,
    end: u64,
    /// The time of the first record from the position on, or of one before it if that was not looked up again since.
    first_ms: Option<i64>,
    /// Whether `first_ms` is that of the first record.
    is_known: bool,
    since: Instant,
    is_noted: bool,
}

impl Front {
    /// Kafka's transaction markers take offsets, too: there may be some, and nothing to copy.
    fn is_empty(&self) -> bool {
        self.position >= self.end || (self.is_known && self.first_ms.is_none())
    }
}

impl Lag {
    pub(crate) fn new(topic: &Arc<str>, source_name: &str, source: &Arc<dyn Log>, target: &Arc<dyn Log>) -> Self {
        let (topic, source_name) = (topic.clone(), source_name.to_owned());
        let (source, target) = (source.clone(), target.clone());
        Self { topic, source_name, source, target, partitions: BTreeMap::new(), warned: None }
    }

    /// Looks once: at offsets, and at one record at most.
    pub(crate) fn look(
        &mut self,
        positions: &[Option<u64>],
        bounds: &[PartitionDescription],
        retention: Option<Duration>,
        metrics: &TopicMetrics,
    ) -> Result<(), Error> {
        for (partition, (position, bounds)) in (0..).zip(positions.iter().zip(bounds)) {
            self.moved(partition, position.unwrap_or(bounds.first), bounds.next);
        }
        self.read_one()?;
        let open = self.partitions.values().filter(|front| !front.is_empty());
        metrics.lag_records.set(open.clone().map(|front| front.end - front.position).sum::<u64>() as i64);
        let oldest_ms = open.filter_map(|front| front.first_ms).min();
        let lag = oldest_ms.map(|ms| Duration::from_millis(u64::try_from(service::now_ms() - ms).unwrap_or_default()));
        metrics.lag_seconds.set(lag.unwrap_or_default().as_secs_f64());
        // What may come now has all of the retention before it.
        let left = retention.map(|retention| retention.as_secs_f64() - lag.unwrap_or_default().as_secs_f64());
        metrics.expires_in_seconds.set(left.unwrap_or(f64::INFINITY));
        if let (Some(left), Some(retention)) = (left, retention) {
            self.warn(left, retention);
        }
        Ok(())
    }

    /// Notes where offsets hold no record, for starts after retention has removed them.
    pub(crate) fn note_empty(&mut self, topic_id: &str) {
        for (&partition, front) in &mut self.partitions {
            let lasts = front.since.elapsed() >= NOTE_EMPTY_AFTER;
            if lasts && !front.is_noted && front.is_empty() && front.position < front.end {
                let empty = Empty { topic_id: topic_id.to_owned(), from: front.position, to: front.end };
                state::append_empty(&self.target, &self.source_name, &self.topic, partition, &empty);
                front.is_noted = true;
            }
        }
    }

    fn moved(&mut self, partition: u32, position: u64, end: u64) {
        let before = self.partitions.get(&partition).copied();
        if before.is_some_and(|b| b.position == position && (b.end == end || (b.is_known && b.first_ms.is_some()))) {
            // Nothing moved, or only the end, and the first record is known.
            self.partitions.entry(partition).and_modify(|front| front.end = end);
            return;
        }
        // Later records are usually not older: the time of an earlier record is good enough until this one is read.
        let first_ms = before.and_then(|b| b.first_ms);
        let since = Instant::now();
        self.partitions.insert(partition, Front { position, end, first_ms, is_known: false, since, is_noted: false });
    }

    /// Reads the first record of the partition that may have the oldest one.
    fn read_one(&mut self) -> Result<(), Error> {
        let unknown = self.partitions.iter_mut().filter(|(_, front)| !front.is_known && front.position < front.end);
        let Some((&partition, front)) = unknown.min_by_key(|(_, front)| front.first_ms.unwrap_or(i64::MIN)) else {
            return Ok(());
        };
        let range = Range { topic: self.topic.clone(), partition, start: front.position, end: Some(front.end) };
        front.first_ms = visit(&self.source, range, 1, |record| Some(record.timestamp_ms))?;
        front.is_known = true;
        Ok(())
    }

    fn warn(&mut self, left_s: f64, retention: Duration) {
        let topic = &self.topic;
        let is_low = left_s < retention.as_secs_f64() * WARN_BELOW_SHARE;
        if is_low && self.warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY) {
            let (left_s, hours) = (left_s.max(0.0) as u64, retention.as_secs_f64() / 3600.0);
            tracing::warn!(
                %topic,
                "{topic} is far behind: in {left_s} s the retention of {hours:.1} h in {} starts to remove records \
                 that are not copied. Increase the retention, or find out what slows the replicator down",
                self.source.url()
            );
            self.warned = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use event_log::{LogUrl, Outcome, Outputs, Processor, ProcessorOptions, Record, TopicSpec};
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::Metrics;

    const HOUR_MS: i64 = 3_600_000;

    /// Writes a record of the past into a partition.
    fn write(log: &Arc<dyn Log>, topic: &Arc<str>, partition: u32, age_ms: i64) {
        let options = ProcessorOptions { group: "writer".into(), instance: "1".into(), topics: vec![topic.clone()] };
        let mut processor = Processor::new(log.clone(), log.clone(), &options).unwrap();
        let mut outputs = Outputs::default();
        let timestamp_ms = service::now_ms() - age_ms;
        outputs.push(topic, partition, &Record { key: b"k", value: Some(b"v"), headers: &[], timestamp_ms });
        assert_eq!(processor.commit(&outputs, &[]).unwrap(), Outcome::Committed);
    }

    #[test]
    fn lag_is_told_in_records_in_seconds_and_in_what_is_left_of_the_retention() {
        let folder = tempfile::tempdir().unwrap();
        let url = |name: &str| LogUrl::Directory(folder.path().join(name));
        let (source, target) =
            (event_log::open(&url("edge"), &[]).unwrap(), event_log::open(&url("cloud"), &[]).unwrap());
        let topic: Arc<str> = "telemetry".into();
        let retention = Some(Duration::from_secs(4 * 3600));
        source.ensure_topic(&TopicSpec { name: topic.clone(), partitions: 2, retention, compacted: false }).unwrap();
        for (partition, age_h) in [(0, 2), (0, 1), (1, 3)] {
            write(&source, &topic, partition, age_h * HOUR_MS);
        }
        let metrics = Metrics::new(&mut Registry::default()).topic(&topic);
        assert_eq!(metrics.expires_in_seconds.get(), f64::INFINITY);
        let mut lag = Lag::new(&topic, "site", &source, &target);
        let mut look = |positions: [u64; 2]| {
            let found = source.describe(&topic).unwrap();
            // Each look reads one record, so that with two partitions two looks know everything.
            for _ in 0..2 {
                lag.look(&positions.map(Some), &found.partitions, found.retention, &metrics).unwrap();
            }
            let hours = |seconds: f64| (seconds / 360.0).round() / 10.0;
            let seconds = (metrics.lag_seconds.get(), metrics.expires_in_seconds.get());
            (metrics.lag_records.get(), hours(seconds.0), hours(seconds.1))
        };
        assert_eq!(look([0, 0]), (3, 3.0, 1.0));
        assert_eq!(look([0, 1]), (2, 2.0, 2.0));
        assert_eq!(look([1, 1]), (1, 1.0, 3.0));
        assert_eq!(look([2, 1]), (0, 0.0, 4.0));
        write(&source, &topic, 1, HOUR_MS / 2);
        assert_eq!(look([2, 1]), (1, 0.5, 3.5));
    }
}
