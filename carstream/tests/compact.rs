//! `carstream compact` as a process that is killed again and again, on a directory and on a real S3 server.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

#[path = "../../libs/lake/tests/support/rows.rs"]
mod rows;
#[path = "../../libs/lake/tests/support/s3.rs"]
mod s3;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lake::{Lake, LakeUrl, ObjectName};
use rows::{object, schema};
use s3::S3;
use test_support::process::OwnedChild;
use test_support::random::Random;

const DAYS: u64 = 4;
const PARTITIONS: u32 = 3;
/// Objects of a day and partition.
const OBJECTS: u64 = 12;
/// Offsets of an object.
const ROWS: u64 = 5;
const END: u64 = DAYS * OBJECTS * ROWS;

/// How long a test waits before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

async fn fill(lake: &Lake) {
    for partition in 0..PARTITIONS {
        for start in (0..END).step_by(ROWS as usize) {
            let mut object = object(partition, start, start + ROWS, &(start..start + ROWS).collect::<Vec<_>>());
            object.name.date = format!("2026-11-{:02}", 21 + start / (OBJECTS * ROWS));
            lake.put_object(&object).await.unwrap();
        }
    }
}

/// The names of all files of the topic.
async fn files(lake: &Lake) -> Vec<String> {
    lake.list("telemetry").await.unwrap()
}

/// The row at an offset is of one of seven cars; this one asks to be forgotten in the tests that say so.
const CAR: u64 = 4;

async fn ask(lake: &Lake) {
    for partition in 0..PARTITIONS {
        lake.request_erasure("telemetry", partition, END, &format!("car-{CAR}")).await.unwrap();
    }
}

/// Readers find each row once; those of the car that asked, if one did, may be there or not.
async fn assert_complete(lake: &Lake) {
    let asked = lake.erasure_requests("telemetry").await.unwrap().count() > 0;
    let counts = |offset: &u64| !asked || offset % 7 != CAR;
    let covered = lake.coverage("telemetry").await.unwrap();
    let ends: Vec<_> = covered.ranges.iter().map(|range| (range.partition, range.start, range.end)).collect();
    assert_eq!(ends, (0..PARTITIONS).map(|partition| (partition, 0, END)).collect::<Vec<_>>());
    for range in covered.ranges {
        let mut reader = lake.read(range, schema()).await.unwrap();
        let mut offsets = Vec::new();
        while let Some(rows) = reader.next().await.unwrap() {
            offsets.extend(rows.offsets.values().iter().map(|offset| *offset as u64));
        }
        assert!(offsets.is_sorted_by(|a, b| a < b), "each once");
        offsets.retain(counts);
        assert_eq!(offsets, (0..END).filter(counts).collect::<Vec<_>>());
    }
}

/// The large objects are all that is left.
async fn assert_compacted(lake: &Lake) {
    let files = files(lake).await;
    let names: BTreeSet<_> = files.iter().map(|file| ObjectName::parse(file).unwrap().end.unwrap()).collect();
    assert_eq!(files.len() as u64, DAYS * u64::from(PARTITIONS), "{files:?}");
    assert_eq!(names, (1..=DAYS).map(|day| day * OBJECTS * ROWS).collect());
}

/// Nothing is left of the car that asked, in any file.
async fn assert_erased(lake: &Lake) {
    for file in files(lake).await {
        let name = ObjectName::parse(&file).unwrap();
        let footer = lake.footer(&name).await.unwrap();
        let of_car = (footer.start..footer.end).filter(|offset| offset % 7 == CAR).count() as u64;
        assert_eq!((footer.rows, footer.erased), (footer.end - footer.start - of_car, of_car), "{file}");
        let bytes = lake.get(&file).await.unwrap();
        assert!(!bytes.windows(5).any(|window| window == b"car-4"), "{file}");
    }
}

fn spawn(arguments: &[String]) -> OwnedChild {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carstream"));
    command.arg("compact").args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    OwnedChild::spawn(&mut command).unwrap()
}

/// Kills it soon after it has changed something, until there is nothing left to do. Returns how often.
async fn kill_again_and_again(lake: &Lake, arguments: &[String]) -> usize {
    let mut random = Random::named(7, "when it is killed");
    for killed in 0.. {
        let mut compaction = spawn(arguments);
        let before = files(lake).await;
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < PATIENCE, "it does nothing");
            if let Some(status) = compaction.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return killed;
            }
            if files(lake).await != before {
                break;
            }
        }
        std::thread::sleep(Duration::from_micros(random.between(0, 5_000)));
        compaction.kill().unwrap();
        compaction.wait().unwrap();
        assert_complete(lake).await;
    }
    unreachable!()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_it_leaves_each_row_once() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::open(&LakeUrl::Directory(folder.path().join("lake"))).unwrap();
    fill(&lake).await;
    let arguments = ["--lake".to_owned(), folder.path().join("lake").display().to_string()];
    let killed = kill_again_and_again(&lake, &arguments).await;
    assert!(killed >= 3, "killed {killed} times only");
    assert_complete(&lake).await;
    assert_compacted(&lake).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_server_two_at_once_killed_again_and_again_leave_each_row_once() {
    let Some(s3) = S3::start() else { return };
    let lake = s3.lake("days").open().unwrap();
    fill(&lake).await;
    let arguments = s3.arguments("days");
    let (one, two) = tokio::join!(kill_again_and_again(&lake, &arguments), async {
        let (lake, arguments) = (lake.clone(), arguments.clone());
        tokio::spawn(async move { kill_again_and_again(&lake, &arguments).await }).await.unwrap()
    });
    assert!(one + two >= 3, "killed {one} and {two} times only");
    assert_complete(&lake).await;
    assert_compacted(&lake).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_it_erases_a_car() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::open(&LakeUrl::Directory(folder.path().join("lake"))).unwrap();
    fill(&lake).await;
    let arguments = ["--lake".to_owned(), folder.path().join("lake").display().to_string()];
    // First from large objects, and then from small ones.
    assert!(spawn(&arguments).wait().unwrap().success());
    for _ in 0..2 {
        ask(&lake).await;
        let killed = kill_again_and_again(&lake, &arguments).await;
        assert!(killed >= 3, "killed {killed} times only");
        assert_complete(&lake).await;
        assert_compacted(&lake).await;
        assert_erased(&lake).await;
        std::fs::remove_dir_all(folder.path().join("lake")).unwrap();
        fill(&lake).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_server_two_at_once_killed_again_and_again_erase_a_car() {
    let Some(s3) = S3::start() else { return };
    let lake = s3.lake("erasure").open().unwrap();
    fill(&lake).await;
    let arguments = s3.arguments("erasure");
    assert!(spawn(&arguments).wait().unwrap().success());
    ask(&lake).await;
    let (one, two) = tokio::join!(kill_again_and_again(&lake, &arguments), async {
        let (lake, arguments) = (lake.clone(), arguments.clone());
        tokio::spawn(async move { kill_again_and_again(&lake, &arguments).await }).await.unwrap()
    });
    assert!(one + two >= 3, "killed {one} and {two} times only");
    assert_complete(&lake).await;
    assert_compacted(&lake).await;
    // One that had not seen the requests in time is followed by one that has.
    assert!(spawn(&arguments).wait().unwrap().success());
    assert_erased(&lake).await;
}

#[test]
fn a_lake_that_does_not_exist_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("typo");
    let mut command = Command::new(env!("CARGO_BIN_EXE_carstream"));
    let output = command.args(["compact", "--lake"]).arg(&missing).args(["--topic", "alerts"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("typo: the directory does not exist") && said.contains("alerts"), "{said}");
    assert!(!missing.exists());
}
