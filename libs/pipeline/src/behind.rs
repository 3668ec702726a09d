//! Partitions that have stopped: their committed position is no longer in the log.
//!
//! ```text
//!            committed position      first offset held
//! partition  ────────┴───────────────────┴──────────────────►   removed in between: never processed
//!                    stop: paused, said once, not ready          the other partitions go on
//!                    └── carstream resume ──► decision ──► position and record of it in one transaction ──► resume
//! ```
//!
//! Which readings may be missing is an operator's decision ([`gaps`]). Without one the partition stays as
//! it is, over restarts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{Error, Log, Outcome, Outputs, PartitionDescription, Position, Range, TopicPartition, progress};

use crate::gaps::{self, Accept, Decision, Decisions, Place};
use crate::metrics::Topic;
use crate::{Metrics, Options, POLL_MS, Stage, Transform};

/// How often to look for a decision.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// So long a partition may seem to end before a position: after a change of leaders Kafka may be late to say where.
const END_IS_LATE: Duration = Duration::from_secs(2);
/// How often an idle loop passes offsets without a record: rare enough to cost nothing, soon enough for any retention.
const PASS_EMPTY_EVERY: Duration = Duration::from_secs(60);

/// A partition that has stopped.
#[derive(Debug, Clone)]
pub(crate) struct Stopped {
    /// The committed position.
    pub(crate) position: u64,
    pub(crate) bounds: PartitionDescription,
}

impl Stopped {
    /// How it can resume.
    pub(crate) fn accept(&self) -> Accept {
        if self.position < self.bounds.first { Accept::Gap } else { Accept::Recreated }
    }
}

/// The stopped partitions of one loop.
pub(crate) struct Behind {
    log: Arc<dyn Log>,
    group: Arc<str>,
    gaps: Option<Arc<str>>,
    stopped: BTreeMap<TopicPartition, Stopped>,
    /// Positions at which a stop was logged.
    said: BTreeMap<TopicPartition, u64>,
    looked: Option<Instant>,
}

impl Behind {
    pub(crate) fn new(options: &Options) -> Self {
        let (log, group) = (options.target.clone(), Arc::from(&*options.group));
        Self { log, group, gaps: options.gaps.clone(), stopped: BTreeMap::new(), said: BTreeMap::new(), looked: None }
    }

    /// Whether a partition stops alone; if not, it ends the loop.
    pub(crate) fn is_used(&self) -> bool {
        self.gaps.is_some()
    }

    /// The topic of decisions.
    fn gaps(&self) -> &Arc<str> {
        self.gaps.as_ref().expect("nothing is decided without the topic")
    }

    pub(crate) fn stop(&mut self, at: &TopicPartition, stopped: Stopped, options: &Options, metrics: &Metrics) {
        let (topic, partition, url) = (&at.topic, at.partition, options.source.url());
        let Stopped { position, bounds: PartitionDescription { first, next } } = stopped;
        let why = match stopped.accept() {
            Accept::Gap => format!(
                "retention removed offsets {position} to {} before group {} had processed them",
                first - 1,
                self.group
            ),
            Accept::Recreated => format!(
                "group {} is at offset {position}, and the partition ends at {next}: the topic was created again, or \
                 {url} has lost records",
                self.group
            ),
        };
        let command = format!(
            "carstream resume {} --log {} --group {} --topic {topic} {}",
            metrics.stage,
            self.log.url(),
            self.group,
            stopped.accept().setting()
        );
        if self.said.insert(at.clone(), position) != Some(position) {
            let accept = match stopped.accept() {
                Accept::Gap => "continue without them, which is recorded",
                Accept::Recreated => "if it was created again, read it from its beginning",
            };
            tracing::error!(%topic, partition, "stopped processing {topic}/{partition}: {why}. Other partitions \
                continue. Choose: (1) {accept}: {command}; (2) restore {url} to its previous state");
        }
        metrics.readiness.waits_for(awaited(at), format!("{why}; `{command}` continues without them"));
        self.stopped.insert(at.clone(), stopped);
        self.looked = None;
        self.count(&at.topic, metrics);
    }

    /// The partition is another instance's, is assigned anew, or has resumed.
    pub(crate) fn forget(&mut self, at: &TopicPartition, metrics: &Metrics) {
        if self.stopped.remove(at).is_some() {
            metrics.readiness.available(&awaited(at));
            self.count(&at.topic, metrics);
        }
    }

    pub(crate) fn forget_all(&mut self, metrics: &Metrics) {
        for at in self.stopped.keys().cloned().collect::<Vec<_>>() {
            self.forget(&at, metrics);
        }
    }

    /// What is to be carried out now.
    pub(crate) fn decided(&mut self, options: &Options) -> Result<Vec<(Place, Decision)>, Error> {
        let Some(gaps) = &self.gaps else { return Ok(Vec::new()) };
        if self.stopped.is_empty() || self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return Ok(Vec::new());
        }
        self.looked = Some(Instant::now());
        let mut decided = Vec::new();
        let mut known: BTreeMap<Arc<str>, (String, Decisions)> = BTreeMap::new();
        for (at, stopped) in &self.stopped {
            if !known.contains_key(&at.topic) {
                let decisions = match gaps::load(&self.log, gaps, &self.group, &at.topic) {
                    Err(error) if !error.is_retriable() => {
                        let error = anyhow::Error::from(error);
                        tracing::error!("cannot read what was decided about stopped partitions: {error:#}");
                        return Ok(Vec::new());
                    }
                    decisions => decisions?,
                };
                known.insert(at.topic.clone(), (options.source.describe(&at.topic)?.id, decisions));
            }
            let (topic_id, decisions) = &known[&at.topic];
            let place = Place {
                group: self.group.clone(),
                topic: at.topic.clone(),
                partition: at.partition,
                from: stopped.position,
            };
            let at_start = (options.accept_gap && stopped.accept() == Accept::Gap).then(|| Decision {
                topic_id: topic_id.clone(),
                accepted: Accept::Gap,
                accepted_ms: service::now_ms(),
                to: None,
            });
            let decision = decisions.get(&place).cloned().or(at_start);
            let fits = |d: &Decision| d.topic_id == *topic_id && d.accepted == stopped.accept() && d.to.is_none();
            if let Some(decision) = decision.filter(fits) {
                decided.push((place, decision));
            }
        }
        Ok(decided)
    }

    fn count(&self, topic: &Arc<str>, metrics: &Metrics) {
        let count = self.stopped.keys().filter(|at| at.topic == *topic).count();
        metrics.stopped_partitions.get_or_create(&Topic::new(topic)).set(count as i64);
    }
}

fn awaited(at: &TopicPartition) -> String {
    format!("partition {}/{}", at.topic, at.partition)
}

/// Where a group stands in a topic whose records it can no longer read there: partitions that have stopped, or will at
/// the next start.
pub fn stopped(source: &dyn Log, target: &dyn Log, group: &str, topic: &str) -> Result<Vec<(Place, Accept)>, Error> {
    // Positions first: what is committed meanwhile is not behind.
    let positions = target.committed(group, topic)?;
    let partitions = source.describe(topic)?.partitions;
    let stopped = (0..).zip(positions.iter().zip(partitions)).filter_map(|(partition, (position, bounds))| {
        let stopped = Stopped { position: (*position)?, bounds };
        let place = Place { group: group.into(), topic: topic.into(), partition, from: stopped.position };
        is_behind(stopped.position, bounds).then(|| (place, stopped.accept()))
    });
    Ok(stopped.collect())
}

/// Whether nothing can be read at this position.
fn is_behind(position: u64, bounds: PartitionDescription) -> bool {
    position < bounds.first || position > bounds.next
}

/// What a partition holds. Until `deadline` the position is believed that is past its end.
fn bounds_at(log: &dyn Log, position: &Position, deadline: Instant) -> Result<PartitionDescription, Error> {
    loop {
        let bounds = log.bounds(&position.topic, position.partition)?;
        if position.offset <= bounds.next || Instant::now() > deadline {
            return Ok(bounds);
        }
        std::thread::sleep(Duration::from_millis(POLL_MS));
    }
}

impl Stage<'_> {
    /// Stops those of the assigned partitions that are behind. Returns the positions of the others.
    pub(crate) fn stop_behind(
        &mut self,
        positions: Vec<Position>,
        behind: &mut Behind,
        transform: &mut dyn Transform,
        metrics: &Metrics,
    ) -> anyhow::Result<Vec<Position>> {
        positions.iter().for_each(|p| behind.forget(&p.at(), metrics));
        if !behind.is_used() {
            return Ok(positions);
        }
        let (mut live, deadline) = (Vec::new(), Instant::now() + END_IS_LATE);
        for p in positions {
            let bounds = bounds_at(self.options.source.as_ref(), &p, deadline)?;
            if is_behind(p.offset, bounds) {
                let at = p.at();
                self.processor.pause(std::slice::from_ref(&at))?;
                self.state.reset(&at, transform);
                behind.stop(&at, Stopped { position: p.offset, bounds }, self.options, metrics);
            } else {
                live.push(p);
            }
        }
        Ok(live)
    }

    /// Commits positions behind offsets without a record, such as the markers of Kafka's transactions: once retention
    /// has removed those, nothing tells them from records that were never processed. Nothing may be pending.
    pub(crate) fn pass_empty(&mut self, at_stop: bool, metrics: &Metrics) -> anyhow::Result<()> {
        if self.options.gaps.is_none() || !at_stop && self.passed.elapsed() < PASS_EMPTY_EVERY {
            return Ok(());
        }
        self.passed = Instant::now();
        let source = &self.options.source;
        let mut positions = Vec::new();
        for position in self.state.positions() {
            let Position { topic, partition, offset: start } = position;
            let bounds = source.bounds(&topic, partition)?;
            let rest = Range { topic: topic.clone(), partition, start, end: Some(bounds.next) };
            if (bounds.first..bounds.next).contains(&start) && progress::is_drained(source, &[rest])? {
                positions.push(Position { topic, partition, offset: bounds.next });
            }
        }
        if !positions.is_empty() {
            // If it is rolled back, the partitions are assigned again.
            let _ = self.commit_to_log(&Outputs::default(), &positions, metrics)?;
        }
        Ok(())
    }

    /// Stops a partition that retention has passed while it was read. Its state stays.
    pub(crate) fn overtaken(
        &mut self,
        at: &TopicPartition,
        bounds: PartitionDescription,
        behind: &mut Behind,
        transform: &mut dyn Transform,
        metrics: &Metrics,
    ) -> anyhow::Result<()> {
        if self.commit_pending(transform, metrics)? == Outcome::RolledBack {
            return Ok(()); // it is assigned again
        }
        let committed = self.options.target.committed(&self.options.group, &at.topic)?;
        match committed.get(at.partition as usize).copied().flatten() {
            Some(position) => {
                self.processor.pause(std::slice::from_ref(at))?;
                behind.stop(at, Stopped { position, bounds }, self.options, metrics);
            }
            // A group that has committed nothing begins with what is left.
            None => {
                let (topic, partition) = (at.topic.clone(), at.partition);
                self.processor.read_from(&[Position { topic, partition, offset: bounds.first }])?;
            }
        }
        Ok(())
    }

    /// Carries out what was decided about stopped partitions.
    pub(crate) fn resume_stopped(
        &mut self,
        behind: &mut Behind,
        transform: &mut dyn Transform,
        metrics: &Metrics,
    ) -> anyhow::Result<()> {
        for (place, decision) in behind.decided(self.options)? {
            if self.commit_pending(transform, metrics)? == Outcome::RolledBack {
                return Ok(());
            }
            let at = TopicPartition { topic: place.topic.clone(), partition: place.partition };
            let to = self.options.source.bounds(&at.topic, at.partition)?.first;
            let position = Position { topic: at.topic.clone(), partition: at.partition, offset: to };
            let mut outputs = Outputs::default();
            gaps::put(&mut outputs, behind.gaps(), &place, &Decision { to: Some(to), ..decision.clone() });
            let is_exact = decision.accepted == Accept::Gap && self.state.position(&at) == Some(place.from);
            let positions = std::slice::from_ref(&position);
            if self.commit_to_log(&outputs, positions, metrics)? == Outcome::RolledBack {
                return Ok(());
            }
            behind.forget(&at, metrics);
            let (topic, partition, from) = (&at.topic, at.partition, place.from);
            tracing::warn!(%topic, partition, from, to, "resuming {topic}/{partition} at offset {to} instead of \
                {from}, as an operator decided");
            if is_exact {
                self.processor.read_from(positions)?;
            } else {
                self.rebuild(positions, transform)?;
            }
        }
        Ok(())
    }
}
