//! What has been let through is remembered: over restarts, beyond the retention, and with no more work than needed.

use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use event_log::{Outputs, Record, partition_for_key};
use sha2::{Digest, Sha256};
use test_support::clock::yesterday_ms;

use crate::{PATIENCE, Site, Stored, has, reading, vin};

/// Long enough to be processed first on a busy machine; needed once.
const RETENTION: Duration = Duration::from_secs(8);

/// The car repeats a reading hours later, long after its first copy has left the raw topic: still a repeat.
#[test]
fn a_repeat_is_known_when_retention_has_removed_the_first_copy() {
    let site = Site::with_retention(Some(RETENTION));
    for seq in 0..3 {
        site.send("telemetry", 1, &reading(1, 7, seq));
    }
    has(&site.run(), "carstream_preprocessor_snapshots_total 1");
    let began = Instant::now();
    let bounds = || site.log.describe("telemetry.raw").unwrap().partitions;
    while bounds().iter().any(|partition| partition.first < partition.next) {
        assert!(began.elapsed() < PATIENCE, "retention has not removed the readings");
        std::thread::sleep(Duration::from_millis(50));
        site.log.maintain().unwrap();
    }
    assert!(site.contents("telemetry.raw").is_empty());
    for seq in [1, 3, 2] {
        site.send("telemetry", 1, &reading(1, 7, seq));
    }
    let metrics = site.run();
    let clean = site.clean();
    assert_eq!(clean.column(2).as_primitive::<Int64Type>().values(), &[0, 1, 2, 3]);
    has(&metrics, "carstream_preprocessor_duplicates_removed_total{stream=\"telemetry\"} 2");
    has(&metrics, "carstream_preprocessor_state_gaps_total 0");
    has(&metrics, "carstream_preprocessor_replayed_total 0");
}

/// As a release wrote it that forgot no car. An upgrade must let no repeat through.
#[test]
fn a_snapshot_of_the_format_before_is_restored() {
    let site = Site::new();
    (0..3).for_each(|seq| site.send("telemetry", 1, &reading(1, 7, seq)));
    site.run();
    let mut snapshots = site.contents("preprocessor.state");
    snapshots.retain(|stored| stored.key.starts_with(b"preprocessor-telemetry/"));
    assert_eq!(snapshots.len(), 1);
    let Stored { key, value, mut headers, timestamp_ms } = snapshots.remove(0);
    // Format, clock, one car: name, days of silence, and the rest.
    let (name, silent) = (20..20 + 1 + vin(1).len(), 20 + 1 + vin(1).len());
    assert_eq!((value[0], value[19], value[20], value[silent]), (2, 1, 17, 0));
    let before = [&[1, 1], &value[name], &value[silent + 1..]].concat();
    for (header, text) in &mut headers {
        match header.as_str() {
            "snapshot.bytes" => *text = before.len().to_string().into_bytes(),
            "snapshot.sha256" => *text = hex::encode(Sha256::digest(&before)).into_bytes(),
            "snapshot.state_version" => assert_eq!(text, b"duplicates-1"),
            _ => {}
        }
    }
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
    let mut outputs = Outputs::default();
    let record = Record { key: &key, value: Some(&before), headers: &headers, timestamp_ms };
    outputs.push(&"preprocessor.state".into(), partition_for_key(vin(1).as_bytes(), 4), &record);
    site.commit(&outputs);
    site.log.maintain().unwrap();
    [1, 3, 2].iter().for_each(|seq| site.send("telemetry", 1, &reading(1, 7, *seq)));
    let metrics = site.run();
    has(&metrics, "carstream_preprocessor_restored_total 1");
    has(&metrics, "carstream_preprocessor_replayed_total 0");
    has(&metrics, "carstream_preprocessor_duplicates_removed_total{stream=\"telemetry\"} 2");
    assert_eq!(site.clean().num_rows(), 4);
}

/// Streams share the topic of snapshots and do not get into each other's way.
#[test]
fn a_restart_replays_only_what_is_in_no_snapshot() {
    let site = Site::new();
    let finding = |seq: i64| {
        serde_json::json!({
            "vin": crate::vin(1), "boot_id": 1, "seq": seq, "workshop": "w", "kind": "cooling_failure",
            "component": "coolant_temp", "began_ms": yesterday_ms(), "repaired_ms": yesterday_ms() + 100_000,
        })
    };
    for seq in 0..200 {
        site.send("telemetry", 1, &reading(1, 1, seq));
    }
    site.send("faults", 1, &finding(0));
    site.run();
    for seq in 150..210 {
        site.send("telemetry", 1, &reading(1, 1, seq));
    }
    site.send("faults", 1, &finding(0));
    site.send("faults", 1, &finding(1));
    let metrics = site.run();
    has(&metrics, "carstream_preprocessor_restored_total 2");
    has(&metrics, "carstream_preprocessor_replayed_total 0");
    has(&metrics, "carstream_preprocessor_duplicates_removed_total{stream=\"telemetry\"} 50");
    has(&metrics, "carstream_preprocessor_duplicates_removed_total{stream=\"faults\"} 1");
    assert_eq!((site.contents("telemetry").len(), site.contents("faults").len()), (210, 2));
}
