//! The row hash: SHA-256 over decoded rows, the same whether they came from the log or from the lake.
//!
//! ```text
//! for each column of the schema:  u32 length, name; u32 length, type
//! for each row, each column:      0                                   null
//!                                 1, then  fixed width: little endian (floats: their bits; booleans: one byte)
//!                                          text and bytes: u32 length, bytes
//! ```
//!
//! Nothing of how the rows were batched, filed, compressed or encoded goes in, so the hash names the rows themselves.
//! Topic, partition and offsets do not go in either: they are named beside the hash, in the list of ranges.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int32Type, Int64Type, Schema, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType,
};
use sha2::{Digest, Sha256};

/// Bytes collected before they are hashed: one call of the hash function per row would cost more than the hashing.
const CHUNK_BYTES: usize = 64 * 1024;

/// Hashes rows as they come.
#[derive(Debug, Clone)]
pub struct RowHash {
    hash: Sha256,
    buffer: Vec<u8>,
    schema: Vec<(String, &'static str)>,
}

/// A column of a type that rows here never have.
#[derive(Debug, thiserror::Error)]
#[error("column {column} has type {data_type}, for which no row hash is defined")]
pub struct UnhashableType {
    column: String,
    data_type: DataType,
}

impl RowHash {
    /// A hash of no rows yet.
    pub fn new(schema: &Schema) -> Result<Self, UnhashableType> {
        let mut columns = Vec::with_capacity(schema.fields().len());
        let mut buffer = Vec::with_capacity(CHUNK_BYTES + 4096);
        for field in schema.fields() {
            let kind = type_name(field.data_type())
                .ok_or_else(|| UnhashableType { column: field.name().clone(), data_type: field.data_type().clone() })?;
            push_bytes(&mut buffer, field.name().as_bytes());
            push_bytes(&mut buffer, kind.as_bytes());
            columns.push((field.name().clone(), kind));
        }
        Ok(Self { hash: Sha256::new(), buffer, schema: columns })
    }

    /// Adds the rows of `batch`.
    ///
    /// # Panics
    /// If its columns are not those of the schema.
    pub fn update(&mut self, batch: &RecordBatch) {
        let same = batch.num_columns() == self.schema.len()
            && batch
                .schema_ref()
                .fields()
                .iter()
                .zip(&self.schema)
                .all(|(f, (name, kind))| f.name() == name && type_name(f.data_type()) == Some(kind));
        assert!(same, "the columns of a batch are those that the row hash was made for");
        let columns: Vec<_> = batch.columns().iter().map(|c| Column::new(c.as_ref())).collect();
        for row in 0..batch.num_rows() {
            for column in &columns {
                column.push(row, &mut self.buffer);
            }
            if self.buffer.len() >= CHUNK_BYTES {
                self.hash.update(&self.buffer);
                self.buffer.clear();
            }
        }
    }

    /// The hash, in lowercase hex.
    pub fn finish(mut self) -> String {
        self.hash.update(&self.buffer);
        hex::encode(self.hash.finalize())
    }
}

/// The name of a type in the hash. Arrow's several layouts of text are one type, as are time zones' spellings.
fn type_name(data_type: &DataType) -> Option<&'static str> {
    Some(match data_type {
        DataType::Boolean => "boolean",
        DataType::Int32 => "int32",
        DataType::Int64 => "int64",
        DataType::Float32 => "float32",
        DataType::Float64 => "float64",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "utf8",
        DataType::Binary => "binary",
        DataType::Timestamp(TimeUnit::Millisecond, _) => "timestamp-millis",
        DataType::Timestamp(TimeUnit::Microsecond, _) => "timestamp-micros",
        _ => return None,
    })
}

fn push_bytes(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    buffer.extend_from_slice(bytes);
}

/// A column with its type looked up once per batch instead of once per value.
struct Column<'a> {
    array: &'a dyn Array,
    nullable: bool,
    values: Values<'a>,
}

enum Values<'a> {
    Boolean(&'a arrow::array::BooleanArray),
    I32(&'a [i32]),
    I64(&'a [i64]),
    F32(&'a [f32]),
    F64(&'a [f64]),
    Utf8(&'a arrow::array::StringArray),
    LargeUtf8(&'a arrow::array::LargeStringArray),
    Utf8View(&'a arrow::array::StringViewArray),
    Binary(&'a arrow::array::BinaryArray),
}

impl<'a> Column<'a> {
    fn new(array: &'a dyn Array) -> Self {
        let values = match array.data_type() {
            DataType::Boolean => Values::Boolean(array.as_boolean()),
            DataType::Int32 => Values::I32(array.as_primitive::<Int32Type>().values()),
            DataType::Int64 => Values::I64(array.as_primitive::<Int64Type>().values()),
            DataType::Float32 => Values::F32(array.as_primitive::<Float32Type>().values()),
            DataType::Float64 => Values::F64(array.as_primitive::<Float64Type>().values()),
            DataType::Utf8 => Values::Utf8(array.as_string()),
            DataType::LargeUtf8 => Values::LargeUtf8(array.as_string()),
            DataType::Utf8View => Values::Utf8View(array.as_string_view()),
            DataType::Binary => Values::Binary(array.as_binary()),
            DataType::Timestamp(TimeUnit::Millisecond, _) => {
                Values::I64(array.as_primitive::<TimestampMillisecondType>().values())
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                Values::I64(array.as_primitive::<TimestampMicrosecondType>().values())
            }
            other => unreachable!("RowHash::new refuses {other}"),
        };
        Self { array, nullable: array.null_count() > 0, values }
    }

    fn push(&self, row: usize, buffer: &mut Vec<u8>) {
        if self.nullable && self.array.is_null(row) {
            buffer.push(0);
            return;
        }
        buffer.push(1);
        match &self.values {
            Values::Boolean(a) => buffer.push(u8::from(a.value(row))),
            Values::I32(a) => buffer.extend_from_slice(&a[row].to_le_bytes()),
            Values::I64(a) => buffer.extend_from_slice(&a[row].to_le_bytes()),
            Values::F32(a) => buffer.extend_from_slice(&a[row].to_bits().to_le_bytes()),
            Values::F64(a) => buffer.extend_from_slice(&a[row].to_bits().to_le_bytes()),
            Values::Utf8(a) => push_bytes(buffer, a.value(row).as_bytes()),
            Values::LargeUtf8(a) => push_bytes(buffer, a.value(row).as_bytes()),
            Values::Utf8View(a) => push_bytes(buffer, a.value(row).as_bytes()),
            Values::Binary(a) => push_bytes(buffer, a.value(row)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int32Array, StringArray, StringViewArray};
    use proptest::prelude::*;

    use super::*;

    fn hash(batches: &[RecordBatch]) -> String {
        let mut hash = RowHash::new(batches[0].schema_ref()).unwrap();
        for batch in batches {
            hash.update(batch);
        }
        hash.finish()
    }

    fn batch(texts: &[Option<String>], numbers: &[Option<i32>]) -> RecordBatch {
        let texts: ArrayRef = Arc::new(StringArray::from_iter(texts));
        let numbers: ArrayRef = Arc::new(numbers.iter().copied().collect::<Int32Array>());
        RecordBatch::try_from_iter_with_nullable([("a", texts, true), ("b", numbers, true)]).unwrap()
    }

    #[test]
    fn the_definition_holds() {
        // Spelled out by hand from the module's documentation.
        let mut bytes = Vec::new();
        for text in ["a", "utf8", "b", "int32"] {
            push_bytes(&mut bytes, text.as_bytes());
        }
        bytes.extend_from_slice(&[1, 2, 0, 0, 0, b'h', b'i', 1, 7, 0, 0, 0]);
        bytes.extend_from_slice(&[0, 0]);
        let expected = hex::encode(Sha256::digest(&bytes));
        assert_eq!(hash(&[batch(&[Some("hi".into()), None], &[Some(7), None])]), expected);
    }

    #[test]
    fn layouts_of_text_do_not_matter() {
        let one: ArrayRef = Arc::new(StringArray::from(vec!["x", "longer than a view holds inline"]));
        let other: ArrayRef = Arc::new(StringViewArray::from(vec!["x", "longer than a view holds inline"]));
        let of = |array| hash(&[RecordBatch::try_from_iter([("a", array)]).unwrap()]);
        assert_eq!(of(one), of(other));
    }

    proptest! {
        #[test]
        fn batch_boundaries_do_not_matter(
            rows in prop::collection::vec((prop::option::of(".{0,20}"), prop::option::of(any::<i32>())), 1..60),
            cuts in prop::collection::vec(0usize..60, 0..6),
        ) {
            let (texts, numbers): (Vec<_>, Vec<_>) = rows.iter().cloned().unzip();
            let whole = batch(&texts, &numbers);
            let mut cuts: Vec<_> = cuts.into_iter().map(|c| c.min(rows.len())).collect();
            cuts.extend([0, rows.len()]);
            cuts.sort();
            let parts: Vec<_> = cuts.windows(2).map(|w| whole.slice(w[0], w[1] - w[0])).collect();
            prop_assert_eq!(hash(&parts), hash(std::slice::from_ref(&whole)));
        }

        #[test]
        fn any_change_of_a_row_shows(
            rows in prop::collection::vec((".{0,8}", any::<i32>()), 2..20),
            at in any::<prop::sample::Index>(),
            change in 0..4,
        ) {
            let (mut texts, mut numbers): (Vec<_>, Vec<_>) =
                rows.into_iter().map(|(t, n)| (Some(t), Some(n))).unzip();
            let before = hash(&[batch(&texts, &numbers)]);
            let at = at.index(texts.len() - 1);
            match change {
                0 => numbers[at] = numbers[at].map(|n| n.wrapping_add(1)),
                1 => numbers[at] = None,
                2 => {
                    // The same characters, cut elsewhere between two rows.
                    let next = texts[at + 1].clone().unwrap();
                    texts[at].as_mut().unwrap().push_str(&next);
                    texts[at].as_mut().unwrap().push('.');
                    texts[at + 1] = Some(String::new());
                }
                _ => {
                    texts.pop();
                    numbers.pop();
                }
            }
            prop_assert_ne!(hash(&[batch(&texts, &numbers)]), before);
        }
    }
}
