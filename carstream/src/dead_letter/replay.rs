//! Puts dead letters back, each once.
//!
//! ```text
//! take over the transactional id ─► read the marks ─► batch ─► records + marks, one transaction ─► next batch
//!    whoever held it is fenced            ▲                          │ rolled back, or unknown
//!                                         └──────────────────────────┘
//! ```

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use anyhow::bail;
use contract::Contract;
use event_log::{Error, Log, LogUrl, Outcome, Outputs, ProcessorOptions, Record, Transactor, partition_for_key};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::args::{Filter, Position};
use super::letters::{self, Letter, Topic};
use super::marks::{Mark, Marks};
use super::{MARKS, REPLAYED_FROM};

/// Dead letters in one transaction: with the largest payload some 30 MB in memory.
const BATCH: usize = 500;

/// A batch that is rolled back so often in a row will be again.
const ATTEMPTS: u32 = 5;

/// A replay takes over this group's transactional id.
const GROUP: &str = "dead-letter-replay";

/// What a dead letter's own headers begin with.
const OWN_HEADERS: &str = "dead-letter.";

/// What a replay did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// Whether it only counted.
    pub dry_run: bool,
    /// Dead letters that were put back.
    pub replayed: u64,
    /// Those that had been before.
    pub replayed_before: u64,
    /// Those of topics that must not be written to.
    pub not_replayable: u64,
    /// Those that do not say where they come from.
    pub without_source: u64,
    /// If nothing was found: the reasons of the filter that no dead letter has.
    #[serde(skip)]
    pub note: Option<String>,
}

impl Replayed {
    /// One line of JSON.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a struct of numbers")
    }
}

impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = if self.dry_run { "would be replayed" } else { "replayed" };
        writeln!(f, "{:>12}  {done}", self.replayed)?;
        for (count, what) in [
            (self.replayed_before, "were replayed before"),
            (self.not_replayable, "do not come from raw readings and would be doubled: not replayed"),
            (self.without_source, "do not name their origin: not replayed"),
        ] {
            if count > 0 {
                writeln!(f, "{count:>12}  {what}")?;
            }
        }
        self.note.iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}

pub(super) fn replay(
    log: &Arc<dyn Log>,
    contract: &Contract,
    filter: &Filter,
    dry_run: bool,
    shutdown: &CancellationToken,
) -> anyhow::Result<Replayed> {
    let mut replay = match dry_run {
        true => Replay::dry(log, contract)?,
        false => Replay::take_over(log, contract)?,
    };
    // Up to their present end: a letter that fails again is not replayed twice in the same run. After taking over, so
    // that a process which stops another one has seen the letters that the other was to replay.
    let topics = letters::topics(log, &contract.dead_letters(), filter)?;
    for topic in &topics {
        letters::each(log, topic, filter, BATCH, shutdown, |letters| replay.batch(topic, letters))?;
    }
    let mut done = replay.done;
    if done.replayed + done.replayed_before + done.not_replayable + done.without_source == 0 {
        done.note = letters::unknown_reasons(log, &topics, filter, shutdown)?;
    }
    Ok(done)
}

struct Replay {
    log: Arc<dyn Log>,
    /// None if it is a dry run.
    writer: Option<Writer>,
    marks: Marks,
    /// Partitions of source topics; none if there is no such topic.
    partitions: HashMap<String, Option<u32>>,
    /// Topics that may be written to: a duplicate filter reads them.
    inputs: BTreeSet<Arc<str>>,
    done: Replayed,
}

/// The input topics of all streams.
fn inputs(contract: &Contract) -> BTreeSet<Arc<str>> {
    contract.streams().map(|stream| stream.input.topic.clone()).collect()
}

struct Writer {
    transactor: Box<dyn Transactor>,
    /// On the embedded log only the reading half of a group keeps others out.
    _place: Option<Box<dyn event_log::Consumer>>,
    marks: Arc<str>,
    mark_partitions: u32,
}

impl Replay {
    fn dry(log: &Arc<dyn Log>, contract: &Contract) -> anyhow::Result<Self> {
        let (log, marks) = (log.clone(), Marks::read(log)?);
        let done = Replayed { dry_run: true, ..Replayed::default() };
        Ok(Self { log, writer: None, marks, partitions: HashMap::new(), inputs: inputs(contract), done })
    }

    fn take_over(log: &Arc<dyn Log>, contract: &Contract) -> anyhow::Result<Self> {
        let spec = topics::spec(contract.expect_topic(MARKS));
        log.ensure_topic(&spec)?;
        let options = ProcessorOptions { group: GROUP.into(), instance: "1".into(), topics: Vec::new() };
        let place = match log.url() {
            LogUrl::Directory(_) => Some(log.clone().consumer(&options)?),
            LogUrl::Kafka { .. } => None,
        };
        let transactor = log.clone().transactor(&options)?;
        let writer = Writer { transactor, _place: place, marks: spec.name, mark_partitions: spec.partitions };
        // Only now: nobody else can add a mark after this without being fenced.
        let marks = Marks::read(log)?;
        let log = log.clone();
        let (inputs, done) = (inputs(contract), Replayed::default());
        Ok(Self { log, writer: Some(writer), marks, partitions: HashMap::new(), inputs, done })
    }

    /// Replays what of a batch was not, in one transaction.
    fn batch(&mut self, topic: &Topic, letters: &[Letter<'_>]) -> anyhow::Result<()> {
        let before = self.done.clone();
        for _ in 0..ATTEMPTS {
            // From the beginning: after an outcome that was unknown, the marks say which of them were replayed.
            self.done = before.clone();
            let mut outputs = self.outputs(topic, letters)?;
            let Some(writer) = self.writer.as_mut().filter(|_| !outputs.is_empty()) else { return Ok(()) };
            let outlived = self.marks.outlived(topic);
            writer.push_tombstones(&mut outputs, &outlived);
            if writer.transactor.commit(&outputs, &[], &Default::default())? == Outcome::Committed {
                self.marks.forget(&outlived);
                return Ok(());
            }
            self.marks = Marks::read(&self.log)?;
        }
        self.done = before;
        bail!(
            "the log did not commit a transaction in {ATTEMPTS} attempts; {} dead letters were replayed before that \
             and will not be repeated: run this command again",
            self.done.replayed
        )
    }

    fn outputs(&mut self, topic: &Topic, letters: &[Letter<'_>]) -> anyhow::Result<Outputs> {
        let now_ms = service::now_ms();
        let mark = Mark { topic_id: topic.described.id.clone(), replayed_ms: now_ms };
        let mark = serde_json::to_vec(&mark)?;
        let mut outputs = Outputs::default();
        for letter in letters {
            if self.marks.replayed_ms(letter).is_some() {
                self.done.replayed_before += 1;
                continue;
            }
            let Some(source) = letter.source() else {
                self.done.without_source += 1;
                continue;
            };
            let partitions = self.source_partitions(&source)?;
            let Some(partitions) = partitions else {
                self.done.not_replayable += 1;
                continue;
            };
            self.done.replayed += 1;
            if let Some(writer) = &self.writer {
                let position = letter.position().to_string();
                push_original(&mut outputs, &source.topic.as_str().into(), partitions, letter, &position, now_ms);
                writer.push(&mut outputs, &position, Some(&mark), now_ms);
            }
        }
        Ok(outputs)
    }

    /// The number of partitions of the source topic, if it exists and may be written to.
    fn source_partitions(&mut self, source: &Position) -> anyhow::Result<Option<u32>> {
        if let Some(partitions) = self.partitions.get(&source.topic) {
            return Ok(*partitions);
        }
        let partitions = match self.log.describe(&source.topic) {
            Ok(described) if self.inputs.contains(source.topic.as_str()) => Some(described.partitions.len() as u32),
            Ok(_) | Err(Error::UnknownTopic { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        self.partitions.insert(source.topic.clone(), partitions);
        Ok(partitions)
    }
}

impl Writer {
    fn push_tombstones(&self, outputs: &mut Outputs, positions: &[Position]) {
        let now_ms = service::now_ms();
        positions.iter().for_each(|position| self.push(outputs, &position.to_string(), None, now_ms));
    }

    fn push(&self, outputs: &mut Outputs, position: &str, mark: Option<&[u8]>, now_ms: i64) {
        let record = Record { key: position.as_bytes(), value: mark, headers: &[], timestamp_ms: now_ms };
        outputs.push(&self.marks, partition_for_key(record.key, self.mark_partitions), &record);
    }
}

/// The record that the dead letter was, with where it comes from.
fn push_original(
    outputs: &mut Outputs,
    topic: &Arc<str>,
    partitions: u32,
    letter: &Letter<'_>,
    position: &str,
    now_ms: i64,
) {
    let own = |name: &str| name.starts_with(OWN_HEADERS) || name == REPLAYED_FROM;
    let mut headers: Vec<(&str, &[u8])> = letter.record.headers.filter(|(name, _)| !own(name)).collect();
    headers.push((REPLAYED_FROM, position.as_bytes()));
    // Its time is now: with the old one, retention might remove it before it is read.
    let record = Record { key: letter.record.key, value: letter.record.value, headers: &headers, timestamp_ms: now_ms };
    outputs.push(topic, partition_for_key(record.key, partitions), &record);
}
