//! Rows of a small schema, and objects of them.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use lake::{Encodings, Object, ObjectName, ObjectWriter};

/// 2026-11-21, a little before midnight.
pub const TIME_MS: i64 = 1_795_305_500_000;

fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("+00:00".into()))
}

pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("car", DataType::Utf8, false),
        Field::new("seq", DataType::Int64, false),
        Field::new("event_time_ms", timestamp(), false),
        Field::new("speed", DataType::Float32, true),
    ]))
}

/// The row at each offset is a function of the offset.
pub fn rows(offsets: &[u64]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(offsets.iter().map(|o| format!("car-{}", o % 7)))),
        Arc::new(Int64Array::from_iter_values(offsets.iter().map(|o| *o as i64 * 3))),
        Arc::new(
            TimestampMillisecondArray::from_iter_values(offsets.iter().map(|o| TIME_MS + 1000 * *o as i64))
                .with_timezone("+00:00"),
        ),
        Arc::new(Float32Array::from_iter(offsets.iter().map(|o| (o % 5 != 0).then_some(*o as f32 / 3.0)))),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

pub fn object(partition: u32, start: u64, end: u64, offsets: &[u64]) -> Object {
    let first_ms = offsets.first().map_or(TIME_MS, |o| TIME_MS + 1000 * *o as i64);
    let mut writer =
        ObjectWriter::new(ObjectName::new("telemetry", partition, start, first_ms), &schema(), 2, Encodings::default())
            .unwrap();
    for part in offsets.chunks(17) {
        let timestamps: Vec<_> = part.iter().map(|o| *o as i64).collect();
        writer.write(&rows(part), part, &timestamps).unwrap();
    }
    writer.finish(end).unwrap()
}
