//! Topics of Kafka that take less than ours: smaller batches, and times near the broker's clock.
//!
//! Needs `CARSTREAM_TEST_KAFKA=HOST:PORT`, and for a policy `CARSTREAM_TEST_KAFKA_SCRIPT`, the path of scripts/kafka.
//! The settings are changed as an administrator would, also while something is written.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use event_log::*;
use support::broker::Broker;
use support::kafka_admin::{add_partitions, set};
use support::*;
use test_support::clock::now_ms;
use test_support::random::Random;

const LIMIT: &str = "max.message.bytes";
const HOUR_MS: i64 = 3_600_000;

/// Texts that do not become smaller by compression.
fn texts(count: usize, bytes: usize) -> Vec<String> {
    let mut random = Random::new(7);
    (0..count).map(|_| (0..bytes).map(|_| char::from(b'0' + (random.next() % 70) as u8)).collect()).collect()
}

/// Appends them at once, so that they share batches. Returns how many became durable.
fn append_at_once(log: &Arc<dyn Log>, appender: &dyn Appender, completions: &Completions, topic: &Arc<str>) -> usize {
    let before = completions.all().len();
    let texts = texts(400, 600);
    for (token, text) in texts.iter().enumerate() {
        append(appender, topic, &record(&token.to_string(), text), token as u64);
    }
    assert!(appender.flush(PATIENCE), "{log:?}");
    completions.all()[before..].iter().filter(|completion| completion.durable).count()
}

#[test]
fn appends_fit_whatever_the_topic_takes_now() {
    let Some(backend) = kafka() else { return };
    let log = backend.open();
    let (narrow, wide) = (topic(&*log, "narrow", 1), topic(&*log, "wide", 1));
    let completions = Completions::default();
    let appender = log.clone().appender(completions.callback()).unwrap();
    let at_once = |topic| append_at_once(&log, &*appender, &completions, topic);
    assert_eq!(at_once(&narrow), 400);

    // Lowered while it runs: no record pays for its neighbours.
    set(&backend, &narrow, &[(LIMIT, "20000")]);
    assert_eq!((at_once(&narrow), at_once(&wide)), (400, 400));
    set(&backend, &narrow, &[(LIMIT, "5000")]);
    assert_eq!(at_once(&narrow), 400);

    // A record that can never fit is refused at once, and by itself.
    let large = "x".repeat(6000);
    let refused = || match appender.append(&narrow, &record("k", &large), 9999) {
        Err(AppendError::Refused(error)) => Some(error),
        Err(AppendError::Full) => panic!("full"),
        Ok(()) => None,
    };
    let error = refused().unwrap();
    assert!(matches!(error, Error::TooLarge { limit: 5000, bytes, .. } if bytes > 6000), "{error:?}");
    let said = error.to_string();
    assert!(said.contains(&*narrow) && said.contains("5000") && said.contains("max.message.bytes"), "{said}");
    assert_eq!(at_once(&narrow), 400);

    // A log that is opened now knows the limit from its topic.
    let another = backend.open();
    another.describe(&narrow).unwrap();
    let seen = Completions::default();
    let of_another = another.clone().appender(seen.callback()).unwrap();
    assert_eq!(append_at_once(&another, &*of_another, &seen, &narrow), 400);

    // And raised while it runs.
    set(&backend, &narrow, &[(LIMIT, "1000000")]);
    wait_until("the raised limit is noticed", || refused().is_none());
    assert!(appender.flush(PATIENCE));
    assert!(completions.all().iter().all(|completion| completion.durable));
}

#[test]
fn transactions_fit_whatever_the_topic_takes_now() {
    let Some(backend) = kafka() else { return };
    let log = backend.open();
    let (input, output) = (topic(&*log, "input", 1), topic(&*log, "output", 1));
    append_all(&log, &input, [record("k", "v")]);
    let (mut p, _) = processor(&log, &log, &unique("group"), &[&input]);
    let batch = next_batch(&mut p, 1);
    let texts = texts(400, 600);
    let mut outputs = Outputs::default();
    texts.iter().for_each(|text| outputs.push(&output, 0, &record("k", text)));
    let commit = |p: &mut Processor, outputs: &Outputs| loop {
        if p.commit(outputs, &[behind(&batch)])? == Outcome::Committed {
            return Ok::<_, Error>(());
        }
        while !matches!(p.next(1, Duration::from_millis(100))?, Event::Assigned(_)) {}
    };
    let written = || read_partition(&log, &output, 0).len();
    for (round, limit) in ["1000000", "20000", "3000"].into_iter().enumerate() {
        set(&backend, &output, &[(LIMIT, limit)]);
        commit(&mut p, &outputs).unwrap();
        wait_until("the outputs are visible", || written() == 400 * (round + 1));
    }

    let (mut large, text) = (Outputs::default(), "x".repeat(4000));
    large.push(&output, 0, &record("k", "before"));
    large.push(&output, 0, &record("k", &text));
    let refused = commit(&mut p, &large).unwrap_err();
    assert!(matches!(&refused, Error::TooLarge { topic, limit: 3000, .. } if **topic == *output), "{refused:?}");
    assert!(refused.needs_operator());
    assert_eq!(log.describe(&output).unwrap().max_record_bytes, 3000);
    commit(&mut p, &outputs).unwrap();
    set(&backend, &output, &[(LIMIT, "6000")]);
    commit(&mut p, &large).unwrap();
    wait_until("the outputs are visible", || written() == 1602);
}

#[test]
fn a_copy_is_accepted_whatever_the_clock_of_its_source_said() {
    let Some(backend) = kafka() else { return };
    let log = backend.open();
    let (input, output) = (topic(&*log, "input", 1), topic(&*log, "output", 1));
    append_all(&log, &input, [record("k", "v")]);
    let (mut p, _) = processor(&log, &log, &unique("group"), &[&input]);
    let batch = next_batch(&mut p, 1);
    let mut commit = |at: &[i64]| {
        let mut outputs = Outputs::default();
        at.iter().for_each(|timestamp_ms| {
            outputs.push(&output, 0, &Record { timestamp_ms: *timestamp_ms, ..record("k", "v") });
        });
        p.commit(&outputs, &[behind(&batch)])
    };
    let began = now_ms();
    let ahead = [began + 2 * HOUR_MS, 4_070_908_800_000, began - HOUR_MS];
    assert_eq!(commit(&ahead).unwrap(), Outcome::Committed);
    wait_until("the outputs are visible", || read_partition(&log, &output, 0).len() == 3);
    let written = read_partition(&log, &output, 0);
    for (record, original) in written.iter().zip(ahead) {
        let header = record.headers.iter().find(|(name, _)| name == "original_timestamp_ms");
        if original > began {
            assert!((began..=now_ms()).contains(&record.timestamp_ms), "{record:?}");
            assert_eq!(header.map(|(_, value)| value.as_slice()), Some(original.to_string().as_bytes()));
        } else {
            assert_eq!((record.timestamp_ms, header), (original, None));
        }
    }

    // What is refused all the same is named, with the clock or the setting at fault.
    set(&backend, &output, &[("message.timestamp.before.max.ms", "60000")]);
    let refused = commit(&[began, began - HOUR_MS]).unwrap_err();
    assert!(matches!(&refused, Error::Time { .. }) && refused.needs_operator(), "{refused:?}");
    let said = refused.to_string();
    assert!(said.contains(&*output) && said.contains("message.timestamp.before.max.ms (60000)"), "{said}");
}

#[test]
fn a_clock_ahead_of_the_brokers_is_named_until_it_is_right() {
    let Some(backend) = kafka() else { return };
    let log = backend.open();
    let topic = topic(&*log, "ahead", 1);
    let completions = Completions::default();
    let appender = log.clone().appender(completions.callback()).unwrap();
    let append_at = |timestamp_ms| {
        append(&*appender, &topic, &Record { timestamp_ms, ..record("k", "v") }, 1);
        assert!(appender.flush(PATIENCE));
        completions.all().last().unwrap().durable
    };
    assert!(append_at(now_ms()));
    log.check_writable(&topic).unwrap();
    // As from a host whose clock is half an hour ahead of the broker's.
    set(&backend, &topic, &[("message.timestamp.after.max.ms", "60000")]);
    assert!(!append_at(now_ms() + HOUR_MS / 2));
    let error = log.check_writable(&topic).unwrap_err();
    let said = format!("{}: {}", error, std::error::Error::source(&error).unwrap());
    assert!(error.is_retriable() && said.contains(&*topic) && said.contains("60 s ahead"), "{said}");
    assert!(append_at(now_ms()));
    log.check_writable(&topic).unwrap();
}

/// A policy of the cluster refuses our small segments, and some names.
#[test]
fn a_managed_kafka_is_heard_and_taken_as_it_is() {
    if kafka().is_none() {
        return;
    }
    let classes = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policy");
    let Some(broker) = Broker::start_with(&["--policy", "ManagedKafka", "--classes", classes]) else { return };
    let log = event_log::open(&broker.url, &[]).unwrap();
    let compacted = TopicSpec { compacted: true, ..plain(&unique("compacted"), 1) };
    log.ensure_topic(&compacted).unwrap();
    assert!(log.describe(&compacted.name).unwrap().compacted);

    let reserved = plain(&unique("reserved"), 3);
    let refused = log.ensure_topic(&reserved).unwrap_err();
    assert!(matches!(&refused, Error::Refused { .. }), "{refused:?}");
    let said = std::error::Error::source(&refused).unwrap().to_string();
    for words in [&*reserved.name, "reserved for the platform team", "by hand", "3 partitions", "cleanup.policy=delete"]
    {
        assert!(said.contains(words), "{said}");
    }
}

/// A producer knows the partitions of a topic since its first record, and asks for them again after minutes only.
#[test]
fn a_transaction_reaches_partitions_that_were_added() {
    let Some(backend) = kafka() else { return };
    let log = backend.open();
    let (input, output) = (topic(&*log, "input", 1), topic(&*log, "output", 1));
    append_all(&log, &input, [record("k", "v")]);
    let (mut p, _) = processor(&log, &log, &unique("group"), &[&input]);
    let batch = next_batch(&mut p, 1);
    let mut commit = |partition| {
        let mut outputs = Outputs::default();
        outputs.push(&output, partition, &record("k", "v"));
        while p.commit(&outputs, &[behind(&batch)])? == Outcome::RolledBack {
            while !matches!(p.next(1, Duration::from_millis(100))?, Event::Assigned(_)) {}
        }
        Ok::<_, Error>(())
    };
    commit(0).unwrap();
    add_partitions(&backend, &output, 2);
    wait_until("the partition is there", || log.describe(&output).is_ok_and(|found| found.partitions.len() == 2));
    commit(1).unwrap();
    wait_until("the output is visible", || read_partition(&log, &output, 1).len() == 1);
    let error = commit(2).unwrap_err();
    assert!(matches!(&error, Error::UnknownTopic { topic, .. } if **topic == *output), "{error:?}");
}

/// Partitions that an administrator adds are followed by a tail, and written to by an appender, without a restart.
#[test]
fn added_partitions_are_noticed_within_a_minute() {
    let Some(backend) = kafka() else { return };
    let log = backend.open();
    let topic = topic(&*log, "grows", 1);
    let mut tail = Tail::new(log.clone(), topic.clone());
    let completions = Completions::default();
    let appender = log.clone().appender(completions.callback()).unwrap();
    let keys: Vec<String> = (0..40).map(|i| i.to_string()).collect();
    let append_keys = || {
        keys.iter().for_each(|key| append(&*appender, &topic, &record(key, key), 0));
        assert!(appender.flush(PATIENCE));
    };
    append_keys();
    add_partitions(&backend, &topic, 4);
    let mut seen = BTreeMap::<u32, usize>::new();
    wait_until("all partitions are written and read", || {
        append_keys();
        while let Some(batch) = tail.next(1000, Duration::from_millis(200)).unwrap() {
            *seen.entry(batch.partition()).or_default() += batch.len();
        }
        seen.len() == 4
    });
}
