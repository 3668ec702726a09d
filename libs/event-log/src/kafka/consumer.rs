//! Reads the partitions that this instance holds in its group.
//!
//! ```text
//! the group assigns ──► Assigned ──► seek ──► fetched from there ──► batches
//!                        └─ said again until then
//! the group revokes ──► Revoked, and what was not handed out is dropped
//!                        └─ given back with the next poll: until then the caller may commit what it has
//! ```
//!
//! The classic group protocol with a static member: an instance that comes back under its name within the session
//! time-out gets its partitions back at once, and one that is killed disturbs nobody. Partitions are taken and given
//! all together ("eager"), and in ranges, so that partition 3 of every topic is with the same instance, as state per
//! car needs it. The new group protocol is not used: its static members do not survive a kill.
//!
//! Nothing is committed here: positions are part of the transactor's transaction. Fetching begins where
//! [`Consumer::seek`] says, so positions of the group on this cluster do not matter. The membership that goes into a
//! transaction is that of the last assignment reported to the caller: if the group has rebalanced since, the broker
//! refuses the transaction. So the end of an assignment is reported to the caller before the next one, even where
//! librdkafka reports only the latter, as after a pause in which the group continued.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Message, Offset, TopicPartitionList};

use super::clients;
use super::member::{GroupMember, fatal_error, is_fencing};
use super::rebalances::Rebalances;
use super::{KafkaLog, MAX_BATCH_BYTES, REQUEST_TIMEOUT, push, topics};
use crate::{Batch, Consumer, Error, Event, Membership, Position, ProcessorOptions, TopicPartition};

/// An instance that is silent for this long loses its partitions. Longer than a restart takes; short enough to wait for
/// when a machine is gone for good.
const SESSION_TIMEOUT_MS: &str = "30000";
/// A stage that requests nothing for this long is stuck, and loses its partitions. A commit that waits for a broker,
/// and one step of a replay, must fit in.
const MAX_POLL_INTERVAL_MS: &str = "300000";
/// So soon an instance learns that the group is to be shared anew, or that it was replaced: others wait for it to
/// notice.
const HEARTBEAT_MS: &str = "1000";
/// For the end of the client, which asks nobody for anything unless partitions are just being moved.
const CLOSE_BUDGET: Duration = Duration::from_secs(5);
const CLOSE_POLL: Duration = Duration::from_millis(20);
/// How soon new partitions, and topics that did not exist before, are noticed.
const METADATA_REFRESH_MS: &str = "30000";
/// Read ahead this much, over all partitions.
const READ_AHEAD_KIB: &str = "32768";

pub(super) struct KafkaConsumer {
    log: Arc<KafkaLog>,
    client: Arc<BaseConsumer<Rebalances>>,
    heartbeat: Duration,
    options: ProcessorOptions,
    /// Whether records are fetched. If not, this is a place in the group and no more.
    reads: bool,
    /// Where reading resumes in each partition that was sought.
    held: HashMap<TopicPartition, u64>,
    /// Nothing is read from these before they are sought again.
    paused: HashSet<TopicPartition>,
    /// Assigned, and not sought yet.
    waiting: Vec<TopicPartition>,
    /// Revoked, as the caller knows; the group waits until the client gives the partitions back.
    giving_back: bool,
    /// This instance in the group as of its last assignment.
    member: Option<Arc<ConsumerGroupMetadata>>,
    /// The first record after the last batch; it is of another partition.
    ahead: Option<Batch>,
    /// An error that came after the last batch.
    error: Option<KafkaError>,
}

impl KafkaConsumer {
    pub(super) fn join(log: Arc<KafkaLog>, options: &ProcessorOptions) -> Result<Self, Error> {
        let member = format!("{}-{}", options.group, options.instance);
        let config = log.clients.config(&[
            ("client.id", &member),
            ("group.id", &options.group),
            ("group.instance.id", &member),
            ("group.protocol", "classic"),
            ("partition.assignment.strategy", "range"),
            ("session.timeout.ms", SESSION_TIMEOUT_MS),
            ("heartbeat.interval.ms", HEARTBEAT_MS),
            ("max.poll.interval.ms", MAX_POLL_INTERVAL_MS),
            ("isolation.level", "read_committed"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("topic.metadata.refresh.interval.ms", METADATA_REFRESH_MS),
            ("queued.max.messages.kbytes", READ_AHEAD_KIB),
            ("fetch.queue.backoff.ms", "20"),
        ]);
        let created = config.create_with_context(Rebalances::default());
        let client: BaseConsumer<_> = created.map_err(|e| log.refused("create a consumer", &e))?;
        let topics: Vec<&str> = options.topics.iter().map(|t| &**t).collect();
        client.subscribe(&topics).map_err(|e| log.refused("subscribe", &e))?;
        Ok(Self {
            log,
            client: Arc::new(client),
            heartbeat: clients::duration_ms(&config, "heartbeat.interval.ms"),
            options: options.clone(),
            reads: true,
            held: HashMap::new(),
            paused: HashSet::new(),
            waiting: Vec::new(),
            giving_back: false,
            member: None,
            ahead: None,
            error: None,
        })
    }

    /// Like [`KafkaConsumer::join`], for a member that holds partitions and fetches nothing from them.
    pub(super) fn join_without_reading(log: Arc<KafkaLog>, options: &ProcessorOptions) -> Result<Self, Error> {
        let mut member = Self::join(log, options)?;
        member.reads = false;
        Ok(member)
    }

    /// What the group has decided since the last call.
    fn group_event(&mut self) -> Result<Option<Event>, Error> {
        let mut group = self.client.context().group.lock();
        if std::mem::take(&mut group.overtaken) {
            group.assigned = None;
            drop(group);
            self.client.unassign().map_err(|e| self.log.refused("release partitions", &e))?;
            let source = "the group continued while this instance was away".into();
            return Err(Error::Unavailable { operation: "join a group", log: self.log.url.to_string(), source });
        }
        if !group.revoked.is_empty() {
            let revoked = std::mem::take(&mut group.revoked);
            drop(group);
            self.giving_back = true;
            let revoked: Vec<_> = revoked.iter().map(|(topic, partition)| self.named(topic, *partition)).collect();
            return Ok(Some(self.lose(revoked)));
        }
        let Some(assigned) = group.assigned.take() else { return Ok(None) };
        if !self.waiting.is_empty() || !self.held.is_empty() {
            // The last assignment is over, and librdkafka has not reported it: it was lost, or never started.
            group.assigned = Some(assigned);
            drop(group);
            let lost = self.waiting.iter().chain(self.held.keys()).cloned().collect();
            return Ok(Some(self.lose(lost)));
        }
        drop(group);
        if assigned.partitions.is_empty() {
            // More instances than partitions.
            let taken_up = self.client.assign(&TopicPartitionList::new());
            return taken_up.map(|()| None).map_err(|e| self.log.unavailable("acquire partitions", &e));
        }
        let named = assigned.partitions.iter().map(|(topic, partition)| self.named(topic, *partition)).collect();
        self.waiting = named;
        self.member = assigned.member;
        Ok(Some(self.assigned()))
    }

    /// Takes an assignment up without fetching. The positions are another log's, and mean nothing here.
    fn hold(&mut self, positions: &[Position]) -> Result<(), Error> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let list = self.list(positions.iter().map(|p| (&*p.topic, p.partition, Offset::End)))?;
        self.client.assign(&list).map_err(|e| self.log.unavailable("acquire partitions", &e))?;
        self.client.pause(&list).map_err(|e| self.log.unavailable("acquire partitions", &e))?;
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        self.held.extend(waiting.map(|partition| (partition, 0))); // what is held counts, not from where
        Ok(())
    }

    fn lose(&mut self, revoked: Vec<TopicPartition>) -> Event {
        self.held.retain(|p, _| !revoked.contains(p));
        self.waiting.retain(|p| !revoked.contains(p));
        self.ahead = None;
        Event::Revoked(revoked)
    }

    fn assigned(&self) -> Event {
        let first = |p: &TopicPartition| Position { topic: p.topic.clone(), partition: p.partition, offset: 0 };
        Event::Assigned(self.waiting.iter().map(first).collect())
    }

    /// The partition with the topic's name as the caller has it.
    fn named(&self, topic: &str, partition: u32) -> TopicPartition {
        let known = self.options.topics.iter().find(|t| ***t == *topic);
        TopicPartition { topic: known.map_or_else(|| topic.into(), Arc::clone), partition }
    }

    /// Records of one partition that have arrived, waiting for the first until `deadline`.
    fn gather(&mut self, max_records: usize, deadline: Instant) -> Result<Event, Error> {
        let mut batch = self.ahead.take();
        loop {
            if batch.as_ref().is_some_and(|b| b.len() >= max_records || b.bytes() >= MAX_BATCH_BYTES) {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.client.poll(if batch.is_some() { Duration::ZERO } else { left }) {
                // Fetched in the moment before the partition was paused.
                Some(Ok(message)) if !self.reads || self.is_paused(&message) => {}
                Some(Ok(message)) => match &mut batch {
                    Some(batch) if is_of(batch, message.topic(), message.partition() as u32) => push(batch, &message),
                    _ => {
                        let TopicPartition { topic, partition } =
                            self.named(message.topic(), message.partition() as u32);
                        let mut next = Batch::new(topic, partition);
                        push(&mut next, &message);
                        drop(message);
                        if batch.is_some() {
                            self.ahead = Some(next);
                            break;
                        }
                        batch = Some(next);
                    }
                },
                Some(Err(error)) if batch.is_some() => {
                    self.error = Some(error);
                    break;
                }
                Some(Err(error)) => self.failed(&error)?,
                None => {
                    // Partitions that were taken away are taken with what is not handed out yet.
                    if let Some(event) = self.group_event()? {
                        return Ok(event);
                    }
                    if batch.is_some() || left.is_zero() {
                        break;
                    }
                }
            }
        }
        let Some(batch) = batch else {
            self.check_fatal()?;
            return Ok(Event::Idle);
        };
        let partition = batch.at();
        if let (Some(held), Some(next)) = (self.held.get_mut(&partition), batch.next_offset()) {
            *held = next;
        }
        Ok(Event::Batch(batch))
    }

    /// Ends the client. The binding would wait for that without a limit, and nothing needs it: a static member does not
    /// leave the group, and an instance that returns with this name takes its place.
    fn close(&self) {
        if self.client.close_queue().is_err() {
            return; // after a fatal error there is nothing left to close
        }
        let deadline = Instant::now() + CLOSE_BUDGET;
        while !self.client.closed() {
            if Instant::now() >= deadline {
                let lost = self.client.assignment_lost();
                tracing::warn!(group = %self.options.group, lost, "the consumer did not close in time: leaving the \
                    group without notifying the coordinator");
                std::mem::forget(self.client.clone());
                return;
            }
            // The changes that still come are answered in `Rebalances`.
            let _ = self.client.poll(CLOSE_POLL);
        }
    }

    /// An error that librdkafka does not overcome by itself.
    fn failed(&self, error: &KafkaError) -> Result<(), Error> {
        use RDKafkaErrorCode as Code;
        self.check_fatal()?;
        match error.rdkafka_error_code() {
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => self.out_of_range(error),
            Some(Code::AllBrokersDown) => {
                let source = self.client.context().diagnostics.explain(error);
                Err(Error::Unavailable { operation: "read in a group", log: self.log.url.to_string(), source })
            }
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
                for topic in &self.options.topics {
                    topics::partition_ids(&self.log, topic)?;
                }
                Err(self.log.unavailable("read in a group", error)) // it has just been created
            }
            Some(Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed) => {
                Err(self.log.denied_in_group(&self.options, error))
            }
            Some(Code::PollExceeded) => {
                let cause = "no batch was requested within max.poll.interval.ms";
                tracing::warn!(group = %self.options.group, cause, "this instance has lost its partitions");
                Ok(())
            }
            _ if clients::is_unreadable(error) => Err(self.log.refused("unpack records", error)),
            _ => {
                self.client.context().diagnostics.reading_continues(&self.log.url, error);
                Ok(())
            }
        }
    }

    /// An error after which librdkafka does nothing more. It says so once; we say so as long as we are asked.
    fn check_fatal(&self) -> Result<(), Error> {
        let Some((code, reason)) = fatal_error(&self.client) else { return Ok(()) };
        Err(if is_fencing(code) {
            Error::Fenced { group: self.options.group.clone(), instance: self.options.instance.clone() }
        } else {
            Error::Refused { operation: "read in a group", log: self.log.url.to_string(), source: reason.into() }
        })
    }

    /// Kafka does not say which partition is meant: the one whose position is not in it.
    fn out_of_range(&self, error: &KafkaError) -> Result<(), Error> {
        for (p, &offset) in self.held.iter().filter(|(p, _)| !self.paused.contains(*p)) {
            let (first, next) = self.log.bounds(&p.topic, p.partition)?;
            if offset < first || offset > next {
                let (topic, partition) = (p.topic.to_string(), p.partition);
                return Err(Error::OutOfRange { topic, partition, offset, first, next });
            }
        }
        // It came from a partition before that was paused.
        if self.paused.is_empty() { Err(self.log.unavailable("read in a group", error)) } else { Ok(()) }
    }

    fn is_paused(&self, message: &impl Message) -> bool {
        let is_it = |p: &TopicPartition| p.partition == message.partition() as u32 && *p.topic == *message.topic();
        self.paused.iter().any(is_it)
    }

    fn list<'p>(
        &self,
        partitions: impl IntoIterator<Item = (&'p str, u32, Offset)>,
    ) -> Result<TopicPartitionList, Error> {
        let mut list = TopicPartitionList::new();
        for (topic, partition, offset) in partitions {
            let added = list.add_partition_offset(topic, partition as i32, offset);
            added.map_err(|e| self.log.refused("name partitions", &e))?;
        }
        Ok(list)
    }

    /// Goes on from these positions, and elsewhere from where it is. librdkafka has given up a partition whose offset
    /// was out of range until it is assigned once more, and an assignment comes and goes as a whole.
    fn assign_again(&mut self, positions: &[Position]) -> Result<(), Error> {
        (self.ahead, self.error) = (None, None); // it comes again
        let offset = |p: &TopicPartition, held: u64| {
            let position = positions.iter().find(|position| position.at() == *p);
            Offset::Offset(position.map_or(held, |position| position.offset) as i64)
        };
        let list = self.list(self.held.iter().map(|(p, &held)| (&*p.topic, p.partition, offset(p, held))))?;
        self.unless_lost("acquire partitions", self.client.assign(&list))?;
        let paused = self.list(self.paused.iter().map(|p| (&*p.topic, p.partition, Offset::Invalid)))?;
        self.unless_lost("pause partitions", self.client.pause(&paused))
    }

    /// What of an operation on partitions matters. Those that are about to be revoked do not.
    fn unless_lost(&self, operation: &'static str, done: Result<(), KafkaError>) -> Result<(), Error> {
        match done {
            Err(error) if !self.client.assignment_lost() => Err(self.log.unavailable(operation, &error)),
            _ => Ok(()),
        }
    }
}

impl Consumer for KafkaConsumer {
    fn poll(&mut self, max_records: usize, timeout: Duration) -> Result<Event, Error> {
        if std::mem::take(&mut self.giving_back) {
            self.client.unassign().map_err(|e| self.log.refused("release partitions", &e))?;
        }
        if let Some(error) = self.error.take() {
            self.failed(&error)?;
        }
        if let Some(event) = self.group_event()? {
            return Ok(event);
        }
        if self.waiting.is_empty() {
            return self.gather(max_records, Instant::now() + timeout);
        }
        // The last assignment was not taken up, because its positions could not be had. Stay in the group meanwhile.
        match self.gather(max_records, Instant::now())? {
            Event::Idle => Ok(self.assigned()),
            event => Ok(event),
        }
    }

    fn seek(&mut self, positions: &[Position]) -> Result<(), Error> {
        if positions.is_empty() {
            return Ok(()); // everything was revoked; librdkafka refuses to do nothing
        }
        if !self.reads {
            return self.hold(positions);
        }
        let list = self.list(positions.iter().map(|p| (&*p.topic, p.partition, Offset::Offset(p.offset as i64))))?;
        if self.ahead.as_ref().is_some_and(|b| positions.iter().any(|p| is_of(b, &p.topic, p.partition))) {
            self.ahead = None;
        }
        if self.waiting.is_empty() {
            let sought = self.client.seek_partitions(list.clone(), REQUEST_TIMEOUT);
            let sought = sought.and_then(|sought| sought.elements().iter().try_for_each(|p| p.error()));
            if sought.as_ref().is_err_and(|error| error.rdkafka_error_code() == Some(RDKafkaErrorCode::State)) {
                self.assign_again(positions)?;
            } else {
                self.unless_lost("seek", sought)?;
            }
        } else {
            // An assignment comes and goes as a whole.
            self.client.assign(&list).map_err(|e| self.log.unavailable("acquire partitions", &e))?;
            self.waiting.clear();
        }
        if positions.iter().any(|p| self.paused.contains(&p.at())) {
            self.unless_lost("resume partitions", self.client.resume(&list))?;
        }
        for p in positions {
            self.paused.remove(&p.at());
            self.held.insert(p.at(), p.offset);
        }
        Ok(())
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        let partitions: Vec<_> = partitions.iter().filter(|p| self.held.contains_key(*p)).cloned().collect();
        let list = self.list(partitions.iter().map(|p| (&*p.topic, p.partition, Offset::Invalid)))?;
        self.unless_lost("pause partitions", self.client.pause(&list))?;
        self.ahead.take_if(|batch| partitions.contains(&batch.at()));
        self.paused.extend(partitions);
        Ok(())
    }

    fn membership(&self) -> Membership {
        let cluster = self.log.cluster_id();
        let (client, heartbeat) = (self.client.clone(), self.heartbeat);
        match self.member.clone() {
            Some(metadata) => Membership::of(GroupMember { cluster, metadata, client, heartbeat }),
            None => Membership::default(),
        }
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        self.client.context().closing.store(true, Ordering::Release);
        let untold = {
            let mut group = self.client.context().group.lock();
            group.assigned.take().is_some() || !group.revoked.is_empty()
        };
        if untold || self.giving_back || !self.waiting.is_empty() {
            // librdkafka does not close before it knows what became of the change.
            let _ = self.client.unassign();
        }
        self.close();
    }
}

fn is_of(batch: &Batch, topic: &str, partition: u32) -> bool {
    batch.partition() == partition && **batch.topic() == *topic
}

#[cfg(test)]
mod tests;
