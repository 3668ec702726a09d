//! What every log must do, whichever backend. One list of checks, run on each.
//!
//! The embedded log needs nothing. Kafka needs `CARSTREAM_TEST_KAFKA=HOST:PORT`; every check uses topics and groups of
//! its own, so a cluster that is in use will do.
//!
//! The list is one macro, so that a backend cannot leave a check out: one file.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::*;
use support::crash::{KEYS, Said, Writer};
use support::*;
use test_support::clock::now_ms;

macro_rules! on_every_backend {
    ($($check:ident)*) => {
        mod embedded {
            $(#[test] fn $check() { super::$check(&super::support::embedded()); })*
        }
        mod kafka {
            $(#[test] fn $check() { if let Some(backend) = super::support::kafka() { super::$check(&backend); } })*
        }
    };
}

on_every_backend! {
    a_record_comes_back_as_it_was_written
    keys_decide_the_partition_and_keep_their_order
    every_token_comes_back_once
    what_was_acknowledged_survives_reopening
    a_topic_keeps_what_it_was_created_with
    unknown_topics_are_errors
    ranges_are_read_exactly
    a_reader_follows_what_is_appended
    readers_do_not_disturb_each_other
    a_tail_goes_on_where_it_was
    a_single_record_is_durable_when_it_is_said_to_be
    positions_outside_the_log_are_errors
    outputs_and_positions_are_committed_together
    a_processor_goes_on_from_what_was_committed
    offsets_without_a_record_are_not_left
    groups_do_not_know_of_each_other
    a_processor_reads_all_its_topics
    source_and_target_may_be_two_logs
    retention_removes_old_records_only
    retention_keeps_what_a_group_has_not_committed
    compaction_keeps_the_last_record_of_each_key
    a_killed_writer_leaves_all_that_it_acknowledged_and_nothing_half
}

/// Not a check: where the writer that is to be killed begins.
#[test]
fn crash_writer() {
    support::crash::write_if_asked();
}

fn a_record_comes_back_as_it_was_written(backend: &Backend) {
    let log = backend.open();
    let topic = topic(&*log, "fidelity", 1);
    let now = now_ms();
    let long = "x".repeat(100_000);
    append_all(
        &log,
        &topic,
        [
            Record {
                key: b"k",
                value: Some(b"v"),
                headers: &[("a", b"1"), ("b", b""), ("a", b"2")],
                timestamp_ms: now - 5,
            },
            Record { key: b"gone", value: None, headers: &[("why", b"sold")], timestamp_ms: now + 5 },
            Record { key: b"empty", value: Some(b""), headers: &[], timestamp_ms: now },
            Record { key: "schl\u{fc}ssel".as_bytes(), value: Some(long.as_bytes()), headers: &[], timestamp_ms: now },
        ],
    );
    let headers = |headers: &[(&str, &[u8])]| headers.iter().map(|(n, v)| ((*n).to_owned(), v.to_vec())).collect();
    let wanted = |offset, key: &str, value: Option<&str>, timestamp_ms, headers| Seen {
        offset,
        timestamp_ms,
        key: key.to_owned(),
        value: value.map(str::to_owned),
        headers,
    };
    assert_eq!(
        read_partition(&log, &topic, 0),
        [
            wanted(0, "k", Some("v"), now - 5, headers(&[("a", b"1"), ("b", b""), ("a", b"2")])),
            wanted(1, "gone", None, now + 5, headers(&[("why", b"sold")])),
            wanted(2, "empty", Some(""), now, vec![]),
            wanted(3, "schl\u{fc}ssel", Some(&long), now, vec![]),
        ]
    );
}

fn keys_decide_the_partition_and_keep_their_order(backend: &Backend) {
    let log = backend.open();
    let topic = topic(&*log, "keys", 4);
    let keys: Vec<String> = (0..50).map(|i| format!("car {i}")).collect();
    let values: Vec<String> = (0..40).map(|i| i.to_string()).collect();
    append_all(&log, &topic, values.iter().flat_map(|v| keys.iter().map(move |k| record(k, v))));
    let partitions = read_topic(&log, &topic);
    for key in &keys {
        let home = partition_for_key(key.as_bytes(), 4) as usize;
        for (p, records) in partitions.iter().enumerate() {
            let found: Vec<_> = records.iter().filter(|r| r.key == *key).map(|r| r.value.clone().unwrap()).collect();
            assert_eq!(found, if p == home { values.clone() } else { vec![] }, "{key} in partition {p}");
        }
    }
    for records in partitions {
        assert!(records.is_sorted_by(|a, b| a.offset < b.offset), "offsets only grow");
    }
}

fn every_token_comes_back_once(backend: &Backend) {
    let log = backend.open();
    let topic = topic(&*log, "tokens", 3);
    let completions = Completions::default();
    let appender = log.clone().appender(completions.callback()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (appender, topic) = (&appender, &topic);
            scope.spawn(move || {
                for i in 0..5000 {
                    let token = thread * 5000 + i;
                    append(&**appender, topic, &record(&format!("thread {thread}"), &token.to_string()), token);
                }
            });
        }
    });
    // Dropping it waits for what is queued.
    drop(appender);
    let all = completions.all();
    assert!(all.iter().all(|c| c.durable));
    let mut tokens: Vec<u64> = all.iter().map(|c| c.token).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..20_000).collect::<Vec<_>>());
    for thread in 0..4u64 {
        let key = format!("thread {thread}");
        let partition = read_partition(&log, &topic, partition_for_key(key.as_bytes(), 3));
        let values: Vec<u64> =
            partition.iter().filter(|r| r.key == key).map(|r| r.value.as_ref().unwrap().parse().unwrap()).collect();
        assert_eq!(values, (thread * 5000..(thread + 1) * 5000).collect::<Vec<_>>());
    }
}

fn what_was_acknowledged_survives_reopening(backend: &Backend) {
    let log = backend.open();
    let topic = topic(&*log, "reopen", 2);
    append_all(&log, &topic, (0..3000).map(|_| record("a", "before")));
    let (id, before) = (log.describe(&topic).unwrap().id, read_topic(&log, &topic));
    drop(log);

    let log = backend.open();
    assert_eq!(log.describe(&topic).unwrap().id, id);
    assert_eq!(read_topic(&log, &topic), before);
    append_all(&log, &topic, [record("a", "after")]);
    let partition = partition_for_key(b"a", 2);
    let last = read_partition(&log, &topic, partition).pop().unwrap();
    assert_eq!(last.value.as_deref(), Some("after"));
    assert!(last.offset > before[partition as usize].last().unwrap().offset);
}

fn a_topic_keeps_what_it_was_created_with(backend: &Backend) {
    let log = backend.open();
    let name = topic(&*log, "settings", 3);
    let spec = plain(&name, 3);
    log.ensure_topic(&spec).unwrap();
    let found = log.describe(&name).unwrap();
    assert_eq!(found.partitions, [PartitionDescription { first: 0, next: 0 }; 3]);
    assert!(!found.compacted && !found.id.is_empty());
    assert_eq!(found.retention, None);
    assert_ne!(found.id, log.describe(&topic(&*log, "other", 1)).unwrap().id);

    let differs = |spec: TopicSpec| match log.ensure_topic(&spec) {
        Err(Error::TopicDiffers { topic, setting, .. }) => {
            assert_eq!(topic, *name);
            setting
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(differs(TopicSpec { partitions: 2, ..spec.clone() }), "partitions");
    assert_eq!(differs(TopicSpec { compacted: true, ..spec.clone() }), "compaction");

    let compacted = unique("compacted");
    log.ensure_topic(&TopicSpec { compacted: true, ..plain(&compacted, 1) }).unwrap();
    let found = log.describe(&compacted).unwrap();
    assert_eq!((found.compacted, found.retention), (true, None));

    let (kept, retention) = (unique("kept-a-while"), Some(Duration::from_secs(7200)));
    log.ensure_topic(&TopicSpec { retention, ..plain(&kept, 1) }).unwrap();
    assert_eq!(log.describe(&kept).unwrap().retention, retention);
}

fn unknown_topics_are_errors(backend: &Backend) {
    let log = backend.open();
    let (known, unknown) = (topic(&*log, "known", 1), unique("unknown"));
    let is_unknown = |e: Error| matches!(&e, Error::UnknownTopic { topic, .. } if *topic == *unknown);
    assert!(is_unknown(log.describe(&unknown).unwrap_err()));
    assert!(is_unknown(read(&log, &unknown, 0, 0, 1).unwrap_err()));

    let completions = Completions::default();
    let appender = log.clone().appender(completions.callback()).unwrap();
    match appender.append(&unknown, &record("k", "v"), 1) {
        Err(AppendError::Refused(e)) => assert!(is_unknown(e)),
        other => panic!("{other:?}"),
    }
    assert!(appender.flush(PATIENCE));
    assert_eq!(completions.all(), [], "a refused token does not come back");

    let options =
        ProcessorOptions { group: unique("group").to_string(), instance: "one".into(), topics: vec![unknown.clone()] };
    let mut processor = Processor::new(log.clone(), log.clone(), &options).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        match processor.next(10, Duration::from_millis(100)) {
            Ok(Event::Idle) => assert!(Instant::now() < deadline, "an unknown topic is not noticed"),
            Ok(event) => panic!("{event:?}"),
            Err(e) => break assert!(is_unknown(e)),
        }
    }
    drop(processor);

    append_all(&log, &known, [record("k", "v")]);
    let (mut processor, _) = processor_of(&log, &known);
    let batch = next_batch(&mut processor, 10);
    let mut outputs = Outputs::default();
    outputs.push(&unknown, 0, &record("k", "v"));
    assert!(is_unknown(processor.commit(&outputs, &[behind(&batch)]).unwrap_err()));
}

fn processor_of(log: &Arc<dyn Log>, topic: &Arc<str>) -> (Processor, Vec<Position>) {
    processor(log, log, &unique("group"), &[topic])
}

fn ranges_are_read_exactly(backend: &Backend) {
    let log = backend.open();
    let topic = topic(&*log, "ranges", 1);
    let values: Vec<String> = (0..2500).map(|i| i.to_string()).collect();
    append_all(&log, &topic, values.iter().map(|v| record("k", v)));
    for (start, end) in [(0, 2500), (0, 1), (999, 1001), (1234, 1300), (2499, 2500), (7, 7), (2500, 2500)] {
        let offsets: Vec<u64> = read(&log, &topic, 0, start, end).unwrap().iter().map(|r| r.offset).collect();
        assert_eq!(offsets, (start..end).collect::<Vec<_>>(), "{start}..{end}");
    }

    let range = |start, end| Range { topic: topic.clone(), partition: 0, start, end: Some(end) };
    let mut reader = log.clone().reader(vec![range(10, 12), range(20, 23)]).unwrap();
    let mut offsets = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        match reader.next(1, Duration::from_millis(100)).unwrap() {
            Read::Batch(batch) => {
                assert_eq!(batch.len(), 1);
                offsets.push(batch.get(0).offset);
            }
            Read::Idle => assert!(Instant::now() < deadline),
            Read::End => break,
        }
    }
    offsets.sort_unstable();
    assert_eq!(offsets, [10, 11, 20, 21, 22], "several ranges at once, also of one partition");
}

fn a_reader_follows_what_is_appended(backend: &Backend) {
    let log = backend.open();
    let topic = topic(&*log, "follow", 1);
    let mut reader =
        log.clone().reader(vec![Range { topic: topic.clone(), partition: 0, start: 0, end: None }]).unwrap();
    assert!(matches!(reader.next(10, Duration::from_millis(50)).unwrap(), Read::Idle));
    let writer = {
        let (log, topic) = (log.clone(), topic.clone());
        std::thread::spawn(move || {
            for i in 0..20 {
                append_all(&log, &topic, [record("k", &i.to_string())]);
            }
        })
    };
    let (mut values, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while values.len() < 20 {
        assert!(Instant::now() < deadline, "only {values:?} came");
        match reader.next(10, Duration::from_millis(500)).unwrap() {
            Read::Batch(batch) => values.extend(seen(&batch).map(|r| r.value.unwrap())),
            Read::Idle => {}
            Read::End => panic!("a range without an end ended"),
        }
    }
    writer.join().unwrap();
    assert_eq!(values, (0..20).map(|i| i.to_string()).collect::<Vec<_>>());
}

fn readers_do_not_disturb_each_other(backend: &Backend) {
    let log = backend.open();
    let topic = topic(&*log, "readers", 2);
    let keys: Vec<String> = (0..400).map(|i| i.to_string()).collect();
    append_all(&log, &topic, keys.iter().map(|k| record(k, "v")));
    let wanted = read_topic(&log, &topic);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(read_topic(&log, &topic), wanted));
        }
    });
}

fn a_tail_goes_on_where_it_was(backend: &Backend) {
    let log = backend.open();
    let topic = topic(&*log, "tail", 3);
    let mut tail = Tail::new(log.clone(), topic.clone());
    let caught_up = |tail: &mut Tail| {
        let mut keys = Vec::new();
        let take = |batch: &Batch| {
            keys.extend(seen(batch).map(|r| r.key));
            Ok::<_, Error>(())
        };
        tail.catch_up(7, take).unwrap();
        keys.sort();
        keys
    };
    assert!(caught_up(&mut tail).is_empty());
    let mut keys: Vec<String> = (0..40).map(|i| i.to_string()).collect();
    append_all(&log, &topic, keys.iter().map(|k| record(k, "v")));
    keys.sort();
    assert_eq!(caught_up(&mut tail), keys);
    assert!(caught_up(&mut tail).is_empty(), "each record once");

    append_all(&log, &topic, [record("old", "v")]);
    tail.skip_to_end().unwrap();
    assert!(tail.next(10, Duration::from_millis(50)).unwrap().is_none());
    append_all(&log, &topic, [record("news", "v")]);
    let deadline = Instant::now() + PATIENCE;
    let batch = loop {
        assert!(Instant::now() < deadline, "nothing comes");
        if let Some(batch) = tail.next(10, Duration::from_millis(500)).unwrap() {
            break batch;
        }
    };
    assert_eq!(seen(&batch).map(|r| r.key).collect::<Vec<_>>(), ["news"]);
    append_all(&log, &topic, [record("last", "v")]);
    assert_eq!(caught_up(&mut tail), ["last"], "both ways of reading go on from the same positions");

    // From the beginning, one by one.
    let mut whole = Tail::new(log, topic);
    let mut records = 0;
    while records < 43 {
        assert!(Instant::now() < deadline, "only {records} came");
        records += whole.next(10, Duration::from_millis(500)).unwrap().map_or(0, |batch| batch.len());
    }
}

fn a_single_record_is_durable_when_it_is_said_to_be(backend: &Backend) {
    let log = backend.open();
    let topic = topic(&*log, "single", 1);
    assert!(append_and_wait(&log, &topic, &record("k", "v"), PATIENCE).unwrap());
    assert_eq!(read_partition(&log, &topic, 0).len(), 1);
    let refused = append_and_wait(&log, &unique("unknown"), &record("k", "v"), PATIENCE);
    assert!(matches!(refused, Err(Error::UnknownTopic { .. })), "{refused:?}");
}

fn positions_outside_the_log_are_errors(backend: &Backend) {
    let log = backend.open();
    let topic = topic(&*log, "range", 1);
    append_all(&log, &topic, (0..5).map(|_| record("k", "v")));
    match read(&log, &topic, 0, 6, 10) {
        Err(Error::OutOfRange { topic: t, partition: 0, offset: 6, first: 0, next: 5 }) => assert_eq!(t, *topic),
        other => panic!("{other:?}"),
    }
    // A consumer gets the same error, and is not moved to another offset.
    let group = unique("group");
    let (mut p, _) = processor(&log, &log, &group, &[&topic]);
    let beyond = Position { topic: topic.clone(), partition: 0, offset: 50 };
    assert_eq!(p.commit(&Outputs::default(), &[beyond]).unwrap(), Outcome::Committed);
    drop(p);
    let (mut p, positions) = processor(&log, &log, &group, &[&topic]);
    assert_eq!(positions[0].offset, 50);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match p.next(10, Duration::from_millis(100)) {
            Ok(Event::Idle) => assert!(Instant::now() < deadline, "a position beyond the end is not noticed"),
            Err(Error::OutOfRange { offset: 50, .. }) => break,
            other => panic!("{other:?}"),
        }
    }
}

fn outputs_and_positions_are_committed_together(backend: &Backend) {
    let log = backend.open();
    let (input, output, other) = (topic(&*log, "input", 2), topic(&*log, "output", 2), topic(&*log, "other", 1));
    let keys: Vec<String> = (0..100).map(|i| format!("key {i}")).collect();
    append_all(&log, &input, keys.iter().map(|k| record(k, k)));
    let group = unique("group");
    let (mut processor, _) = processor(&log, &log, &group, &[&input]);
    assert_eq!(log.committed(&group, &input).unwrap(), [None, None]);

    let (mut done, mut outputs, mut positions) = (0, Outputs::default(), Vec::new());
    while done < 100 {
        let batch = next_batch(&mut processor, 1000);
        done += batch.len();
        copied(&batch, &output, &mut outputs);
        outputs.push(&other, 0, &record("summary", &batch.len().to_string()));
        positions.retain(|p: &Position| p.partition != batch.partition());
        positions.push(behind(&batch));
    }
    let nothing: Vec<Vec<Seen>> = vec![vec![], vec![]];
    assert_eq!(read_topic(&log, &output), nothing, "nothing is visible before the commit");
    assert_eq!(processor.commit(&outputs, &positions).unwrap(), Outcome::Committed);

    let values = |topics: Vec<Vec<Seen>>| -> Vec<Vec<_>> {
        topics.into_iter().map(|p| p.into_iter().map(|r| (r.key, r.value, r.timestamp_ms)).collect()).collect()
    };
    // Visible once each broker has heard of the commit.
    wait_until("the outputs are visible", || read_topic(&log, &output).iter().map(Vec::len).sum::<usize>() == 100);
    wait_until("the other output is visible", || !read_partition(&log, &other, 0).is_empty());
    assert_eq!(values(read_topic(&log, &output)), values(read_topic(&log, &input)));
    let ends: Vec<_> = read_topic(&log, &input).iter().map(|p| Some(p.last().unwrap().offset + 1)).collect();
    assert_eq!(log.committed(&group, &input).unwrap(), ends);
}

fn a_processor_goes_on_from_what_was_committed(backend: &Backend) {
    let log = backend.open();
    let (input, output) = (topic(&*log, "input", 1), topic(&*log, "output", 1));
    let values: Vec<String> = (0..300).map(|i| i.to_string()).collect();
    append_all(&log, &input, values.iter().map(|v| record("k", v)));
    let group = unique("group");
    let mut log = log;
    // Each round commits a part, reads more without committing it, and is gone.
    for round in 0..3 {
        let (mut processor, positions) = processor(&log, &log, &group, &[&input]);
        assert_eq!(positions, [Position { topic: input.clone(), partition: 0, offset: round * 100 }]);
        let mut done = 0;
        while done < 100 {
            let batch = next_batch(&mut processor, 100 - done);
            assert_eq!(batch.get(0).offset, round * 100 + done as u64);
            done += batch.len();
            let mut outputs = Outputs::default();
            copied(&batch, &output, &mut outputs);
            assert_eq!(processor.commit(&outputs, &[behind(&batch)]).unwrap(), Outcome::Committed);
        }
        if round < 2 {
            next_batch(&mut processor, 50);
        }
        drop(processor);
        drop(log);
        log = backend.open();
    }
    wait_until("the copies are visible", || read_partition(&log, &output, 0).len() >= values.len());
    let copies: Vec<_> = read_partition(&log, &output, 0).into_iter().map(|r| r.value.unwrap()).collect();
    assert_eq!(copies, values);
}

fn offsets_without_a_record_are_not_left(backend: &Backend) {
    let log = backend.open();
    let (input, output) = (topic(&*log, "in", 2), topic(&*log, "out", 2));
    append_all(&log, &input, (0..60).map(|i| record(if i % 2 == 0 { "a" } else { "b" }, "v")));
    let (mut copying, _) = processor_of(&log, &input);
    let mut copies = 0;
    while copies < 60 {
        let batch = next_batch(&mut copying, 7);
        let mut outputs = Outputs::default();
        copied(&batch, &output, &mut outputs);
        assert_eq!(copying.commit(&outputs, &[behind(&batch)]).unwrap(), Outcome::Committed);
        copies += batch.len();
    }

    let group = unique("follower");
    let ends = progress::ends(&*log, &output).unwrap();
    let left = || progress::left(&*log, &*log, &group, &output, &ends).unwrap();
    let lag = || progress::lag(&*log, &*log, &group, &output).unwrap();
    assert!(lag() >= 60);
    let (mut follower, _) = processor(&log, &log, &group, &[&output]);
    let mut read = 0;
    while read < 60 {
        assert!(!progress::is_drained(&log, &left()).unwrap(), "{read} of 60 are committed");
        let batch = next_batch(&mut follower, 25);
        assert_eq!(follower.commit(&Outputs::default(), &[behind(&batch)]).unwrap(), Outcome::Committed);
        read += batch.len();
    }
    // On Kafka there are transaction markers behind the last records.
    wait_until("the end", || progress::is_drained(&log, &left()).unwrap());
    let after = progress::offsets(&left());
    append_all(&log, &output, [record("a", "one more")]);
    assert!(lag() > after, "what came later counts as lag");
    assert_eq!(progress::offsets(&left()), after, "but it is not before the ends");
    let all = progress::left(&*log, &*log, &group, &output, &progress::ends(&*log, &output).unwrap()).unwrap();
    assert!(!progress::is_drained(&log, &all).unwrap());
}

fn groups_do_not_know_of_each_other(backend: &Backend) {
    let log = backend.open();
    let input = topic(&*log, "input", 1);
    append_all(&log, &input, (0..10).map(|_| record("k", "v")));
    let (one, two) = (unique("one"), unique("two"));
    let (mut first, _) = processor(&log, &log, &one, &[&input]);
    let batch = next_batch(&mut first, 10);
    assert_eq!(first.commit(&Outputs::default(), &[behind(&batch)]).unwrap(), Outcome::Committed);
    let (mut second, positions) = processor(&log, &log, &two, &[&input]);
    assert_eq!(positions[0].offset, 0);
    assert_eq!(next_batch(&mut second, 10).get(0).offset, 0);
    assert_eq!(log.committed(&two, &input).unwrap(), [None]);
    assert_eq!(log.committed(&one, &input).unwrap(), [behind(&batch)].map(|p| Some(p.offset)));
}

fn a_processor_reads_all_its_topics(backend: &Backend) {
    let log = backend.open();
    let (one, two) = (topic(&*log, "one", 2), topic(&*log, "two", 1));
    let keys: Vec<String> = (0..200).map(|i| i.to_string()).collect();
    append_all(&log, &one, keys.iter().map(|k| record(k, "v")));
    append_all(&log, &two, keys.iter().map(|k| record(k, "v")));
    let (mut processor, mut positions) = processor(&log, &log, &unique("group"), &[&one, &two]);
    positions.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
    let at = |topic: &Arc<str>, partition| Position { topic: topic.clone(), partition, offset: 0 };
    assert_eq!(positions, [at(&one, 0), at(&one, 1), at(&two, 0)]);

    let mut found = std::collections::BTreeMap::<(Arc<str>, u32), Vec<Seen>>::new();
    while found.values().map(Vec::len).sum::<usize>() < 400 {
        let batch = next_batch(&mut processor, 20);
        assert!(batch.len() <= 20);
        found.entry((batch.topic().clone(), batch.partition())).or_default().extend(seen(&batch));
    }
    for ((topic, partition), records) in found {
        assert_eq!(records, read_partition(&log, &topic, partition));
    }
}

fn source_and_target_may_be_two_logs(backend: &Backend) {
    let other = backend.another();
    let (source, target) = (backend.open(), other.open());
    let (input, output) = (topic(&*source, "edge", 1), topic(&*target, "cloud", 1));
    append_all(&source, &input, (0..10).map(|_| record("k", "v")));
    let group = unique("replicator");
    let (mut p, _) = processor(&source, &target, &group, &[&input]);
    let batch = next_batch(&mut p, 4);
    let mut outputs = Outputs::default();
    copied(&batch, &output, &mut outputs);
    assert_eq!(p.commit(&outputs, &[behind(&batch)]).unwrap(), Outcome::Committed);
    drop(p);
    wait_until("the outputs are visible", || read_partition(&target, &output, 0).len() == batch.len());

    let (mut p, positions) = processor(&source, &target, &group, &[&input]);
    assert_eq!(positions, [behind(&batch)], "positions are where the outputs are");
    assert_eq!(next_batch(&mut p, 10).get(0).offset, behind(&batch).offset);
}

fn retention_removes_old_records_only(backend: &Backend) {
    let log = backend.open();
    let name = unique("retention");
    let hour = Duration::from_secs(3600);
    log.ensure_topic(&TopicSpec { retention: Some(hour), ..plain(&name, 1) }).unwrap();
    let old = Record { timestamp_ms: now_ms() - 2 * 3600 * 1000, ..record("k", "old") };
    append_all(&log, &name, (0..500).map(|_| old));
    backend.clock.pass(2 * hour);
    append_all(&log, &name, (0..500).map(|_| record("k", "young")));
    log.maintain().unwrap();

    let first = log.describe(&name).unwrap().partitions[0].first;
    assert!(first <= 500, "nothing young is removed");
    let bounds = log.describe(&name).unwrap().partitions[0];
    let kept = read(&log, &name, 0, bounds.first, bounds.next).unwrap();
    assert_eq!(kept.iter().filter(|r| r.value.as_deref() == Some("young")).count(), 500);
    if backend.maintains_at_once {
        assert_eq!((first, kept[0].offset), (500, 500));
        match read(&log, &name, 0, 499, 600) {
            Err(Error::OutOfRange { offset: 499, first: 500, next: 1000, .. }) => {}
            other => panic!("{other:?}"),
        }
        drop(log);
        let log = backend.open();
        assert_eq!(log.describe(&name).unwrap().partitions[0], PartitionDescription { first: 500, next: 1000 });
    }
}

fn retention_keeps_what_a_group_has_not_committed(backend: &Backend) {
    let log = backend.open();
    let name = unique("unread");
    let week = Duration::from_secs(168 * 3600);
    log.ensure_topic(&TopicSpec { retention: Some(week), ..plain(&name, 1) }).unwrap();
    let (slow, fast) = (unique("slow"), unique("fast"));
    let (mut slow_reader, _) = processor(&log, &log, &slow, &[&name]);
    let (mut fast_reader, _) = processor(&log, &log, &fast, &[&name]);
    let first = |log: &Arc<dyn Log>| {
        log.maintain().unwrap();
        log.describe(&name).unwrap().partitions[0].first
    };
    // Stamped long ago. On Kafka the broker goes by these stamps, in its own time.
    let old = Record { timestamp_ms: now_ms() - 9 * 24 * 3600 * 1000, ..record("k", "old") };
    for _ in 0..2 {
        append_all(&log, &name, (0..10).map(|_| old));
        assert_eq!(first(&log), 0, "it has only just been appended");
    }
    backend.clock.pass(9 * 24 * Duration::from_secs(3600));
    assert_eq!(first(&log), 0, "nobody has read it");
    for expected in [0, 10] {
        for processor in [&mut fast_reader, &mut slow_reader].into_iter().take(if expected == 0 { 1 } else { 2 }) {
            let batch = next_batch(processor, 10);
            assert_eq!(processor.commit(&Outputs::default(), &[behind(&batch)]).unwrap(), Outcome::Committed);
        }
        assert_eq!(first(&log), if backend.maintains_at_once { expected } else { 0 }, "what both have read is removed");
    }
    drop((slow_reader, fast_reader));
    if backend.maintains_at_once {
        drop(log);
        let log = backend.open();
        assert_eq!(first(&log), 10, "groups are known after a restart");
        assert!(log.groups().unwrap().iter().any(|group| *group.name == *slow && group.positions == [Some(10)]));
        assert!(log.forget_group(&slow).unwrap() && !log.forget_group(&slow).unwrap());
        assert_eq!(first(&log), 20, "nobody waits for a group that is forgotten");
        assert_eq!(log.committed(&slow, &name).unwrap(), [None]);
    }
}

fn compaction_keeps_the_last_record_of_each_key(backend: &Backend) {
    let log = backend.open();
    let name = unique("table");
    log.ensure_topic(&TopicSpec { compacted: true, ..plain(&name, 1) }).unwrap();
    let two_days_ago = now_ms() - 48 * 3600 * 1000;
    let two_days = Duration::from_secs(48 * 3600);
    let keys: Vec<String> = (0..50).map(|i| format!("driver {i}")).collect();
    let versions: Vec<String> = (0..20).map(|i| format!("version {i}")).collect();
    for version in &versions {
        append_all(&log, &name, keys.iter().map(|k| Record { timestamp_ms: two_days_ago, ..record(k, version) }));
    }
    // One long gone, one just gone, and one that came back.
    let gone =
        |key: &'static str, timestamp_ms| Record { key: key.as_bytes(), value: None, headers: &[], timestamp_ms };
    append_all(
        &log,
        &name,
        [gone("driver 7", two_days_ago), gone("driver 9", two_days_ago), gone("driver 10", two_days_ago)],
    );
    backend.clock.pass(two_days);
    append_all(&log, &name, [record("driver 9", "back"), gone("driver 8", two_days_ago)]);
    let next = log.describe(&name).unwrap().partitions[0].next;
    log.maintain().unwrap();

    let check = |log: &Arc<dyn Log>, tombstones: usize| {
        let records = read_partition(log, &name, 0);
        let mut table = std::collections::BTreeMap::new();
        for r in &records {
            table.insert(r.key.clone(), r.value.clone());
        }
        table.retain(|_, value| value.is_some());
        assert_eq!(table.len(), 47);
        assert_eq!(table.remove("driver 9").flatten().as_deref(), Some("back"));
        assert!(table.values().all(|v| v.as_deref() == Some("version 19")));
        assert!(records.is_sorted_by(|a, b| a.offset < b.offset));
        if backend.maintains_at_once {
            assert_eq!(records.len(), 47 + tombstones, "one for each key, and the young tombstone");
            assert_eq!(log.describe(&name).unwrap().partitions[0], PartitionDescription { first: 0, next });
            assert_eq!(read(log, &name, 0, 3, next).unwrap(), records, "gaps are no obstacle");
        }
    };
    check(&log, 1);
    log.maintain().unwrap();
    check(&log, 1);
    // The last offset is that of a tombstone: when it is gone, it is not given again.
    backend.clock.pass(two_days);
    log.maintain().unwrap();
    check(&log, 0);
    drop(log);
    let log = backend.open();
    check(&log, 0);
    append_all(&log, &name, [record("new", "one")]);
    assert!(read_partition(&log, &name, 0).last().unwrap().offset >= next);
}

fn a_killed_writer_leaves_all_that_it_acknowledged_and_nothing_half(backend: &Backend) {
    let (input, output, table) = (unique("input"), unique("output"), unique("table"));
    let group = unique("group");
    let log = backend.open();
    for name in [&input, &output] {
        log.ensure_topic(&plain(name, 3)).unwrap();
    }
    log.ensure_topic(&TopicSpec { compacted: true, ..plain(&table, 1) }).unwrap();
    drop(log);
    let (mut acknowledged, mut kept, mut from) = (Vec::new(), Vec::new(), 0);
    // More by hand: CARSTREAM_TEST_CRASHES=100.
    let rounds = std::env::var("CARSTREAM_TEST_CRASHES").map_or(4, |rounds| rounds.parse().unwrap());
    for round in 1..=rounds {
        let mut writer = Writer::start("crash_writer", &backend.url, [&input, &output, &table], &group, from);
        // Somewhere in the middle of things, elsewhere each time.
        let (mut heard, mut commits) = (Vec::new(), 0);
        while heard.len() < 1000 + 777 * round % 5000 || commits < 3 + round % 7 {
            let said = writer.next();
            if let Said::Committed(count) = said {
                commits = count as usize;
            }
            heard.push(said);
        }
        heard.extend(writer.kill());
        for said in heard {
            match said {
                Said::Acknowledged(number) => acknowledged.push(number),
                Said::Kept(number) => kept.push(number),
                Said::Committed(_) => {}
            }
        }
        let log = backend.open();
        check_appended(&log, &input, &acknowledged);
        check_copied(&log, &input, &output, &group);
        check_table(&log, &table, &kept);
        // Numbers that were not acknowledged may be there or not: the next writer takes new ones.
        from = acknowledged.iter().max().unwrap() + 1_000_000;
    }
}

fn number(r: &Seen) -> u64 {
    r.value.as_ref().unwrap().split(' ').next().unwrap().parse().unwrap()
}

fn check_appended(log: &Arc<dyn Log>, input: &Arc<str>, acknowledged: &[u64]) {
    let mut numbers = Vec::new();
    for records in read_topic(log, input) {
        let mut last = std::collections::HashMap::new();
        for r in &records {
            assert_eq!(r.value.as_ref(), Some(&support::crash::value(number(r))), "{} is whole", number(r));
            let before = last.insert(r.key.clone(), number(r));
            assert!(before.is_none_or(|before| before < number(r)), "{} keeps its order", r.key);
            numbers.push(number(r));
        }
    }
    numbers.sort_unstable();
    assert!(numbers.is_sorted_by(|a, b| a < b), "nothing is there twice");
    for number in acknowledged {
        assert!(numbers.binary_search(number).is_ok(), "{number} was acknowledged and is gone");
    }
}

fn check_copied(log: &Arc<dyn Log>, input: &Arc<str>, output: &Arc<str>, group: &str) {
    let committed = log.committed(group, input).unwrap();
    for (p, (inputs, copies)) in read_topic(log, input).iter().zip(read_topic(log, output)).enumerate() {
        let done: Vec<_> = inputs.iter().filter(|r| committed[p].is_some_and(|c| r.offset < c)).map(number).collect();
        let copies: Vec<_> = copies.iter().map(number).collect();
        assert_eq!(copies, done, "partition {p}: the outputs are those of the positions");
    }
}

fn check_table(log: &Arc<dyn Log>, table: &Arc<str>, kept: &[u64]) {
    let rows: std::collections::HashMap<_, _> =
        read_partition(log, table, 0).iter().map(|r| (number(r) % KEYS, number(r))).collect();
    for number in kept {
        let row = rows.get(&(number % KEYS));
        assert!(row.is_some_and(|row| row >= number), "row {} is {row:?}, {number} was acknowledged", number % KEYS);
    }
}
