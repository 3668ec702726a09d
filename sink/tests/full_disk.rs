//! A full disk: the sink reports it, waits, and resumes once space is available.
//!
//! The disk is a small file system in memory, which only root may mount: without that right the test says that it is
//! skipped, in CI too.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{PATIENCE, Place, append, assert_complete, files, readings};
use test_support::disk::Disk;
use test_support::process::OwnedChild;

#[test]
fn a_full_disk_is_said_and_waited_for() {
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 10_000, 2));
    drop(log);
    let Some(disk) = Disk::mount(&place.lake_folder(), "300k") else { return };
    let said = place.folder.path().join("said");
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sink"));
        command
            .args(["--topic", "telemetry", "--max-rows", "100", "--max-age", "100ms"])
            .args(["--log", &place.log_url().to_string(), "--lake", &place.lake_url().to_string()])
            .stdin(Stdio::null())
            .stdout(std::fs::OpenOptions::new().create(true).append(true).open(&said).unwrap())
            .stderr(std::fs::OpenOptions::new().create(true).append(true).open(&said).unwrap());
        OwnedChild::spawn(&mut command).unwrap()
    };
    let mut sink = start();
    let until = |what: &str, sink: &mut OwnedChild, done: &dyn Fn(&str) -> bool| {
        let began = Instant::now();
        while !done(&std::fs::read_to_string(&said).unwrap()) {
            let text = std::fs::read_to_string(&said).unwrap();
            assert!(began.elapsed() < PATIENCE && sink.try_wait().unwrap().is_none(), "no {what}: {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let full = |text: &str| text.contains("No space left on device") && text.contains("waiting for the lake");
    until("word of the full disk", &mut sink, &full);
    // A sink that is started now waits as well, and one that is killed meanwhile leaves nothing half-written.
    sink.kill().unwrap();
    sink.wait().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let before: u64 =
        runtime.block_on(place.lake().coverage("telemetry")).unwrap().ranges.iter().map(|r| r.end - r.start).sum();
    std::fs::write(&said, "").unwrap();
    let mut sink = start();
    until("word of the full disk", &mut sink, &full);
    disk.resize("30m");
    let began = Instant::now();
    let stored = || -> u64 {
        runtime
            .block_on(place.lake().coverage("telemetry"))
            .unwrap()
            .ranges
            .iter()
            .map(|range| range.end - range.start)
            .sum()
    };
    while stored() < 10_000 {
        assert!(began.elapsed() < PATIENCE && sink.try_wait().unwrap().is_none(), "it does not go on");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(before < 10_000);
    sink.signal("TERM");
    assert_eq!(sink.wait().unwrap().code(), Some(0));
    runtime.block_on(assert_complete(&place.log(), &place.lake(), "telemetry", "telemetry.v2.avsc"));
    assert!(files(&place.lake_folder()).iter().all(|file| file.ends_with(".parquet")), "nothing half-written is left");
}
