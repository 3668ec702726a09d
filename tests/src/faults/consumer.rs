//! Reads the partitions that an instance holds in its group: what the Kafka backend's consumers do, in steps.
//!
//! ```text
//! the group assigns ──► Assigned, again and again until sought ──► batches, from this log or from another one
//! the group revokes ──► Revoked; with the next poll they are given back, and the instance rejoins
//! ```
//!
//! The group's decision may be noticed late, with the next heartbeat: until then records keep arriving, and only the
//! commit is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{
    Consumer, Error, Event, Log, Membership, Position, ProcessorOptions, Range, Read, Reader, TopicPartition,
};

use super::group::Place;
use super::log::FaultyLog;
use super::turn::{Turn, unavailable};

/// Between two looks for records once the run is over, and callers really wait.
const POLL: Duration = Duration::from_millis(1);
/// Then no caller waits for longer, however long it would: a batch that waits for more records is to be given up.
const LAST_WAIT: Duration = Duration::from_millis(50);

pub(super) struct FaultyConsumer {
    /// Where the group is.
    log: FaultyLog,
    /// What is read.
    source: Arc<dyn Log>,
    group: String,
    name: String,
    topics: Vec<Arc<str>>,
    /// The number under which it joined last.
    member: u64,
    /// The generation of the last assignment it took.
    generation: u64,
    place: Option<Place>,
    /// The next offset of each partition; `None` until sought.
    held: BTreeMap<TopicPartition, Option<u64>>,
    /// Of these nothing is read.
    paused: BTreeSet<TopicPartition>,
    /// Reads what is held and sought; none after that has changed.
    reader: Option<Box<dyn Reader>>,
    giving_back: bool,
}

impl FaultyConsumer {
    pub(super) fn join(log: FaultyLog, source: Arc<dyn Log>, options: &ProcessorOptions) -> Result<Self, Error> {
        let (group, name) = (options.group.clone(), options.instance.clone());
        let mut turn = log.step(format_args!("joins {group}"))?;
        let member = turn.world.clusters[log.cluster].join(&group, &name, log.task, &options.topics);
        drop(turn);
        Ok(Self {
            log,
            source,
            group,
            name,
            topics: options.topics.clone(),
            member,
            generation: 0,
            place: None,
            held: BTreeMap::new(),
            paused: BTreeSet::new(),
            reader: None,
            giving_back: false,
        })
    }

    /// What the group has decided, as far as this instance notices.
    fn group_event(&mut self, turn: &mut Turn<'_>) -> Result<Option<Event>, Error> {
        let (cluster, task) = (self.log.cluster, self.log.task);
        if std::mem::take(&mut self.giving_back) {
            self.held.clear();
        }
        let notices = self.held.is_empty() || !turn.stepped || turn.world.random.chance(1, 2);
        let known = &mut turn.world.clusters[cluster];
        let group = known.groups.entry(self.group.clone()).or_default();
        match group.members.get_mut(&self.name) {
            Some(member) if member.number != self.member => {
                return Err(Error::Fenced { group: self.group.clone(), instance: self.name.clone() });
            }
            _ if !notices => return Ok(None),
            None if self.held.is_empty() => {
                self.member = known.join(&self.group, &self.name, task, &self.topics);
            }
            Some(member) if group.forming && !member.joined && self.held.is_empty() => member.joined = true,
            None => return Ok(Some(self.lose())),
            Some(member) if group.forming && !member.joined => return Ok(Some(self.lose())),
            Some(_) => {}
        }
        known.complete(&self.group)?;
        let group = &known.groups[&self.group];
        if !group.forming && group.generation != self.generation {
            let member = group.members.get(&self.name).expect("it has just joined, or was there");
            self.generation = group.generation;
            self.held = member.assignment.iter().map(|p| (p.clone(), None)).collect();
            self.reader = None;
            self.place = Some(Place {
                cluster,
                group: self.group.clone(),
                name: self.name.clone(),
                member: self.member,
                generation: self.generation,
            });
        }
        Ok(self.waiting())
    }

    /// Assigned, as long as it was not sought.
    fn waiting(&self) -> Option<Event> {
        let waiting = self.held.iter().filter(|(_, next)| next.is_none());
        let first = |p: &TopicPartition| Position { topic: p.topic.clone(), partition: p.partition, offset: 0 };
        let waiting: Vec<_> = waiting.map(|(p, _)| first(p)).collect();
        (!waiting.is_empty()).then_some(Event::Assigned(waiting))
    }

    fn lose(&mut self) -> Event {
        self.giving_back = true;
        self.reader = None;
        Event::Revoked(self.held.keys().cloned().collect())
    }

    /// Records of one of the partitions, if there are any.
    fn read(&mut self, max_records: usize) -> Result<Option<Event>, Error> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            None => {
                let read = self.held.iter().filter(|(p, _)| !self.paused.contains(*p));
                let ranges = read.filter_map(|(p, next)| {
                    let (topic, partition) = (p.topic.clone(), p.partition);
                    next.map(|start| Range { topic, partition, start, end: None })
                });
                let ranges: Vec<_> = ranges.collect();
                if ranges.is_empty() {
                    return Ok(None);
                }
                self.reader.insert(self.source.clone().reader(ranges)?)
            }
        };
        let Read::Batch(batch) = reader.next(max_records, Duration::ZERO)? else { return Ok(None) };
        let partition = batch.at();
        if let Some(held) = self.held.get_mut(&partition) {
            *held = batch.next_offset().or(*held);
        }
        Ok(Some(Event::Batch(batch)))
    }
}

impl Consumer for FaultyConsumer {
    fn poll(&mut self, max_records: usize, timeout: Duration) -> Result<Event, Error> {
        let deadline = Instant::now() + timeout.min(LAST_WAIT);
        loop {
            // Of the copy: what is borrowed from it outlives changes to the consumer.
            let log = self.log.clone();
            let mut turn = log.step(format_args!("polls"))?;
            turn.trouble("read in a group")?;
            if let Some(event) = self.group_event(&mut turn)? {
                turn.world.note_of(log.task, format_args!("  {event:?}"));
                return Ok(event);
            }
            let stepped = turn.stepped;
            drop(turn);
            if let Some(event) = self.read(max_records)? {
                return Ok(event);
            }
            if stepped || Instant::now() >= deadline {
                return Ok(Event::Idle);
            }
            std::thread::sleep(POLL);
        }
    }

    fn seek(&mut self, positions: &[Position]) -> Result<(), Error> {
        let log = self.log.clone();
        let mut turn = log.step(format_args!("seeks"))?;
        turn.trouble("seek")?;
        self.reader = None;
        for p in positions {
            turn.world.note_of(log.task, format_args!("  {}/{} at {}", p.topic, p.partition, p.offset));
            let partition = TopicPartition { topic: p.topic.clone(), partition: p.partition };
            let Some(next) = self.held.get_mut(&partition) else {
                if turn.stepped {
                    let (topic, partition) = (&p.topic, p.partition);
                    turn.world.fail(format!("a consumer was told to seek {topic}/{partition}, which it does not hold"));
                }
                return Err(unavailable("seek"));
            };
            *next = Some(p.offset);
            self.paused.remove(&partition);
        }
        Ok(())
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        self.paused.extend(partitions.iter().cloned());
        self.reader = None;
        Ok(())
    }

    fn membership(&self) -> Membership {
        self.place.clone().map_or_else(Membership::default, Membership::of)
    }
}
