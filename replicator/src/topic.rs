//! One topic: begun, copied by the loop, watched, and drained.
//!
//! ```text
//!  begin   ── wait for the logs ─► is it what was copied so far? ─► positions in every partition, with their origin
//!  loop    ── read, copy, commit ────────────────────────────────────────────────────────────────────────► stop
//!  watcher ── lag, is it the same topic? ── … ── shutdown: note the source's end ─► committed up to there ──▲
//! ```
//!
//! Positions of all partitions are written before the first record is copied, with the identity of the topic that they
//! are of. So there is never a partition of which it is not known where copying began, and retention cannot take a
//! record unseen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use contract::Contract;
use event_log::{Error, Event, Log, LogUrl, Outputs, Processor, ProcessorOptions, Range, TopicSpec, progress};
use pipeline::Options;
use service::{Readiness, Waiting, retry_until};
use tokio_util::sync::CancellationToken;

use crate::args::group_of;
use crate::check::{Problem, View};
use crate::copy::Copy;
use crate::metrics::TopicMetrics;
use crate::state::{self, CopyState, Empty, Origin, STATE_TOPIC};
use crate::watch::Lag;
use crate::{Args, Metrics};

/// How late a shutdown may be noticed.
const POLL: Duration = Duration::from_millis(50);
/// How often the lag is brought up to date, and how long another topic of the same name may stay unnoticed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often the drain looks whether it is over: each look may open a consumer.
const DRAIN_POLL: Duration = Duration::from_millis(100);
/// How long to wait for partitions before looking whether another instance has begun with them.
const BEGIN_WAIT: Duration = Duration::from_secs(5);

/// A topic that is to be copied.
#[derive(Debug, Clone)]
pub(crate) struct Replication {
    pub(crate) topic: Arc<str>,
    pub(crate) source_name: String,
    pub(crate) group: String,
    pub(crate) source: Arc<dyn Log>,
    pub(crate) target: Arc<dyn Log>,
    /// What the contract declares of the topic, and of the replicator's own.
    spec: TopicSpec,
    state: TopicSpec,
}

/// Whether copying can continue.
enum Begun {
    Yes(Origin),
    /// Partitions have no position yet, or it is not visible yet.
    NotYet,
    No(Problem),
}

impl Replication {
    /// # Panics
    /// If the contract does not declare the topic: [`Args::check`] has found it there.
    pub(crate) fn new(
        args: &Args,
        contract: &Contract,
        topic: &str,
        source: Arc<dyn Log>,
        target: Arc<dyn Log>,
    ) -> Self {
        let spec = topics::spec(contract.expect_topic(topic));
        let state = topics::spec(contract.expect_topic(STATE_TOPIC));
        let (source_name, group) = (args.site.clone(), group_of(&args.site, topic));
        Self { topic: topic.into(), source_name, group, source, target, spec, state }
    }

    /// What the stage waits for until this is copied.
    pub(crate) fn awaited(&self) -> String {
        pipeline::awaited(std::slice::from_ref(&self.topic))
    }

    /// Why it is awaited until its loop runs, or says more.
    pub(crate) fn not_started(&self) -> String {
        format!("copying from {} to {} has not started", self.source.url(), self.target.url())
    }

    pub(crate) fn processor_options(&self, args: &Args) -> ProcessorOptions {
        let (group, instance) = (self.group.clone(), args.pipeline.instance.clone());
        ProcessorOptions { group, instance, topics: vec![self.topic.clone()] }
    }

    /// Copies the topic until shutdown, and then what the source holds at that moment. Blocking.
    pub(crate) fn run(self, args: &Args, metrics: &Metrics, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let of_topic = metrics.topic(&self.topic);
        let Some(origin) = self.begin(args, &metrics.pipeline.readiness, shutdown)? else { return Ok(()) };
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        std::thread::scope(|scope| {
            let watcher = || {
                let problem = self.watch(&origin, &of_topic, &metrics.pipeline.readiness, shutdown, &ended);
                if problem.is_none() {
                    self.drain(&origin, args.drain.timeout, &ended);
                }
                stop.cancel();
                problem
            };
            let name = format!("watch-{}", self.topic);
            let watching = std::thread::Builder::new().name(name).spawn_scoped(scope, watcher);
            let watching = watching.context("cannot start a thread")?;
            let copied = {
                // However the loop ends, the watcher must not keep the scope open.
                let _ended = ended.clone().drop_guard();
                self.copy(args, metrics, &of_topic, shutdown, &stop)
            };
            match watching.join().map_err(|_| anyhow!("the watcher panicked"))? {
                Some(problem) => Err(anyhow!(problem.explain(args, &self.topic))),
                None => copied,
            }
        })
    }

    /// `stop` ends the loop; `shutdown` only ends the waiting for missing logs.
    fn copy(
        &self,
        args: &Args,
        metrics: &Metrics,
        of_topic: &TopicMetrics,
        shutdown: &CancellationToken,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut copy = Copy {
            topic: self.topic.clone(),
            source_name: args.site.clone(),
            target_name: args.cloud_name.clone(),
            metrics: of_topic.clone(),
        };
        loop {
            let options = Options {
                source: self.source.clone(),
                target: self.target.clone(),
                group: self.group.clone(),
                instance: args.pipeline.instance.clone(),
                topics: vec![self.topic.clone()],
                tables: Vec::new(),
                outputs: vec![self.topic.clone()],
                dead_letter: None,
                state: None,
                gaps: None,
                accept_gap: false,
                snapshot_records: pipeline::SNAPSHOT_RECORDS,
                max_records: args.pipeline.batch_records,
                max_wait: args.pipeline.batch_wait,
            };
            let Err(error) = pipeline::run(options, &mut copy, &metrics.pipeline, stop) else { return Ok(()) };
            let lost = error
                .downcast_ref()
                .is_some_and(|e| matches!(e, Error::OutOfRange { .. } | Error::UnknownTopic { .. }));
            // If the logs do not say now what became of the topic, the error itself must do.
            let Some(view) = lost.then(|| self.look(args).ok()).flatten() else { return Err(error) };
            match view.problem() {
                Some(problem) => return Err(anyhow!(problem.explain(args, &self.topic))),
                // Only offsets without a record are gone.
                None if !view.passed().is_empty() => {
                    if self.begin(args, &metrics.pipeline.readiness, shutdown)?.is_none() {
                        return Ok(());
                    }
                }
                None => return Err(error),
            }
        }
    }

    fn look(&self, args: &Args) -> Result<View, Error> {
        View::look(args, &self.group, &self.topic, &self.source, &self.target)
    }

    /// Sees to positions in every partition. `None`: shut down meanwhile, and not done in the time for draining.
    fn begin(
        &self,
        args: &Args,
        readiness: &Readiness,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<Origin>> {
        let what = format!("topic {} in {} and {}", self.topic, self.source.url(), self.target.url());
        let mut deadline: Option<Instant> = None;
        loop {
            // At least once: a replicator that is stopped during its start still drains.
            let begun = match self.try_begin(args) {
                Err(error) if error.is_retriable() => {
                    // Under the topic's own name, which stands for it until the loop has opened it.
                    let attempt = || {
                        let begun = self.try_begin(args);
                        let why = begun.as_ref().err().map_or_else(|| self.not_started(), |e| service::chain(e));
                        readiness.waits_for(self.awaited(), why);
                        begun
                    };
                    retry_until(shutdown, &*what, Error::is_retriable, attempt)?
                }
                begun => Some(begun?),
            };
            match begun {
                None => return Ok(None),
                Some(Begun::Yes(origin)) => return Ok(Some(origin)),
                Some(Begun::No(problem)) => return Err(anyhow!(problem.explain(args, &self.topic))),
                Some(Begun::NotYet) => std::thread::sleep(POLL),
            }
            if shutdown.is_cancelled() {
                let deadline = deadline.get_or_insert_with(|| Instant::now() + args.drain.timeout);
                if Instant::now() >= *deadline {
                    return Ok(None);
                }
            }
        }
    }

    fn try_begin(&self, args: &Args) -> Result<Begun, Error> {
        ensure(&self.target, &self.state)?;
        if state::load(&self.target, &self.source_name, &self.topic)?.origin.is_none() {
            ensure(&self.source, &self.spec)?;
            let partitions = self.source.describe(&self.topic)?.partitions.len() as u32;
            ensure(&self.target, &TopicSpec { partitions, ..self.spec.clone() })?;
        }
        for is_last in [false, true] {
            let view = self.look(args)?;
            if let Some(problem) = view.problem() {
                return Ok(Begun::No(problem));
            }
            if view.has_begun()
                && let Some(origin) = view.copies.origin
            {
                return Ok(Begun::Yes(origin));
            }
            if let Some(problem) = view.forgotten(args, &self.topic, &self.target)? {
                return Ok(Begun::No(problem));
            }
            if !is_last {
                self.write_positions(args, &view)?;
            }
        }
        Ok(Begun::NotYet)
    }

    /// Writes positions for the partitions that this instance gets, and the topic's identity with the first ones.
    fn write_positions(&self, args: &Args, view: &View) -> Result<(), Error> {
        let Some(source) = &view.source else { return Ok(()) };
        let options = self.processor_options(args);
        let mut processor = Processor::new(self.source.clone(), self.target.clone(), &options)?;
        let deadline = Instant::now() + BEGIN_WAIT;
        while Instant::now() < deadline {
            let Event::Assigned(mut positions) = processor.next(1, POLL)? else { continue };
            let passed = view.passed();
            for p in &mut positions {
                if let Some(first) = passed.get(&p.partition).filter(|first| p.offset < **first) {
                    p.offset = *first;
                }
            }
            let mut outputs = Outputs::default();
            if view.copies.origin.is_none() {
                // With positions and no origin, copies were made before origins were kept: they may be anywhere.
                let target_from = view.positions.iter().zip(&view.target.partitions);
                let target_from = target_from.map(|(p, bounds)| if p.is_some() { bounds.first } else { bounds.next });
                let origin = Origin { topic_id: source.id.clone(), target_from: target_from.collect() };
                state::put_origin(&mut outputs, &self.source_name, &self.topic, &origin);
            }
            // Whatever became of it shows at the next look.
            return processor.commit(&outputs, &positions).map(drop);
        }
        Ok(())
    }

    /// Keeps the lag up to date until shutdown or until the loop has ended. Returns what is wrong with the topic.
    fn watch(
        &self,
        origin: &Origin,
        metrics: &TopicMetrics,
        readiness: &Readiness,
        shutdown: &CancellationToken,
        ended: &CancellationToken,
    ) -> Option<Problem> {
        // An idle loop would not notice that a log is away.
        let what = format!("{} and {} to answer about {}", self.source.url(), self.target.url(), self.topic);
        let mut waiting = Waiting::new(what).with_readiness(readiness);
        let mut lag = Lag::new(&self.topic, &self.source_name, &self.source, &self.target);
        let mut at: Option<Instant> = None;
        while !shutdown.is_cancelled() && !ended.is_cancelled() {
            if at.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                match self.watch_once(origin, &mut lag, metrics) {
                    Ok(Some(problem)) => return Some(problem),
                    Ok(None) => waiting.resolved(),
                    Err(error) => waiting.note(&error),
                }
                at = Some(Instant::now());
            }
            std::thread::sleep(POLL);
        }
        None
    }

    fn watch_once(&self, origin: &Origin, lag: &mut Lag, metrics: &TopicMetrics) -> Result<Option<Problem>, Error> {
        let positions = self.target.committed(&self.group, &self.topic)?;
        let source = self.source.describe(&self.topic)?;
        let target = self.target.describe(&self.topic)?;
        let copies = CopyState { origin: Some(origin.clone()), ..CopyState::default() };
        let view = View { copies, positions, source: Some(source.clone()), target };
        // The loop notices a gap when it reaches it.
        if let Some(problem @ (Problem::Recreated { .. } | Problem::Partitions { .. })) = view.problem() {
            return Ok(Some(problem));
        }
        // Committed in the target, so the source's retention may remove what is before them.
        self.source.keep_for(&self.group, &self.topic, &view.positions)?;
        // The embedded log's retention waits for this group.
        let retention = source.retention.filter(|_| matches!(self.source.url(), LogUrl::Kafka { .. }));
        lag.look(&view.positions, &source.partitions, retention, metrics)?;
        lag.note_empty(&source.id);
        Ok(None)
    }

    /// Waits until everything that the source holds now is committed, at most `timeout`, or until the loop has ended.
    fn drain(&self, origin: &Origin, timeout: Duration, ended: &CancellationToken) {
        let deadline = Instant::now() + timeout;
        let mut ends: Option<Vec<u64>> = None;
        while !ended.is_cancelled() {
            let mut look = || match &ends {
                Some(ends) => self.is_drained(origin, ends),
                None => self.is_drained(origin, ends.insert(progress::ends(self.source.as_ref(), &self.topic)?)),
            };
            let why = match look() {
                Ok(true) => return,
                Ok(false) => String::new(),
                // A log does not answer. If the loop cannot continue, it ends, and with it the drain.
                Err(error) => format!(": {:#}", anyhow::Error::from(error)),
            };
            if Instant::now() >= deadline {
                let (topic, seconds) = (&self.topic, timeout.as_secs_f64());
                tracing::warn!(
                    "drain timeout: {topic} is not copied to its end after {seconds} s; the next start \
                    resumes there{why}"
                );
                return;
            }
            std::thread::sleep(DRAIN_POLL);
        }
    }

    /// Whether no record is left before `ends`. Offsets alone do not tell: Kafka's transaction markers take some, too.
    /// Then this is noted, for the start after retention has removed the markers.
    fn is_drained(&self, origin: &Origin, ends: &[u64]) -> Result<bool, Error> {
        let left = progress::left(self.source.as_ref(), self.target.as_ref(), &self.group, &self.topic, ends)?;
        let is_drained = progress::is_drained(&self.source, &left)?;
        for Range { partition, start: from, end, .. } in left.into_iter().filter(|_| is_drained) {
            let empty = Empty { topic_id: origin.topic_id.clone(), from, to: end.unwrap_or(from) };
            state::append_empty(&self.target, &self.source_name, &self.topic, partition, &empty);
        }
        Ok(is_drained)
    }
}

/// Creates the topic if it does not exist. An existing one is left as it is.
fn ensure(log: &Arc<dyn Log>, spec: &TopicSpec) -> Result<(), Error> {
    match log.describe(&spec.name) {
        Err(Error::UnknownTopic { .. }) => log.ensure_topic(spec),
        described => described.map(drop),
    }
}
