//! The reading half of a processor: the one instance of its group holds all partitions.

use std::sync::Arc;
use std::time::Duration;

use super::Embedded;
use super::cursor::{Cursor, read_in_turn};
use super::groups::Role;
use super::store::deadline;
use crate::{Consumer, Error, Event, Log, Membership, Position, ProcessorOptions, TopicPartition};

pub(super) struct EmbeddedConsumer {
    topics: Vec<Arc<str>>,
    /// Empty until assigned.
    held: Vec<Held>,
    assigned: bool,
    turn: usize,
    membership: GroupMembership,
}

struct Held {
    cursor: Cursor,
    /// Whether the caller has sought it.
    ready: bool,
}

impl EmbeddedConsumer {
    pub(super) fn new(log: Arc<Embedded>, options: &ProcessorOptions) -> Result<Self, Error> {
        let store = log.store.clone();
        let membership = GroupMembership::join(log, &options.group)?;
        store.readers.add(&store.disk, &options.group, &options.topics, Role::Reader)?;
        Ok(Self { topics: options.topics.clone(), held: Vec::new(), assigned: false, turn: 0, membership })
    }

    fn assign(&mut self) -> Result<Event, Error> {
        let topics = self.topics.iter().map(|t| self.membership.log.store.topic(t)).collect::<Result<Vec<_>, _>>()?;
        for partition in topics.iter().flat_map(|topic| &topic.partitions) {
            self.held.push(Held { cursor: Cursor::new(partition.clone(), partition.first(), None), ready: false });
        }
        self.assigned = true;
        let positions = topics.iter().flat_map(|topic| &topic.partitions);
        let positions = positions.map(|p| Position { topic: p.topic.clone(), partition: p.index, offset: p.first() });
        Ok(Event::Assigned(positions.collect()))
    }
}

impl Consumer for EmbeddedConsumer {
    fn poll(&mut self, max_records: usize, timeout: Duration) -> Result<Event, Error> {
        if !self.assigned {
            return self.assign();
        }
        let deadline = deadline(timeout);
        let store = &self.membership.log.store;
        loop {
            let seen = store.publications();
            let mut ready: Vec<_> = self.held.iter_mut().filter(|h| h.ready).map(|h| &mut h.cursor).collect();
            if let Some(batch) = read_in_turn(ready.drain(..), &mut self.turn, &store.disk, max_records)? {
                return Ok(Event::Batch(batch));
            }
            if !store.wait_for_more(seen, deadline) {
                return Ok(Event::Idle);
            }
        }
    }

    fn seek(&mut self, positions: &[Position]) -> Result<(), Error> {
        for position in positions {
            let held = self.held.iter_mut().find(|h| {
                let partition = &h.cursor.partition;
                partition.index == position.partition && partition.topic == position.topic
            });
            let Some(held) = held else {
                let what = format!("{}/{} is not held by this instance", position.topic, position.partition);
                return Err(self.membership.log.store.disk.refused("seek", what));
            };
            held.cursor.seek(position.offset);
            held.ready = true;
        }
        Ok(())
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        for held in &mut self.held {
            let partition = &held.cursor.partition;
            let is_it = |p: &TopicPartition| p.partition == partition.index && p.topic == partition.topic;
            held.ready &= !partitions.iter().any(is_it);
        }
        Ok(())
    }

    fn membership(&self) -> Membership {
        Membership::default()
    }
}

/// The place of the one instance in its group; free again when dropped.
struct GroupMembership {
    log: Arc<Embedded>,
    group: String,
}

impl GroupMembership {
    fn join(log: Arc<Embedded>, group: &str) -> Result<Self, Error> {
        let mut groups = log.store.groups.lock();
        if !groups.insert(group.to_owned()) {
            return Err(Error::GroupInUse { log: log.url().to_string(), group: group.to_owned() });
        }
        drop(groups);
        Ok(Self { log, group: group.to_owned() })
    }
}

impl Drop for GroupMembership {
    fn drop(&mut self) {
        self.log.store.groups.lock().remove(&self.group);
    }
}
