//! Compaction: wherever it dies, whoever else is at it, each row is read once; and in the end it is there once.
#![allow(clippy::unwrap_used)]

#[path = "support/days.rs"]
mod days;
#[path = "support/mortal.rs"]
mod mortal;
#[path = "support/rows.rs"]
mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::compute::concat_batches;
use chrono::NaiveDate;
use days::{LARGE, all_days, lake_of, offsets, put, range, seen_by_a_glob};
use lake::{Compacted, Encodings, Error, Lake, ObjectName, ObjectWriter, OffsetRange, RowHash};
use mortal::Mortal;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use proptest::prelude::*;
use rows::{TIME_MS, object, rows, schema};

/// Asserts that our readers find exactly these ranges, each row once.
async fn assert_reads(lake: &Lake, ranges: &[OffsetRange]) {
    let covered = lake.coverage("telemetry").await.unwrap();
    assert_eq!(covered.ranges, ranges, "{:?}", covered.remarks());
    for range in ranges {
        let mut reader = lake.read(range.clone(), schema()).await.unwrap();
        let mut batches = Vec::new();
        while let Some(rows) = reader.next().await.unwrap() {
            batches.push(rows.batch);
        }
        let read = concat_batches(&schema(), &batches).unwrap();
        assert_eq!(read, rows(&offsets(range.start, range.end)), "{range}");
    }
    let next = lake.next_offsets("telemetry").await.unwrap().offsets;
    let ends: BTreeMap<_, _> = ranges.iter().map(|range| (range.partition, range.end)).collect();
    assert_eq!(next, ends);
}

#[tokio::test]
async fn a_day_becomes_few_objects_and_rows_stay_what_they_are() {
    let store = Arc::new(InMemory::new());
    let lake = lake_of(store.clone());
    put(&lake, 0, &[0, 5, 17, 18, 40, 90]).await;
    put(&lake, 1, &[7, 9, 30]).await;
    let done = lake.compact("telemetry", "car", &all_days(), LARGE).await.unwrap();
    assert_eq!(done, Compacted { created: 2, removed: 7, rows: 81 + 21, ..Compacted::default() });
    assert_reads(&lake, &[range(0, 0, 90), range(1, 7, 30)]).await;
    let names = lake.objects("telemetry").await.unwrap();
    assert_eq!(names.iter().map(|name| (name.start, name.end)).collect::<Vec<_>>(), [(0, Some(90)), (7, Some(30))]);
    let footer = lake.footer(&names[0]).await.unwrap();
    let mut hash = RowHash::new(&schema()).unwrap();
    hash.update(&rows(&offsets(0, 90)));
    assert_eq!((footer.rows, footer.schema_id, footer.row_hash), (81, 2, hash.finish()));
    assert_eq!(footer.event_time_ms, Some((TIME_MS, TIME_MS + 89_000)));
    assert_eq!(
        lake.compact("telemetry", "car", &all_days(), LARGE).await.unwrap(),
        Compacted::default(),
        "nothing is left"
    );
    // What is written later is compacted later, and not what is compacted already.
    put(&lake, 0, &[90, 95, 101]).await;
    let done = lake.compact("telemetry", "car", &all_days(), LARGE).await.unwrap();
    assert_eq!((done.created, done.removed, done.rows), (1, 2, 10));
    assert_reads(&lake, &[range(0, 0, 101), range(1, 7, 30)]).await;
    assert!(seen_by_a_glob(&store).await.values().all(|count| *count == 1));
}

#[tokio::test]
async fn objects_are_no_larger_than_wanted_and_never_span_what_is_missing() {
    let lake = lake_of(Arc::new(InMemory::new()));
    let size = object(0, 0, 20, &offsets(0, 20)).bytes.len() as u64;
    put(&lake, 0, &[0, 20, 40, 60, 80, 100]).await;
    put(&lake, 0, &[120, 140, 160]).await;
    lake.compact("telemetry", "car", &all_days(), 2 * size + size / 2).await.unwrap();
    let objects = lake.objects("telemetry").await.unwrap();
    let bounds: Vec<_> = objects.iter().map(|name| (name.start, name.end)).collect();
    assert_eq!(bounds, [(0, Some(40)), (40, Some(80)), (80, None), (120, Some(160))]);
    let covered = lake.coverage("telemetry").await.unwrap();
    assert_eq!((covered.ranges, covered.gaps.len()), (vec![range(0, 0, 100), range(0, 120, 160)], 1));
}

#[tokio::test]
async fn only_closed_days_are_touched_and_what_is_damaged_stays() {
    let store = Arc::new(InMemory::new());
    let lake = lake_of(store.clone());
    put(&lake, 0, &[0, 5, 17, 40]).await;
    let before: NaiveDate = lake.objects("telemetry").await.unwrap()[0].date.parse().unwrap();
    let done = lake.compact("telemetry", "car", &(NaiveDate::MIN..=before.pred_opt().unwrap()), LARGE).await.unwrap();
    assert_eq!(done, Compacted::default());
    // The footer of one object, the rows of another: the hash tells.
    let [good, other] = [offsets(5, 17), offsets(6, 17)].map(|offsets| object(0, 5, 17, &offsets));
    let mut bytes = good.bytes.to_vec();
    let at = bytes.windows(64).position(|part| part == good.footer.row_hash.as_bytes()).unwrap();
    bytes[at..at + 64].copy_from_slice(other.footer.row_hash.as_bytes());
    store.put(&good.name.path(), bytes.into()).await.unwrap();
    let done = lake.compact("telemetry", "car", &all_days(), LARGE).await.unwrap();
    assert_eq!((done.created, done.removed, done.left.len()), (0, 0, 1), "{done:?}");
    assert!(done.left[0].contains(&good.name.to_string()), "{done:?}");
}

#[tokio::test]
async fn schemas_and_encodings_stay_apart() {
    let lake = lake_of(Arc::new(InMemory::new()));
    for (start, schema_id, encodings) in [
        (0, 1, Encodings::Compact),
        (5, 1, Encodings::Compact),
        (10, 2, Encodings::Standard),
        (15, 2, Encodings::Standard),
    ] {
        let name = ObjectName::new("telemetry", 0, start, TIME_MS);
        let mut writer = ObjectWriter::new(name, &schema(), schema_id, encodings).unwrap();
        let offsets: Vec<_> = (start..start + 5).collect();
        writer.write(&rows(&offsets), &offsets, &[0; 5]).unwrap();
        lake.put_object(&writer.finish(start + 5).unwrap()).await.unwrap();
    }
    lake.compact("telemetry", "car", &all_days(), LARGE).await.unwrap();
    let objects = lake.objects("telemetry").await.unwrap();
    assert_eq!(objects.iter().map(|name| (name.start, name.end)).collect::<Vec<_>>(), [(0, Some(10)), (10, Some(20))]);
    for (name, compact) in objects.iter().zip([true, false]) {
        let bytes = lake.get(&name.to_string()).await.unwrap();
        let file = parquet::file::metadata::ParquetMetaDataReader::new().parse_and_finish(&bytes).unwrap();
        let encodings: Vec<_> =
            file.row_groups().iter().flat_map(|group| group.columns()).flat_map(|column| column.encodings()).collect();
        assert_eq!(encodings.contains(&parquet::basic::Encoding::BYTE_STREAM_SPLIT), compact, "{name}");
    }
}

/// Before and after every request to the store.
#[tokio::test]
async fn it_may_die_at_any_point() {
    let mut finished = false;
    let mut at = 0;
    let mut doubled = 0;
    while !finished {
        for after_its_effect in [false, true] {
            let store = Arc::new(InMemory::new());
            let lake = lake_of(store.clone());
            put(&lake, 0, &[0, 5, 17, 18, 40]).await;
            put(&lake, 1, &[0, 9, 30, 31]).await;
            let ranges = [range(0, 0, 40), range(1, 0, 31)];
            let mortal = Mortal::shared(store.clone(), at, after_its_effect);
            finished = lake_of(Arc::new(mortal)).compact("telemetry", "car", &all_days(), LARGE).await.is_ok();
            assert_reads(&lake, &ranges).await;
            let seen = seen_by_a_glob(&store).await;
            assert_eq!(seen.len(), 36 + 28, "a glob lacks no row, wherever it dies: {at}");
            doubled += seen.values().filter(|count| **count > 1).count();
            // A sink that writes on.
            put(&lake, 0, &[40, 50]).await;
            let done = lake.compact("telemetry", "car", &all_days(), LARGE).await.unwrap();
            assert_eq!(done.left, Vec::<String>::new());
            assert_reads(&lake, &[range(0, 0, 50), range(1, 0, 31)]).await;
            assert!(seen_by_a_glob(&store).await.values().all(|count| *count == 1), "died at {at}");
        }
        at += 1;
    }
    assert!(at > 20, "only {at} requests");
    assert!(doubled > 0, "it never died between the create and the removal");
}

/// What a sink had under way while the objects around it were compacted.
#[tokio::test]
async fn an_object_that_comes_late_does_not_count_and_is_removed() {
    let store = Arc::new(InMemory::new());
    let lake = lake_of(store.clone());
    put(&lake, 0, &[0, 5, 17, 40]).await;
    let late = object(0, 5, 17, &offsets(5, 17));
    let too_long = object(0, 17, 44, &offsets(17, 44));
    lake.compact("telemetry", "car", &all_days(), LARGE).await.unwrap();
    assert!(lake.is_compacted(&late.name).await.unwrap());
    assert!(!lake.is_compacted(&object(0, 40, 44, &[]).name).await.unwrap());
    lake.put_object(&late).await.unwrap();
    lake.put_object(&too_long).await.unwrap();
    assert_reads(&lake, &[range(0, 0, 40)]).await;
    assert_eq!(lake.next_offset_after(&late.name).await.unwrap(), Some(40));
    let done = lake.compact("telemetry", "car", &all_days(), LARGE).await.unwrap();
    assert_eq!((done.created, done.removed, done.left.len()), (0, 1, 1), "{done:?}");
    assert!(done.left[0].contains(&too_long.name.to_string()), "{done:?}");
    assert_reads(&lake, &[range(0, 0, 40)]).await;
}

/// One that knew fewer objects than the other, and wrote later.
#[tokio::test]
async fn compacted_objects_that_overlap_are_read_once_and_merged() {
    let store = Arc::new(InMemory::new());
    let lake = lake_of(store.clone());
    for (start, end) in [(0, 30), (0, 20), (20, 50), (50, 60)] {
        let mut object = object(0, start, end, &offsets(start, end));
        object.name.date = "2026-11-21".to_owned();
        object.name.end = Some(end);
        lake.put_object(&object).await.unwrap();
    }
    assert_reads(&lake, &[range(0, 0, 60)]).await;
    for _ in 0..2 {
        lake.compact("telemetry", "car", &all_days(), 1).await.unwrap();
        assert_reads(&lake, &[range(0, 0, 60)]).await;
    }
    assert!(seen_by_a_glob(&store).await.values().all(|count| *count == 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Two compactions, of which each may die, and a sink and a reader meanwhile, in an order that the case draws.
    #[test]
    fn whoever_is_at_it_each_row_is_read_once(
        cuts in prop::collection::vec(1u64..15, 3..14),
        dies in prop::array::uniform2(5u64..80),
        targets in prop::array::uniform2(prop::sample::select(vec![LARGE, 9_000])),
        seed in any::<u64>(),
    ) {
        let sums = cuts.iter().scan(0, |sum, cut| { *sum += cut; Some(*sum) });
        let bounds: Vec<_> = std::iter::once(0).chain(sums).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Arc::new(InMemory::new());
            let lake = lake_of(store.clone());
            let (written, later) = bounds.split_at(bounds.len() / 2);
            put(&lake, 0, written).await;
            put(&lake, 0, &[written[written.len() - 1], later[0]]).await;
            let end = later[0];
            let compact = |i: usize| {
                let mortal = Mortal::shared(store.clone(), dies[i], i == 1).yielding(seed.wrapping_add(i as u64));
                let (lake, target) = (lake_of(Arc::new(mortal)), targets[i]);
                async move { lake.compact("telemetry", "car", &all_days(), target).await }
            };
            let read = async {
                let reading = lake_of(Arc::new(Mortal::shared(store.clone(), u64::MAX, false).yielding(!seed)));
                for _ in 0..3 {
                    let mut reader = reading.read(range(0, 0, end), schema()).await.unwrap();
                    let mut found = Vec::new();
                    while let Some(rows) = reader.next().await.unwrap() {
                        found.extend(rows.offsets.values().iter().map(|offset| *offset as u64));
                    }
                    assert_eq!(found, offsets(0, end));
                }
            };
            let write = async {
                let writing = lake_of(Arc::new(Mortal::shared(store.clone(), u64::MAX, false).yielding(seed / 3)));
                put(&writing, 0, later).await;
            };
            let (one, two, (), ()) = tokio::join!(compact(0), compact(1), read, write);
            for result in [one, two] {
                prop_assert!(matches!(result, Ok(_) | Err(Error::Store { .. })), "{:?}", result);
            }
            let whole = [range(0, 0, bounds[bounds.len() - 1])];
            assert_reads(&lake, &whole).await;
            for _ in 0..3 {
                lake.compact("telemetry", "car", &all_days(), LARGE).await.unwrap();
                assert_reads(&lake, &whole).await;
            }
            prop_assert!(seen_by_a_glob(&store).await.values().all(|count| *count == 1));
            Ok(())
        })?;
    }
}
