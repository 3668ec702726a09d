//! One object of rows: Parquet in memory, and back.
//!
//! ```text
//! ObjectWriter   write(rows, offsets, timestamps)* ─► finish(end) ─► Object { name, footer, bytes }
//! columns        those of the reader schema, then log_offset, log_timestamp_ms
//! footer         topic, partition, start and end offset, schema id, rows, event time range, row hash
//! ```
//!
//! Pure: bytes in, bytes out; what is stored where is [`crate::Lake`]'s.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, TimestampMillisecondArray, new_null_array};
use arrow::compute::{cast, max, min};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMillisecondType};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{KeyValue, ParquetMetaData, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::ChunkReader;
use parquet::schema::types::ColumnPath;

use crate::{Error, ObjectName, RowHash};

/// The column of the offset in the log.
pub const LOG_OFFSET: &str = "log_offset";
/// The column of the record's timestamp in the log.
pub const LOG_TIMESTAMP_MS: &str = "log_timestamp_ms";

pub(crate) const LOG_COLUMNS: [&str; 2] = [LOG_OFFSET, LOG_TIMESTAMP_MS];

/// What the footer of an object of skipped offsets has besides.
const SKIPPED: &str = "skipped";

/// What the footer of an object from which rows were erased has besides: how many.
const ERASED: &str = "erased_rows";

/// Levels above 1 cost three times the CPU for a few per cent.
const ZSTD_LEVEL: i32 = 1;

/// How the values of numbers are laid out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Encodings {
    /// As every reader of Parquet knows them: plain and dictionary.
    #[default]
    Standard,
    /// Smaller: BYTE_STREAM_SPLIT and DELTA_BINARY_PACKED. DuckDB, pyarrow and polars read them. Spark before 4.2 and
    /// Iceberg's readers need their slower, not vectorised readers for them.
    Compact,
}

/// Rows decoded at a time.
const READ_BATCH_ROWS: usize = 8192;

/// What the footer says about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The first offset that the object answers for.
    pub start: u64,
    /// The offset after the last that it answers for.
    pub end: u64,
    /// The Avro schema that the rows were read with.
    pub schema_id: u32,
    /// How many rows. May be fewer than `end - start`: Kafka's transaction markers take offsets too.
    pub rows: u64,
    /// The earliest and the latest event time; none without rows or without such a column.
    pub event_time_ms: Option<(i64, i64)>,
    /// [`RowHash`] of the rows.
    pub row_hash: String,
    /// Whether an operator let the sink skip these offsets, which retention had removed before they were written
    /// ([`Lake::skip`](crate::Lake::skip)). Then there are no rows.
    pub skipped: bool,
    /// How many rows of this range were erased because their cars asked to be forgotten
    /// ([`Lake::compact`](crate::Lake::compact)).
    pub erased: u64,
}

impl Footer {
    fn key_values(&self) -> Vec<KeyValue> {
        let mut pairs = vec![
            ("topic", self.topic.clone()),
            ("partition", self.partition.to_string()),
            ("start_offset", self.start.to_string()),
            ("end_offset", self.end.to_string()),
            ("schema_id", self.schema_id.to_string()),
            ("row_hash", self.row_hash.clone()),
        ];
        if let Some((min, max)) = self.event_time_ms {
            pairs.push(("min_event_time_ms", min.to_string()));
            pairs.push(("max_event_time_ms", max.to_string()));
        }
        if self.skipped {
            pairs.push((SKIPPED, true.to_string()));
        }
        if self.erased > 0 {
            pairs.push((ERASED, self.erased.to_string()));
        }
        pairs.into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value)).collect()
    }

    /// Reads the footer out of a file's metadata; the error says what is missing.
    pub(crate) fn from_metadata(metadata: &ParquetMetaData) -> Result<Self, String> {
        let file = metadata.file_metadata();
        let pairs = file.key_value_metadata().map_or(&[][..], Vec::as_slice);
        let text = |key: &str| {
            let pair = pairs.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone());
            pair.ok_or_else(|| format!("its footer has no {key:?}"))
        };
        fn number<T: std::str::FromStr>(key: &str, text: String) -> Result<T, String> {
            text.parse().map_err(|_| format!("its footer has {text:?} for {key:?}"))
        }
        let time = |key: &str| text(key).ok().map(|t| number(key, t)).transpose();
        Ok(Self {
            topic: text("topic")?,
            partition: number("partition", text("partition")?)?,
            start: number("start_offset", text("start_offset")?)?,
            end: number("end_offset", text("end_offset")?)?,
            schema_id: number("schema_id", text("schema_id")?)?,
            rows: u64::try_from(file.num_rows()).map_err(|_| "it has a negative number of rows".to_owned())?,
            event_time_ms: time("min_event_time_ms")?.zip(time("max_event_time_ms")?),
            row_hash: text("row_hash")?,
            skipped: text(SKIPPED).is_ok(),
            erased: text(ERASED).ok().map_or(Ok(0), |text| number(ERASED, text))?,
        })
    }
}

/// An object ready to be stored.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its name.
    pub name: ObjectName,
    /// What its footer says.
    pub footer: Footer,
    /// The Parquet file.
    pub bytes: Bytes,
}

/// Writes one object.
pub struct ObjectWriter {
    name: ObjectName,
    schema: SchemaRef,
    writer: ArrowWriter<Vec<u8>>,
    hash: RowHash,
    footer: Footer,
    event_time: Option<usize>,
}

impl ObjectWriter {
    /// An object of this name with no rows yet. `schema` is the reader schema of the topic; `schema_id` its id.
    pub fn new(name: ObjectName, schema: &Schema, schema_id: u32, encodings: Encodings) -> Result<Self, Error> {
        let failed = encode_error(&name);
        let mut fields = schema.fields().to_vec();
        fields.push(Arc::new(Field::new(LOG_OFFSET, DataType::Int64, false)));
        fields.push(Arc::new(Field::new(LOG_TIMESTAMP_MS, timestamp_type(), false)));
        let with_log: SchemaRef = Arc::new(Schema::new(fields));
        let writer = ArrowWriter::try_new(Vec::new(), with_log.clone(), Some(properties(&with_log, encodings)))
            .map_err(|e| failed(e.into()))?;
        let footer = Footer {
            topic: name.topic.clone(),
            partition: name.partition,
            start: name.start,
            end: name.start,
            schema_id,
            rows: 0,
            event_time_ms: None,
            row_hash: String::new(),
            skipped: false,
            erased: 0,
        };
        let hash = RowHash::new(schema).map_err(|e| failed(e.into()))?;
        Ok(Self { event_time: event_time_column(schema), schema: with_log, name, writer, hash, footer })
    }

    /// Adds rows: a batch of the reader schema, and each row's offset and timestamp in the log.
    ///
    /// # Panics
    /// If the three differ in length.
    pub fn write(&mut self, rows: &RecordBatch, offsets: &[u64], timestamps_ms: &[i64]) -> Result<(), Error> {
        assert!(rows.num_rows() == offsets.len() && rows.num_rows() == timestamps_ms.len(), "one of each per row");
        let failed = encode_error(&self.name);
        self.hash.update(rows);
        if let Some((low, high)) = self.event_time.and_then(|column| time_range(rows.column(column))) {
            let so_far = self.footer.event_time_ms.unwrap_or((low, high));
            self.footer.event_time_ms = Some((so_far.0.min(low), so_far.1.max(high)));
        }
        self.footer.rows += rows.num_rows() as u64;
        let mut columns = rows.columns().to_vec();
        // Offsets stay below 2^63 in Kafka, whose own type is a signed 64-bit number.
        columns.push(Arc::new(offsets.iter().map(|o| *o as i64).collect::<Int64Array>()));
        let timestamps = TimestampMillisecondArray::from_iter_values(timestamps_ms.iter().copied());
        columns.push(Arc::new(timestamps.with_data_type(timestamp_type())));
        let batch = RecordBatch::try_new(self.schema.clone(), columns).map_err(|e| failed(e.into()))?;
        self.writer.write(&batch).map_err(|e| failed(e.into()))
    }

    /// Whether rows of this schema can be added.
    pub(crate) fn takes(&self, schema: &Schema) -> bool {
        self.schema.fields()[..self.schema.fields().len() - LOG_COLUMNS.len()] == schema.fields()[..]
    }

    /// How many rows so far.
    pub fn rows(&self) -> u64 {
        self.footer.rows
    }

    /// Notes that so many rows of its range were erased.
    pub(crate) fn add_erased(&mut self, rows: u64) {
        self.footer.erased += rows;
    }

    /// Ends the object before offset `end`, as one of offsets that were skipped.
    pub(crate) fn finish_skipped(mut self, end: u64) -> Result<Object, Error> {
        self.footer.skipped = true;
        self.finish(end)
    }

    /// Ends the object before offset `end`.
    pub fn finish(mut self, end: u64) -> Result<Object, Error> {
        self.footer.end = end;
        self.footer.row_hash = self.hash.finish();
        for pair in self.footer.key_values() {
            self.writer.append_key_value_metadata(pair);
        }
        let bytes = self.writer.into_inner().map_err(|e| encode_error(&self.name)(e.into()))?;
        Ok(Object { name: self.name, footer: self.footer, bytes: bytes.into() })
    }
}

fn encode_error(name: &ObjectName) -> impl Fn(crate::error::BoxError) -> Error + use<> {
    let object = name.to_string();
    move |source| Error::Encode { object: object.clone(), source }
}

/// A point in time, as other programs expect it: an instant, shown in UTC.
fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("+00:00".into()))
}

/// The column that says when the rows' events happened: `event_time_ms`, or `began_ms` for faults.
pub fn event_time_column(schema: &Schema) -> Option<usize> {
    ["event_time_ms", "began_ms"].iter().find_map(|name| schema.index_of(name).ok())
}

fn time_range(times: &ArrayRef) -> Option<(i64, i64)> {
    let times = as_int64(times)?;
    min(&times).zip(max(&times))
}

/// Timestamps as numbers.
fn as_int64(times: &ArrayRef) -> Option<Int64Array> {
    match times.data_type() {
        DataType::Int64 => Some(times.as_primitive::<Int64Type>().clone()),
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            Some(times.as_primitive::<TimestampMillisecondType>().reinterpret_cast())
        }
        _ => None,
    }
}

fn properties(schema: &Schema, encodings: Encodings) -> WriterProperties {
    let level = ZstdLevel::try_new(ZSTD_LEVEL).expect("a level that zstd has");
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_created_by(concat!("carstream ", env!("CARGO_PKG_VERSION")).to_owned());
    for field in schema.fields() {
        let column = ColumnPath::from(field.name().as_str());
        let encoding = match (encodings, field.data_type()) {
            // Measurements hardly repeat: a dictionary of them costs and saves nothing.
            (Encodings::Standard, DataType::Float32 | DataType::Float64) => Encoding::PLAIN,
            // But their exponents do, which is what this encoding brings together.
            (Encodings::Compact, DataType::Float32 | DataType::Float64) => Encoding::BYTE_STREAM_SPLIT,
            // Times, offsets and counters grow by little.
            (Encodings::Compact, DataType::Int64 | DataType::Timestamp(..)) => Encoding::DELTA_BINARY_PACKED,
            _ => continue,
        };
        properties =
            properties.set_column_dictionary_enabled(column.clone(), false).set_column_encoding(column, encoding);
    }
    if let Ok(offset) = schema.index_of(LOG_OFFSET) {
        let sorted = SortingColumn { column_idx: offset as i32, descending: false, nulls_first: false };
        properties = properties.set_sorting_columns(Some(vec![sorted]));
    }
    properties.build()
}

/// Rows that were read, with their places in the log.
#[derive(Debug, Clone)]
pub struct Rows {
    /// The rows, in the reader schema.
    pub batch: RecordBatch,
    /// The offset of each row.
    pub offsets: Int64Array,
    /// The log's timestamp of each row, milliseconds since the epoch.
    pub timestamps_ms: Int64Array,
}

impl Rows {
    /// Those from an offset on.
    pub(crate) fn from(&self, offset: u64) -> Self {
        let before = self.offsets.values().partition_point(|other| (*other as u64) < offset);
        let left = self.offsets.len() - before;
        Self {
            batch: self.batch.slice(before, left),
            offsets: self.offsets.slice(before, left),
            timestamps_ms: self.timestamps_ms.slice(before, left),
        }
    }
}

/// Reads an object back, in offset order.
pub(crate) struct ObjectReader {
    reader: ParquetRecordBatchReader,
    schema: SchemaRef,
    /// The footer of the object.
    pub(crate) footer: Footer,
}

impl ObjectReader {
    /// Opens a Parquet file, to be read as `schema`. The error says what is wrong with the file.
    pub(crate) fn new(file: impl ChunkReader + 'static, schema: SchemaRef) -> Result<Self, String> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| e.to_string())?;
        let footer = Footer::from_metadata(builder.metadata())?;
        let wanted = schema.fields().iter().map(|field| field.name().as_str()).chain(LOG_COLUMNS);
        let columns = ProjectionMask::columns(builder.parquet_schema(), wanted);
        let builder = builder.with_projection(columns).with_batch_size(READ_BATCH_ROWS);
        let reader = builder.build().map_err(|e| e.to_string())?;
        Ok(Self { reader, schema, footer })
    }

    /// Opens a file to read its rows as they were written, in their schema and with the encodings of the file.
    pub(crate) fn as_written(bytes: Bytes) -> Result<(SchemaRef, Encodings, Self), String> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).map_err(|e| e.to_string())?;
        let fields = builder.schema().fields().iter().filter(|field| !LOG_COLUMNS.contains(&field.name().as_str()));
        let schema: SchemaRef = Arc::new(Schema::new(fields.cloned().collect::<Vec<_>>()));
        let columns = builder.metadata().row_groups().iter().flat_map(|group| group.columns());
        let compact = |encoding| matches!(encoding, Encoding::BYTE_STREAM_SPLIT | Encoding::DELTA_BINARY_PACKED);
        let is_compact = columns.flat_map(|column| column.encodings()).any(compact);
        let encodings = if is_compact { Encodings::Compact } else { Encodings::Standard };
        Ok((schema.clone(), encodings, Self::new(bytes, schema)?))
    }

    /// The next rows with offsets from `start` up to `end`; `None` at the end of the object.
    pub(crate) fn next(&mut self, start: u64, end: u64) -> Result<Option<Rows>, String> {
        for batch in self.reader.by_ref() {
            let batch = batch.map_err(|e| e.to_string())?;
            let numbers = |name: &str| {
                let column = batch.column_by_name(name).and_then(as_int64);
                column.ok_or_else(|| format!("it has no column {name} of the right type"))
            };
            let (offsets, timestamps) = (numbers(LOG_OFFSET)?, numbers(LOG_TIMESTAMP_MS)?);
            if !offsets.values().is_sorted() {
                return Err("its rows are not in the order of their offsets".to_owned());
            }
            let from = offsets.values().partition_point(|o| (*o as u64) < start);
            let to = offsets.values().partition_point(|o| (*o as u64) < end);
            if from < to {
                let wanted = conform(&batch.slice(from, to - from), &self.schema)?;
                return Ok(Some(Rows {
                    batch: wanted,
                    offsets: offsets.slice(from, to - from),
                    timestamps_ms: timestamps.slice(from, to - from),
                }));
            }
        }
        Ok(None)
    }
}

/// Gives a batch the reader schema: a column that the file does not have yet is null; numbers may have been narrower.
fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, String> {
    let columns = schema.fields().iter().map(|field| {
        let Some(column) = batch.column_by_name(field.name()) else {
            if field.is_nullable() {
                return Ok(new_null_array(field.data_type(), batch.num_rows()));
            }
            return Err(format!("it has no column {}, which cannot be null", field.name()));
        };
        if column.data_type() == field.data_type() {
            return Ok(column.clone());
        }
        if !widens(column.data_type(), field.data_type()) {
            let (found, wanted) = (column.data_type(), field.data_type());
            return Err(format!("its column {} is {found}, not {wanted}", field.name()));
        }
        cast(column, field.data_type()).map_err(|e| e.to_string())
    });
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    RecordBatch::try_new(schema.clone(), columns).map_err(|e| e.to_string())
}

/// Whether every value of `from` is one of `to`: Avro's promotions, and other layouts of the same type.
fn widens(from: &DataType, to: &DataType) -> bool {
    use DataType::{Float32, Float64, Int32, Int64, LargeUtf8, Timestamp, Utf8, Utf8View};
    match (from, to) {
        (Int32, Int64) | (Float32, Float64) | (Int32, Float64) => true,
        (Utf8 | LargeUtf8 | Utf8View, Utf8 | LargeUtf8 | Utf8View) => true,
        (Timestamp(from, Some(_)), Timestamp(to, Some(_))) => from == to,
        _ => false,
    }
}
