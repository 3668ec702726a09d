//! The loop of the sink: one thread that reads, buffers, and starts uploads.
//!
//! ```text
//!            following ──shutdown──► to the end (as of the shutdown) ──► flushing ──► done
//!                ▲  read, buffer, start uploads, take results                │
//!                └── a record that cannot be used, a position that the log no longer holds: that topic stops,
//!                    the others go on; once all have stopped the loop ends with an error
//! ```
//!
//! At the memory bound it reads nothing until the store has accepted an object. It waits for a log or a store that does
//! not answer, and reads dropped records again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use event_log::{Error, Log, PartitionDescription, Range, Read, Reader, TopicPartition, progress};
use lake::Lake;
use parking_lot::Mutex;
use service::Waiting;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::buffer::{Buffer, Limits};
use crate::metrics::Topic;
use crate::positions::Positions;
use crate::stream::Stream;
use crate::upload::{Uploaded, Uploader};
use crate::{Args, Metrics};

/// How long one wait for records or for the store lasts, and so how late a shutdown may be noticed.
const POLL: Duration = Duration::from_millis(50);
/// A log that does not answer is back soon, or not soon.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Records per read.
const READ_RECORDS: usize = 4096;
/// Uploads at the same time: enough to hide a store's latency, few enough to be kind to it.
const MAX_UPLOADS: usize = 8;
/// How often the lag is brought up to date.
const LAG_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Following,
    ToEnd,
    Flushing,
}

/// The uploads under way.
struct Uploads {
    running: usize,
    /// For each upload, to report its end.
    report: Sender<(TopicPartition, Uploaded)>,
    ended: Receiver<(TopicPartition, Uploaded)>,
}

pub(crate) struct Worker {
    log: Arc<dyn Log>,
    positions: Positions,
    metrics: Metrics,
    shutdown: CancellationToken,
    runtime: Handle,
    limits: Limits,
    max_memory: u64,
    uploader: Uploader,
    streams: BTreeMap<Arc<str>, Stream>,
    buffers: BTreeMap<TopicPartition, Buffer>,
    reader: Option<Box<dyn Reader>>,
    phase: Phase,
    /// Where each partition ended at the shutdown.
    ends: BTreeMap<TopicPartition, u64>,
    /// Topics that stopped, and why.
    stopped: BTreeMap<Arc<str>, String>,
    uploads: Uploads,
    waiting: Waiting,
    /// A reader without records does not notice that the log is away.
    answer: Waiting,
    lag_at: Option<Instant>,
}

impl Worker {
    /// `give_up` ends the drain.
    pub(crate) fn new(
        args: &Args,
        streams: BTreeMap<Arc<str>, Stream>,
        log: Arc<dyn Log>,
        lake: Lake,
        metrics: Metrics,
        shutdown: CancellationToken,
        give_up: CancellationToken,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let uploader = Uploader {
            lake: lake.clone(),
            metrics: metrics.clone(),
            skip_undecodable: args.skip_undecodable,
            timeout: args.store_timeout,
            give_up,
            encoders: Arc::new(Semaphore::new(cores)),
            waiting: Arc::new(Mutex::new(
                Waiting::new(format!("the lake {}", lake.url())).with_readiness(&metrics.readiness),
            )),
        };
        let positions = Positions {
            log: log.clone(),
            lake: lake.with_patience(args.store_timeout),
            runtime: Handle::current(),
            readiness: metrics.readiness.clone(),
            give_up: uploader.give_up.clone(),
        };
        let (report, ended) = channel();
        Self {
            streams,
            waiting: Waiting::new(format!("the log {}", log.url())).with_readiness(&metrics.readiness),
            answer: Waiting::new(format!("the log {} to answer", log.url())).with_readiness(&metrics.readiness),
            limits: Limits { rows: args.max_rows, bytes: args.max_bytes, age: args.max_age },
            max_memory: args.max_memory,
            runtime: Handle::current(),
            buffers: BTreeMap::new(),
            reader: None,
            phase: Phase::Following,
            ends: BTreeMap::new(),
            stopped: BTreeMap::new(),
            uploads: Uploads { running: 0, report, ended },
            lag_at: None,
            log,
            positions,
            metrics,
            shutdown,
            uploader,
        }
    }

    /// Runs until shutdown and the drain after it, or until every topic has stopped. Blocking.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        let topics: Vec<_> = self.streams.keys().cloned().collect();
        for topic in &topics {
            self.metrics.begin(topic);
            if !self.start(topic)? {
                return Ok(());
            }
        }
        self.metrics.readiness.started();
        loop {
            while let Ok((partition, uploaded)) = self.uploads.ended.try_recv() {
                self.finish_upload(partition, uploaded)?;
            }
            if self.uploader.give_up.is_cancelled() {
                tracing::warn!("{}", self.unfinished());
                break;
            }
            if self.phase == Phase::Following && self.shutdown.is_cancelled() {
                self.begin_drain();
            }
            self.start_uploads();
            self.update_gauges();
            let all_stopped = self.stopped.len() == self.streams.len();
            if (all_stopped || self.phase == Phase::Flushing) && self.buffers.values().all(Buffer::is_empty) {
                break;
            }
            if all_stopped || self.phase == Phase::Flushing || self.held() >= self.max_memory {
                self.wait_for_upload()?;
            } else {
                self.read()?;
            }
        }
        if self.stopped.is_empty() {
            return Ok(());
        }
        let reasons: Vec<_> = self.stopped.iter().map(|(topic, why)| format!("{topic}: {why}")).collect();
        bail!("stopped before the end of {}", reasons.join("; "))
    }

    /// Finds out where a topic resumes. `false`: shut down while something was missing.
    fn start(&mut self, topic: &Arc<str>) -> anyhow::Result<bool> {
        // The lake first: another sink may be at work, and what it has written by now the log holds by then.
        let Some(next) = self.positions.in_lake(topic, &self.shutdown)? else { return Ok(false) };
        let Some(described) = self.positions.in_log(&self.streams[topic].topic, &self.shutdown)? else {
            return Ok(false);
        };
        for (partition, bounds) in described.partitions.iter().enumerate() {
            let partition = partition as u32;
            let offset = next.get(&partition).copied().unwrap_or(bounds.first);
            if offset < bounds.first || offset > bounds.next {
                self.stop(topic, self.positions.lost(topic, partition, offset, *bounds));
            }
            self.buffers.insert(TopicPartition { topic: topic.clone(), partition }, Buffer::new(offset));
        }
        if let Some(lost) = next.keys().find(|partition| **partition as usize >= described.partitions.len()) {
            let (lake, count) = (self.positions.lake.url(), described.partitions.len());
            self.stop(topic, format!("the lake {lake} holds partition {lost}, but the log has {count} partitions"));
        }
        Ok(true)
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let read = match self.open_reader() {
            Ok(None) => return Ok(()),
            Ok(Some(reader)) => reader.next(READ_RECORDS, POLL),
            Err(error) => Err(error),
        };
        match read {
            Ok(Read::Batch(batch)) => {
                self.waiting.resolved();
                let at = batch.at();
                let buffer = self.buffers.get_mut(&at).context("records of a partition that was not asked for")?;
                let first = batch.iter().next().map(|record| record.offset);
                if first.is_some_and(|first| first < buffer.next) {
                    bail!("{}/{} went back to offset {first:?} from {}", at.topic, at.partition, buffer.next);
                }
                buffer.push(batch, &self.limits);
            }
            Ok(Read::Idle) => self.waiting.resolved(),
            Ok(Read::End) => self.flush(),
            Err(error) => {
                self.reader = None;
                self.log_failed(error)?;
            }
        }
        Ok(())
    }

    /// The reader of all remaining records. Without any the drain enters its next phase.
    fn open_reader(&mut self) -> Result<Option<&mut Box<dyn Reader>>, Error> {
        if self.reader.is_none() {
            let end =
                |at: &TopicPartition| (self.phase == Phase::ToEnd).then(|| self.ends.get(at).copied().unwrap_or(0));
            let ranges: Vec<_> = self
                .buffers
                .iter()
                .filter(|(at, _)| !self.stopped.contains_key(&at.topic))
                .map(|(at, buffer)| Range {
                    topic: at.topic.clone(),
                    partition: at.partition,
                    start: buffer.next,
                    end: end(at),
                })
                .filter(|range| range.end.is_none_or(|end| range.start < end))
                .collect();
            if ranges.is_empty() {
                self.flush();
                return Ok(None);
            }
            self.reader = Some(self.log.clone().reader(ranges)?);
        }
        Ok(self.reader.as_mut())
    }

    fn log_failed(&mut self, error: Error) -> anyhow::Result<()> {
        match error {
            Error::OutOfRange { ref topic, partition, offset, first, next } => {
                let bounds = PartitionDescription { first, next };
                let why = self.positions.lost(topic, partition, offset, bounds);
                self.stop(&topic.as_str().into(), why);
            }
            Error::UnknownTopic { ref topic, .. } => {
                let why = error.to_string();
                self.stop(&topic.as_str().into(), why);
            }
            error if error.is_retriable() => {
                self.waiting.note(&error);
                std::thread::sleep(RETRY_PAUSE);
            }
            error => return Err(anyhow!(error).context(format!("cannot read the log {}", self.log.url()))),
        }
        Ok(())
    }

    /// Stops reading a topic. What was read of it before is still written.
    fn stop(&mut self, topic: &Arc<str>, why: String) {
        tracing::error!(%topic, "stopped writing {topic}: {why}");
        self.metrics.readiness.waits_for(format!("topic {topic}"), "stopped with an error: see the log output");
        self.stopped.entry(topic.clone()).or_insert(why);
        self.metrics.stopped_topics.set(self.stopped.len() as i64);
        for (at, buffer) in &mut self.buffers {
            if at.topic == *topic {
                buffer.close();
            }
        }
        self.reader = None;
    }

    /// Notes where the log ends now; a log that does not answer is asked again at the next round.
    fn begin_drain(&mut self) {
        for topic in self.streams.keys().filter(|topic| !self.stopped.contains_key(*topic)) {
            match self.log.describe(topic) {
                Ok(described) => {
                    for (partition, bounds) in described.partitions.iter().enumerate() {
                        let at = TopicPartition { topic: topic.clone(), partition: partition as u32 };
                        self.ends.insert(at, bounds.next);
                    }
                }
                Err(error) if error.is_retriable() => {
                    self.waiting.note(&error);
                    std::thread::sleep(RETRY_PAUSE);
                    return;
                }
                // Reading will say so too.
                Err(_) => {}
            }
        }
        self.reader = None;
        self.phase = Phase::ToEnd;
    }

    /// Everything was read that is to be read.
    fn flush(&mut self) {
        self.reader = None;
        if self.phase == Phase::ToEnd {
            self.phase = Phase::Flushing;
            self.buffers.values_mut().for_each(Buffer::close);
        }
    }

    fn held(&self) -> u64 {
        self.buffers.values().map(Buffer::bytes).sum()
    }

    fn start_uploads(&mut self) {
        if self.held() >= self.max_memory && self.uploads.running < MAX_UPLOADS {
            // One at a time: the next round closes another if that did not help.
            if let Some(largest) = self.buffers.values_mut().max_by_key(|buffer| buffer.bytes_waiting()) {
                largest.close();
            }
        }
        for (at, buffer) in &mut self.buffers {
            if self.uploads.running >= MAX_UPLOADS {
                break;
            }
            let Some(segment) = buffer.start_upload(&self.limits) else { continue };
            self.uploads.running += 1;
            let (at, report, uploader) = (at.clone(), self.uploads.report.clone(), self.uploader.clone());
            let stream = self.streams[&at.topic].clone();
            self.runtime.spawn(async move {
                let uploaded = uploader.upload(stream, at.clone(), segment).await;
                // Without a receiver the sink has given up.
                let _ = report.send((at, uploaded));
            });
        }
    }

    fn wait_for_upload(&mut self) -> anyhow::Result<()> {
        match self.uploads.ended.recv_timeout(POLL) {
            Ok((partition, uploaded)) => self.finish_upload(partition, uploaded),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(()),
        }
    }

    fn finish_upload(&mut self, at: TopicPartition, uploaded: Uploaded) -> anyhow::Result<()> {
        self.uploads.running -= 1;
        let buffer = self.buffers.get_mut(&at).context("an upload of a partition that is not held")?;
        match uploaded {
            Uploaded::Stored { end } => buffer.uploaded(end),
            Uploaded::Elsewhere(object) => {
                let stored = buffer.stored;
                tracing::info!("another sink also writes {}/{}: continuing after its objects", at.topic, at.partition);
                match self.positions.after(&object) {
                    Ok(Some(next)) => self.go_on(&at, next),
                    Ok(None) => {}
                    Err(error) => self.give_up_partition(&at, stored, format!("{error:#}")),
                }
            }
            Uploaded::StoppedAt { end, record } => {
                let why = format!(
                    "{}/{} offset {} cannot be decoded ({}); once you know what wrote it, --skip-undecodable sets such \
                     records aside under _undecodable/ and continues",
                    at.topic, at.partition, record.offset, record.reject
                );
                self.give_up_partition(&at, end, why);
            }
            Uploaded::Failed(error) => {
                let stored = buffer.stored;
                self.give_up_partition(&at, stored, format!("{error:#}"));
            }
            // The loop ends.
            Uploaded::GaveUp => {}
        }
        Ok(())
    }

    /// Another sink has written this partition up to `next`.
    fn go_on(&mut self, at: &TopicPartition, next: u64) {
        if let Some(buffer) = self.buffers.get_mut(at) {
            buffer.reset(next);
        }
        self.reader = None;
        if self.phase == Phase::Flushing {
            self.phase = Phase::ToEnd;
        }
    }

    /// What follows `stored` cannot be written; nor then can anything after it.
    fn give_up_partition(&mut self, at: &TopicPartition, stored: u64, why: String) {
        if let Some(buffer) = self.buffers.get_mut(at) {
            buffer.reset(stored);
        }
        self.stop(&at.topic, why);
    }

    fn unfinished(&self) -> String {
        let records = |(at, buffer): (&TopicPartition, &Buffer)| {
            let end = self.ends.get(at).copied().unwrap_or(buffer.next);
            (buffer.stored < end).then(|| format!("{}/{} from offset {} on", at.topic, at.partition, buffer.stored))
        };
        let missing: Vec<_> = self.buffers.iter().filter_map(records).collect();
        format!(
            "drain timeout: the lake {} lacks {}; nothing is lost, the next start resumes there",
            self.positions.lake.url(),
            missing.join(", ")
        )
    }

    fn update_gauges(&mut self) {
        self.metrics.buffered_bytes.set(self.held() as i64);
        if self.lag_at.is_some_and(|at| at.elapsed() < LAG_EVERY) {
            return;
        }
        self.lag_at = Some(Instant::now());
        for topic in self.streams.keys().cloned().collect::<Vec<_>>() {
            let described = match self.log.describe(&topic) {
                Ok(described) => described,
                Err(error) => {
                    self.answer.note(&error);
                    continue;
                }
            };
            self.answer.resolved();
            self.take_added(&topic, &described.partitions);
            let stored = |partition| self.buffers.get(&TopicPartition { topic: topic.clone(), partition });
            let positions = (0..described.partitions.len() as u32).map(|p| stored(p).map(|buffer| buffer.stored));
            let behind = progress::behind(&topic, &described.partitions, &positions.collect::<Vec<_>>());
            self.metrics.lag_records.get_or_create(&Topic::new(&topic)).set(progress::offsets(&behind) as i64);
        }
    }

    /// Reads partitions that were added to the topic, from their beginning. What is added during the drain is left to
    /// the next start.
    fn take_added(&mut self, topic: &Arc<str>, partitions: &[PartitionDescription]) {
        if self.phase != Phase::Following || self.stopped.contains_key(topic) {
            return;
        }
        for (partition, bounds) in (0..).zip(partitions) {
            let at = TopicPartition { topic: topic.clone(), partition };
            if let Entry::Vacant(added) = self.buffers.entry(at) {
                let first = bounds.first;
                tracing::info!("partition {partition} was added to {topic}: writing it from offset {first} on");
                added.insert(Buffer::new(bounds.first));
                self.reader = None;
            }
        }
    }
}
