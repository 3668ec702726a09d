//! Rows that grow column by column, where the row under way can be taken back.
//!
//! ```text
//!            vin   seq   speed …
//!  row 0     ✓     ✓     ✓           committed: goes into the RecordBatch
//!  row 1     ✓     ✓     ✓
//!  under way ✓     ✓                 commit() keeps it, roll_back() leaves no trace of it
//! ```
//!
//! Arrow's own builders can't be shortened, which is why these are plain vectors. They become Arrow arrays without a
//! copy.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch, RecordBatchOptions,
    StringArray, TimestampMillisecondArray,
};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};

use crate::schema::{Kind, Schema, UTC};

/// The columns of one schema.
#[derive(Debug)]
pub(crate) struct Columns {
    schema: Arc<Schema>,
    columns: Vec<Column>,
    rows: usize,
}

impl Columns {
    pub(crate) fn new(schema: &Arc<Schema>) -> Self {
        let columns = schema.fields.iter().map(|field| Column::new(field.kind, field.nullable)).collect();
        Self { schema: schema.clone(), columns, rows: 0 }
    }

    /// How many rows are committed.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn column(&mut self, index: usize) -> &mut Column {
        &mut self.columns[index]
    }

    /// Whether the row under way has a value (or null) in this column.
    pub(crate) fn is_filled(&self, index: usize) -> bool {
        self.columns[index].len() > self.rows
    }

    /// Keeps the row under way. Every column must be filled.
    pub(crate) fn commit(&mut self) {
        self.rows += 1;
        debug_assert!(self.columns.iter().all(|column| column.len() == self.rows));
    }

    /// Takes back the row under way.
    pub(crate) fn roll_back(&mut self) {
        for column in &mut self.columns {
            column.truncate(self.rows);
        }
    }

    /// The committed rows; starts anew.
    pub(crate) fn finish(&mut self) -> RecordBatch {
        let rows = std::mem::take(&mut self.rows);
        let arrays = self.columns.iter_mut().map(|column| column.finish(rows)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.schema.arrow.clone(), arrays, &options)
            .expect("columns are made from the schema and filled together")
    }
}

/// One column. A value of another type than the column's is a mistake of the caller's and panics.
#[derive(Debug)]
pub(crate) struct Column {
    kind: Kind,
    values: Values,
    /// Of a nullable column: which rows have a value.
    valid: Option<Vec<bool>>,
}

#[derive(Debug)]
enum Values {
    Boolean(Vec<bool>),
    Int(Vec<i32>),
    Long(Vec<i64>),
    Float(Vec<f32>),
    Double(Vec<f64>),
    /// `ends[i]..ends[i + 1]` is row i.
    Text {
        ends: Vec<i32>,
        bytes: Vec<u8>,
    },
}

impl Column {
    fn new(kind: Kind, nullable: bool) -> Self {
        let values = match kind {
            Kind::Boolean => Values::Boolean(Vec::new()),
            Kind::Int => Values::Int(Vec::new()),
            Kind::Long | Kind::TimestampMillis => Values::Long(Vec::new()),
            Kind::Float => Values::Float(Vec::new()),
            Kind::Double => Values::Double(Vec::new()),
            Kind::String => Values::Text { ends: vec![0], bytes: Vec::new() },
        };
        Self { kind, values, valid: nullable.then(Vec::new) }
    }

    fn len(&self) -> usize {
        match &self.values {
            Values::Boolean(values) => values.len(),
            Values::Int(values) => values.len(),
            Values::Long(values) => values.len(),
            Values::Float(values) => values.len(),
            Values::Double(values) => values.len(),
            Values::Text { ends, .. } => ends.len() - 1,
        }
    }

    pub(crate) fn push_null(&mut self) {
        match &mut self.values {
            Values::Boolean(values) => values.push(false),
            Values::Int(values) => values.push(0),
            Values::Long(values) => values.push(0),
            Values::Float(values) => values.push(0.0),
            Values::Double(values) => values.push(0.0),
            Values::Text { ends, .. } => ends.push(ends[ends.len() - 1]),
        }
        self.valid.as_mut().expect("only a nullable column takes a null").push(false);
    }

    pub(crate) fn push_boolean(&mut self, value: bool) {
        let Values::Boolean(values) = &mut self.values else { self.mistaken() };
        values.push(value);
        self.mark_valid();
    }

    pub(crate) fn push_int(&mut self, value: i32) {
        let Values::Int(values) = &mut self.values else { self.mistaken() };
        values.push(value);
        self.mark_valid();
    }

    pub(crate) fn push_long(&mut self, value: i64) {
        let Values::Long(values) = &mut self.values else { self.mistaken() };
        values.push(value);
        self.mark_valid();
    }

    pub(crate) fn push_float(&mut self, value: f32) {
        let Values::Float(values) = &mut self.values else { self.mistaken() };
        values.push(value);
        self.mark_valid();
    }

    pub(crate) fn push_double(&mut self, value: f64) {
        let Values::Double(values) = &mut self.values else { self.mistaken() };
        values.push(value);
        self.mark_valid();
    }

    /// # Panics
    /// If the strings of the column pass 2 GiB, 32,000 records of the largest size.
    pub(crate) fn push_text(&mut self, value: &str) {
        let Values::Text { ends, bytes } = &mut self.values else { self.mistaken() };
        bytes.extend_from_slice(value.as_bytes());
        ends.push(i32::try_from(bytes.len()).expect("the strings of a batch stay below 2 GiB"));
        self.mark_valid();
    }

    fn mark_valid(&mut self) {
        if let Some(valid) = &mut self.valid {
            valid.push(true);
        }
    }

    fn mistaken(&self) -> ! {
        unreachable!("a value of another type in a column of {:?}", self.kind)
    }

    fn truncate(&mut self, rows: usize) {
        match &mut self.values {
            Values::Boolean(values) => values.truncate(rows),
            Values::Int(values) => values.truncate(rows),
            Values::Long(values) => values.truncate(rows),
            Values::Float(values) => values.truncate(rows),
            Values::Double(values) => values.truncate(rows),
            Values::Text { ends, bytes } => {
                ends.truncate(rows + 1);
                bytes.truncate(ends[rows] as usize);
            }
        }
        if let Some(valid) = &mut self.valid {
            valid.truncate(rows);
        }
    }

    /// The array; the next rows get as much room as these had.
    fn finish(&mut self, rows: usize) -> ArrayRef {
        fn take<T>(values: &mut Vec<T>, rows: usize) -> Vec<T> {
            std::mem::replace(values, Vec::with_capacity(rows))
        }
        let nulls = self.valid.as_mut().map(|valid| NullBuffer::new(BooleanBuffer::from(take(valid, rows))));
        let nulls = nulls.filter(|nulls| nulls.null_count() > 0);
        match &mut self.values {
            Values::Boolean(values) => Arc::new(BooleanArray::new(BooleanBuffer::from(take(values, rows)), nulls)),
            Values::Int(values) => Arc::new(Int32Array::new(ScalarBuffer::from(take(values, rows)), nulls)),
            Values::Long(values) => {
                let values = ScalarBuffer::from(take(values, rows));
                match self.kind {
                    Kind::TimestampMillis => Arc::new(TimestampMillisecondArray::new(values, nulls).with_timezone(UTC)),
                    _ => Arc::new(Int64Array::new(values, nulls)),
                }
            }
            Values::Float(values) => Arc::new(Float32Array::new(ScalarBuffer::from(take(values, rows)), nulls)),
            Values::Double(values) => Arc::new(Float64Array::new(ScalarBuffer::from(take(values, rows)), nulls)),
            Values::Text { ends, bytes } => {
                let mut fresh = Vec::with_capacity(rows + 1);
                fresh.push(0);
                let ends = std::mem::replace(ends, fresh);
                let room = bytes.len();
                let bytes = std::mem::replace(bytes, Vec::with_capacity(room));
                let offsets = OffsetBuffer::new(ScalarBuffer::from(ends));
                Arc::new(StringArray::new(offsets, Buffer::from_vec(bytes), nulls))
            }
        }
    }
}
