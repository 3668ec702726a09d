//! What only Kafka can do, or do wrong: other people's transactions, rebalances, brokers that are away.
//!
//! Needs `CARSTREAM_TEST_KAFKA=HOST:PORT`, except for what is about its absence. The restart of a broker needs
//! `CARSTREAM_TEST_KAFKA_SCRIPT`, the path of scripts/kafka, and starts a broker of its own.
//!
//! Each case is a fault of its own, and they share the setup of brokers: one file.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use event_log::*;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use support::broker::Broker;
use support::kafka_admin::{set, stranger, wait_for};
use support::*;

fn send(producer: &BaseProducer, topic: &str, values: &[&str]) {
    for value in values {
        producer.send(BaseRecord::to(topic).partition(0).key("k").payload(*value)).unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    while producer.in_flight_count() > 0 {
        assert!(Instant::now() < deadline, "records are not delivered");
        producer.poll(Duration::from_millis(5));
    }
}

fn values(records: Vec<Seen>) -> Vec<String> {
    records.into_iter().map(|r| r.value.unwrap()).collect()
}

/// An instance of a group, which gives up its place soon if it goes without a word.
fn instance(log: &Arc<dyn Log>, group: &str, name: &str, topic: &Arc<str>) -> Processor {
    let options = ProcessorOptions { group: group.into(), instance: name.into(), topics: vec![topic.clone()] };
    Processor::new(log.clone(), log.clone(), &options).unwrap()
}

fn with_options(backend: &Backend, options: &[&str]) -> Arc<dyn Log> {
    let options: Vec<KafkaOption> = options.iter().map(|o| o.parse().unwrap()).collect();
    event_log::open(&backend.url, &options).unwrap()
}

#[test]
fn only_committed_transactions_are_visible() {
    let Some(backend) = kafka() else { return };
    let log = backend.open();
    let topic = topic(&*log, "transactions", 1);
    let producer: BaseProducer = stranger(&backend).set("transactional.id", &*unique("stranger")).create().unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    let next = || log.describe(&topic).unwrap().partitions[0].next;

    producer.begin_transaction().unwrap();
    send(&producer, &topic, &["aborted", "aborted"]);
    assert_eq!(next(), 0, "the end of a partition is where the open transaction begins");
    producer.abort_transaction(PATIENCE).unwrap();
    wait_until("the abort is complete", || next() == 3);
    assert_eq!(values(read_partition(&log, &topic, 0)), [""; 0], "a range of nothing but aborted records ends");

    producer.begin_transaction().unwrap();
    send(&producer, &topic, &["one", "two"]);
    append_all(&log, &topic, [record("k", "between")]); // at offset 5, behind the open transaction
    assert_eq!(next(), 3);
    producer.commit_transaction(PATIENCE).unwrap();
    wait_until("the commit is complete", || next() == 7);
    assert_eq!(values(read_partition(&log, &topic, 0)), ["one", "two", "between"]);
    // Ranges may begin and end at markers and aborted records.
    for (start, end, wanted) in [(0, 3, 0), (1, 4, 1), (2, 5, 2), (5, 7, 1), (6, 7, 0)] {
        assert_eq!(read(&log, &topic, 0, start, end).unwrap().len(), wanted, "{start}..{end}");
    }
}

/// An administrator may set any codec, per topic or broker: the broker then stores what it recompressed.
#[test]
fn every_codec_of_kafka_is_read() {
    let Some(backend) = kafka() else { return };
    let log = backend.open();
    for codec in ["gzip", "snappy", "lz4", "zstd", "uncompressed"] {
        let topic = topic(&*log, codec, 1);
        set(&backend, &topic, &[("compression.type", codec)]);
        append_all(&log, &topic, (0..10).map(|_| record("k", "the same, so that it can be compressed")));
        assert_eq!(read_partition(&log, &topic, 0).len(), 10, "{codec}, a reader");
        let mut processor = instance(&log, &unique("group"), "one", &topic);
        assert_eq!(next_batch_of(&mut processor, 10).len(), 10, "{codec}, a member of a group");
    }
}

#[test]
fn a_range_may_reach_further_than_the_partition_does_yet() {
    let Some(backend) = kafka() else { return };
    let log = backend.open();
    let topic = topic(&*log, "future", 1);
    append_all(&log, &topic, [record("k", "0")]);
    let range = Range { topic: topic.clone(), partition: 0, start: 0, end: Some(4) };
    let mut reader = log.clone().reader(vec![range]).unwrap();
    let mut seen_values = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        match reader.next(10, Duration::from_millis(300)).unwrap() {
            Read::Batch(batch) => seen_values.extend(values(seen(&batch).collect())),
            Read::End => break,
            Read::Idle if log.describe(&topic).unwrap().partitions[0].next == 1 => {
                // Offsets 1 and 2 hold nothing that a reader sees, and 3 is their marker: no record tells of the end.
                let id = unique("stranger");
                let producer: BaseProducer = stranger(&backend).set("transactional.id", &*id).create().unwrap();
                producer.init_transactions(PATIENCE).unwrap();
                producer.begin_transaction().unwrap();
                send(&producer, &topic, &["aborted", "aborted"]);
                producer.abort_transaction(PATIENCE).unwrap();
            }
            Read::Idle => assert!(Instant::now() < deadline, "the end is not noticed"),
        }
    }
    assert_eq!(seen_values, ["0"]);
}

#[test]
fn records_that_were_deleted_are_out_of_range() {
    let Some(backend) = kafka() else { return };
    let log = backend.open();
    let topic = topic(&*log, "deleted", 1);
    append_all(&log, &topic, (0..10).map(|_| record("k", "v")));
    let group = unique("group");
    let mut early = instance(&log, &group, "one", &topic);
    let batch = next_batch_of(&mut early, 3);
    assert_eq!(early.commit(&Outputs::default(), &[behind(&batch)]).unwrap(), Outcome::Committed);
    drop(early);

    let admin: AdminClient<DefaultClientContext> = stranger(&backend).create().unwrap();
    let mut until = rdkafka::TopicPartitionList::new();
    until.add_partition_offset(&topic, 0, rdkafka::Offset::Offset(7)).unwrap();
    wait_for(admin.delete_records(&until, &AdminOptions::new())).unwrap();
    assert_eq!(log.describe(&topic).unwrap().partitions[0], PartitionDescription { first: 7, next: 10 });
    assert!(matches!(read(&log, &topic, 0, 6, 10), Err(Error::OutOfRange { offset: 6, first: 7, next: 10, .. })));
    assert_eq!(read(&log, &topic, 0, 7, 10).unwrap().len(), 3);

    // A consumer is not sent to where the log begins now.
    let mut late = instance(&log, &group, "one", &topic);
    let deadline = Instant::now() + PATIENCE;
    let error = loop {
        match late.next(10, Duration::from_millis(100)) {
            Ok(Event::Batch(batch)) => panic!("read on at {}", batch.get(0).offset),
            Ok(_) => assert!(Instant::now() < deadline, "the gap is not noticed"),
            Err(e) => break e,
        }
    };
    assert!(matches!(error, Error::OutOfRange { offset: 3, first: 7, next: 10, .. }), "{error:?}");
}

#[test]
fn a_partition_whose_records_were_deleted_is_paused_while_the_others_are_read() {
    let Some(backend) = kafka() else { return };
    let log = backend.open();
    let topic = topic(&*log, "overtaken", 2);
    let keys: Vec<_> = (0..2)
        .map(|p| (0..).map(|i| format!("key{i}")).find(|key| partition_for_key(key.as_bytes(), 2) == p).unwrap())
        .collect();
    let append = |partition: usize| append_all(&log, &topic, (0..10).map(|_| record(&keys[partition], "v")));
    append(0);
    append(1);
    let at = |partition, offset| Position { topic: topic.clone(), partition, offset };
    let group = unique("group");
    let mut early = instance(&log, &group, "one", &topic);
    next_batch_of(&mut early, 1);
    assert_eq!(early.commit(&Outputs::default(), &[at(0, 3), at(1, 3)]).unwrap(), Outcome::Committed);
    drop(early);
    let admin: AdminClient<DefaultClientContext> = stranger(&backend).create().unwrap();
    let mut until = rdkafka::TopicPartitionList::new();
    until.add_partition_offset(&topic, 0, rdkafka::Offset::Offset(7)).unwrap();
    wait_for(admin.delete_records(&until, &AdminOptions::new())).unwrap();

    let mut processor = instance(&log, &group, "one", &topic);
    let mut read = vec![Vec::new(), Vec::new()];
    let (mut resumed, mut gaps) = (false, 0);
    let deadline = Instant::now() + PATIENCE;
    while read[0].len() < 13 {
        assert!(Instant::now() < deadline, "{read:?}");
        match processor.next(4, Duration::from_millis(200)) {
            Ok(Event::Batch(batch)) => {
                read[batch.partition() as usize].extend(batch.iter().map(|record| record.offset));
            }
            Ok(_) => {}
            Err(Error::OutOfRange { partition: 0, offset: 3, first: 7, .. }) => {
                gaps += 1;
                processor.pause(&[TopicPartition { topic: topic.clone(), partition: 0 }]).unwrap();
                append(1);
            }
            Err(error) => panic!("{error:?}"),
        }
        if read[1].len() == 17 && !resumed {
            assert!(read[0].is_empty(), "nothing comes from a paused partition");
            resumed = true;
            assert_eq!(processor.commit(&Outputs::default(), &[at(0, 7)]).unwrap(), Outcome::Committed);
            processor.read_from(&[at(0, 7)]).unwrap();
            append(0);
        }
    }
    assert_eq!(gaps, 1, "it is said once");
    assert_eq!(read, [(7..20).collect::<Vec<_>>(), (3..20).collect()]);
}

#[test]
fn a_topic_that_was_created_again_is_another() {
    let Some(backend) = kafka() else { return };
    let log = backend.open();
    let topic = topic(&*log, "again", 1);
    let before = log.describe(&topic).unwrap().id;
    assert_eq!(log.describe(&topic).unwrap().id, before);
    let admin: AdminClient<DefaultClientContext> = stranger(&backend).create().unwrap();
    wait_for(admin.delete_topics(&[&topic], &AdminOptions::new())).unwrap()[0].as_ref().unwrap();
    wait_until("the topic is gone", || matches!(log.describe(&topic), Err(Error::UnknownTopic { .. })));
    log.ensure_topic(&plain(&topic, 1)).unwrap();
    assert_ne!(log.describe(&topic).unwrap().id, before);
}

#[test]
fn as_many_replicas_are_made_as_were_asked_for() {
    let Some(backend) = kafka() else { return };
    let log = backend.open();
    let name = unique("replicated");
    log.ensure_topic_replicated(&plain(&name, 2), 1).unwrap();
    assert_eq!(log.describe(&name).unwrap().replicas, Some(1));
    let refused = log.ensure_topic_replicated(&plain(&unique("replicated"), 1), 2).unwrap_err();
    assert!(matches!(&refused, Error::Refused { .. }), "there is one broker only: {refused:?}");
}

#[test]
fn the_newest_instance_of_a_name_fences_the_others() {
    let Some(backend) = kafka() else { return };
    let log = backend.open();
    let (input, output) = (topic(&*log, "input", 1), topic(&*log, "output", 1));
    append_all(&log, &input, (0..10).map(|i| ["a", "b"][i % 2]).map(|v| record("k", v)));
    let group = unique("group");
    let mut old = instance(&log, &group, "one", &input);
    let batch = next_batch_of(&mut old, 10);
    let mut outputs = Outputs::default();
    copied(&batch, &output, &mut outputs);

    let mut new = instance(&log, &group, "one", &input);
    let fenced = old.commit(&outputs, &[behind(&batch)]).unwrap_err();
    assert!(matches!(fenced, Error::Fenced { .. }), "{fenced:?}");
    assert!(matches!(old.commit(&outputs, &[behind(&batch)]), Err(Error::Fenced { .. })), "and stays so");
    assert_eq!(read_partition(&log, &output, 0), [], "what the old one wrote is not visible");

    let batch = next_batch_of(&mut new, 10);
    assert_eq!(batch.get(0).offset, 0);
    assert_eq!(new.commit(&outputs, &[behind(&batch)]).unwrap(), Outcome::Committed);
    // The old one learns it also where it does not commit.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match old.next(10, Duration::from_millis(100)) {
            Err(Error::Fenced { .. }) => break,
            Err(e) => panic!("{e:?}"),
            Ok(_) => assert!(Instant::now() < deadline, "the old instance does not notice"),
        }
    }
}

#[test]
fn instances_of_a_group_share_the_work_exactly_once() {
    let Some(backend) = kafka() else { return };
    // Instances go without a word here, and others wait for the session to end.
    let log = with_options(&backend, &["session.timeout.ms=6000", "heartbeat.interval.ms=500"]);
    let (input, output) = (topic(&*log, "input", 4), topic(&*log, "output", 4));
    let keys: Vec<String> = (0..4000).map(|i| i.to_string()).collect();
    let group = unique("group");
    let stop: [AtomicBool; 3] = Default::default();
    let work = |name: &'static str, stop: &AtomicBool| {
        let mut processor = instance(&log, &group, name, &input);
        let mut committed = 0;
        while !stop.load(Ordering::Relaxed) {
            if let Event::Batch(batch) = processor.next(50, Duration::from_millis(50)).unwrap() {
                let mut outputs = Outputs::default();
                copied(&batch, &output, &mut outputs);
                if processor.commit(&outputs, &[behind(&batch)]).unwrap() == Outcome::Committed {
                    committed += batch.len();
                }
            }
        }
        committed
    };
    std::thread::scope(|scope| {
        let done = || read_topic(&log, &output).iter().map(Vec::len).sum::<usize>();
        append_all(&log, &input, keys[..1000].iter().map(|k| record(k, k)));
        let first = scope.spawn(|| work("first", &stop[0]));
        wait_until("the first instance works alone", || done() >= 1000);
        let second = scope.spawn(|| work("second", &stop[1]));
        append_all(&log, &input, keys[1000..2000].iter().map(|k| record(k, k)));
        wait_until("two instances work", || done() >= 2000);
        let third = scope.spawn(|| work("third", &stop[2]));
        append_all(&log, &input, keys[2000..3000].iter().map(|k| record(k, k)));
        wait_until("three instances work", || done() >= 3000);
        stop[0].store(true, Ordering::Relaxed);
        let by_first = first.join().unwrap();
        append_all(&log, &input, keys[3000..].iter().map(|k| record(k, k)));
        wait_until("the others take over", || done() >= 4000);
        stop[1].store(true, Ordering::Relaxed);
        stop[2].store(true, Ordering::Relaxed);
        let by_others = second.join().unwrap() + third.join().unwrap();
        assert_eq!(by_first + by_others, 4000, "an instance knows what it has committed");
        assert!(by_first >= 1000 && by_others >= 1000, "{by_first} and {by_others}");
    });
    let copies = |topics: Vec<Vec<Seen>>| -> Vec<Vec<_>> {
        topics.into_iter().map(|p| p.into_iter().map(|r| (r.key, r.value)).collect()).collect()
    };
    assert_eq!(copies(read_topic(&log, &output)), copies(read_topic(&log, &input)), "nothing lost, doubled or moved");
}

#[test]
fn an_instance_that_was_away_too_long_cannot_commit() {
    let Some(backend) = kafka() else { return };
    let log =
        with_options(&backend, &["session.timeout.ms=6000", "heartbeat.interval.ms=500", "max.poll.interval.ms=7000"]);
    away_too_long(&log, &log);
}

#[test]
fn an_instance_that_was_away_too_long_cannot_commit_what_it_read_in_another_log() {
    let Some(backend) = kafka() else { return };
    let log =
        with_options(&backend, &["session.timeout.ms=6000", "heartbeat.interval.ms=500", "max.poll.interval.ms=7000"]);
    away_too_long(&embedded().open(), &log);
}

/// `log` has the group and the outputs.
fn away_too_long(source: &Arc<dyn Log>, log: &Arc<dyn Log>) {
    let (input, output) = (topic(&**source, "input", 1), topic(&**log, "output", 1));
    log.ensure_topic(&plain(&input, 1)).unwrap();
    append_all(source, &input, (0..10).map(|_| record("k", "v")));
    let group = unique("group");
    let instance = |name: &str| {
        let options = ProcessorOptions { group: group.to_string(), instance: name.into(), topics: vec![input.clone()] };
        Processor::new(source.clone(), log.clone(), &options).unwrap()
    };
    let mut away = instance("away");
    let batch = next_batch_of(&mut away, 10);
    let mut outputs = Outputs::default();
    copied(&batch, &output, &mut outputs);

    // It is busy with these records for longer than the group waits; another instance does its work, and more comes.
    let mut other = instance("other");
    let same = next_batch_of(&mut other, 10);
    assert_eq!(same.get(0).offset, 0);
    assert_eq!(other.commit(&outputs, &[behind(&same)]).unwrap(), Outcome::Committed);

    let again = away.commit(&outputs, &[behind(&batch)]).unwrap();
    assert_eq!(again, Outcome::RolledBack, "the same records were processed twice");
    match away.next(10, PATIENCE).unwrap() {
        Event::Assigned(positions) => assert_eq!(positions, [behind(&same)], "what holds is told"),
        other => panic!("{other:?}"),
    }
    // It rejoins the group, and resumes when the other one is gone. Until then it may read, but not commit.
    drop(other);
    append_all(source, &input, [record("k", "more")]);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let batch = next_batch_of(&mut away, 10);
        assert_eq!(values(seen(&batch).collect()), ["more"]);
        let mut outputs = Outputs::default();
        copied(&batch, &output, &mut outputs);
        match away.commit(&outputs, &[behind(&batch)]).unwrap() {
            Outcome::Committed => break,
            Outcome::RolledBack => assert!(Instant::now() < deadline, "it does not come back"),
        }
    }
    wait_until("the output is visible", || read_partition(log, &output, 0).len() == 11);
}

#[test]
fn an_appender_survives_a_broker_that_hangs_and_one_that_forgets() {
    if kafka().is_none() {
        return;
    }
    let Some(broker) = Broker::start() else { return };
    let (timeout, bound) = ("message.timeout.ms=4000", "queue.buffering.max.messages=5000");
    let log = event_log::open(&broker.url, &[timeout.parse().unwrap(), bound.parse().unwrap()]).unwrap();
    let topic = topic(&*log, "appended", 1);
    let completions = Completions::default();
    let appender = log.clone().appender(completions.callback()).unwrap();
    let mut sent = 0;
    let mut append_one = || {
        let value = sent.to_string();
        appender.append(&topic, &record("k", &value), sent).map(|()| sent += 1)
    };
    let all_completed = |sent: u64| wait_until("everything completes", || completions.all().len() as u64 == sent);

    // A broker that hangs: as much is queued as may be, and given back when its time is over.
    (0..100).for_each(|_| append_one().unwrap());
    all_completed(100);
    broker.pause();
    let refused = loop {
        if let Err(e) = append_one() {
            break e;
        }
    };
    assert!(matches!(refused, AppendError::Full), "{refused:?}");
    wait_until("what waits too long is given back", || completions.all().len() >= 5100);
    assert!(completions.all()[100..].iter().all(|c| !c.durable), "a broker that hangs writes nothing");
    broker.resume();
    let until_durable = |append_one: &mut dyn FnMut() -> Result<(), AppendError>| {
        wait_until("records are durable again", || {
            let before = completions.all().len();
            let appended = append_one().is_ok();
            wait_until("it completes", || !appended || completions.all().len() > before);
            completions.all().last().unwrap().durable
        });
    };
    until_durable(&mut append_one);
    for _ in 0..50 {
        append_one().unwrap();
        assert!(appender.flush(PATIENCE)); // each in a batch of its own
    }

    // A broker that has lost the last acknowledged records, as with a lost disk: the producer cannot continue.
    broker.kill();
    let segment = broker.data().join(format!("log/{topic}-0/00000000000000000000.log"));
    let file = std::fs::OpenOptions::new().write(true).open(segment).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1000).unwrap();
    broker.start_again();
    until_durable(&mut append_one);
    all_completed(sent);

    // Records acknowledged since then exist once, in order; others exist once at most.
    let written: Vec<u64> =
        read_partition(&log, &topic, 0).into_iter().map(|r| r.value.unwrap().parse().unwrap()).collect();
    assert!(written.is_sorted_by(|a, b| a < b), "moved or doubled: {written:?}");
    assert_eq!(written.last(), Some(&(sent - 1)));
}

#[test]
fn librdkafka_chooses_the_partition_that_we_would() {
    let Some(backend) = kafka() else { return };
    let log = backend.open();
    let topic = topic(&*log, "partitioner", 7);
    let keys: Vec<String> =
        (0..60).map(|i| "k\u{e4}\u{1f697}-0123456789".repeat(4).chars().take(i).collect()).collect();
    append_all(&log, &topic, keys.iter().map(|k| record(k, k)));
    for (partition, records) in read_topic(&log, &topic).iter().enumerate() {
        for r in records {
            assert_eq!(partition_for_key(r.key.as_bytes(), 7), partition as u32, "{:?}", r.key);
        }
    }
}

#[test]
fn positions_of_an_embedded_source_are_kept_in_kafka() {
    let Some(backend) = kafka() else { return };
    let edge = embedded();
    let (source, target) = (edge.open(), backend.open());
    let name = topic(&*source, "replicated", 1);
    target.ensure_topic(&plain(&name, 1)).unwrap();
    append_all(&source, &name, (0..10).map(|_| record("k", "v")));
    let group = unique("replicator");
    let (mut p, _) = processor(&source, &target, &group, &[&name]);
    let batch = next_batch(&mut p, 4);
    let mut outputs = Outputs::default();
    copied(&batch, &name, &mut outputs);
    assert_eq!(p.commit(&outputs, &[behind(&batch)]).unwrap(), Outcome::Committed);
    assert_eq!(target.committed(&group, &name).unwrap(), [Some(behind(&batch).offset)]);
    assert_eq!(source.committed(&group, &name).unwrap(), [None]);
    drop(p);
    let (_, positions) = processor(&source, &target, &group, &[&name]);
    assert_eq!(positions, [behind(&batch)]);
    wait_until("the output is visible", || read_partition(&target, &name, 0).len() == batch.len());
}

#[test]
fn a_record_that_is_too_large_is_refused_and_blocks_nothing() {
    let Some(backend) = kafka() else { return };
    let log = backend.open();
    let (input, output) = (topic(&*log, "input", 1), topic(&*log, "output", 1));
    let huge = "x".repeat(3_000_000);
    let completions = Completions::default();
    let appender = log.clone().appender(completions.callback()).unwrap();
    let refused = appender.append(&input, &record("k", &huge), 1).unwrap_err();
    assert!(matches!(refused, AppendError::Refused(Error::TooLarge { .. })), "{refused:?}");
    append(&*appender, &input, &record("k", "small"), 2);
    assert!(appender.flush(PATIENCE));
    assert_eq!(completions.all(), [Completion { token: 2, durable: true }]);

    let (mut p, _) = processor(&log, &log, &unique("group"), &[&input]);
    let batch = next_batch(&mut p, 10);
    let mut outputs = Outputs::default();
    outputs.push(&output, 0, &record("k", "before"));
    outputs.push(&output, 0, &record("k", &huge));
    let refused = p.commit(&outputs, &[behind(&batch)]).unwrap_err();
    assert!(matches!(refused, Error::TooLarge { .. }), "{refused:?}");
    let mut outputs = Outputs::default();
    copied(&batch, &output, &mut outputs);
    assert_eq!(p.commit(&outputs, &[behind(&batch)]).unwrap(), Outcome::Committed);
    wait_until("the output is visible", || values(read_partition(&log, &output, 0)) == ["small"]);

    // The largest record that an appender takes can still be passed on with some headers more: as a dead letter.
    let large = "x".repeat(999_000);
    append_all(&log, &input, [record("k", &large)]);
    let batch = next_batch(&mut p, 10);
    let mut outputs = Outputs::default();
    let headers = [("reason", &b"too much of everything"[..]), ("detail", &[b'x'; 2000])];
    outputs.push(&output, 0, &Record { headers: &headers, ..record("k", &large) });
    assert_eq!(p.commit(&outputs, &[behind(&batch)]).unwrap(), Outcome::Committed);
}

#[test]
fn options_are_passed_through_and_checked_at_once() {
    let url: LogUrl = "kafka://127.0.0.1:1".parse().unwrap();
    let open = |option: &str| event_log::open(&url, &[option.parse().unwrap()]);
    open("socket.keepalive.enable=true").unwrap();
    let unknown = open("no.such.property=1").unwrap_err();
    assert!(matches!(unknown, Error::Open { .. }), "{unknown:?}");
    let cause = unknown.source().unwrap().to_string();
    assert!(cause.contains("no.such.property"), "{cause}");
    assert!(open("linger.ms=soon").is_err());
    for promised in ["acks=1", "enable.idempotence=false", "isolation.level=read_uncommitted", "transactional.id=mine"]
    {
        let refused = open(promised).unwrap_err();
        let cause = refused.source().unwrap().to_string();
        assert!(cause.contains(promised.split_once('=').unwrap().0), "{cause}");
    }
}

#[test]
fn a_broker_that_is_away_is_named_and_may_be_waited_for() {
    // Nothing listens on a port that was just given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let log = event_log::open(&format!("kafka://127.0.0.1:{port}").parse().unwrap(), &[]).unwrap();
    let topic: Arc<str> = "telemetry".into();
    let options = ProcessorOptions { group: "g".into(), instance: "i".into(), topics: vec![topic.clone()] };
    let errors = [
        log.describe(&topic).unwrap_err(),
        log.ensure_topic(&plain(&topic, 1)).unwrap_err(),
        log.committed("g", &topic).unwrap_err(),
        read(&log, &topic, 0, 0, 1).unwrap_err(),
        log.clone().transactor(&options).err().unwrap(),
    ];
    for error in errors {
        assert!(error.is_retriable(), "{error:?}");
        let cause = error.source().unwrap().to_string();
        assert!(cause.contains(&port.to_string()) && cause.contains("refused"), "{error}: {cause}");
    }
}

#[test]
fn a_server_that_is_no_broker_is_suspected_to_be_none() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url: LogUrl = format!("kafka://{}", server.local_addr().unwrap()).parse().unwrap();
    // As a server of MQTT does: it closes the connection.
    std::thread::spawn(move || server.incoming().for_each(drop));
    let log = event_log::open(&url, &[]).unwrap();
    let error = log.describe("telemetry").unwrap_err();
    assert!(error.is_retriable(), "{error:?}");
    let cause = error.source().unwrap().to_string();
    assert!(cause.contains("does a Kafka broker listen there"), "{error}: {cause}");
}

#[test]
fn a_broker_may_be_killed_and_started_again() {
    if kafka().is_none() {
        return;
    }
    let Some(broker) = Broker::start() else { return };
    let log = event_log::open(&broker.url, &[]).unwrap();
    let (input, output) = (topic(&*log, "input", 2), topic(&*log, "output", 2));
    let completions = Completions::default();
    let appender = log.clone().appender(completions.callback()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let group = unique("group");
            let mut p = None;
            // As the stages do: wait for temporary errors, and repeat everything since the last commit.
            while !done.load(Ordering::Relaxed) {
                let processor = match &mut p {
                    Some(processor) => processor,
                    None => {
                        let options = ProcessorOptions {
                            group: group.to_string(),
                            instance: "one".into(),
                            topics: vec![input.clone()],
                        };
                        match Processor::new(log.clone(), log.clone(), &options) {
                            Ok(processor) => p.insert(processor),
                            Err(e) if e.is_retriable() => continue,
                            Err(e) => panic!("{e:?}"),
                        }
                    }
                };
                let next = processor.next(100, Duration::from_millis(50));
                let result = next.and_then(|event| match event {
                    Event::Batch(batch) => {
                        let mut outputs = Outputs::default();
                        copied(&batch, &output, &mut outputs);
                        processor.commit(&outputs, &[behind(&batch)]).map(|_| ())
                    }
                    _ => Ok(()),
                });
                match result {
                    Ok(()) => {}
                    Err(e) if e.is_retriable() => p = None,
                    Err(e) => panic!("{e:?}"),
                }
            }
        });
        let mut sent = 0;
        for round in 0..3 {
            for _ in 0..500 {
                let key = sent.to_string();
                append(&*appender, &input, &record(&key, &key), sent);
                sent += 1;
            }
            if round < 2 {
                broker.kill();
                for _ in 0..500 {
                    let key = sent.to_string();
                    append(&*appender, &input, &record(&key, &key), sent);
                    sent += 1;
                }
                broker.start_again();
            }
        }
        let patience = Duration::from_secs(180);
        assert!(appender.flush(patience), "everything is written in the end");
        assert!(completions.all().iter().all(|c| c.durable), "no record waited for longer than its time-out");
        let deadline = Instant::now() + patience;
        let count = || -> Result<usize, Error> {
            let mut count = 0;
            for (partition, bounds) in log.describe(&output)?.partitions.iter().enumerate() {
                count += read(&log, &output, partition as u32, bounds.first, bounds.next)?.len();
            }
            Ok(count)
        };
        while count().unwrap_or(0) < sent as usize {
            assert!(Instant::now() < deadline && !worker.is_finished(), "{:?} of {sent} came through", count());
            std::thread::sleep(Duration::from_millis(200));
        }
        done.store(true, Ordering::Relaxed);
        worker.join().unwrap();

        let by_key = |topic: &Arc<str>| {
            let mut found = BTreeMap::<String, usize>::new();
            for record in read_topic(&log, topic).into_iter().flatten() {
                *found.entry(record.key).or_default() += 1;
            }
            found
        };
        let wanted: BTreeMap<String, usize> = (0..sent).map(|i| (i.to_string(), 1)).collect();
        assert_eq!(by_key(&input), wanted, "an idempotent producer writes once");
        assert_eq!(by_key(&output), wanted, "a transaction happens once");
    });
}

/// The next batch of a processor that may still have to get its partitions.
fn next_batch_of(processor: &mut Processor, max_records: usize) -> Batch {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Event::Batch(batch) = processor.next(max_records, Duration::from_millis(100)).unwrap() {
            return batch;
        }
        assert!(Instant::now() < deadline, "no records come");
    }
}
