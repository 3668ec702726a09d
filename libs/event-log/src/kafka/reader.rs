//! Reads ranges of partitions, without a group.
//!
//! ```text
//! one client ─┬─ queue of partition 0 ─┐
//!             ├─ queue of partition 1 ─┼─ in turn ──► Batch of one partition
//!             └─ queue of partition 2 ─┘
//! ```
//!
//! The end of a range need not be a record: transaction markers, aborted records and compaction leave offsets without
//! one. A range is over with the record before its end, with a record after it, or at the end of the partition, if the
//! partition was known to reach so far.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Message, Offset, TopicPartitionList};

use super::clients::{self, Diagnostics};
use super::{KafkaLog, MAX_BATCH_BYTES, REQUEST_TIMEOUT, push, topics};
use crate::{Batch, Error, Range, Read, Reader};

/// Read ahead this much over all partitions, while nobody takes it: enough for the fastest reader between two fetches.
/// librdkafka counts by partition, and bytes of records only; what it takes in memory is about three times as much.
const READ_AHEAD_KIB: usize = 16384;
/// But at least this much per partition, so that a fetch is worthwhile.
const READ_AHEAD_KIB_PER_PARTITION: usize = 256;
/// What librdkafka asks for per partition and fetch unless told otherwise.
const FETCH_KIB: usize = 1024;
/// Look at least this often for what librdkafka reports outside the partitions' queues.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

pub(super) struct KafkaReader {
    log: Arc<KafkaLog>,
    client: Option<Arc<BaseConsumer<Diagnostics>>>,
    parts: Vec<Part>,
    /// The partition whose turn it is, so that each gets one.
    turn: usize,
    arrived: Arc<Arrived>,
}

/// One partition.
struct Part {
    topic: Arc<str>,
    partition: u32,
    /// The end of the range that is being read.
    end: Option<u64>,
    /// The ranges that follow.
    later: VecDeque<Range>,
    /// The offset to resume from.
    position: u64,
    /// The partition was seen to reach this far.
    reaches: u64,
    done: bool,
    queue: Option<PartitionQueue<Diagnostics>>,
}

impl KafkaReader {
    pub(super) fn new(log: Arc<KafkaLog>, ranges: Vec<Range>) -> Result<Self, Error> {
        let mut parts: Vec<Part> = Vec::new();
        for range in ranges {
            if range.end.is_some_and(|end| end <= range.start) {
                continue; // empty
            }
            match parts.iter_mut().find(|p| p.topic == range.topic && p.partition == range.partition) {
                Some(part) => part.later.push_back(range),
                None => parts.push(Part {
                    topic: range.topic,
                    partition: range.partition,
                    end: range.end,
                    later: VecDeque::new(),
                    position: range.start,
                    reaches: 0,
                    done: false,
                    queue: None,
                }),
            }
        }
        Ok(Self { log, client: None, parts, turn: 0, arrived: Arc::default() })
    }

    /// Checks the ranges, and begins to read them.
    fn start(&mut self) -> Result<Arc<BaseConsumer<Diagnostics>>, Error> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        for part in &mut self.parts {
            if !topics::partition_ids(&self.log, &part.topic)?.contains(&part.partition) {
                let log = self.log.url.to_string();
                let source = format!("topic {} has no partition {}", part.topic, part.partition).into();
                return Err(Error::Refused { operation: "read", log, source });
            }
            part.reaches = check_bounds(&self.log, part, part.position)?;
            for range in &part.later {
                check_bounds(&self.log, part, range.start)?;
            }
        }
        let ahead_kib = (READ_AHEAD_KIB / self.parts.len().max(1)).max(READ_AHEAD_KIB_PER_PARTITION);
        let (ahead, fetch) = (ahead_kib.to_string(), (1024 * ahead_kib.min(FETCH_KIB)).to_string());
        let config = self.log.clients.config(&[
            ("group.id", "carstream-reader"), // required by librdkafka, joined by nobody
            ("isolation.level", "read_committed"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("enable.partition.eof", "true"),
            ("queued.max.messages.kbytes", ahead.as_str()),
            ("fetch.message.max.bytes", fetch.as_str()),
            ("fetch.queue.backoff.ms", "20"),
        ]);
        let created = config.create_with_context(Diagnostics::default());
        let mut client: BaseConsumer<_> = created.map_err(|e| self.log.refused("create a reader", &e))?;
        client.set_nonempty_callback(self.arrived.callback());
        let client = Arc::new(client);

        let mut assignment = TopicPartitionList::with_capacity(self.parts.len());
        for part in &self.parts {
            assignment
                .add_partition_offset(&part.topic, part.partition as i32, Offset::Offset(part.position as i64))
                .map_err(|e| self.log.refused("assign partitions", &e))?;
        }
        client.assign(&assignment).map_err(|e| self.log.refused("assign partitions", &e))?;
        for part in &mut self.parts {
            let mut queue = client.split_partition_queue(&part.topic, part.partition as i32);
            if let Some(queue) = &mut queue {
                queue.set_nonempty_callback(self.arrived.callback());
            }
            part.queue = queue;
        }
        self.client = Some(client.clone());
        Ok(client)
    }

    /// What came before a partition had a queue of its own, and errors that belong to none.
    fn serve_client(&mut self, client: &BaseConsumer<Diagnostics>) -> Result<(), Error> {
        while let Some(event) = client.poll(Duration::ZERO) {
            match event {
                // Read it again through the partition's queue.
                Ok(message) => {
                    let (topic, partition) = (message.topic().to_owned(), message.partition() as u32);
                    drop(message);
                    if let Some(part) = self.parts.iter().find(|p| *p.topic == *topic && p.partition == partition) {
                        seek(&self.log, client, part)?;
                    }
                }
                Err(KafkaError::PartitionEOF(partition)) => {
                    for part in self.parts.iter().filter(|p| p.partition as i32 == partition && !p.done) {
                        seek(&self.log, client, part)?;
                    }
                }
                Err(e) => match e.rdkafka_error_code() {
                    Some(RDKafkaErrorCode::AllBrokersDown) => return Err(self.log.unavailable("read", &e)),
                    // A reader has its group by name only, and needs no rights on it.
                    Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {}
                    _ => client.context().reading_continues(&self.log.url, &e),
                },
            }
        }
        Ok(())
    }
}

impl Reader for KafkaReader {
    fn next(&mut self, max_records: usize, timeout: Duration) -> Result<Read, Error> {
        let deadline = Instant::now() + timeout;
        if self.parts.is_empty() {
            return Ok(Read::End);
        }
        let client = self.start()?;
        loop {
            self.serve_client(&client)?;
            for _ in 0..self.parts.len() {
                let turn = self.turn;
                self.turn = (turn + 1) % self.parts.len();
                let part = &mut self.parts[turn];
                if !part.done {
                    let batch = part.take(&self.log, &client, max_records)?;
                    if !batch.is_empty() {
                        return Ok(Read::Batch(batch));
                    }
                }
            }
            if self.parts.iter().all(|p| p.done) {
                return Ok(Read::End);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Read::Idle);
            }
            self.arrived.wait(left.min(LOOK_AGAIN));
        }
    }
}

impl Part {
    /// What has arrived, up to the end of the range.
    fn take(&mut self, log: &KafkaLog, client: &BaseConsumer<Diagnostics>, max: usize) -> Result<Batch, Error> {
        let mut batch = Batch::new(self.topic.clone(), self.partition);
        let mut over = false;
        let mut at_end_of_partition = false;
        while batch.len() < max && batch.bytes() < MAX_BATCH_BYTES && !over {
            let Some(queue) = &self.queue else { break };
            match queue.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => {
                    let offset = message.offset() as u64;
                    if self.end.is_some_and(|end| offset >= end) {
                        over = true;
                    } else if offset >= self.position {
                        push(&mut batch, &message);
                        self.position = offset + 1;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    at_end_of_partition = true;
                    break;
                }
                Some(Err(e)) => self.failed(log, client, &e)?,
            }
        }
        let Some(end) = self.end else { return Ok(batch) };
        if at_end_of_partition && !over {
            if self.reaches >= end {
                over = true;
            } else {
                // The range reaches further than the partition did. If the partition has grown meanwhile, without
                // another record to come, only another report of its end tells.
                (_, self.reaches) = log.bounds(&self.topic, self.partition)?;
                if self.reaches >= end {
                    seek(log, client, self)?;
                }
            }
        }
        if over || self.position >= end {
            self.finish(log, client)?;
        }
        Ok(batch)
    }

    /// Goes on with the next range of this partition, if there is one.
    fn finish(&mut self, log: &KafkaLog, client: &BaseConsumer<Diagnostics>) -> Result<(), Error> {
        match self.later.pop_front() {
            Some(range) => {
                (self.position, self.end) = (range.start, range.end);
                seek(log, client, self)
            }
            None => {
                self.done = true;
                let mut list = TopicPartitionList::new();
                list.add_partition(&self.topic, self.partition as i32);
                client.pause(&list).map_err(|e| log.unavailable("pause a partition", &e))
            }
        }
    }

    fn failed(&self, log: &KafkaLog, client: &BaseConsumer<Diagnostics>, error: &KafkaError) -> Result<(), Error> {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                check_bounds(log, self, self.position)?;
                Err(log.unavailable("read", error))
            }
            Some(
                RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::UnknownTopicId,
            ) => Err(log.unknown_topic(&self.topic)),
            Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                Err(log.denied("read", error, &format!("Read on topic {}", self.topic)))
            }
            _ if clients::is_unreadable(error) => Err(log.refused("unpack records", error)),
            _ => {
                client.context().reading_continues(&log.url, error);
                Ok(())
            }
        }
    }
}

/// Makes sure that `start` is in the log; returns how far the partition reaches.
fn check_bounds(log: &KafkaLog, part: &Part, start: u64) -> Result<u64, Error> {
    let (first, next) = log.bounds(&part.topic, part.partition)?;
    if start < first || start > next {
        return Err(Error::OutOfRange {
            topic: part.topic.to_string(),
            partition: part.partition,
            offset: start,
            first,
            next,
        });
    }
    Ok(next)
}

/// Begins again at the position of `part`; what was fetched of it before is forgotten.
fn seek(log: &KafkaLog, client: &BaseConsumer<Diagnostics>, part: &Part) -> Result<(), Error> {
    let offset = Offset::Offset(part.position as i64);
    client.seek(&part.topic, part.partition as i32, offset, REQUEST_TIMEOUT).map_err(|e| log.unavailable("seek", &e))
}

/// Wakes the reader when something has arrived in any queue.
#[derive(Default)]
struct Arrived {
    flag: Mutex<bool>,
    changed: Condvar,
}

impl Arrived {
    fn callback(self: &Arc<Self>) -> impl Fn() + Send + Sync + 'static {
        let arrived = self.clone();
        move || {
            *arrived.flag.lock() = true;
            arrived.changed.notify_one();
        }
    }

    fn wait(&self, timeout: Duration) {
        let mut flag = self.flag.lock();
        self.changed.wait_while_for(&mut flag, |arrived| !*arrived, timeout);
        *flag = false;
    }
}
