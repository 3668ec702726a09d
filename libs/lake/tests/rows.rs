//! Rows through the lake: what was written comes back, exactly the range that was asked for, whatever the objects.
#![allow(clippy::unwrap_used)]

#[path = "support/rows.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use lake::{Error, Lake, LakeUrl, OffsetRange, RowHash};
use parquet::file::metadata::ParquetMetaDataReader;
use proptest::prelude::*;
use support::{TIME_MS, object, rows, schema};

/// Readers whose fast path knows few encodings (Spark before 4.2, Iceberg's) must be able to read the lake.
#[test]
fn objects_have_encodings_that_every_reader_knows() {
    use parquet::basic::Encoding::{PLAIN, RLE, RLE_DICTIONARY};
    let bytes = object(0, 0, 100, &(0..100).collect::<Vec<_>>()).bytes;
    let file = ParquetMetaDataReader::new().parse_and_finish(&bytes).unwrap();
    let columns = file.row_groups().iter().flat_map(|group| group.columns());
    for column in columns {
        let unusual: Vec<_> =
            column.encodings().filter(|encoding| ![PLAIN, RLE, RLE_DICTIONARY].contains(encoding)).collect();
        assert!(unusual.is_empty(), "{}: {unusual:?}", column.column_path());
    }
}

fn range(start: u64, end: u64) -> OffsetRange {
    OffsetRange { topic: "telemetry".into(), partition: 0, start, end }
}

async fn read(lake: &Lake, range: OffsetRange, schema: SchemaRef) -> Result<(RecordBatch, Vec<i64>), Error> {
    let mut reader = lake.read(range, schema.clone()).await?;
    let (mut batches, mut offsets) = (Vec::new(), Vec::new());
    while let Some(rows) = reader.next().await? {
        offsets.extend_from_slice(rows.offsets.values());
        assert_eq!(rows.timestamps_ms.values(), rows.offsets.values(), "written that way");
        batches.push(rows.batch);
    }
    Ok((concat_batches(&schema, &batches).unwrap(), offsets))
}

fn hash(batch: &RecordBatch) -> String {
    let mut hash = RowHash::new(batch.schema_ref()).unwrap();
    hash.update(batch);
    hash.finish()
}

struct TestLake {
    lake: Lake,
    folder: tempfile::TempDir,
}

fn test_lake() -> TestLake {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::open(&LakeUrl::Directory(folder.path().join("lake"))).unwrap();
    TestLake { lake, folder }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_range_comes_back_whatever_the_objects(
        present in prop::collection::vec(prop::bool::weighted(0.9), 1..150),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
        base in 0u64..5,
    ) {
        // Some offsets have no row, as with Kafka's transaction markers.
        let all: Vec<u64> = (0..present.len()).filter(|i| present[*i]).map(|i| base + i as u64).collect();
        let end = base + present.len() as u64;
        let mut bounds: Vec<u64> = cuts.iter().map(|c| base + c.index(present.len()) as u64).collect();
        bounds.extend([base, end]);
        bounds.sort_unstable();
        bounds.dedup();
        let (from, to) = (base + from.index(present.len()) as u64, base + to.index(present.len() + 1) as u64);
        let within =
            |start: u64, end: u64| -> Vec<_> { all.iter().copied().filter(|o| (start..end).contains(o)).collect() };
        block_on(async {
            let TestLake { lake, folder: _keep } = test_lake();
            for b in bounds.windows(2) {
                lake.put_object(&object(0, b[0], b[1], &within(b[0], b[1]))).await.unwrap();
            }
            let (batch, offsets) = read(&lake, range(from, to), schema()).await.unwrap();
            let expected = within(from, to);
            prop_assert_eq!(offsets, expected.iter().map(|o| *o as i64).collect::<Vec<_>>());
            prop_assert_eq!(&batch, &rows(&expected));
            prop_assert_eq!(hash(&batch), hash(&rows(&expected)));
            prop_assert_eq!(lake.next_offsets("telemetry").await.unwrap().offsets, BTreeMap::from([(0, end)]));
            prop_assert_eq!(lake.coverage("telemetry").await.unwrap().ranges, [range(base, end)]);
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn the_footer_says_what_is_inside() {
    let TestLake { lake, folder: _keep } = test_lake();
    let object = object(3, 10, 15, &[10, 11, 13]);
    lake.put_object(&object).await.unwrap();
    let again = lake.put_object(&object).await.unwrap_err();
    assert!(matches!(&again, Error::Exists { object: name, .. } if *name == object.name.to_string()), "{again}");
    let footer = lake.footer(&object.name).await.unwrap();
    assert_eq!(footer, object.footer);
    assert_eq!((footer.start, footer.end, footer.rows, footer.schema_id), (10, 15, 3, 2));
    assert_eq!(footer.event_time_ms, Some((TIME_MS + 10_000, TIME_MS + 13_000)));
    assert_eq!(footer.row_hash, hash(&rows(&[10, 11, 13])));
    assert_eq!(lake.objects("telemetry").await.unwrap(), [object.name]);
    assert_eq!(lake.next_offsets("telemetry").await.unwrap().offsets, BTreeMap::from([(3, 15)]));
    assert!(lake.next_offsets("faults").await.unwrap().offsets.is_empty());
}

#[tokio::test]
async fn gaps_and_overlaps_are_named() {
    let TestLake { lake, folder: _keep } = test_lake();
    let names =
        [object(0, 0, 2, &[0, 1]), object(0, 5, 6, &[5]), object(1, 0, 3, &[0, 1, 2]), object(1, 2, 4, &[2, 3])];
    for object in &names[..2] {
        lake.put_object(object).await.unwrap();
    }
    // Its owner may have removed it: the end is known all the same, and what is missing is said.
    let next = lake.next_offsets("telemetry").await.unwrap();
    assert_eq!((next.offsets, next.gaps.len()), (BTreeMap::from([(0, 6)]), 1));
    let gap = next.gaps[0].to_string();
    assert!(gap.contains("lacks offsets 2 to 5"), "{gap}");
    for object in &names[2..] {
        lake.put_object(object).await.unwrap();
    }
    for part in [&names[0].name.to_string(), &names[1].name.to_string(), "offset 2", "starts at 5"] {
        assert!(gap.contains(part), "{gap} should name {part}");
    }
    let gap = read(&lake, range(1, 6), schema()).await.unwrap_err();
    assert!(matches!(gap, Error::Gap { .. }), "{gap}");
    let overlap = read(&lake, OffsetRange { partition: 1, ..range(0, 4) }, schema()).await.unwrap_err().to_string();
    for part in ["overlap", &names[2].name.to_string(), &names[3].name.to_string()] {
        assert!(overlap.contains(part), "{overlap} should name {part}");
    }
}

#[tokio::test]
async fn two_objects_of_one_start_offset_are_an_overlap() {
    let TestLake { lake, folder: _keep } = test_lake();
    lake.put_object(&object(0, 0, 2, &[0, 1])).await.unwrap();
    let mut other = object(0, 0, 1, &[0]);
    other.name.date = "1999-01-01".into();
    lake.put_object(&other).await.unwrap();
    for error in
        [lake.next_offsets("telemetry").await.unwrap_err(), read(&lake, range(0, 2), schema()).await.unwrap_err()]
    {
        assert!(matches!(error, Error::Overlap { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_range_that_is_not_all_there_is_refused_before_the_first_row() {
    let TestLake { lake, folder: _keep } = test_lake();
    lake.put_object(&object(0, 10, 20, &[10, 19])).await.unwrap();
    for (start, end, missing) in [(5, 15, (5, 10)), (15, 25, (20, 25)), (30, 31, (30, 31)), (0, 3, (0, 3))] {
        let error = lake.read(range(start, end), schema()).await.err().unwrap();
        let Error::NotCovered { missing_start, missing_end, .. } = error else { panic!("{error}") };
        assert_eq!((missing_start, missing_end), missing);
    }
    assert!(read(&lake, range(20, 20), schema()).await.unwrap().1.is_empty());
    // Nothing in it, but all of it is known.
    assert!(read(&lake, range(12, 15), schema()).await.unwrap().1.is_empty());
}

#[tokio::test]
async fn an_older_file_gets_the_newer_columns_as_nulls() {
    let TestLake { lake, folder: _keep } = test_lake();
    lake.put_object(&object(0, 0, 2, &[0, 1])).await.unwrap();
    let mut fields = schema().fields().to_vec();
    fields.push(Arc::new(Field::new("ambient_temp", DataType::Float32, true)));
    let newer: SchemaRef = Arc::new(Schema::new(fields.clone()));
    let (batch, _) = read(&lake, range(0, 2), newer.clone()).await.unwrap();
    assert_eq!(batch.schema(), newer);
    assert_eq!(batch.column(4).null_count(), 2);
    fields.push(Arc::new(Field::new("required", DataType::Float32, false)));
    let error = read(&lake, range(0, 2), Arc::new(Schema::new(fields))).await.unwrap_err().to_string();
    assert!(error.contains("required") && error.contains(".parquet"), "{error}");
}

#[tokio::test]
async fn what_is_not_ours_is_not_used() {
    let TestLake { lake, folder } = test_lake();
    let good = object(0, 0, 2, &[0, 1]);
    let mut moved = good.clone();
    moved.name.start = 7;
    lake.put_object(&moved).await.unwrap();
    let error = lake.footer(&moved.name).await.unwrap_err().to_string();
    assert!(error.contains("telemetry/0 offset 0"), "{error}");

    let path = folder.path().join("lake").join(good.name.to_string());
    for broken in [&b""[..], b"PAR1", &good.bytes[..good.bytes.len() / 2], &vec![7; 100_000]] {
        std::fs::write(&path, broken).unwrap();
        let error = lake.footer(&good.name).await.unwrap_err();
        assert!(matches!(error, Error::Unusable { .. }), "{error}");
    }
    lake.create("telemetry/notes.txt", "for people".into()).await.unwrap();
    assert_eq!(lake.objects("telemetry").await.unwrap(), [good.name, moved.name]);
}
