//! What a sink says and does when something is wrong.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::NaiveDate;
use event_log::{Clock, Error, Log, LogUrl, TopicDescription};
use lake::{Lake, OffsetRange};
use support::faults::{Fault, FaultyStore, Plan};
use support::{Place, append, assert_complete, readings, rows_of_lake, rows_of_log, start, start_on, wait_until};
use tokio::runtime::Handle;

const V2: &str = "telemetry.v2.avsc";

/// A record is looked at when its object ends.
const SOON: Duration = Duration::from_millis(50);

fn with_broken(first: u64) -> Vec<Vec<u8>> {
    let mut values = readings(first, 40, 2);
    values[20] = b"not Avro at all".to_vec();
    values
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undecodable_record_stops_its_topic_and_is_named() {
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 100, 2));
    append(&log, "telemetry", 100, &with_broken(100));
    let mut args = place.args(&["telemetry"]);
    (args.max_rows, args.max_age) = (10, SOON);
    let error = format!("{:#}", start(args).end().await.unwrap_err());
    for part in ["telemetry/", "offset", "not-avro", "--skip-undecodable"] {
        assert!(error.contains(part), "{error} should name {part}");
    }
    let lake = place.lake();
    let before = lake.coverage("telemetry").await.unwrap().ranges;
    let log_rows = rows_of_log(&log, "telemetry", V2);
    for rows in rows_of_lake(&lake, "telemetry", V2).await {
        let log_rows = &log_rows[rows.range.partition as usize];
        assert_eq!(rows.offsets, log_rows.offsets[..rows.offsets.len()], "a prefix");
    }
    // A second start says the same, and changes nothing.
    let mut args = place.args(&["telemetry"]);
    args.max_age = SOON;
    assert!(start(args).end().await.is_err());
    assert!(lake.coverage("telemetry").await.unwrap().ranges.iter().all(|range| {
        before.iter().any(|b| (b.partition, b.start) == (range.partition, range.start) && b.end <= range.end)
    }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_topic_does_not_stop_the_others() {
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 100, 2));
    append(&log, "faults", 0, &[b"broken".to_vec()]);
    let mut args = place.args(&["telemetry", "faults"]);
    args.max_age = SOON;
    let sink = start(args);
    let metrics = sink.metrics.clone();
    wait_until("the stop of faults", async || metrics.stopped_topics.get() == 1 || sink.task.is_finished()).await;
    append(&log, "telemetry", 100, &readings(100, 100, 2));
    let error = format!("{:#}", sink.stop().await.unwrap_err());
    assert!(error.contains("faults") && !error.contains("telemetry"), "{error}");
    assert_complete(&log, &place.lake(), "telemetry", V2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn skipped_records_are_kept_as_they_came() {
    let place = Place::new();
    let log = place.log();
    // The first record of a partition decides the date of its object even if it cannot be decoded.
    append(&log, "telemetry", 0, &[b"x".to_vec()]);
    append(&log, "telemetry", 1, &with_broken(1));
    let mut args = place.args(&["telemetry"]);
    args.skip_undecodable = true;
    let sink = start(args);
    let metrics = sink.metrics.clone();
    sink.stop().await.unwrap();
    let lake = place.lake();
    assert_complete(&log, &lake, "telemetry", V2).await;
    assert_eq!(metrics.rows("telemetry"), 39);
    let mut kept = BTreeSet::new();
    for name in lake.list("_undecodable").await.unwrap() {
        let text = String::from_utf8(lake.get(&name).await.unwrap().to_vec()).unwrap();
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!((&line["topic"], &line["reason"]), (&"telemetry".into(), &"not-avro".into()));
            assert_eq!(line["headers_hex"][0], serde_json::json!(["h", hex::encode("v")]));
            kept.insert(line["value_hex"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(kept, BTreeSet::from([hex::encode("x"), hex::encode("not Avro at all")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_ahead_of_its_log_is_refused() {
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 200, 2));
    start(place.args(&["telemetry"])).stop().await.unwrap();
    // The same lake with another log: that of another site, or of a topic that was created again.
    let other = Place::new();
    append(&other.log(), "telemetry", 0, &readings(0, 10, 2));
    let mut args = other.args(&["telemetry"]);
    args.lake.lake = place.lake_url();
    let error = format!("{:#}", start(args).end().await.unwrap_err());
    for part in ["telemetry/", "resumes at offset", "created again", &place.lake_url().to_string()] {
        assert!(error.contains(part), "{error} should name {part}");
    }
    assert_complete(&log, &place.lake(), "telemetry", V2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_removed_unwritten_is_skipped_once_an_operator_says_so() {
    let place = Place::new();
    let LogUrl::Directory(path) = place.log_url() else { unreachable!("it is a directory") };
    let clock = Clock::default();
    let log = event_log::open_with_clock(&path, clock.clone()).unwrap();
    append(&log, "telemetry", 0, &readings(0, 100, 2));
    start(place.args(&["telemetry"])).stop().await.unwrap();
    append(&log, "telemetry", 100, &readings(100, 60, 2));
    let first = rows_of_log(&log, "telemetry", V2);
    clock.pass(Duration::from_secs(40 * 24 * 3600));
    log.maintain().unwrap();
    append(&log, "telemetry", 160, &readings(160, 50, 2));
    let rest = rows_of_log(&log, "telemetry", V2);

    let error = format!("{:#}", start(place.args(&["telemetry"])).end().await.unwrap_err());
    for part in ["retention removed offsets", "carstream resume sink --log", "--topic telemetry --accept-gap"] {
        assert!(error.contains(part), "{error} should name {part}");
    }
    let lake = place.lake();
    let before = lake.coverage("telemetry").await.unwrap();
    let behind = {
        let (log, lake, runtime) = (log.clone(), lake.clone(), Handle::current());
        let behind = move || sink::behind(log.as_ref(), &lake, &runtime, "telemetry");
        tokio::task::spawn_blocking(behind).await.unwrap().unwrap()
    };
    assert_eq!(behind.len(), before.ranges.len(), "of each partition some were removed");
    for (range, written) in behind.iter().zip(&before.ranges) {
        let removed = first[range.partition as usize].range.end;
        assert_eq!((range.partition, range.start, range.end), (written.partition, written.end, removed));
        lake.skip(range).await.unwrap();
        assert!(lake.skip(range).await.is_err(), "once");
    }
    start(place.args(&["telemetry"])).stop().await.unwrap();

    let ends = rest.iter().map(|rows| rows.range.clone());
    let expected: Vec<_> = before.ranges.iter().cloned().zip(ends).flat_map(<[_; 2]>::from).collect();
    for compacted in [false, true] {
        if compacted {
            lake.compact("telemetry", "car", &(NaiveDate::MIN..=NaiveDate::MAX), u64::MAX).await.unwrap();
        }
        let covered = lake.coverage("telemetry").await.unwrap();
        assert_eq!((&covered.ranges, &covered.skipped, covered.gaps.len()), (&expected, &behind, 0));
        assert!(covered.remarks()[0].contains("an operator let the sink skip them"), "{:?}", covered.remarks());
        let schema = contract::Contract::builtin().schemas().file(V2).unwrap().arrow.clone();
        for (range, skipped) in before.ranges.iter().zip(&behind) {
            // What reads over it, or begins in it, is told; what ends before it or begins after it reads.
            for (start, end, is_there) in [
                (range.start, range.end, true),
                (range.start, skipped.end + 1, false),
                (skipped.start, skipped.end + 1, false),
                (skipped.end, skipped.end + 1, true),
            ] {
                let wanted = OffsetRange { start, end, ..range.clone() };
                match lake.read(wanted.clone(), schema.clone()).await {
                    Ok(_) => assert!(is_there, "{wanted}"),
                    Err(error) => assert!(!is_there && matches!(error, lake::Error::NotCovered { .. }), "{error}"),
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_cannot_be_written_to_is_named() {
    let place = Place::new();
    let _log = place.log();
    std::fs::write(place.folder.path().join("file"), "").unwrap();
    let mut args = place.args(&["telemetry"]);
    args.lake.lake = lake::LakeUrl::Directory(place.folder.path().join("file"));
    let error = format!("{:#}", start(args).end().await.unwrap_err());
    assert!(error.ends_with("/file: is a file: choose a directory"), "{error}");
    // Root may write anywhere, so the folder for incoming files is taken away by a file of its name.
    std::fs::create_dir(place.lake_folder()).unwrap();
    std::fs::write(place.lake_folder().join(".incoming"), "").unwrap();
    let error = format!("{:#}", start(place.args(&["telemetry"])).end().await.unwrap_err());
    assert!(error.contains(&place.lake_url().to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_goes_on_where_another_left_off() {
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 100, 2));
    let lake: Lake = place.lake();
    // Another sink got as far as offset 1 of partition 0.
    let rows = rows_of_log(&log, "telemetry", V2);
    let first = &rows[0];
    let name = lake::ObjectName::new("telemetry", 0, 0, first.timestamps_ms[0]);
    let mut writer =
        lake::ObjectWriter::new(name.clone(), first.batch.schema_ref(), 2, lake::Encodings::default()).unwrap();
    writer.write(&first.batch.slice(0, 1), &first.offsets[..1], &first.timestamps_ms[..1]).unwrap();
    let object = writer.finish(1).unwrap();
    lake.put_object(&object).await.unwrap();
    start(place.args(&["telemetry"])).stop().await.unwrap();
    assert_eq!(lake.get(&name.to_string()).await.unwrap(), object.bytes);
    assert_complete(&log, &lake, "telemetry", V2).await;
}

/// A log that shows the first `shown` partitions of its topics only, as if the others were still to be added.
#[derive(Debug)]
struct Growing {
    log: Arc<dyn Log>,
    shown: AtomicUsize,
}

impl Log for Growing {
    test_support::passes_on!(log: url ensure_topic committed appender reader consumer transactor);

    fn describe(&self, topic: &str) -> Result<TopicDescription, Error> {
        let mut described = self.log.describe(topic)?;
        described.partitions.truncate(self.shown.load(Ordering::Relaxed));
        Ok(described)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_added_meanwhile_are_written() {
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 200, 2));
    let growing = Arc::new(Growing { log: log.clone(), shown: AtomicUsize::new(1) });
    let mut args = place.args(&["telemetry"]);
    args.max_age = SOON;
    let sink = start_on(args, growing.clone(), place.lake());
    let lake = place.lake();
    wait_until("the first partition", async || !lake.objects("telemetry").await.unwrap().is_empty()).await;
    assert!(lake.objects("telemetry").await.unwrap().iter().all(|name| name.partition == 0));
    growing.shown.store(4, Ordering::Relaxed);
    wait_until("all partitions", async || sink.metrics.rows("telemetry") == 200).await;
    sink.stop().await.unwrap();
    assert_complete(&log, &lake, "telemetry", V2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_owner_removed_from_the_lake_does_not_stop_the_sink() {
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 2_000, 2));
    let mut args = place.args(&["telemetry"]);
    args.max_rows = 50;
    start(args.clone()).stop().await.unwrap();
    let lake = place.lake();
    let objects = lake.objects("telemetry").await.unwrap();
    let of_first: Vec<_> = objects.iter().filter(|object| object.partition == objects[0].partition).collect();
    // The first, and one of the newest.
    for removed in [of_first[0], of_first[of_first.len() - 3]] {
        std::fs::remove_file(place.lake_folder().join(removed.to_string())).unwrap();
    }
    append(&log, "telemetry", 2_000, &readings(2_000, 500, 2));
    start(args).stop().await.unwrap();
    let covered = lake.coverage("telemetry").await.unwrap();
    assert_eq!(covered.gaps.len(), 1, "{:?}", covered.remarks());
    let rows: u64 = covered.ranges.iter().map(|range| range.end - range.start).sum();
    assert_eq!(rows, 2_500 - 2 * 50, "what was removed stays removed, and nothing else is missing or doubled");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_rewritten_under_another_name_are_not_written_again() {
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 500, 2));
    start(place.args(&["telemetry"])).stop().await.unwrap();
    let object = place.lake().objects("telemetry").await.unwrap().remove(0);
    let file = place.lake_folder().join(object.to_string());
    std::fs::rename(&file, file.with_file_name("part-0001.parquet")).unwrap();
    append(&log, "telemetry", 500, &readings(500, 500, 2));
    let error = format!("{:#}", start(place.args(&["telemetry"])).end().await.unwrap_err());
    assert!(error.contains("part-0001.parquet") && error.contains("carstream compact"), "{error}");
}

/// Suspended for days with requests under way: meanwhile another sink has written, and all of it was compacted.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_wakes_up_after_a_compaction_doubles_nothing() {
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 1_000, 2));
    let lake = place.lake();
    let store = FaultyStore::new(lake.store().clone(), Plan::All(Fault::Waits));
    let mut args = place.args(&["telemetry"]);
    (args.max_rows, args.store_timeout) = (50, Duration::from_secs(3600));
    let suspended = start_on(args.clone(), log.clone(), Lake::with_store(store.clone(), place.lake_url()));
    wait_until("requests under way", async || store.puts.load(Ordering::Relaxed) >= 4).await;
    args.max_rows = 70;
    start(args).stop().await.unwrap();
    let all_days: lake::Days = "1970-01-01".parse().unwrap()..="9999-12-31".parse().unwrap();
    let compacted = lake.compact("telemetry", "car", &all_days, u64::MAX).await.unwrap();
    assert!(compacted.created > 0 && compacted.left.is_empty(), "{compacted:?}");
    store.set(Plan::All(Fault::None));
    let metrics = suspended.metrics.clone();
    append(&log, "telemetry", 1_000, &readings(1_000, 500, 2));
    suspended.stop().await.unwrap();
    assert!(metrics.conflicts.get() >= 4);
    assert_complete(&log, &lake, "telemetry", V2).await;
    lake.compact("telemetry", "car", &all_days, u64::MAX).await.unwrap();
    assert_complete(&log, &lake, "telemetry", V2).await;
    let mut rows = 0;
    for name in lake.list("telemetry").await.unwrap() {
        rows += lake.footer(&lake::ObjectName::parse(&name).unwrap()).await.unwrap().rows;
    }
    assert_eq!(rows, 1_500, "in all files together");
}
