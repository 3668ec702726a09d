//! Read, transform, commit: a [`Consumer`] of the source log and a [`Transactor`] of the target log as one thing.
//!
//! The committed positions live in the target log, beside the outputs they belong to, so that both are one
//! transaction also where source and target are two logs (the replicator).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::{Batch, Consumer, Error, Log, Outcome, Outputs, Position, TopicPartition, Transactor};

/// Which instance processes which partitions.
#[derive(Debug, Clone)]
pub struct ProcessorOptions {
    /// The consumer group: instances of one group share the partitions.
    pub group: String,
    /// The name of this instance within the group; stays the same over a restart.
    pub instance: String,
    /// The topics of the source log.
    pub topics: Vec<Arc<str>>,
}

/// What happened to a processor.
#[derive(Debug)]
pub enum Event {
    /// This instance holds these partitions, and resumes from these positions: they were assigned to it, or its last
    /// commit was rolled back. The caller rebuilds the state that it derived from later records.
    Assigned(Vec<Position>),
    /// This instance no longer holds these partitions. What was not committed will be processed by another.
    Revoked(Vec<TopicPartition>),
    /// Records of one partition, following the last ones.
    Batch(Batch),
    /// Nothing within the time-out.
    Idle,
}

/// Reads from one log, and commits outputs and positions to the same or another log.
pub struct Processor {
    consumer: Box<dyn Consumer>,
    transactor: Box<dyn Transactor>,
    source: Arc<dyn Log>,
    /// Assigned, and not revoked since.
    held: BTreeSet<TopicPartition>,
    /// A commit was rolled back, and the caller has not heard yet from where it resumes.
    rolled_back: bool,
}

impl Processor {
    /// Joins the group on `target`, to which outputs and positions go, and reads from `source`. If these are two logs,
    /// the topics must be in both, with as many partitions.
    pub fn new(source: Arc<dyn Log>, target: Arc<dyn Log>, options: &ProcessorOptions) -> Result<Self, Error> {
        // The transactor first: it fences an earlier instance of this name before partitions come.
        let transactor = target.clone().transactor(options)?;
        let consumer = target.consumer_of(source.clone(), options)?;
        Ok(Self { consumer, transactor, source, held: BTreeSet::new(), rolled_back: false })
    }

    /// The next event, at most `timeout` later. Batches have at most `max_records` records.
    pub fn next(&mut self, max_records: usize, timeout: Duration) -> Result<Event, Error> {
        if self.rolled_back {
            let held: Vec<_> = self.held.iter().cloned().collect();
            let positions = self.resume(&held)?;
            self.rolled_back = false;
            return Ok(Event::Assigned(positions));
        }
        let event = self.consumer.poll(max_records, timeout)?;
        match &event {
            Event::Assigned(assigned) => {
                let partitions: Vec<_> = assigned.iter().map(Position::at).collect();
                return Ok(Event::Assigned(self.resume(&partitions)?));
            }
            Event::Revoked(revoked) => {
                for partition in revoked {
                    self.held.remove(partition);
                }
            }
            Event::Batch(_) | Event::Idle => {}
        }
        Ok(event)
    }

    /// Commits `outputs`, and `positions` as processed. After [`Outcome::RolledBack`] the next event says from where
    /// all held partitions resume.
    pub fn commit(&mut self, outputs: &Outputs, positions: &[Position]) -> Result<Outcome, Error> {
        let outcome = self.transactor.commit(outputs, positions, &self.consumer.membership())?;
        // Another commit may follow before the caller has heard of it.
        self.rolled_back |= outcome == Outcome::RolledBack;
        Ok(outcome)
    }

    /// Gives out nothing more of these partitions until [`read_from`](Self::read_from). They stay with this instance.
    pub fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        self.consumer.pause(partitions)
    }

    /// Goes on from these positions, in partitions that this instance holds.
    pub fn read_from(&mut self, positions: &[Position]) -> Result<(), Error> {
        self.consumer.seek(positions)
    }

    /// Goes on from the committed positions, or from the first offset where nothing was committed.
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Position>, Error> {
        let committed = self.transactor.committed(partitions)?;
        let mut positions = Vec::with_capacity(partitions.len());
        for (partition, committed) in partitions.iter().zip(committed) {
            let offset = match committed {
                Some(offset) => offset,
                None => self.source.bounds(&partition.topic, partition.partition)?.first,
            };
            self.held.insert(partition.clone());
            positions.push(Position { topic: partition.topic.clone(), partition: partition.partition, offset });
        }
        self.consumer.seek(&positions)?;
        Ok(positions)
    }
}
