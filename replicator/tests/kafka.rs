//! From one Kafka cluster to another: two brokers of this test's own, and replicators that are killed, paused and
//! doubled.
//!
//! Needs `CARSTREAM_TEST_KAFKA` and `CARSTREAM_TEST_KAFKA_SCRIPT`, the path of scripts/kafka. Brokers are slow to
//! start, so there is one pair of them for all; each part has a topic of its own.
#![allow(clippy::unwrap_used)]

#[path = "support/brokers.rs"]
mod brokers;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use brokers::{Broker, Process};
use event_log::{AppendError, Log, Record};
use replicator::{Accept, Accepted, Args, group};
use support::*;
use test_support::clock::now_ms;

const NONE: Accept =
    Accept { accept_gap: false, accept_recreated: false, accept_partitions: false, find_positions: false };

#[tokio::test(flavor = "multi_thread")]
async fn from_kafka_to_kafka() {
    let Some([edge, cloud]) = Broker::two() else { return };
    let (edge, cloud) = (Arc::new(edge), Arc::new(cloud));
    let on_thread = |part: fn(&Broker, &Broker)| {
        let (edge, cloud) = (edge.clone(), cloud.clone());
        tokio::task::spawn_blocking(move || part(&edge, &cloud))
    };
    on_thread(instances_are_killed_and_paused).await.unwrap();
    on_thread(a_second_instance_of_the_same_name_takes_over).await.unwrap();
    a_topic_created_again_stops_alone(&edge, &cloud).await;
    partitions_are_added(&edge, &cloud).await;
    markers_are_no_gap_and_records_are(&edge, &cloud).await;
    forgotten_positions_are_found_again(&edge, &cloud).await;
}

/// One record after another until told to stop.
fn load(log: &Arc<dyn Log>, topic: &str, stop: &AtomicBool) -> u64 {
    let appender =
        log.clone().appender(Box::new(|completions| assert!(completions.iter().all(|c| c.durable)))).unwrap();
    let topic: Arc<str> = topic.into();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let key = format!("car {}", number % 97);
        let value = number.to_string();
        let record =
            Record { key: key.as_bytes(), value: Some(value.as_bytes()), headers: &[], timestamp_ms: now_ms() };
        match appender.append(&topic, &record, number) {
            Ok(()) => number += 1,
            Err(AppendError::Full) => {}
            Err(error) => panic!("{error:?}"),
        }
        if number.is_multiple_of(4) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert!(appender.flush(PATIENCE));
    number
}

fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// How far each of the four partitions is copied.
fn positions(cloud: &Arc<dyn Log>, topic: &str) -> Vec<u64> {
    match cloud.committed(&group(topic), topic) {
        Ok(committed) => committed.into_iter().map(Option::unwrap_or_default).collect(),
        Err(error) => {
            // The topic does not exist yet, or an open transaction holds them back.
            eprintln!("{}: {:#}", now_ms(), anyhow::Error::from(error));
            vec![0; 4]
        }
    }
}

/// Waits until every partition is copied some way on.
fn all_go_on(what: &str, cloud: &Arc<dyn Log>, topic: &str) {
    let before = positions(cloud, topic);
    until(what, || {
        let now = positions(cloud, topic);
        // More than one batch: the broker may have completed one after its sender was paused.
        now.iter().zip(&before).all(|(now, before)| *now > before + 250)
    });
}

/// Asserts that both logs hold the same values in the same order, each once. Waits for the last of them: readers stop
/// before the transaction that a killed process has left open, until the broker ends it (30 s).
fn assert_same(edge: &Arc<dyn Log>, cloud: &Arc<dyn Log>, topic: &str) -> usize {
    let mut count = 0;
    for partition in 0..edge.describe(topic).unwrap().partitions.len() as u32 {
        let values = |log| read(log, topic, partition).into_iter().map(|r| r.value).collect::<Vec<_>>();
        let wanted = values(edge);
        until("all records", || values(cloud).len() >= wanted.len());
        let found = values(cloud);
        assert_eq!(found.len(), wanted.len(), "{topic}/{partition}: records were lost or doubled");
        assert!(found == wanted, "{topic}/{partition} is not the same");
        count += found.len();
    }
    count
}

fn instances_are_killed_and_paused(edge: &Broker, cloud: &Broker) {
    let (edge_log, cloud_log) = (edge.log(), cloud.log());
    edge_log.ensure_topic(&topics::builtin("telemetry")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| load(&edge_log, "telemetry", &stop));
        let _stop = OnDrop(&stop);
        let start = |instance| Process::start(edge, cloud, "telemetry", instance, "6000");
        let (mut one, two) = (start("1"), start("2"));
        all_go_on("two instances", &cloud_log, "telemetry");
        for _ in 0..2 {
            two.signal("STOP");
            all_go_on("the first instance to take over from one that is paused", &cloud_log, "telemetry");
            two.signal("CONT");
            all_go_on("both to go on", &cloud_log, "telemetry");
            one.kill();
            one = start("1");
            all_go_on("both to go on after a kill", &cloud_log, "telemetry");
        }
        two.kill();
        all_go_on("the first instance to take over from one that was killed", &cloud_log, "telemetry");
        stop.store(true, Ordering::Relaxed);
        let count = load.join().unwrap();
        let ends = || edge_log.describe("telemetry").unwrap().partitions.iter().map(|p| p.next).collect::<Vec<_>>();
        until("the end", || positions(&cloud_log, "telemetry") == ends());
        one.signal("TERM");
        let (code, said) = one.end();
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(assert_same(&edge_log, &cloud_log, "telemetry") as u64, count);
    });
}

fn a_second_instance_of_the_same_name_takes_over(edge: &Broker, cloud: &Broker) {
    let (edge_log, cloud_log) = (edge.log(), cloud.log());
    edge_log.ensure_topic(&topics::builtin("faults")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| load(&edge_log, "faults", &stop));
        let _stop = OnDrop(&stop);
        let first = Process::start(edge, cloud, "faults", "1", "120000");
        all_go_on("the first process", &cloud_log, "faults");
        first.signal("STOP");
        let second = Process::start(edge, cloud, "faults", "1", "120000");
        all_go_on("the second process", &cloud_log, "faults");
        first.signal("CONT");
        let (code, said) = first.end();
        assert_eq!(code, Some(1), "{said}");
        assert_says(&said, &["faults", "fenced", "another process with this name has taken over"]);
        all_go_on("the second process, undisturbed", &cloud_log, "faults");
        stop.store(true, Ordering::Relaxed);
        let count = load.join().unwrap();
        second.signal("TERM");
        let (code, said) = second.end();
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(assert_same(&edge_log, &cloud_log, "faults") as u64, count);
    });
}

fn args(edge: &Broker, cloud: &Broker, topics: &[&str]) -> Args {
    let mut args = Args::new(edge.url(), cloud.url());
    args.topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
    args.drain.timeout = PATIENCE;
    // Somebody who is gone is soon out of the group.
    args.cloud.kafka_options.push("session.timeout.ms=6000".parse().unwrap());
    args
}

async fn a_topic_created_again_stops_alone(edge: &Broker, cloud: &Broker) {
    let (edge_log, cloud_log) = (edge.log(), cloud.log());
    write(&edge_log, "alerts", &records(1, 100));
    write(&edge_log, "scores", &records(2, 100));
    let args = args(edge, cloud, &["alerts", "scores"]);
    let replicator = start(args.clone());
    wait_until("both topics to be copied", || replicator.metrics.pipeline.records_in.get() == 200).await;
    let old_id = edge_log.describe("alerts").unwrap().id;
    edge.tool("TopicCommand", &["--delete", "--topic", "alerts"]);
    wait_until("the topic to be gone", || edge_log.describe("alerts").is_err()).await;
    write(&edge_log, "alerts", &records(3, 60));
    let new_id = edge_log.describe("alerts").unwrap().id;
    wait_until("the stop of alerts", || replicator.metrics.stopped_topics.get() == 1).await;
    write(&edge_log, "scores", &records(4, 100));
    let error = format!("{:#}", replicator.stop().await.unwrap_err());
    assert_says(&error, &["alerts: it was deleted", &old_id, "resume --topic alerts --accept-recreated"]);
    assert!(!error.contains("scores"), "{error}");
    assert_eq!(assert_same(&edge_log, &cloud_log, "scores"), 200, "the other one went on");

    resume(&args, "alerts", Accept { accept_recreated: true, ..NONE }).unwrap();
    start(args.clone()).stop().await.unwrap();
    let copied: usize = (0..4).map(|p| read(&cloud_log, "alerts", p).len()).sum();
    assert_eq!(copied, 160);
    assert!(matches!(&accepted(&cloud_log)[..], [Accepted::Recreated { topic_id, .. }] if *topic_id == new_id));
    // Kafka's markers leave holes in both logs. Each record of the new topic is found behind the last of the old one.
    for partition in 0..4 {
        let new = read(&edge_log, "alerts", partition);
        let old = read(&cloud_log, "alerts", partition).len() - new.len();
        let first = translate(&args, "alerts", partition, Some(0), None).unwrap();
        assert!(first >= old as u64, "{first} lies among the old ones");
        assert_eq!(translate(&args, "alerts", partition, None, Some(first)), Some(0));
        assert_eq!(translate(&args, "alerts", partition, None, Some(0)), Some(0));
    }
}

async fn partitions_are_added(edge: &Broker, cloud: &Broker) {
    let (edge_log, cloud_log) = (edge.log(), cloud.log());
    let args = args(edge, cloud, &["faults"]);
    write(&edge_log, "faults", &records(8, 40));
    let replicator = start(args.clone());
    wait_until("the records", || replicator.metrics.pipeline.records_in.get() == 40).await;
    edge.tool("TopicCommand", &["--alter", "--topic", "faults", "--partitions", "6"]);
    let error = format!("{:#}", replicator.end().await.unwrap_err());
    assert_says(&error, &["faults", "4 partitions when copying began", "6 in", "4 in", "--accept-partitions"]);
    let accept = Accept { accept_partitions: true, ..NONE };
    assert_says(&resume(&args, "faults", accept.clone()).unwrap_err(), &["give it 6 partitions in both"]);
    cloud.tool("TopicCommand", &["--alter", "--topic", "faults", "--partitions", "6"]);
    wait_until("the target to have them", || cloud_log.describe("faults").is_ok_and(|d| d.partitions.len() == 6)).await;
    resume(&args, "faults", accept).unwrap();
    let stop = AtomicBool::new(false);
    let before = assert_same(&edge_log, &cloud_log, "faults");
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let load = scope.spawn(|| load(&edge_log, "faults", &stop));
            std::thread::sleep(Duration::from_secs(1));
            stop.store(true, Ordering::Relaxed);
            load.join().unwrap()
        })
    });
    start(args).stop().await.unwrap();
    assert!(assert_same(&edge_log, &cloud_log, "faults") > before);
    assert!(!read(&cloud_log, "faults", 5).is_empty(), "the new partitions are copied too");
}

async fn markers_are_no_gap_and_records_are(edge: &Broker, cloud: &Broker) {
    let (edge_log, cloud_log) = (edge.log(), cloud.log());
    let args = args(edge, cloud, &["scores"]);
    let end = |partition: usize| edge_log.describe("scores").unwrap().partitions[partition].next;
    // It was copied to its end: what is behind the positions are the markers of transactions.
    assert!(positions(&cloud_log, "scores")[1] < end(1));
    edge.delete_records("scores", 1, end(1));
    write(&edge_log, "scores", &records(5, 60));
    start(args.clone()).stop().await.unwrap();
    let copied = |partition| read(&cloud_log, "scores", partition).len();
    assert_eq!((0..4).map(copied).sum::<usize>(), 260, "a marker was not missed");

    let position = positions(&cloud_log, "scores")[1];
    write(&edge_log, "scores", &records(6, 60));
    edge.delete_records("scores", 1, end(1));
    let error = format!("{:#}", start(args.clone()).end().await.unwrap_err());
    let was_copied = format!("partition 1 was copied up to offset {position} and begins at {}", end(1));
    assert_says(&error, &["scores", &was_copied, "resume --topic scores --accept-gap"]);
    resume(&args, "scores", Accept { accept_gap: true, ..NONE }).unwrap();
    let before = copied(1);
    start(args).stop().await.unwrap();
    assert_eq!(copied(1), before);
    assert!((0..4).map(copied).sum::<usize>() > 260, "the other partitions go on");
}

async fn forgotten_positions_are_found_again(edge: &Broker, cloud: &Broker) {
    let (edge_log, cloud_log) = (edge.log(), cloud.log());
    let args = args(edge, cloud, &["scores"]);
    let copied = || (0..4).map(|p| read(&cloud_log, "scores", p).len()).sum::<usize>();
    write(&edge_log, "scores", &records(7, 60));
    start(args.clone()).stop().await.unwrap();
    let before = copied();
    // As Kafka does when nobody has been in the group for some days. The one that was here is gone after its session.
    let group = group("scores");
    let deadline = Instant::now() + PATIENCE;
    while positions(&cloud_log, "scores") != [0; 4] {
        assert!(Instant::now() < deadline, "the group is not deleted");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _ = cloud.try_tool("consumer.group.ConsumerGroupCommand", &["--delete", "--group", &group]);
    }
    let error = format!("{:#}", start(args.clone()).end().await.unwrap_err());
    assert_says(&error, &["scores", "has copies but no positions", "resumes at offset", "--find-positions"]);
    resume(&args, "scores", Accept { find_positions: true, ..NONE }).unwrap();
    write(&edge_log, "scores", &records(8, 50));
    start(args).stop().await.unwrap();
    assert_eq!(copied(), before + 50, "none twice, none missed");
}

/// Stops the load also when an assertion fails.
struct OnDrop<'s>(&'s AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
