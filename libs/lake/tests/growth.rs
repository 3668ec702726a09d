//! A lake that has grown, and one that its owner has tidied: what is listed, what is read, and what is said.
#![allow(clippy::unwrap_used)]

#[path = "support/counting.rs"]
mod counting;
#[path = "support/rows.rs"]
mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use chrono::NaiveDate;
use counting::CountingStore;
use lake::{Error, Lake, LakeUrl, ObjectName, OffsetRange};
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use rows::{object, schema};

const DAYS: u64 = 40;
const PARTITIONS: u32 = 3;
/// Objects of a day and partition, each of one record.
const PER_DAY: u64 = 30;

fn day(day: u64) -> NaiveDate {
    NaiveDate::from_ymd_opt(2026, 1, 1).unwrap() + chrono::Days::new(day)
}

fn name(day: NaiveDate, partition: u32, start: u64) -> ObjectName {
    ObjectName { topic: "telemetry".into(), date: day.to_string(), partition, start, end: None, erasures: 0 }
}

struct Grown {
    lake: Lake,
    store: Arc<CountingStore>,
}

/// Objects of one record each; those of the last ten days are whole, the others names only.
async fn grown() -> Grown {
    let store = Arc::new(CountingStore::new(InMemory::new()));
    let lake = Lake::with_store(store.clone(), LakeUrl::Directory("in memory".into()));
    for (partition, offset) in (0..PARTITIONS).flat_map(|p| (0..DAYS * PER_DAY).map(move |o| (p, o))) {
        let day = offset / PER_DAY;
        let name = name(self::day(day), partition, offset);
        let whole = || object(partition, offset, offset + 1, &[offset]).bytes;
        let bytes = if day + 10 >= DAYS { whole() } else { Bytes::new() };
        store.put(&name.path(), bytes.into()).await.unwrap();
    }
    store.reset();
    Grown { lake, store }
}

fn range(partition: u32, start: u64, end: u64) -> OffsetRange {
    OffsetRange { topic: "telemetry".into(), partition, start, end }
}

async fn delete(store: &CountingStore, names: impl IntoIterator<Item = ObjectName>) {
    for name in names {
        store.delete(&name.path()).await.unwrap();
    }
}

#[tokio::test]
async fn a_start_reads_the_newest_names_and_footers_only() {
    let Grown { lake, store } = grown().await;
    let next = lake.next_offsets("telemetry").await.unwrap();
    let end = DAYS * PER_DAY;
    assert_eq!(next.offsets, (0..PARTITIONS).map(|partition| (partition, end)).collect::<BTreeMap<_, _>>());
    assert!(next.gaps.is_empty());
    assert_eq!(store.names(), u64::from(PARTITIONS) * PER_DAY, "the newest folder of each partition");
    assert_eq!(store.reads(), u64::from(PARTITIONS) * 8, "the newest footers");
}

#[tokio::test]
async fn a_newer_object_under_an_older_day_is_found() {
    let Grown { lake, store } = grown().await;
    let end = DAYS * PER_DAY;
    // A clock that was wrong: behind, and then ahead.
    let behind = object(0, end, end + 5, &[end]);
    store.put(&name(day(3), 0, end).path(), behind.bytes.into()).await.unwrap();
    let ahead = object(1, end, end + 7, &[end]);
    store.put(&name(day(30_000), 1, end).path(), ahead.bytes.into()).await.unwrap();
    let after_it = object(1, end + 7, end + 9, &[end + 7]);
    store.put(&name(day(DAYS), 1, end + 7).path(), after_it.bytes.into()).await.unwrap();
    let next = lake.next_offsets("telemetry").await.unwrap();
    assert_eq!(next.offsets, BTreeMap::from([(0, end + 5), (1, end + 9), (2, end)]));
    assert!(next.gaps.is_empty(), "{:?}", next.gaps);
    // A window finds what belongs between its objects, wherever it lies.
    let last_week = day(DAYS - 7)..=day(DAYS);
    let covered = lake.coverage_of("telemetry", &last_week).await.unwrap();
    let first = (DAYS - 7) * PER_DAY;
    assert_eq!(covered.ranges[1], range(1, first, end + 9));
    assert!(covered.remarks().is_empty(), "{:?}", covered.remarks());
    let mut reader = lake.read_of(range(1, end - 2, end + 9), &last_week, schema()).await.unwrap();
    let mut offsets = Vec::new();
    while let Some(rows) = reader.next().await.unwrap() {
        offsets.extend_from_slice(rows.offsets.values());
    }
    assert_eq!(offsets, [end - 2, end - 1, end, end + 7].map(|offset| offset as i64));
}

#[tokio::test]
async fn a_window_lists_and_reads_its_own_days_only() {
    let Grown { lake, store } = grown().await;
    let last_week = day(DAYS - 7)..=day(DAYS);
    let covered = lake.coverage_of("telemetry", &last_week).await.unwrap();
    let (first, end) = ((DAYS - 7) * PER_DAY, DAYS * PER_DAY);
    assert_eq!(covered.ranges, [range(0, first, end), range(1, first, end), range(2, first, end)]);
    let objects = u64::from(PARTITIONS) * 7 * PER_DAY;
    assert_eq!((store.names(), store.reads()), (objects, objects));
    store.reset();
    let mut reader = lake.read_of(range(1, first, end), &last_week, schema()).await.unwrap();
    let mut rows = 0;
    while let Some(read) = reader.next().await.unwrap() {
        rows += read.batch.num_rows() as u64;
    }
    let objects = 7 * PER_DAY;
    assert_eq!((rows, store.names(), store.reads()), (objects, objects, 2 * objects), "footers, then rows");
}

#[tokio::test]
async fn what_its_owner_removed_is_named_and_the_rest_is_read() {
    let Grown { lake, store } = grown().await;
    let (from, end) = ((DAYS - 7) * PER_DAY, DAYS * PER_DAY);
    // Expired from the oldest on; an object in the middle; a day of one partition.
    delete(&store, (0..from + 3).map(|offset| name(day(offset / PER_DAY), 0, offset))).await;
    delete(&store, [name(day((from + 40) / PER_DAY), 1, from + 40)]).await;
    let removed = (DAYS - 3) * PER_DAY..(DAYS - 2) * PER_DAY;
    delete(&store, removed.clone().map(|offset| name(day(DAYS - 3), 2, offset))).await;
    let covered = lake.coverage_of("telemetry", &(day(DAYS - 7)..=day(DAYS))).await.unwrap();
    let expected = [
        range(0, from + 3, end),
        range(1, from, from + 40),
        range(1, from + 41, end),
        range(2, from, removed.start),
        range(2, removed.end, end),
    ];
    assert_eq!(covered.ranges, expected);
    let remarks = covered.remarks();
    assert_eq!(remarks.len(), 2, "{remarks:?}");
    assert!(remarks[0].starts_with(&format!("telemetry/1 lacks offsets {} to {}", from + 40, from + 41)));
    assert!(remarks[1].starts_with(&format!("telemetry/2 lacks offsets {} to {}", removed.start, removed.end)));
    let next = lake.next_offsets("telemetry").await.unwrap();
    assert_eq!(next.offsets, BTreeMap::from([(0, end), (1, end), (2, end)]));
}

#[tokio::test]
async fn rows_under_another_name_are_noticed() {
    let Grown { lake, store } = grown().await;
    let last = DAYS - 1;
    let foreign = format!("telemetry/date={}/partition=1/part-0001.snappy.parquet", day(last));
    store.put(&Path::from(foreign.clone()), object(1, 0, 1, &[0]).bytes.into()).await.unwrap();
    delete(&store, (last * PER_DAY..DAYS * PER_DAY).map(|offset| name(day(last), 1, offset))).await;
    let error = lake.next_offsets("telemetry").await.unwrap_err();
    assert!(matches!(&error, Error::Foreign { object, .. } if *object == foreign), "{error}");
    let covered = lake.coverage_of("telemetry", &(day(DAYS - 7)..=day(DAYS))).await.unwrap();
    assert_eq!(covered.ranges[1].end, last * PER_DAY, "the rest is read");
    assert!(covered.remarks()[0].contains(&foreign), "{:?}", covered.remarks());
}

#[tokio::test]
async fn a_sink_continues_after_the_objects_of_another() {
    let Grown { lake, .. } = grown().await;
    let last_day = name(day(DAYS - 1), 1, (DAYS - 1) * PER_DAY);
    assert_eq!(lake.next_offset_after(&last_day).await.unwrap(), Some(DAYS * PER_DAY));
    let missing = name(day(DAYS - 1), 1, DAYS * PER_DAY);
    assert_eq!(lake.next_offset_after(&missing).await.unwrap(), None);
}
