//! Arrow to Avro and back, one record a message, with the Confluent header.
//!
//! ```text
//!  ┌─0─┬─ id, 4 bytes, big endian ─┬─ Avro body ─┐
//! ```
//!
//! **Out** goes through arrow-avro's `Encoder`. It would let a null pass in a field that has none, so the batch is
//! first put under the output schema, which checks.
//!
//! **In** is our own loop over the writer's fields, on the columns that JSON uses too. arrow-avro's `Decoder` keeps
//! half a row after an error and invents rows from then on, takes two records in one message for two rows, and stops
//! after the header when the schema id changes; with columns that can take back a row none of that arises, mixed
//! schema ids keep their order, and a bad record costs nothing but itself. The tests hold it against arrow-avro.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow_avro::schema::{FingerprintStrategy, SCHEMA_METADATA_KEY};
use arrow_avro::writer::format::AvroSoeFormat;
use arrow_avro::writer::{Encoder, WriterBuilder};

use crate::Reject;
use crate::columns::{Column, Columns};
use crate::schema::{Kind, Schema, Schemas};

/// Every reason that [`AvroDecoder::decode`] gives.
pub const REASONS: [&str; 4] = ["not-avro", "unknown-schema", "incompatible-schema", "malformed-avro"];

/// What goes wrong for a whole batch: a mistake in a program or its settings, not in a record.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no schema with this id.
    #[error("no schema has the id {0}")]
    NoSuchId(u32),
    /// There is no schema file with this name.
    #[error("there is no schema {0}")]
    NoSuchSchema(String),
    /// The batch is not of the schema that it should be written with.
    #[error("the batch does not fit schema {file}")]
    Unfit {
        /// The schema.
        file: String,
        /// Which column, and how.
        #[source]
        source: ArrowError,
    },
    /// arrow-avro refused.
    #[error("cannot encode with schema {file}")]
    Encode {
        /// The schema.
        file: String,
        /// Why.
        #[source]
        source: arrow_avro::errors::AvroError,
    },
}

/// The schema id of a message, if it has the header.
pub fn schema_id(message: &[u8]) -> Option<u32> {
    match message {
        [0, a, b, c, d, ..] => Some(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

/// Encodes batches of one schema.
#[derive(Debug)]
pub struct AvroEncoder {
    schema: Arc<Schema>,
    encoder: Encoder,
}

impl AvroEncoder {
    /// An encoder for the schema with this id.
    pub fn new(schemas: &Schemas, id: u32) -> Result<Self, Error> {
        let schema = schemas.id(id).ok_or(Error::NoSuchId(id))?.clone();
        let metadata = HashMap::from([(SCHEMA_METADATA_KEY.to_owned(), schema.json.clone())]);
        let encoder = WriterBuilder::new(schema.arrow.as_ref().clone().with_metadata(metadata))
            .with_fingerprint_strategy(FingerprintStrategy::Id(id))
            .build_encoder::<AvroSoeFormat>()
            .map_err(|source| Error::Encode { file: schema.file.clone(), source })?;
        Ok(Self { schema, encoder })
    }

    /// One message per row. The batch must have the schema's columns: names, order, types, and no null where none is
    /// allowed.
    pub fn encode(&mut self, batch: &RecordBatch) -> Result<EncodedRows, Error> {
        let unfit = |source| Error::Unfit { file: self.schema.file.clone(), source };
        let wanted = self.schema.fields.iter().map(|field| field.name.as_str());
        if !batch.schema_ref().fields().iter().map(|field| field.name().as_str()).eq(wanted) {
            return Err(unfit(ArrowError::SchemaError("the names of its columns differ".to_owned())));
        }
        let batch = RecordBatch::try_new(self.encoder.schema(), batch.columns().to_vec()).map_err(unfit)?;
        self.encoder.encode(&batch).map_err(|source| Error::Encode { file: self.schema.file.clone(), source })?;
        Ok(EncodedRows(self.encoder.flush()))
    }
}

/// The messages of a batch, row by row, in one buffer.
#[derive(Debug)]
pub struct EncodedRows(arrow_avro::writer::EncodedRows);

impl EncodedRows {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The messages, in row order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.0.offsets().windows(2).map(|ends| &self.0.bytes()[ends[0]..ends[1]])
    }
}

/// Decodes messages of any compatible writer into rows of one reader schema.
///
/// Compatible, as Avro's schema resolution has it: the same record name; every reader field is in the writer (int may
/// become long or double, float double, and T optional), or is nullable and becomes null. The writer's other fields
/// are skipped.
#[derive(Debug)]
pub struct AvroDecoder {
    columns: Columns,
    reader: Arc<Schema>,
    writers: HashMap<u32, Result<Plan, String>>,
}

/// How the records of one writer are read.
#[derive(Debug)]
struct Plan {
    steps: Vec<Step>,
    /// Columns that this writer does not have.
    absent: Vec<usize>,
}

/// One field of the writer.
#[derive(Debug)]
struct Step {
    name: String,
    kind: Kind,
    nullable: bool,
    /// The reader's column and its type, or `None` to skip the field.
    target: Option<(usize, Kind)>,
}

impl AvroDecoder {
    /// A decoder into the schema of file `reader`, for all writers that `schemas` has an id for.
    pub fn new(schemas: &Schemas, reader: &str) -> Result<Self, Error> {
        let reader = schemas.file(reader).ok_or_else(|| Error::NoSuchSchema(reader.to_owned()))?;
        let writers = schemas.with_ids().map(|(id, writer)| (id, Plan::new(writer, reader))).collect();
        Ok(Self { columns: Columns::new(reader), reader: reader.clone(), writers })
    }

    /// The schema id of this message, if nobody has told the decoder what is written with it.
    pub fn unknown_id(&self, message: &[u8]) -> Option<u32> {
        schema_id(message).filter(|id| !self.writers.contains_key(id))
    }

    /// From now on reads messages with this id as written by `writer`; with an error, refuses them for that reason.
    pub fn add_writer(&mut self, id: u32, writer: Result<&Schema, &str>) {
        let plan = writer.map_err(str::to_owned).and_then(|writer| Plan::new(writer, &self.reader));
        self.writers.insert(id, plan);
    }

    /// Appends one message as a row, or says why not; then nothing of it is left.
    pub fn decode(&mut self, message: &[u8]) -> Result<(), Reject> {
        let Some(id) = schema_id(message) else {
            return Err(Reject::new("not-avro", "the message does not begin with 0 and a schema id"));
        };
        let plan = match self.writers.get(&id) {
            Some(Ok(plan)) => plan,
            Some(Err(why)) => return Err(Reject::new("incompatible-schema", format!("schema id {id}: {why}"))),
            None => return Err(Reject::new("unknown-schema", format!("no schema has the id {id}"))),
        };
        match plan.read_row(&message[5..], &mut self.columns) {
            Ok(()) => {
                self.columns.commit();
                Ok(())
            }
            Err(what) => {
                self.columns.roll_back();
                Err(Reject::new("malformed-avro", what))
            }
        }
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.columns.rows()
    }

    /// The schema of the batches: the reader's.
    pub fn schema(&self) -> &SchemaRef {
        &self.reader.arrow
    }

    /// The rows since the last time, in the order they were decoded.
    pub fn finish(&mut self) -> RecordBatch {
        self.columns.finish()
    }
}

impl Plan {
    fn new(writer: &Schema, reader: &Schema) -> Result<Self, String> {
        if writer.name != reader.name {
            return Err(format!("is a {}, expected a {}", writer.name, reader.name));
        }
        let mut steps = Vec::with_capacity(writer.fields.len());
        for field in &writer.fields {
            let target = match reader.index_of(&field.name) {
                None => None,
                Some(i) => {
                    let wanted = &reader.fields[i];
                    let promoted = matches!(
                        (field.kind, wanted.kind),
                        (Kind::Int, Kind::Long | Kind::Double) | (Kind::Float, Kind::Double)
                    );
                    if (field.kind != wanted.kind && !promoted) || (field.nullable && !wanted.nullable) {
                        return Err(format!("{} does not resolve into {}", field.name, reader.file));
                    }
                    Some((i, wanted.kind))
                }
            };
            steps.push(Step { name: field.name.clone(), kind: field.kind, nullable: field.nullable, target });
        }
        let mut absent = Vec::new();
        for (i, field) in reader.fields.iter().enumerate() {
            if writer.index_of(&field.name).is_none() {
                if !field.nullable {
                    return Err(format!("has no {}, which {} needs", field.name, reader.file));
                }
                absent.push(i);
            }
        }
        Ok(Self { steps, absent })
    }

    fn read_row(&self, body: &[u8], columns: &mut Columns) -> Result<(), String> {
        let mut cursor = Cursor(body);
        for step in &self.steps {
            let mut target = step.target.map(|(i, kind)| (columns.column(i), kind));
            step.read(&mut cursor, &mut target).ok_or_else(|| format!("{} can't be read", step.name))?;
        }
        if !cursor.0.is_empty() {
            return Err(format!("{} bytes follow the record", cursor.0.len()));
        }
        for i in &self.absent {
            columns.column(*i).push_null();
        }
        Ok(())
    }
}

impl Step {
    /// `None`: the bytes are not what the type needs.
    fn read(&self, cursor: &mut Cursor, target: &mut Option<(&mut Column, Kind)>) -> Option<()> {
        if self.nullable {
            match cursor.long()? {
                0 => {
                    if let Some((column, _)) = target {
                        column.push_null();
                    }
                    return Some(());
                }
                1 => {}
                _ => return None,
            }
        }
        match self.kind {
            Kind::Boolean => {
                let value = match cursor.take(1)? {
                    [0] => false,
                    [1] => true,
                    _ => return None,
                };
                if let Some((column, _)) = target {
                    column.push_boolean(value);
                }
            }
            Kind::Int => {
                let value = i32::try_from(cursor.long()?).ok()?;
                match target {
                    Some((column, Kind::Long)) => column.push_long(value.into()),
                    Some((column, Kind::Double)) => column.push_double(value.into()),
                    Some((column, _)) => column.push_int(value),
                    None => {}
                }
            }
            Kind::Long | Kind::TimestampMillis => {
                let value = cursor.long()?;
                if let Some((column, _)) = target {
                    column.push_long(value);
                }
            }
            Kind::Float => {
                let value = f32::from_le_bytes(cursor.take(4)?.try_into().ok()?);
                match target {
                    Some((column, Kind::Double)) => column.push_double(value.into()),
                    Some((column, _)) => column.push_float(value),
                    None => {}
                }
            }
            Kind::Double => {
                let value = f64::from_le_bytes(cursor.take(8)?.try_into().ok()?);
                if let Some((column, _)) = target {
                    column.push_double(value);
                }
            }
            Kind::String => {
                let length = usize::try_from(cursor.long()?).ok()?;
                let value = std::str::from_utf8(cursor.take(length)?).ok()?;
                if let Some((column, _)) = target {
                    column.push_text(value);
                }
            }
        }
        Some(())
    }
}

/// What is left of a body.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// A zigzag varint of at most 64 bits.
    fn long(&mut self) -> Option<i64> {
        let mut value = 0u64;
        for (i, byte) in self.0.iter().enumerate().take(10) {
            if i == 9 && *byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.0 = &self.0[i + 1..];
                return Some((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        None
    }
}
