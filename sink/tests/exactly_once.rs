//! The lake holds what the log holds: each record once, whatever happens to sinks and to the store.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use event_log::{Range, Record, append_and_wait, batches, partition_for_key};
use lake::Lake;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::faults::{Fault, FaultyStore, Plan};
use support::{Place, append, assert_complete, files, footers, readings, start, start_on, wait_until};
use test_support::clock::{date, yesterday_ms};

const V2: &str = "telemetry.v2.avsc";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_log_at_the_stop_is_in_the_lake() {
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 1000, 2));
    append(&log, "telemetry", 1000, &readings(1000, 500, 1));
    let mut args = place.args(&["telemetry", "scores"]);
    args.max_rows = 100;
    let sink = start(args);
    let lake = place.lake();
    wait_until("full objects", async || lake.objects("telemetry").await.unwrap().len() >= 10).await;
    // Too few for full objects: only the drain writes them.
    append(&log, "telemetry", 1500, &readings(1500, 37, 2));
    let metrics = sink.metrics.clone();
    sink.stop().await.unwrap();
    assert_complete(&log, &lake, "telemetry", V2).await;
    assert_eq!(metrics.rows("telemetry"), 1537);
    assert!(lake.objects("scores").await.unwrap().is_empty(), "there were none");
    let footers = footers(&lake, "telemetry").await;
    assert!(footers.iter().all(|(_, footer)| footer.rows <= 100), "rotated by rows");
    let mut by_partition: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    footers.iter().for_each(|(name, footer)| by_partition.entry(name.partition).or_default().push(footer.rows));
    for rows in by_partition.values() {
        assert!(rows[..rows.len() - 1].iter().all(|rows| *rows == 100), "only the last one is smaller: {rows:?}");
    }
    assert!(footers.iter().all(|(name, _)| name.date == date(yesterday_ms())));
}

/// It is no row, and no gap either.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_forget_a_car_is_passed_over() {
    let place = Place::new();
    let log = place.log();
    let ask = |car: &str| {
        let headers: [(&str, &[u8]); 1] = [(contract::FORGET, b"1795219200000")];
        let record = Record { key: car.as_bytes(), value: None, headers: &headers, timestamp_ms: yesterday_ms() };
        assert!(append_and_wait(&log, &"telemetry".into(), &record, support::PATIENCE).unwrap());
    };
    append(&log, "telemetry", 0, &readings(0, 100, 2));
    (0..20).for_each(|i| ask(&format!("car {i}")));
    append(&log, "telemetry", 100, &readings(100, 100, 2));
    // At the end there are only requests.
    let mut args = place.args(&["telemetry"]);
    args.max_rows = 30;
    let sink = start(args);
    wait_until("full objects", async || sink.metrics.rows("telemetry") >= 120).await;
    (0..20).for_each(|i| ask(&format!("car {i}")));
    sink.stop().await.unwrap();
    let lake = place.lake();
    assert_eq!(footers(&lake, "telemetry").await.iter().map(|(_, footer)| footer.rows).sum::<u64>(), 200);
    let coverage = lake.coverage("telemetry").await.unwrap();
    assert!(coverage.gaps.is_empty(), "{coverage:?}");
    let next = lake.next_offsets("telemetry").await.unwrap().offsets;
    let ends: Vec<_> = log.describe("telemetry").unwrap().partitions.iter().map(|bounds| bounds.next).collect();
    assert_eq!(next.into_values().collect::<Vec<_>>(), ends);
    // Each is in the lake, under its own offset.
    let requests = lake.erasure_requests("telemetry").await.unwrap();
    assert_eq!(requests.count(), 40);
    for i in 0..20 {
        let key = format!("car {i}");
        let partition = partition_for_key(key.as_bytes(), 4);
        let before = requests.before(partition, &key).unwrap();
        let range = Range { topic: "telemetry".into(), partition, start: before, end: Some(before + 1) };
        let batch = batches(&log, vec![range], 1).unwrap().next().unwrap().unwrap();
        assert_eq!((batch.get(0).key, batch.get(0).value), (key.as_bytes(), None), "the later one of the two");
        assert!(before >= ends[partition as usize] - 20, "{before}");
    }
}

/// Wherever it dies.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_in_the_lake_before_the_sink_is_past_it() {
    let headers: [(&str, &[u8]); 1] = [(contract::FORGET, b"1795219200000")];
    let record = Record { key: b"a car", value: None, headers: &headers, timestamp_ms: yesterday_ms() };
    let partition = partition_for_key(record.key, 4);
    for round in 0..20 {
        let place = Place::new();
        let (log, lake) = (place.log(), place.lake());
        append(&log, "telemetry", 0, &readings(0, 50, 2));
        assert!(append_and_wait(&log, &"telemetry".into(), &record, support::PATIENCE).unwrap());
        let end = log.describe("telemetry").unwrap().partitions[partition as usize].next;
        let mut args = place.args(&["telemetry"]);
        (args.drain.timeout, args.store_timeout, args.max_age) =
            (Duration::ZERO, Duration::from_millis(100), Duration::from_millis(10));
        for run in 0.. {
            let next = lake.next_offsets("telemetry").await.unwrap().offsets;
            let requests = lake.erasure_requests("telemetry").await.unwrap();
            if next.get(&partition) == Some(&end) {
                assert_eq!(requests.before(partition, "a car"), Some(end - 1), "it passed over the request unseen");
                break;
            }
            let plan = if run < 20 { Plan::random(100 * round + run, 0.5) } else { Plan::All(Fault::None) };
            let store = FaultyStore::new(lake.store().clone(), plan);
            let sink = start_on(args.clone(), log.clone(), Lake::with_store(store.clone(), place.lake_url()));
            wait_until("a put", async || store.puts.load(Ordering::Relaxed) > 0).await;
            sink.stop().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_end_with_age_and_with_bytes() {
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 200, 2));
    let lake = place.lake();
    let mut args = place.args(&["telemetry"]);
    args.max_age = Duration::from_millis(50);
    let sink = start(args.clone());
    wait_until("all rows by age", async || sink.metrics.rows("telemetry") == 200).await;
    sink.stop().await.unwrap();
    args.max_age = Duration::from_secs(3600);
    args.max_bytes = 3000;
    append(&log, "telemetry", 200, &readings(200, 200, 2));
    let sink = start(args);
    wait_until("most rows by bytes", async || sink.metrics.rows("telemetry") >= 100).await;
    sink.stop().await.unwrap();
    assert_complete(&log, &lake, "telemetry", V2).await;
    // A reading is about 200 bytes with its key.
    let rows = footers(&lake, "telemetry").await.iter().map(|(_, footer)| footer.rows).collect::<Vec<_>>();
    assert!(rows.iter().filter(|rows| **rows <= 30).count() >= 8, "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_dies_again_and_again_leaves_no_gap_and_no_double() {
    let seed = 7;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 10_000, 2));
    for round in 0..12 {
        let mut args = place.args(&["telemetry"]);
        args.max_rows = rng.random_range(20..60);
        // It dies at once: nothing is drained, uploads under way are left alone.
        (args.drain.timeout, args.store_timeout) = (Duration::ZERO, Duration::from_millis(200));
        let store = FaultyStore::new(place.lake().store().clone(), Plan::random(seed + round, 0.7));
        let sink = start_on(args, log.clone(), Lake::with_store(store.clone(), place.lake_url()));
        let puts = rng.random_range(1..12);
        wait_until("some puts", async || store.puts.load(Ordering::Relaxed) >= puts).await;
        sink.stop().await.unwrap();
    }
    start(place.args(&["telemetry"])).stop().await.unwrap();
    assert_complete(&log, &place.lake(), "telemetry", V2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sinks_at_once_write_each_record_once() {
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 3000, 2));
    let sinks: Vec<_> = [70, 110]
        .into_iter()
        .map(|max_rows| {
            let mut args = place.args(&["telemetry"]);
            args.max_rows = max_rows;
            start(args)
        })
        .collect();
    append(&log, "telemetry", 3000, &readings(3000, 1000, 2));
    let conflicts: Vec<_> = sinks.iter().map(|sink| sink.metrics.conflicts.clone()).collect();
    for sink in sinks {
        sink.stop().await.unwrap();
    }
    assert_complete(&log, &place.lake(), "telemetry", V2).await;
    assert!(conflicts.iter().map(|c| c.get()).sum::<u64>() > 0, "they were in each other's way");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_at_random_gets_everything_once() {
    for seed in 0..4 {
        let place = Place::new();
        let log = place.log();
        append(&log, "telemetry", 0, &readings(0, 1500, 2));
        let store = FaultyStore::new(place.lake().store().clone(), Plan::random(seed, 0.5));
        let mut args = place.args(&["telemetry"]);
        (args.max_rows, args.store_timeout) = (100, Duration::from_millis(200));
        let sink = start_on(args, log.clone(), Lake::with_store(store.clone(), place.lake_url()));
        let metrics = sink.metrics.clone();
        sink.stop().await.unwrap();
        assert_complete(&log, &place.lake(), "telemetry", V2).await;
        assert!(metrics.retries.get() > 0, "seed {seed}: no put failed");
        assert_eq!(metrics.rows("telemetry"), 1500, "seed {seed}: an answer that was lost must not count twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_bounded_while_the_store_hangs() {
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 6000, 2));
    let store = FaultyStore::new(place.lake().store().clone(), Plan::All(Fault::Hangs));
    let mut args = place.args(&["telemetry"]);
    (args.max_rows, args.store_timeout) = (500, Duration::from_secs(1));
    // About 500 readings, fewer than one read may bring.
    args.max_memory = 100_000;
    let sink = start_on(args, log.clone(), Lake::with_store(store.clone(), place.lake_url()));
    let mut most = 0;
    wait_until("a second attempt", async || {
        most = most.max(sink.metrics.buffered_bytes.get());
        sink.metrics.retries.get() >= 4
    })
    .await;
    // One read may go over the bound; nothing is read after it.
    assert!(most < 100_000 + 4096 * 300, "{most} bytes were held");
    assert!(store.held_bytes.load(Ordering::Relaxed) < 500_000);
    store.set(Plan::All(Fault::None));
    sink.stop().await.unwrap();
    assert_complete(&log, &place.lake(), "telemetry", V2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_cannot_end_ends_in_time_and_loses_nothing() {
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 300, 2));
    let store = FaultyStore::new(place.lake().store().clone(), Plan::All(Fault::Refused));
    let mut args = place.args(&["telemetry"]);
    args.drain.timeout = Duration::from_millis(300);
    start_on(args, log.clone(), Lake::with_store(store, place.lake_url())).stop().await.unwrap();
    assert!(place.lake().objects("telemetry").await.unwrap().is_empty());
    start(place.args(&["telemetry"])).stop().await.unwrap();
    assert_complete(&log, &place.lake(), "telemetry", V2).await;
    assert!(files(&place.lake_folder()).iter().all(|file| file.ends_with(".parquet")), "nothing half-written is left");
}
