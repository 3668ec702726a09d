//! A reference table in memory: the last row of each key, and only the columns that the statement uses.
//!
//! ```text
//!  records of the topic ─► decode ─► used columns ─► pending batches ─► one batch, and key ─► row
//!       (a tombstone removes its key)                                     └─ gather(keys): take by row
//! ```
//!
//! Rows that were replaced stay in the batch until they are more than the others; then they are dropped.

use std::collections::HashMap;

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt32Array};
use arrow::compute::{concat_batches, take, take_record_batch};
use arrow::error::ArrowError;

/// Replaced rows are dropped when they are as many as the others, but at least this many.
const MIN_DEAD_ROWS: usize = 1024;

/// The rows of one table.
#[derive(Debug)]
pub struct LookupTable {
    columns: Vec<usize>,
    rows: RecordBatch,
    index: HashMap<Box<str>, u32>,
    pending: Vec<RecordBatch>,
    /// Rows of `rows` and `pending` together.
    total: usize,
}

impl LookupTable {
    /// An empty table that keeps these columns of `schema`.
    pub fn new(schema: &arrow::datatypes::SchemaRef, columns: Vec<usize>) -> Self {
        let kept = schema.project(&columns).expect("the columns are columns of the schema");
        let rows = RecordBatch::new_empty(kept.into());
        Self { columns, rows, index: HashMap::new(), pending: Vec::new(), total: 0 }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether this key has a row.
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// How many rows are stored, with those that have been replaced.
    #[cfg(test)]
    pub(super) fn stored_rows(&self) -> usize {
        self.total
    }

    /// The columns that are kept.
    #[cfg(test)]
    pub(super) fn columns(&self) -> arrow::datatypes::Fields {
        self.rows.schema().fields().clone()
    }

    /// Takes one decoded batch of the topic. `changes` are its keys in order, with the row of the batch, or `None`
    /// for a tombstone.
    pub fn update<'k>(
        &mut self,
        batch: &RecordBatch,
        changes: impl IntoIterator<Item = (&'k str, Option<usize>)>,
    ) -> Result<(), ArrowError> {
        for (key, row) in changes {
            match row {
                Some(row) => {
                    let row = (self.total + row) as u32;
                    match self.index.get_mut(key) {
                        Some(place) => *place = row,
                        None => {
                            self.index.insert(key.into(), row);
                        }
                    }
                }
                None => {
                    self.index.remove(key);
                }
            }
        }
        if batch.num_rows() > 0 {
            self.total += batch.num_rows();
            self.pending.push(batch.project(&self.columns)?);
        }
        if self.total - self.index.len() >= self.index.len().max(MIN_DEAD_ROWS) {
            self.drop_dead_rows()?;
        }
        Ok(())
    }

    /// For each key the place of its row.
    pub(super) fn find(&self, keys: &StringArray) -> UInt32Array {
        keys.iter().map(|key| key.and_then(|key| self.index.get(key).copied())).collect()
    }

    /// The columns of these rows; null where there is none.
    pub(super) fn gather(&mut self, rows: &UInt32Array) -> Result<Vec<ArrayRef>, ArrowError> {
        self.settle()?;
        self.rows.columns().iter().map(|column| take(column, rows, None)).collect()
    }

    fn settle(&mut self) -> Result<(), ArrowError> {
        if !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            self.rows = concat_batches(&self.rows.schema(), std::iter::once(&self.rows).chain(&pending))?;
        }
        Ok(())
    }

    fn drop_dead_rows(&mut self) -> Result<(), ArrowError> {
        self.settle()?;
        let mut live = Vec::with_capacity(self.index.len());
        for row in self.index.values_mut() {
            live.push(*row);
            *row = (live.len() - 1) as u32;
        }
        self.rows = take_record_batch(&self.rows, &UInt32Array::from(live))?;
        self.total = self.rows.num_rows();
        Ok(())
    }
}
