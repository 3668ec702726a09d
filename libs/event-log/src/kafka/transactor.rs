//! Writes outputs and positions in one transaction.
//!
//! ```text
//! begin ─► send all outputs ─► send positions ─► drain ─► commit ─► Ok(true)
//!    │           │                 │               │         │
//!    └───────────┴──── abort ◄─────┴───────────────┘         │ outcome unknown
//!                        │                                   ▼
//!                        └──► Ok(false) ◄── new producer, init_transactions: completes or aborts what was open
//! ```
//!
//! The transactional id is GROUP-INSTANCE: the process that initialises it last fences all earlier ones. Retriable
//! errors are answered with the same call again, within a budget. An error that asks for an abort gets one. After any
//! other error, and when the broker does not report the outcome of a commit, the producer is replaced by a new one with
//! the same id. Then no transaction of the old one is open any more, and the committed positions show the outcome.
//!
//! The positions travel while the outputs are still on their way; the commit waits for both. Successful deliveries are
//! not reported one by one: a commit needs to know of those that failed only.
//!
//! # Fenced, or only late?
//!
//! A broker ends a transaction that is older than its time-out, and shuts its producer out with the same error as one
//! whose id was taken over. The client cannot tell them apart: a process that was suspended in the middle of a commit
//! would be told that another has taken its place, though nobody has. So, when shut out, the transactor takes the id up
//! again, with a new producer, if and only if
//!
//! - the transaction was open for longer than its time-out, which is then reason enough, and
//! - the group still knows this process by the name of the instance. A process that takes over a name takes over its
//!   place in the
//!   group as well; the process that had it before learns that with its next heartbeat, and so that long is waited.
//!
//! A wrong guess never costs exactness: acquiring the id aborts any transaction that others had open under it, the
//! committed positions are read afterwards, and the broker checks the member's generation with the positions of every
//! transaction. The two conditions only keep a process that is back from a long pause from shutting out the one that
//! was started in its place.
//!
//! `Ok(true)` means that the commit is certain. The partitions hear of it some milliseconds later, all of it or
//! nothing: a reader may find the records a moment after the committer knows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, PurgeConfig};
use rdkafka::{Offset, TopicPartitionList};

use super::appender::headers;
use super::calls::{Age, DRAIN_PAUSE, FirstFailure, drain, explain, first_cause, is_shut_out, retry};
use super::clients::{self, Plain};
use super::member::GroupMember;
use super::{KafkaLog, topics};
use crate::{
    Batch, BoxError, Error, Membership, Outcome, Outputs, Position, ProcessorOptions, TopicPartition, Transactor,
};

/// The broker aborts a transaction that is older. For this long, plus up to 10 s until the broker checks, readers may
/// have to wait behind the open transaction of an instance that died and does not come back. A commit may take two
/// thirds of it: long enough for a broker that restarts; if it stays away, the commit fails before the broker aborts
/// the transaction.
const TRANSACTION_TIMEOUT_MS: &str = "30000";
/// For `init_transactions`, which waits until the transaction of a predecessor is completed.
const INIT_BUDGET: Duration = Duration::from_secs(10);
/// For an abort, after a commit that may have used up its own budget.
const ABORT_BUDGET: Duration = Duration::from_secs(5);
/// Records are sent in one go: a short wait is enough to share requests.
const LINGER_MS: &str = "2";
/// The broker asks a transaction that directly follows another to retry until the other is complete, which takes a few
/// milliseconds. librdkafka's 100 ms would be most of the time of a commit. It doubles with every attempt.
const RETRY_BACKOFF_MS: &str = "5";
/// Topics were ensured before: one that is unknown for this long does not exist.
const UNKNOWN_TOPIC_MS: &str = "5000";
/// The header with the time of a record whose own time a broker would refuse: see [`super::limits`].
const ORIGINAL_TIMESTAMP_MS: &str = "original_timestamp_ms";
/// More than any commit writes; beyond it, sending waits for the broker.
const QUEUE_RECORDS: &str = "1000000";

pub(super) struct KafkaTransactor {
    log: Arc<KafkaLog>,
    group: String,
    instance: String,
    /// None after an outcome that is unknown, until `recover` has succeeded.
    producer: Option<BaseProducer<FirstFailure>>,
    /// The bound of its batches.
    batch_bytes: usize,
    /// `transaction.timeout.ms` as it holds, a user's option included.
    timeout: Duration,
    fenced: bool,
}

/// Why a transaction did not commit.
enum Failure {
    /// It can be aborted.
    Abort(BoxError),
    /// It can be aborted, and needs a new producer: this one knows fewer partitions than there are.
    Outdated(BoxError),
    /// Only a new producer can tell.
    Unknown(BoxError),
    /// The producer was shut out: its id was taken over, or its transaction was too old.
    ShutOut,
    /// Trying again will not help.
    Final(Error),
}

impl KafkaTransactor {
    pub(super) fn new(log: Arc<KafkaLog>, options: &ProcessorOptions) -> Result<Self, Error> {
        let mut transactor = Self {
            log,
            group: options.group.clone(),
            instance: options.instance.clone(),
            producer: None,
            batch_bytes: 0,
            timeout: Duration::ZERO, // known with the first producer
            fenced: false,
        };
        transactor.recover()?;
        Ok(transactor)
    }

    /// Takes over the transactional id with a new producer.
    fn recover(&mut self) -> Result<(), Error> {
        if self.fenced {
            return Err(self.fenced_error()); // to take the id back would fence the other one
        }
        let id = format!("{}-{}", self.group, self.instance);
        self.batch_bytes = self.log.limits.smallest();
        let max_bytes = self.log.clients.max_record_bytes().to_string();
        let settings = [
            ("client.id", &*id),
            ("transactional.id", &*id),
            ("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS),
            ("compression.type", "lz4"),
            ("linger.ms", LINGER_MS),
            ("retry.backoff.ms", RETRY_BACKOFF_MS),
            ("delivery.report.only.error", "true"),
            ("message.max.bytes", &*max_bytes),
            ("queue.buffering.max.messages", QUEUE_RECORDS),
            ("topic.metadata.propagation.max.ms", UNKNOWN_TOPIC_MS),
        ];
        let config = self.log.clients.producer(&settings, self.batch_bytes);
        self.timeout = clients::duration_ms(&config, "transaction.timeout.ms");
        let created = config.create_with_context(FirstFailure::default());
        let producer: BaseProducer<_> = created.map_err(|e| self.log.refused("create a producer", &e))?;
        let operation = "acquire the transactional id";
        retry(Instant::now() + INIT_BUDGET, |left| producer.init_transactions(left)).map_err(|e| {
            match e.rdkafka_error_code() {
                Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed) => {
                    self.log.denied(operation, &e, &format!("Write on transactional id {id}"))
                }
                Some(RDKafkaErrorCode::ClusterAuthorizationFailed) => {
                    self.log.denied(operation, &e, "IdempotentWrite on the cluster")
                }
                Some(RDKafkaErrorCode::InvalidTransactionTimeout) => self.log.refused(operation, &e),
                _ => {
                    let source = explain(&producer, &e);
                    Error::Unavailable { operation, log: self.log.url.to_string(), source }
                }
            }
        })?;
        self.producer = Some(producer);
        Ok(())
    }

    /// Aborts what is open. If that does not succeed, a new producer will.
    fn abort(&mut self, age: Age, membership: &Membership) -> Result<(), Error> {
        let Some(producer) = &self.producer else { return self.recover() };
        // The binding serves delivery reports only when polled, and an abort waits until all have been served.
        producer.purge(PurgeConfig::default().queue().inflight());
        let deadline = Instant::now() + ABORT_BUDGET;
        drain(producer, deadline);
        match retry(deadline, |left| producer.abort_transaction(left)) {
            Ok(()) => Ok(()),
            Err(e) if is_shut_out(producer, &e) => self.shut_out(age, membership),
            Err(_) => {
                self.producer = None;
                self.recover()
            }
        }
    }

    /// Takes the id up again if nobody else has done so: see "Fenced, or only late?" above.
    fn shut_out(&mut self, age: Age, membership: &Membership) -> Result<(), Error> {
        let member = membership.place::<GroupMember>();
        if age.elapsed() < self.timeout || member.is_some_and(GroupMember::is_replaced) {
            return Err(self.become_fenced());
        }
        let (group, timeout) = (&self.group, self.timeout);
        tracing::warn!(group, ?timeout, "the broker has aborted a transaction that was open longer than its timeout");
        self.producer = None;
        self.recover()
    }

    fn become_fenced(&mut self) -> Error {
        self.fenced = true;
        self.producer = None;
        self.fenced_error()
    }

    fn fenced_error(&self) -> Error {
        Error::Fenced { group: self.group.clone(), instance: self.instance.clone() }
    }

    fn transaction(
        &self,
        producer: &BaseProducer<FirstFailure>,
        outputs: &Outputs,
        positions: &[Position],
        membership: &Membership,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + self.timeout * 2 / 3;
        producer.context().first_failure.lock().take();
        producer.begin_transaction().map_err(|e| self.judge(producer, outputs, e, false))?;
        self.send(producer, outputs, deadline)?;
        self.send_positions(producer, outputs, positions, membership, deadline)?;
        drain(producer, deadline);
        if let Some((topic, error)) = producer.context().first_failure.lock().take() {
            return Err(self.judge_record(producer, &topic, outputs, error));
        }
        if producer.in_flight_count() > 0 {
            return Err(Failure::Abort("the outputs were not written in time".into()));
        }
        retry(deadline, |left| producer.commit_transaction(left)).map_err(|e| self.judge(producer, outputs, e, false))
    }

    /// Adds the positions to the transaction.
    fn send_positions(
        &self,
        producer: &BaseProducer<FirstFailure>,
        outputs: &Outputs,
        positions: &[Position],
        membership: &Membership,
        deadline: Instant,
    ) -> Result<(), Failure> {
        if positions.is_empty() {
            return Ok(());
        }
        let abortable = |e| self.judge(producer, outputs, e, true);
        let list = self.offsets(positions).map_err(abortable)?;
        // Without a member's name the broker would take the positions as they are, also from an instance whose
        // partitions another one has by now.
        let here = membership.place::<GroupMember>().filter(|member| member.cluster == self.log.cluster_id());
        let member = &*here.ok_or_else(|| Failure::Abort("the consumer is in no group here".into()))?.metadata;
        retry(deadline, |left| producer.send_offsets_to_transaction(&list, member, left)).map_err(abortable)
    }

    fn send(&self, producer: &BaseProducer<FirstFailure>, outputs: &Outputs, deadline: Instant) -> Result<(), Failure> {
        let now_ms = crate::clock::now_ms();
        for batch in outputs.batches() {
            let limit = self.log.limits.of(batch.topic());
            for record in batch.iter() {
                self.check_size(batch.topic(), record.size())?;
                let mut header_list: Vec<_> = record.headers.collect();
                let timestamp_ms = limit.clamp(record.timestamp_ms, now_ms);
                let original = record.timestamp_ms.to_string();
                if timestamp_ms != record.timestamp_ms {
                    header_list.push((ORIGINAL_TIMESTAMP_MS, original.as_bytes()));
                }
                let mut message = BaseRecord {
                    topic: batch.topic(),
                    partition: Some(batch.partition() as i32),
                    payload: record.value,
                    key: Some(record.key),
                    timestamp: Some(timestamp_ms),
                    headers: headers(header_list.into_iter()),
                    delivery_opaque: (),
                };
                while let Err((error, back)) = producer.send(message) {
                    if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                        return Err(self.judge_record(producer, batch.topic(), outputs, error));
                    }
                    if Instant::now() >= deadline {
                        return Err(Failure::Abort("the outputs were not written in time".into()));
                    }
                    clients::serve(producer, |_| 0);
                    thread::sleep(DRAIN_PAUSE);
                    message = back;
                }
            }
        }
        Ok(())
    }

    /// Refuses a record that can never be written, before the broker refuses all that it travels with.
    fn check_size(&self, topic: &str, bytes: usize) -> Result<(), Failure> {
        let most = || self.log.max_record_bytes(topic, self.log.clients.max_record_bytes());
        if bytes <= most() {
            return Ok(());
        }
        topics::look_at_limits(&self.log, &[topic.into()]); // it may have been raised
        let limit = most();
        if bytes <= limit { Ok(()) } else { Err(Failure::Final(self.log.too_large(topic, bytes, limit))) }
    }

    fn offsets(&self, positions: &[Position]) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::with_capacity(positions.len());
        for p in positions {
            list.add_partition_offset(&p.topic, p.partition as i32, Offset::Offset(p.offset as i64))?;
        }
        Ok(list)
    }

    /// What follows from the failure of a call. `before_commit`: the transaction is certainly still open.
    fn judge(
        &self,
        producer: &BaseProducer<FirstFailure>,
        outputs: &Outputs,
        error: KafkaError,
        before_commit: bool,
    ) -> Failure {
        let error = first_cause(producer, error);
        if let Some(right) = self.missing_right(outputs, &error) {
            return Failure::Final(self.log.denied("commit a transaction", &error, &right));
        }
        if is_shut_out(producer, &error) {
            return Failure::ShutOut;
        }
        let cause = explain(producer, &error);
        match &error {
            KafkaError::Transaction(e) if e.txn_requires_abort() => Failure::Abort(cause),
            KafkaError::Transaction(e) if before_commit && e.is_retriable() => Failure::Abort(cause),
            _ => Failure::Unknown(cause),
        }
    }

    /// What follows from a record that was not written.
    fn judge_record(
        &self,
        producer: &BaseProducer<FirstFailure>,
        topic: &str,
        outputs: &Outputs,
        error: KafkaError,
    ) -> Failure {
        use RDKafkaErrorCode as Code;
        match error.rdkafka_error_code() {
            Some(Code::UnknownPartition) if self.has_partitions_of(topic, outputs) => {
                Failure::Outdated(format!("topic {topic} has more partitions than before").into())
            }
            Some(Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition) => {
                Failure::Final(self.log.unknown_topic(topic))
            }
            Some(Code::MessageSizeTooLarge | Code::MessageBatchTooLarge) => {
                self.log.narrow(topic, self.batch_bytes);
                Failure::Abort(format!("topic {topic} takes smaller batches than before").into())
            }
            // The records beside the one whose time is refused have an error of their own.
            Some(Code::InvalidTimestamp | Code::InvalidRecord | Code::InvalidDifferentRecord) => {
                let of_topic = outputs.batches().filter(|batch| **batch.topic() == *topic).flat_map(Batch::iter);
                Failure::Final(self.log.refused_time(topic, of_topic.map(|record| record.timestamp_ms).min()))
            }
            Some(Code::TopicAuthorizationFailed) => {
                Failure::Final(self.log.denied("write a record", &error, &format!("Write on topic {topic}")))
            }
            Some(Code::State | Code::PurgeQueue | Code::PurgeInflight) => self.judge(producer, outputs, error, true),
            Some(Code::PolicyViolation) => Failure::Final(self.log.refused("write a record", &error)),
            _ if is_shut_out(producer, &error) => Failure::ShutOut,
            _ => Failure::Abort(Plain::of(&error).into()),
        }
    }

    /// The right that a transaction lacks. The error does not say on which of the topics.
    fn missing_right(&self, outputs: &Outputs, error: &KafkaError) -> Option<String> {
        match error.rdkafka_error_code()? {
            RDKafkaErrorCode::TopicAuthorizationFailed => {
                let topics: BTreeSet<_> = outputs.batches().map(|batch| &**batch.topic()).collect();
                Some(format!("Write on topic {}", topics.into_iter().collect::<Vec<_>>().join(", ")))
            }
            RDKafkaErrorCode::GroupAuthorizationFailed => Some(format!("Read on group {}", self.group)),
            _ => None,
        }
    }

    /// Whether the topic has all partitions that the outputs are for.
    fn has_partitions_of(&self, topic: &str, outputs: &Outputs) -> bool {
        let found = topics::partition_ids(&self.log, topic).unwrap_or_default();
        let of_topic = outputs.batches().filter(|batch| **batch.topic() == *topic);
        of_topic.map(Batch::partition).all(|partition| found.contains(&partition))
    }
}

impl Transactor for KafkaTransactor {
    fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, Error> {
        if self.producer.is_none() {
            self.recover()?; // what was left open might still commit
        }
        self.log.positions(&self.group, partitions)
    }

    fn commit(&mut self, outputs: &Outputs, positions: &[Position], membership: &Membership) -> Result<Outcome, Error> {
        if self.producer.is_some() && self.log.limits.smallest() < self.batch_bytes {
            self.producer = None; // nothing is open
            self.recover()?; // with smaller batches
        }
        let Some(producer) = &self.producer else {
            // An earlier outcome is unknown. These outputs may have been committed with it.
            return self.recover().map(|()| Outcome::RolledBack);
        };
        if outputs.is_empty() && positions.is_empty() {
            return Ok(Outcome::Committed);
        }
        let (group, log) = (&self.group, &self.log.url);
        let age = Age::default();
        match self.transaction(producer, outputs, positions, membership) {
            Ok(()) => Ok(Outcome::Committed),
            Err(Failure::Abort(cause)) => {
                tracing::warn!(group, %log, cause, "transaction rolled back");
                self.abort(age, membership).map(|()| Outcome::RolledBack)
            }
            Err(Failure::Outdated(cause)) => {
                tracing::warn!(group, %log, cause, "transaction rolled back");
                self.producer = None;
                self.recover().map(|()| Outcome::RolledBack)
            }
            Err(Failure::Unknown(cause)) => {
                tracing::warn!(group, %log, cause, "the outcome of a transaction is unknown: looking it up");
                self.producer = None;
                self.recover().map(|()| Outcome::RolledBack)
            }
            Err(Failure::ShutOut) => self.shut_out(age, membership).map(|()| Outcome::RolledBack),
            Err(Failure::Final(error)) => {
                self.abort(age, membership)?;
                Err(error)
            }
        }
    }
}
