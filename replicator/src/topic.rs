//! One topic: prepared, copied by the loop, watched, and drained.
//!
//! ```text
//!  loop    ── wait for the source ─► make the target alike ─► read, copy, commit ────────────────► stop
//!  watcher ── lag ── lag ── shutdown: note the source's end ─► committed up to there, or timed out ──▲
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use event_log::{Error, Log, Range, Read, TopicDescription, TopicSpec, catalogue};
use pipeline::Options;
use prometheus_client::metrics::gauge::Gauge;
use service::retry_until;
use tokio_util::sync::CancellationToken;

use crate::args::group_of;
use crate::copy::Copy;
use crate::metrics::Topic;
use crate::{Args, Metrics};

/// How late a shutdown may be noticed.
const POLL: Duration = Duration::from_millis(50);
/// How often the lag is brought up to date.
const LAG_EVERY: Duration = Duration::from_secs(2);
/// How often the drain looks whether it is over: each look may open a consumer.
const DRAIN_POLL: Duration = Duration::from_millis(100);
/// How long one look at what is left may take: on Kafka a reader connects first.
const DRAIN_LOOK: Duration = Duration::from_secs(2);

/// A topic that is to be copied.
#[derive(Debug, Clone)]
pub(crate) struct Replication {
    topic: Arc<str>,
    group: String,
    source: Arc<dyn Log>,
    target: Arc<dyn Log>,
}

impl Replication {
    pub(crate) fn new(args: &Args, topic: &str, source: Arc<dyn Log>, target: Arc<dyn Log>) -> Self {
        Self { topic: topic.into(), group: group_of(&args.source_name, topic), source, target }
    }

    /// Copies the topic until shutdown, and then what the source holds at that moment. Blocking.
    pub(crate) fn run(self, args: &Args, metrics: &Metrics, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        std::thread::scope(|scope| {
            let watcher = || {
                let lag = metrics.lag_records.get_or_create_owned(&Topic::new(&self.topic));
                self.watch(&lag, shutdown, &ended);
                self.drain(args.drain_timeout, &ended);
                stop.cancel();
            };
            let name = format!("watch-{}", self.topic);
            std::thread::Builder::new().name(name).spawn_scoped(scope, watcher).context("cannot start a thread")?;
            // However the loop ends, the watcher must not keep the scope open.
            let _ended = ended.clone().drop_guard();
            self.copy(args, metrics, shutdown, &stop)
        })
    }

    /// `stop` ends the loop; `shutdown` only the waiting for logs that are not there.
    fn copy(
        &self,
        args: &Args,
        metrics: &Metrics,
        shutdown: &CancellationToken,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let Some(source) = self.describe(&self.source, shutdown, || catalogue::topic(&self.topic))? else {
            return Ok(());
        };
        let partitions = source.partitions.len() as u32;
        let like_source = || TopicSpec { partitions, ..catalogue::topic(&self.topic) };
        let Some(target) = self.describe(&self.target, shutdown, like_source)? else { return Ok(()) };
        if target.partitions.len() != source.partitions.len() {
            bail!(
                "it has {partitions} partitions in {} and {} in {}, so keys would change theirs: give it the same \
                 number in both",
                self.source.url(),
                target.partitions.len(),
                self.target.url()
            );
        }
        let mut copy = Copy {
            topic: self.topic.clone(),
            source_name: args.source_name.clone(),
            target_name: args.target_name.clone(),
            bytes: metrics.read_bytes.get_or_create_owned(&Topic::new(&self.topic)),
        };
        let options = Options {
            source: self.source.clone(),
            target: self.target.clone(),
            group: self.group.clone(),
            instance: args.instance.clone(),
            topics: vec![self.topic.clone()],
            tables: Vec::new(),
            outputs: vec![self.topic.clone()],
            dead_letter: None,
            state: None,
            snapshot_records: pipeline::SNAPSHOT_RECORDS,
            max_records: args.batch as usize,
            max_wait: Duration::from_millis(args.batch_ms),
        };
        pipeline::run(options, &mut copy, &metrics.pipeline, stop)
    }

    /// The topic in `log`, created as `spec` if it is not there. `None`: shut down meanwhile.
    fn describe(
        &self,
        log: &Arc<dyn Log>,
        shutdown: &CancellationToken,
        spec: impl Fn() -> TopicSpec,
    ) -> Result<Option<TopicDescription>, Error> {
        let what = format!("topic {} in {}", self.topic, log.url());
        let attempt = || match log.describe(&self.topic) {
            Err(Error::UnknownTopic { .. }) => {
                log.ensure_topic(&spec())?;
                log.describe(&self.topic)
            }
            described => described,
        };
        // Once in any case: who is stopped at its start still drains what is there.
        match attempt() {
            Err(error) if error.is_retriable() => retry_until(shutdown, what, |e: &Error| !e.is_retriable(), attempt),
            described => described.map(Some),
        }
    }

    /// Keeps the lag up to date until shutdown or until the loop has ended.
    fn watch(&self, lag: &Gauge, shutdown: &CancellationToken, ended: &CancellationToken) {
        let mut at: Option<Instant> = None;
        while !shutdown.is_cancelled() && !ended.is_cancelled() {
            if at.is_none_or(|at| at.elapsed() >= LAG_EVERY) {
                // What a log does not say now it says at the next look.
                if let Ok(left) = self.ends().and_then(|ends| self.left(&ends)) {
                    lag.set(left.iter().map(|range| range.end.unwrap_or(0) - range.start).sum::<u64>() as i64);
                }
                at = Some(Instant::now());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until everything that the source holds now is committed, at most `timeout`, or until the loop has ended.
    fn drain(&self, timeout: Duration, ended: &CancellationToken) {
        let deadline = Instant::now() + timeout;
        let mut ends: Option<Vec<u64>> = None;
        while !ended.is_cancelled() {
            let mut look = || match &ends {
                Some(ends) => self.is_drained(ends),
                None => self.is_drained(ends.insert(self.ends()?)),
            };
            let why = match look() {
                Ok(true) => return,
                Ok(false) => String::new(),
                // A log is away, or the loop has not made the target yet. If it cannot, it ends, and with it the drain.
                Err(error) => format!(": {:#}", anyhow::Error::from(error)),
            };
            if Instant::now() >= deadline {
                let (topic, seconds) = (&self.topic, timeout.as_secs_f64());
                tracing::warn!("{topic} is not copied to its end after {seconds} s; the next start goes on there{why}");
                return;
            }
            std::thread::sleep(DRAIN_POLL);
        }
    }

    fn ends(&self) -> Result<Vec<u64>, Error> {
        Ok(self.source.describe(&self.topic)?.partitions.iter().map(|bounds| bounds.next).collect())
    }

    /// What lies between the committed positions and `ends`.
    fn left(&self, ends: &[u64]) -> Result<Vec<Range>, Error> {
        let bounds = self.source.describe(&self.topic)?.partitions;
        let committed = self.target.committed(&self.group, &self.topic)?;
        let left = (0..).zip(ends).zip(&bounds).map(|((partition, end), bounds)| {
            let start = committed.get(partition as usize).copied().flatten().unwrap_or(bounds.first);
            Range { topic: self.topic.clone(), partition, start, end: Some(*end) }
        });
        Ok(left.filter(|range| range.end > Some(range.start)).collect())
    }

    /// Whether no record is left before `ends`. Offsets alone do not tell: Kafka's transaction markers take some, too.
    fn is_drained(&self, ends: &[u64]) -> Result<bool, Error> {
        let left = self.left(ends)?;
        if left.is_empty() {
            return Ok(true);
        }
        let mut reader = self.source.clone().reader(left)?;
        Ok(matches!(reader.next(1, DRAIN_LOOK)?, Read::End))
    }
}
