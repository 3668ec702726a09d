//! The sink as a process, killed (SIGKILL) again and again while it writes.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::{PATIENCE, Place, append, assert_complete, files, readings};
use test_support::process::OwnedChild;

fn spawn(place: &Place) -> OwnedChild {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sink"));
    command
        .args(["--topic", "telemetry", "--max-rows", "40", "--log-level", "warn"])
        .arg("--log")
        .arg(place.log_url().to_string())
        .arg("--lake")
        .arg(place.lake_url().to_string())
        .stdin(Stdio::null());
    OwnedChild::spawn(&mut command).unwrap()
}

#[test]
fn a_sink_that_is_killed_again_and_again_leaves_no_gap_no_double_and_nothing_half_written() {
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 20_000, 2));
    drop(log);
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut grown = 0;
    for _ in 0..8 {
        let mut sink = spawn(&place);
        let before = files(&place.lake_folder()).len();
        let more = rng.random_range(1..30);
        let began = Instant::now();
        while files(&place.lake_folder()).len() < before + more && sink.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < PATIENCE, "the sink writes nothing");
            std::thread::sleep(Duration::from_millis(rng.random_range(1..8)));
        }
        sink.kill().unwrap();
        sink.wait().unwrap();
        grown += usize::from(files(&place.lake_folder()).len() > before);
    }
    assert!(grown >= 4, "it was killed before it wrote anything");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        support::start(place.args(&["telemetry"])).stop().await.unwrap();
        assert_complete(&place.log(), &place.lake(), "telemetry", "telemetry.v2.avsc").await;
    });
    // A sink that is killed while it tries the lake at its start leaves an empty object, which nothing reads.
    let is_known = |file: &String| file.ends_with(".parquet") || file.contains("/_probe-");
    let strange: Vec<_> = files(&place.lake_folder()).into_iter().filter(|file| !is_known(file)).collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
fn sigterm_drains_and_bad_settings_are_64() {
    let place = Place::new();
    append(&place.log(), "telemetry", 0, &readings(0, 410, 2));
    let mut sink = spawn(&place);
    let began = Instant::now();
    // 40 rows make an object, so it is at work once there is one; the rest is for the drain.
    while !files(&place.lake_folder()).iter().any(|file| file.ends_with(".parquet")) {
        assert!(began.elapsed() < PATIENCE && sink.try_wait().unwrap().is_none(), "the sink writes nothing");
        std::thread::sleep(Duration::from_millis(10));
    }
    sink.signal("TERM");
    assert_eq!(sink.wait().unwrap().code(), Some(0));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(assert_complete(&place.log(), &place.lake(), "telemetry", "telemetry.v2.avsc"));

    let bad = Command::new(env!("CARGO_BIN_EXE_sink")).args(["--topic", "telemetry.raw"]).output().unwrap();
    assert_eq!(bad.status.code(), Some(64), "{}", String::from_utf8_lossy(&bad.stderr));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("telemetry.raw"));
}
