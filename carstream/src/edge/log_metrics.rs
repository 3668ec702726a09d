//! What the site's log counts, read when somebody asks for metrics.

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use event_log::{Health, Log};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// The metrics `carstream_log_…` of one log, once it is open.
#[derive(Debug, Clone, Default)]
pub(super) struct LogMetrics(Arc<OnceLock<Weak<dyn Log>>>);

impl LogMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register_collector(Box::new(metrics.clone()));
        metrics
    }

    /// Shows the metrics of this log from here on. It is not kept open for that.
    pub(super) fn watch(&self, log: &Arc<dyn Log>) {
        // A second log is not opened.
        let _ = self.0.set(Arc::downgrade(log));
    }
}

impl Collector for LogMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let health = self.0.get().and_then(Weak::upgrade).map_or_else(Health::default, |log| log.health());
        let mut put = |name: &str, help: &str, metric: &dyn DynMetric| metric.put(&mut encoder, name, help);
        put(
            "carstream_log_records_given_up",
            "Records that retention removed before a group had read them, since the disk was almost full",
            &ConstCounter::new(health.records_given_up),
        )?;
        put(
            "carstream_log_clock_steps",
            "Times that the wall clock was found to have been set",
            &ConstCounter::new(health.clock_steps),
        )?;
        put(
            "carstream_log_records_held",
            "Records past their retention that are kept for a group that has not read them",
            &ConstGauge::new(i64::try_from(health.records_held).unwrap_or(i64::MAX)),
        )
    }
}

/// A metric of any type.
trait DynMetric {
    fn put(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> Result<(), fmt::Error>;
}

impl<M: EncodeMetric> DynMetric for M {
    fn put(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> Result<(), fmt::Error> {
        self.encode(encoder.encode_descriptor(name, help, None, self.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use event_log::{Clock, TopicSpec};
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn what_the_log_says_is_shown_from_its_opening_on() {
        let mut registry = Registry::default();
        let metrics = LogMetrics::new(&mut registry);
        let shows = |lines: [&str; 3]| {
            let mut text = String::new();
            encode(&mut text, &registry).expect("text");
            for line in lines {
                assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
            }
        };
        let given_up = "carstream_log_records_given_up_total 0";
        shows([given_up, "carstream_log_clock_steps_total 0", "carstream_log_records_held 0"]);

        let (folder, clock) = (tempfile::tempdir().expect("a directory"), Clock::default());
        let log = event_log::open_with_clock(folder.path(), clock.clone()).expect("a log");
        metrics.watch(&log);
        let retention = Some(Duration::from_secs(60));
        let spec = TopicSpec { name: "raw".into(), partitions: 1, retention, compacted: false };
        log.ensure_topic(&spec).expect("a topic");
        log.keep_for("stage", "raw", &[]).expect("written");
        let record = event_log::Record { key: b"k", value: Some(b"v"), headers: &[], timestamp_ms: 0 };
        let appender = log.clone().appender(Box::new(|_| {})).expect("an appender");
        appender.append(&"raw".into(), &record, 1).expect("room");
        assert!(appender.flush(Duration::from_secs(60)));
        clock.step_ms(-3_600_000);
        clock.pass(Duration::from_secs(61));
        log.maintain().expect("maintained");
        shows([given_up, "carstream_log_clock_steps_total 1", "carstream_log_records_held 1"]);
    }
}
