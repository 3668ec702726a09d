//! Reads another log, as a member of a group on this cluster.
//!
//! ```text
//! this cluster    group of the topics here ──► which partitions this instance holds ─┐ the place in the group goes
//!                 positions of the group   ──► from where                            │ into every transaction here
//!                                                                                    ▼
//! the other log   the same partitions of the topics there ──► batches
//! ```
//!
//! Where source and target are two clusters, a group on the source could not fence: the target would accept the
//! transaction of an instance that was paused and whose partitions another one copies meanwhile, and records would be
//! there twice. So the group is where the transactions are, on the target: it assigns the partitions of the topics of
//! the same names there, and its broker refuses who is no longer a member, as it does within one cluster. Nothing is
//! fetched from the topics here.
//!
//! Topics need as many partitions here as there; whoever opens a processor on two logs sees to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::KafkaLog;
use super::consumer::KafkaConsumer;
use crate::{Consumer, Error, Event, Log, Membership, Position, ProcessorOptions, Range, Read, Reader, TopicPartition};

pub(super) struct ForeignConsumer {
    member: KafkaConsumer,
    source: Arc<dyn Log>,
    /// Where reading resumes in each partition that was sought.
    held: BTreeMap<TopicPartition, u64>,
    /// Reads what is held; none after that has changed.
    reader: Option<Box<dyn Reader>>,
}

impl ForeignConsumer {
    pub(super) fn join(log: Arc<KafkaLog>, source: Arc<dyn Log>, options: &ProcessorOptions) -> Result<Self, Error> {
        let member = KafkaConsumer::join_without_reading(log, options)?;
        Ok(Self { member, source, held: BTreeMap::new(), reader: None })
    }

    fn read(&mut self, max_records: usize, timeout: Duration) -> Result<Event, Error> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            None => {
                let ranges = self.held.iter().map(|(p, &start)| Range {
                    topic: p.topic.clone(),
                    partition: p.partition,
                    start,
                    end: None,
                });
                self.reader.insert(self.source.clone().reader(ranges.collect())?)
            }
        };
        let Read::Batch(batch) = reader.next(max_records, timeout)? else { return Ok(Event::Idle) };
        let partition = batch.at();
        if let (Some(held), Some(next)) = (self.held.get_mut(&partition), batch.next_offset()) {
            *held = next;
        }
        Ok(Event::Batch(batch))
    }
}

impl Consumer for ForeignConsumer {
    fn poll(&mut self, max_records: usize, timeout: Duration) -> Result<Event, Error> {
        // With nothing to read there is only the group to wait for.
        let wait_for_group = if self.held.is_empty() { timeout } else { Duration::ZERO };
        match self.member.poll(1, wait_for_group)? {
            Event::Revoked(revoked) => {
                self.held.retain(|partition, _| !revoked.contains(partition));
                self.reader = None;
                return Ok(Event::Revoked(revoked));
            }
            Event::Assigned(positions) => return Ok(Event::Assigned(positions)),
            Event::Batch(_) | Event::Idle => {}
        }
        if self.held.is_empty() {
            return Ok(Event::Idle);
        }
        let event = self.read(max_records, timeout);
        if event.is_err() {
            self.reader = None;
        }
        event
    }

    fn seek(&mut self, positions: &[Position]) -> Result<(), Error> {
        self.member.seek(positions)?;
        for p in positions {
            self.held.insert(TopicPartition { topic: p.topic.clone(), partition: p.partition }, p.offset);
        }
        self.reader = None;
        Ok(())
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        self.held.retain(|partition, _| !partitions.contains(partition));
        self.reader = None;
        Ok(())
    }

    fn membership(&self) -> Membership {
        self.member.membership()
    }
}
