//! The cloud log holds what the edge log holds: each record once, as it is, whatever happens to replicators.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use event_log::TopicSpec;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use replicator::{Args, SOURCE_CLUSTER, SOURCE_OFFSET, SOURCE_PARTITION, SOURCE_TOPIC};
use support::{Place, read, records, start, wait_until, write};

/// Asserts that the cloud holds the edge's records: partition by partition, in order, once, with their origin.
fn assert_copied(place: &Place, topic: &str, source_name: &str) {
    let (edge, cloud) = (place.log("edge"), place.log("cloud"));
    let partitions = edge.describe(topic).unwrap().partitions.len();
    assert_eq!(cloud.describe(topic).unwrap().partitions.len(), partitions);
    for partition in 0..partitions as u32 {
        let expected: Vec<_> = (0u64..)
            .zip(read(&edge, topic, partition))
            .map(|(offset, mut record)| {
                for (name, value) in [
                    (SOURCE_CLUSTER, source_name.to_owned()),
                    (SOURCE_TOPIC, topic.to_owned()),
                    (SOURCE_PARTITION, partition.to_string()),
                    (SOURCE_OFFSET, offset.to_string()),
                ] {
                    record.headers.push((name.to_owned(), value.into_bytes()));
                }
                record
            })
            .collect();
        assert_eq!(read(&cloud, topic, partition), expected, "{topic}/{partition}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_arrive_as_they_are_with_their_origin() {
    let place = Place::new();
    let edge = place.log("edge");
    write(&edge, "telemetry", &records(1, 2000));
    write(&edge, "alerts", &records(2, 100));
    let replicator = start(place.args(&["telemetry", "alerts"]));
    wait_until("most of it", || replicator.metrics.pipeline.records_in.get() >= 1000).await;
    write(&edge, "telemetry", &records(3, 333));
    let metrics = replicator.metrics.clone();
    replicator.stop().await.unwrap();
    assert_copied(&place, "telemetry", "edge");
    assert_copied(&place, "alerts", "edge");
    assert_eq!(metrics.pipeline.records_out.get(), 2433);
    assert!(read(&edge, "telemetry", 0).iter().any(|r| r.value.is_none()), "tombstones were among them");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicators_that_come_and_go_copy_each_record_once() {
    let place = Place::new();
    let edge = place.log("edge");
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for round in 0..10 {
        write(&edge, "telemetry", &records(100 + round, 400));
        let mut args = place.args(&["telemetry"]);
        // It leaves at once, in the middle of whatever it does.
        (args.drain.timeout, args.pipeline.batch_records) = (Duration::ZERO, rng.random_range(1..90));
        let replicator = start(args);
        let some = rng.random_range(0..300);
        wait_until("some records", || replicator.metrics.pipeline.records_in.get() >= some).await;
        replicator.stop().await.unwrap();
    }
    start(place.args(&["telemetry"])).stop().await.unwrap();
    assert_copied(&place, "telemetry", "edge");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_other_partitions_stops_its_topic_only() {
    let place = Place::new();
    let (edge, cloud) = (place.log("edge"), place.log("cloud"));
    write(&edge, "telemetry", &records(1, 100));
    write(&edge, "faults", &records(2, 100));
    cloud.ensure_topic(&TopicSpec { partitions: 7, ..topics::builtin("faults") }).unwrap();
    let replicator = start(place.args(&["telemetry", "faults"]));
    wait_until("the stop of faults", || replicator.metrics.stopped_topics.get() == 1).await;
    write(&edge, "telemetry", &records(3, 100));
    let error = format!("{:#}", replicator.stop().await.unwrap_err());
    for part in ["faults", "4 partitions", "7 in"] {
        assert!(error.contains(part), "{error} should name {part}");
    }
    assert!(!error.contains("telemetry"), "{error}");
    assert_copied(&place, "telemetry", "edge");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_with_other_partitions_than_declared_is_matched() {
    let place = Place::new();
    let edge = place.log("edge");
    edge.ensure_topic(&TopicSpec { partitions: 2, ..topics::builtin("alerts") }).unwrap();
    start(place.args(&["alerts"])).stop().await.unwrap();
    assert_eq!(place.log("cloud").describe("alerts").unwrap().partitions.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_is_stopped_at_the_first_record_that_comes_back() {
    let place = Place::new();
    write(&place.log("edge"), "alerts", &records(1, 50));
    start(place.args(&["alerts"])).stop().await.unwrap();
    let mut back = Args::new(place.url("cloud"), place.url("edge"));
    back.topics = vec!["alerts".into()];
    (back.site, back.cloud_name) = ("cloud".into(), "edge".into());
    let before: Vec<_> = (0..4).map(|p| read(&place.log("edge"), "alerts", p)).collect();
    let error = format!("{:#}", start(back).end().await.unwrap_err());
    for part in ["alerts", "offset 0", "\"edge\"", "never end"] {
        assert!(error.contains(part), "{error} should name {part}");
    }
    let after: Vec<_> = (0..4).map(|p| read(&place.log("edge"), "alerts", p)).collect();
    assert_eq!(before, after, "nothing was copied back");
    // On to a third log they may go, and then have both origins.
    let mut on = Args::new(place.url("cloud"), place.url("third"));
    on.topics = vec!["alerts".into()];
    (on.site, on.cloud_name) = ("cloud".into(), "third".into());
    start(on).stop().await.unwrap();
    let copied = (0..4).flat_map(|p| read(&place.log("third"), "alerts", p)).next().unwrap();
    let origins: Vec<_> =
        copied.headers.iter().filter(|(name, _)| name == SOURCE_CLUSTER).map(|(_, v)| &v[..]).collect();
    assert_eq!(origins, [b"edge", b"cloud" as &[u8]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sources_of_one_target_do_not_share_positions() {
    let place = Place::new();
    for (name, count) in [("edge", 200), ("edge2", 50)] {
        write(&place.log(name), "alerts", &records(count, count));
        let mut args = Args::new(place.url(name), place.url("cloud"));
        (args.topics, args.site) = (vec!["alerts".into()], name.to_owned());
        start(args).stop().await.unwrap();
    }
    let copied: usize = (0..4).map(|p| read(&place.log("cloud"), "alerts", p).len()).sum();
    assert_eq!(copied, 250);
}

#[tokio::test(flavor = "multi_thread")]
async fn personal_topics_are_bad_configuration() {
    let place = Place::new();
    let error = start(place.args(&["telemetry", "telemetry.raw", "drivers"])).end().await.unwrap_err();
    let problems = &error.downcast_ref::<service::ConfigError>().expect("exit code 64").0;
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(!place.folder.path().join("cloud").exists(), "nothing was opened");
}
