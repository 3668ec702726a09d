//! The sink on a real S3 server: what exactly_once.rs and kill.rs show of a directory, and what a server adds: it goes
//! away, comes back, and hangs.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lake::Lake;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sink::Args;
use support::faults::{FaultyStore, Plan};
use support::s3::S3;
use support::{PATIENCE, Place, append, assert_complete, readings, start, start_on, wait_until};
use test_support::process::OwnedChild;

const V2: &str = "telemetry.v2.avsc";

/// Settings of a sink of `place` with its lake on `s3`.
fn args(place: &Place, s3: &S3) -> Args {
    let mut args = place.args(&["telemetry"]);
    args.lake = s3.lake("readings");
    args
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sinks_on_a_store_that_fails_write_each_record_once() {
    let Some(s3) = S3::start() else { return };
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 2_000, 2));
    let lake = s3.lake("readings").open().unwrap();
    let sinks: Vec<_> = [70, 110]
        .into_iter()
        .map(|max_rows| {
            let mut args = args(&place, &s3);
            (args.max_rows, args.store_timeout) = (max_rows, Duration::from_secs(1));
            let store = FaultyStore::new(lake.store().clone(), Plan::random(max_rows, 0.8));
            start_on(args, log.clone(), Lake::with_store(store, lake.url().clone()))
        })
        .collect();
    append(&log, "telemetry", 2_000, &readings(2_000, 1_000, 2));
    for sink in sinks {
        sink.stop().await.unwrap();
    }
    assert_complete(&log, &lake, "telemetry", V2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_dies_again_and_again_leaves_no_gap_and_no_double() {
    let Some(s3) = S3::start() else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 5_000, 2));
    let lake = s3.lake("readings").open().unwrap();
    for round in 0..8 {
        let mut args = args(&place, &s3);
        args.max_rows = rng.random_range(20..60);
        (args.drain.timeout, args.store_timeout) = (Duration::ZERO, Duration::from_millis(500));
        let store = FaultyStore::new(lake.store().clone(), Plan::random(round, 0.7));
        let sink = start_on(args, log.clone(), Lake::with_store(store.clone(), lake.url().clone()));
        let puts = rng.random_range(1..12);
        wait_until("some puts", async || store.puts.load(Ordering::Relaxed) >= puts).await;
        sink.stop().await.unwrap();
    }
    start(args(&place, &s3)).stop().await.unwrap();
    assert_complete(&log, &lake, "telemetry", V2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_that_hangs_is_waited_for() {
    let Some(s3) = S3::start() else { return };
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 3_000, 2));
    let mut args = args(&place, &s3);
    (args.max_rows, args.store_timeout) = (50, Duration::from_millis(500));
    let sink = start(args);
    let rows = || sink.metrics.rows("telemetry");
    for round in 1..=3 {
        append(&log, "telemetry", 2_000 + round * 1_000, &readings(2_000 + round * 1_000, 1_000, 2));
        let (before, retries) = (rows(), sink.metrics.retries.get());
        wait_until("rows", async || rows() > before).await;
        if round == 2 {
            s3.hang()
        } else {
            s3.kill()
        }
        append(&log, "telemetry", 10_000 + round * 500, &readings(10_000 + round * 500, 500, 2));
        wait_until("uploads that fail", async || sink.metrics.retries.get() > retries).await;
        if round == 2 { s3.go_on() } else { s3.restart() }
    }
    sink.stop().await.unwrap();
    assert_complete(&log, &s3.lake("readings").open().unwrap(), "telemetry", V2).await;
}

/// Whatever the sink is at, a server that does not answer keeps it from ending no longer than its drain may take.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_does_not_hang_the_stop() {
    let Some(s3) = S3::start() else { return };
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 500, 2));
    let mut args = args(&place, &s3);
    // Far more patience than the test has.
    (args.max_rows, args.store_timeout) = (50, Duration::from_secs(3600));
    args.drain.timeout = Duration::from_millis(300);
    let at_work = start(args.clone());
    wait_until("rows", async || at_work.metrics.rows("telemetry") > 0).await;
    s3.hang();
    append(&log, "telemetry", 500, &readings(500, 500, 2));
    at_work.stop().await.unwrap();
    // One that is only starting: it checks whether it can write, and, without that, where to resume.
    start(args.clone()).stop().await.unwrap();
    start_on(args.clone(), log.clone(), args.lake.open_with(args.store_timeout).unwrap()).stop().await.unwrap();
    s3.go_on();
    args.drain.timeout = PATIENCE;
    start(args).stop().await.unwrap();
    assert_complete(&log, &s3.lake("readings").open().unwrap(), "telemetry", V2).await;
}

fn spawn(place: &Place, s3: &S3) -> OwnedChild {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sink"));
    command
        .args(["--topic", "telemetry", "--max-rows", "40", "--log-level", "warn"])
        .arg("--log")
        .arg(place.log_url().to_string())
        .args(s3.arguments("readings"))
        .stdin(Stdio::null());
    OwnedChild::spawn(&mut command).unwrap()
}

#[test]
fn a_sink_that_is_killed_again_and_again_leaves_no_gap_no_double_and_nothing_half_written() {
    let Some(s3) = S3::start() else { return };
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 10_000, 2));
    drop(log);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lake = s3.lake("readings").open().unwrap();
    let objects = || runtime.block_on(lake.list("")).unwrap().len();
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for _ in 0..6 {
        let mut sink = spawn(&place, &s3);
        let enough = objects() + rng.random_range(1..25);
        let began = Instant::now();
        while objects() < enough && sink.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < PATIENCE, "the sink writes nothing");
            std::thread::sleep(Duration::from_millis(rng.random_range(1..8)));
        }
        sink.kill().unwrap();
        sink.wait().unwrap();
    }
    runtime.block_on(async {
        start(args(&place, &s3)).stop().await.unwrap();
        assert_complete(&place.log(), &lake, "telemetry", V2).await;
    });
    let names = runtime.block_on(lake.list("")).unwrap();
    assert!(names.iter().all(|name| name.ends_with(".parquet")), "{names:?}");
}
