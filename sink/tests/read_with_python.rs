//! The Parquet of the sink, read by others: pyarrow and DuckDB find the rows, columns and sums that are in the log.
//!
//! Needs the test tools (scripts/install-test-tools). Without them it says so and is skipped; in CI it fails.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;
use std::process::Command;

use arrow::array::AsArray;
use arrow::datatypes::{Float32Type, Int64Type, TimestampMillisecondType};
use serde_json::{Value, json};
use support::{Place, append, readings, rows_of_log, start};
use test_support::clock::{date, yesterday_ms};

fn python() -> Option<PathBuf> {
    let cache = std::env::var_os("CARSTREAM_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/carstream")))?;
    let python = cache.join("test-tools/bin/python");
    let found = Command::new(&python).args(["-c", "import pyarrow, duckdb"]).output().is_ok_and(|o| o.status.success());
    if !found {
        let missing =
            format!("{} with pyarrow and duckdb is missing: run scripts/install-test-tools", python.display());
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        eprintln!("skipped: {missing}");
        return None;
    }
    Some(python)
}

#[tokio::test(flavor = "multi_thread")]
async fn pyarrow_and_duckdb_read_what_is_in_the_log() {
    let Some(python) = python() else { return };
    let place = Place::new();
    let log = place.log();
    append(&log, "telemetry", 0, &readings(0, 900, 2));
    append(&log, "telemetry", 900, &readings(900, 100, 1));
    let mut args = place.args(&["telemetry"]);
    args.max_rows = 150;
    start(args).stop().await.unwrap();

    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/read_parquet.py");
    let output = Command::new(python).arg(script).arg(place.lake_folder()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();

    let rows = rows_of_log(&log, "telemetry", "telemetry.v2.avsc");
    let longs = |name: &str| -> i64 {
        let sum = |batch: &arrow::array::RecordBatch| -> i64 {
            let column = batch.column_by_name(name).unwrap();
            match column.as_primitive_opt::<TimestampMillisecondType>() {
                Some(times) => times.values().iter().sum(),
                None => column.as_primitive::<Int64Type>().values().iter().sum(),
            }
        };
        rows.iter().map(|rows| sum(&rows.batch)).sum()
    };
    let speed: f64 = rows
        .iter()
        .flat_map(|rows| rows.batch.column_by_name("speed").unwrap().as_primitive::<Float32Type>().values().to_vec())
        .map(f64::from)
        .sum();
    let mut columns: Vec<_> = rows[0].batch.schema().fields().iter().map(|field| field.name().clone()).collect();
    columns.extend([lake::LOG_OFFSET.to_owned(), lake::LOG_TIMESTAMP_MS.to_owned()]);
    let expected = json!({
        "rows": 1000,
        "columns": columns,
        "seq": longs("seq"),
        "offsets": rows.iter().flat_map(|rows| &rows.offsets).sum::<u64>(),
        "event_time_ms": longs("event_time_ms"),
        "log_timestamp_ms": rows.iter().flat_map(|rows| &rows.timestamps_ms).sum::<i64>(),
        "speed": speed,
        "cars": 20,
        "no_ambient_temp": 100,
        "no_segment": 334,
    });
    for (reader, timestamp, number) in
        [("pyarrow", "timestamp[ms, tz=+00:00]", "int64"), ("duckdb", "TIMESTAMP WITH TIME ZONE", "BIGINT")]
    {
        let mut found = found[reader].clone();
        let types = found.as_object_mut().unwrap().remove("types").unwrap();
        let wanted = json!({"event_time_ms": timestamp, "log_timestamp_ms": timestamp, "log_offset": number});
        assert_eq!(types, wanted, "{reader}");
        assert_eq!(found, expected, "{reader}");
    }
    assert_eq!(found["dates"], json!([date(yesterday_ms())]));
    assert_eq!((&found["statistics"], &found["compression"]), (&json!(true), &json!("ZSTD")));
    let keys = ["end_offset", "max_event_time_ms", "min_event_time_ms", "partition", "row_hash"];
    assert_eq!(found["footer_keys"], json!([&keys[..], &["schema_id", "start_offset", "topic"]].concat()));
}
