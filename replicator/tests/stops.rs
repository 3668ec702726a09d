//! What stops a topic, what the error says, and how the topic resumes: on the embedded log.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use event_log::{Log, TopicSpec};
use replicator::{Accept, Accepted, Args, Gap, SOURCE_OFFSET};
use support::*;

const GAP: Accept = Accept { accept_gap: true, ..NONE };
const RECREATED: Accept = Accept { accept_recreated: true, ..NONE };
const PARTITIONS: Accept = Accept { accept_partitions: true, ..NONE };
const NONE: Accept =
    Accept { accept_gap: false, accept_recreated: false, accept_partitions: false, find_positions: false };

fn ids(log: &Arc<dyn Log>, topic: &str) -> String {
    log.describe(topic).unwrap().id
}

fn count(log: &Arc<dyn Log>, topic: &str) -> usize {
    let partitions = log.describe(topic).unwrap().partitions.len() as u32;
    (0..partitions).map(|p| read(log, topic, p).len()).sum()
}

/// Records for one partition.
fn records_in(partition: u32, number: u64) -> Vec<(u32, Whole)> {
    records(number, number).into_iter().map(|(_, record)| (partition, record)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retention_gap_stops_its_topic_until_it_is_accepted() {
    let place = Place::new();
    let (edge, args) = (place.log("edge"), place.args(&["telemetry", "alerts"]));
    // The start of copying is known before the first record exists.
    start(args.clone()).stop().await.unwrap();
    // Retention would wait for the replicator, if an operator had not made the log forget it.
    assert!(edge.forget_group(&replicator::group_of(replicator::DEFAULT_SITE, "telemetry")).unwrap());
    write(&edge, "telemetry", &records_in(2, 50));
    place.clock.pass(Duration::from_secs(30 * 24 * 3600));
    write(&edge, "telemetry", &records(1, 40));
    write(&edge, "alerts", &records(2, 40));
    edge.maintain().unwrap();
    assert_eq!(edge.describe("telemetry").unwrap().partitions[2].first, 50);

    for _ in 0..2 {
        let replicator = start(args.clone());
        wait_until("the stop", || replicator.metrics.stopped_topics.get() == 1).await;
        let error = format!("{:#}", replicator.stop().await.unwrap_err());
        assert_says(
            &error,
            &[
                "telemetry",
                "partition 2 was copied up to offset 0 and begins at 50: 50 offsets are gone",
                "--accept-gap",
            ],
        );
        assert_says(&error, &["resume --topic telemetry", &place.url("edge").to_string(), "another target"]);
        assert!(!error.contains("alerts"), "{error}");
    }
    assert_eq!((count(&place.log("cloud"), "telemetry"), count(&place.log("cloud"), "alerts")), (0, 40));

    let refused = resume(&args, "telemetry", RECREATED).unwrap_err();
    assert_says(&refused, &["stopped for another reason", "50 offsets are gone"]);
    assert_says(&resume(&args, "telemetry", GAP).unwrap(), &["after the gap", "partition 2", "start the replicator"]);
    start(args.clone()).stop().await.unwrap();
    let cloud = place.log("cloud");
    assert_eq!(count(&cloud, "telemetry"), 40, "what is left is there");
    let gap = Gap { partition: 2, from: 0, to: 50 };
    assert_eq!(accepted(&cloud), [Accepted::Gap { partitions: vec![gap] }], "whoever counts finds out why");
    assert_says(&resume(&args, "telemetry", GAP).unwrap_err(), &["it is not stopped"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_keeps_what_is_not_copied_yet_and_no_more() {
    let place = Place::new();
    let (edge, mut args) = (place.log("edge"), place.args(&["telemetry"]));
    edge.ensure_topic(&topics::builtin("telemetry")).unwrap();
    let firsts = || {
        edge.maintain().unwrap();
        edge.describe("telemetry").unwrap().partitions.iter().map(|p| p.first).sum::<u64>()
    };
    write(&edge, "telemetry", &records(1, 100));
    // No uplink yet: nothing answers there.
    let uplink = args.cloud.log.replace("kafka://127.0.0.1:1".parse().unwrap());
    args.drain.timeout = Duration::from_millis(100);
    let waiting = start(args.clone());
    wait_until("the source knows the replicator", || !edge.groups().unwrap().is_empty()).await;
    waiting.stop().await.unwrap();
    place.clock.pass(Duration::from_secs(30 * 24 * 3600));
    assert_eq!(firsts(), 0, "nothing is copied");

    args = place.args(&["telemetry"]);
    args.cloud.log = uplink;
    let running = start(args.clone());
    wait_until("the source hears what is copied", || firsts() == 100).await;
    running.stop().await.unwrap();
    assert_eq!(count(&place.log("cloud"), "telemetry"), 100);
    write(&edge, "telemetry", &records(2, 100));
    place.clock.pass(Duration::from_secs(30 * 24 * 3600));
    assert_eq!(firsts(), 100, "the replicator is stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_topic_that_was_created_again_stops_until_it_is_accepted() {
    let place = Place::new();
    let args = place.args(&["alerts"]);
    write(&place.log("edge"), "alerts", &records(1, 200));
    start(args.clone()).stop().await.unwrap();
    let old_id = ids(&place.log("edge"), "alerts");
    let before: Vec<_> = (0..4).map(|p| read(&place.log("cloud"), "alerts", p)).collect();

    std::fs::remove_dir_all(place.folder.path().join("edge")).unwrap();
    write(&place.log("edge"), "alerts", &records(2, 300));
    let new_id = ids(&place.log("edge"), "alerts");
    let error = format!("{:#}", start(args.clone()).end().await.unwrap_err());
    let positions = format!("(0: {}, 1: {}, ", before[0].len(), before[1].len());
    assert_says(
        &error,
        &["alerts", "created again", &old_id, &new_id, &positions, "--accept-recreated", "another target"],
    );
    let after: Vec<_> = (0..4).map(|p| read(&place.log("cloud"), "alerts", p)).collect();
    assert_eq!(before, after, "nothing of another topic is copied");

    assert_says(&resume(&args, "alerts", GAP).unwrap_err(), &["stopped for another reason", &new_id]);
    resume(&args, "alerts", RECREATED).unwrap();
    start(args.clone()).stop().await.unwrap();
    let (edge, cloud) = (place.log("edge"), place.log("cloud"));
    for (partition, before) in (0..4).zip(&before) {
        let values = |records: &[Whole]| records.iter().map(|r| r.value.clone()).collect::<Vec<_>>();
        let expected = [values(before), values(&read(&edge, "alerts", partition))].concat();
        assert_eq!(values(&read(&cloud, "alerts", partition)), expected, "the old ones, and then the new ones");
        // Offsets of the source are those of the new topic.
        assert_eq!(translate(&args, "alerts", partition, Some(0), None), Some(before.len() as u64));
        assert_eq!(translate(&args, "alerts", partition, Some(7), None), Some(before.len() as u64 + 7));
    }
    let [Accepted::Recreated { old_topic_id, topic_id, target_from, .. }] = &accepted(&cloud)[..] else {
        panic!("{:?}", accepted(&cloud))
    };
    assert_eq!((old_topic_id, topic_id), (&old_id, &new_id));
    assert_eq!(*target_from, before.iter().map(|b| b.len() as u64).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_created_again_with_other_partitions_is_refused() {
    let place = Place::new();
    let args = place.args(&["alerts"]);
    write(&place.log("edge"), "alerts", &records(1, 50));
    start(args.clone()).stop().await.unwrap();
    std::fs::remove_dir_all(place.folder.path().join("edge")).unwrap();
    place.log("edge").ensure_topic(&TopicSpec { partitions: 6, ..topics::builtin("alerts") }).unwrap();
    let error = format!("{:#}", start(args.clone()).end().await.unwrap_err());
    assert_says(&error, &["created again", "with 4 partitions", "instead of 6"]);
    for accept in [RECREATED, PARTITIONS] {
        assert_says(
            &resume(&args, "alerts", accept).unwrap_err(),
            &["stopped for another reason", "with 4 partitions"],
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_lost_what_was_copied_stops() {
    let place = Place::new();
    let args = place.args(&["alerts"]);
    write(&place.log("edge"), "alerts", &records(1, 50));
    let edge = place.folder.path().join("edge");
    let backup = place.folder.path().join("backup");
    let copy = std::process::Command::new("cp").arg("-r").args([&edge, &backup]).status().unwrap();
    assert!(copy.success());
    write(&place.log("edge"), "alerts", &records(2, 50));
    start(args.clone()).stop().await.unwrap();
    std::fs::remove_dir_all(&edge).unwrap();
    std::fs::rename(&backup, &edge).unwrap();
    let error = format!("{:#}", start(args.clone()).end().await.unwrap_err());
    assert_says(&error, &["alerts", "has lost records that were copied", "ends at offset", "was copied up to offset"]);
    assert_eq!(count(&place.log("cloud"), "alerts"), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_names_its_offset_and_the_choices() {
    let place = Place::new();
    write(&place.log("edge"), "alerts", &records(1, 50));
    start(place.args(&["alerts"])).stop().await.unwrap();
    let mut back = Args::new(place.url("cloud"), place.url("edge"));
    back.topics = vec!["alerts".into()];
    (back.site, back.cloud_name) = ("cloud".into(), "edge".into());
    let error = format!("{:#}", start(back).end().await.unwrap_err());
    assert_says(
        &error,
        &["alerts/", "offset 0 has already come from \"edge\"", "in a circle", "--topic", "--cloud-name"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_translated_to_the_target_and_back() {
    let place = Place::new();
    let args = place.args(&["telemetry"]);
    // Records of others are in between: those of a second source, and of somebody who writes to the target.
    let mut second = Args::new(place.url("edge2"), place.url("cloud"));
    (second.topics, second.site) = (args.topics.clone(), "edge2".into());
    for round in 0..6 {
        write(&place.log("edge"), "telemetry", &records(round, 150));
        start(args.clone()).stop().await.unwrap();
        write(&place.log("edge2"), "telemetry", &records(100 + round, 70 * (round % 3)));
        start(second.clone()).stop().await.unwrap();
        write(&place.log("cloud"), "telemetry", &records(200 + round, 30));
    }
    for (args, source_name) in [(&args, "edge"), (&second, "edge2")] {
        for partition in 0..4 {
            let cloud = read(&place.log("cloud"), "telemetry", partition);
            let ours = |r: &Whole| {
                let has = |name: &str, value: &[u8]| r.headers.iter().any(|(n, v)| n == name && v == value);
                has(replicator::SOURCE_CLUSTER, source_name.as_bytes())
            };
            let offset = |r: &Whole| -> u64 {
                let (_, value) = r.headers.iter().rfind(|(name, _)| name == SOURCE_OFFSET).unwrap();
                String::from_utf8_lossy(value).parse().unwrap()
            };
            // By looking at all of them.
            let copies: Vec<_> = (0..).zip(&cloud).filter(|(_, r)| ours(r)).map(|(t, r)| (offset(r), t)).collect();
            let position = copies.len() as u64;
            for source in (0..position).step_by(29) {
                let wanted = copies.iter().find(|(s, _)| *s >= source).map(|(_, t)| *t);
                assert_eq!(translate(args, "telemetry", partition, Some(source), None), wanted, "{source}");
            }
            assert_eq!(translate(args, "telemetry", partition, Some(position), None), None, "not copied yet");
            for target in (0..cloud.len() as u64).step_by(31) {
                let wanted = copies.iter().find(|(_, t)| *t >= target).map_or(position, |(s, _)| *s);
                assert_eq!(translate(args, "telemetry", partition, None, Some(target)), Some(wanted), "{target}");
            }
        }
    }
    let text = replicator::run_command(&args, &replicator::Command::Offsets(Default::default())).unwrap();
    let total: usize =
        text.lines().skip(1).map(|l| l.split_whitespace().nth(2).unwrap().parse::<usize>().unwrap()).sum();
    assert_eq!(total, 900, "{text}");
    assert_says(&text, &["source position", "target position", "lag"]);
}
