//! What the demo knows of each reading besides where it is: when it was sent, measured and scored.
//!
//! Where every reading went is the audit's to say ([`crate::audit`]); this is what detection and latency are judged
//! with.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, Int64Type, TimestampMillisecondType};
use contract::{Contract, ModelDefinition, Topic};
use event_log::{Batch, Log, RecordRef};
use telemetry::avro::AvroDecoder;
use telemetry::pseudonym::PseudonymKey;
use tokio_util::sync::CancellationToken;

use crate::audit::{Cars, Identity, TopicExtent, ledger, read};

/// What is known of one reading.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reading {
    /// Wall clock when the car first sent it.
    pub(crate) sent_ms: i64,
    /// Event time.
    pub(crate) event_time_ms: i64,
    /// Whether the model was trained on it.
    pub(crate) trained_on: bool,
    /// Its score, if it has one.
    pub(crate) score: Option<Scored>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Scored {
    pub(crate) score: f32,
    /// Wall clock when it was scored.
    pub(crate) at_ms: i64,
}

/// The readings of one run.
pub(crate) struct Account {
    /// Where the model's topics are.
    pub(crate) place: ModelDefinition,
    pub(crate) contract: Contract,
    cars: Cars,
    readings: HashMap<Identity, Reading>,
}

impl Account {
    /// Reads the simulator's ledger.
    pub(crate) fn open(contract: &Contract, ledger: &Path, key: &PseudonymKey) -> anyhow::Result<Self> {
        let place = contract.model(contract::MODEL).context("the demo needs the platform's model")?.clone();
        let contract = contract.clone();
        let mut account = Self { place, contract, cars: Cars::new(Some(key.clone())), readings: HashMap::new() };
        ledger::read(ledger, |row| {
            let Some(sent_ms) = row.first_sent_ms.filter(|_| !row.broken) else { return Ok(()) };
            let car = account.cars.of_vin(row.vin);
            let identity = Identity { car, boot_id: row.boot_id, seq: row.seq };
            let reading = Reading { sent_ms, event_time_ms: row.event_time_ms, ..Reading::default() };
            // One that was not acknowledged may come again in a later run, which sent it later.
            account.readings.entry(identity).or_insert(reading);
            Ok(())
        })?;
        Ok(account)
    }

    /// Notes which readings of the cloud's topic the model was trained on. `until`: where the training ended, by
    /// partition.
    pub(crate) fn note_training(&mut self, cloud: &Arc<dyn Log>, until: &HashMap<u32, u64>) -> anyhow::Result<()> {
        let readings = &self.place.readings.clone();
        self.each_reading(cloud, readings, |batch, _| {
            let until = until.get(&batch.partition()).copied().unwrap_or(0);
            Ok(Box::new(move |_, record, reading| reading.trained_on |= record.offset < until))
        })
    }

    /// Notes the scores.
    pub(crate) fn note_scores(&mut self, edge: &Arc<dyn Log>) -> anyhow::Result<()> {
        let scores = &self.place.scores.clone();
        self.each_reading(edge, scores, |_, rows| {
            let scores = column::<Float32Type>(rows, "score")?;
            Ok(Box::new(move |index, record, reading| {
                reading.score = Some(Scored { score: scores[index], at_ms: record.timestamp_ms });
            }))
        })
    }

    /// Reads a topic of Avro; `of_batch` makes of each batch what is noted of its rows' readings.
    fn each_reading(
        &mut self,
        log: &Arc<dyn Log>,
        topic: &Topic,
        of_batch: impl for<'b> Fn(&'b Batch, &RecordBatch) -> anyhow::Result<Note<'b>>,
    ) -> anyhow::Result<()> {
        let mut decoder = AvroDecoder::new(self.contract.schemas(), ModelDefinition::schema(topic))?;
        each_batch(log, &topic.name, |batch| {
            // Those that ask for a car to be forgotten are none.
            let records: Vec<_> = read::readings(batch).collect();
            for record in &records {
                if let Err(reject) = decoder.decode(record.value.unwrap_or_default()) {
                    bail!("{}/{} offset {}: {}", topic.name, batch.partition(), record.offset, reject.detail);
                }
            }
            let rows = decoder.finish();
            let mut note = of_batch(batch, &rows)?;
            let cars = rows.column_by_name("car").context("no column car")?.as_string::<i32>();
            let (boot_ids, seqs) = (column::<Int64Type>(&rows, "boot_id")?, column::<Int64Type>(&rows, "seq")?);
            for (index, record) in records.iter().enumerate() {
                let Some(car) = self.cars.find_pseudonym(cars.value(index)) else { continue };
                let identity = Identity { car, boot_id: boot_ids[index], seq: seqs[index] };
                if let Some(reading) = self.readings.get_mut(&identity) {
                    note(index, record, reading);
                }
            }
            Ok(())
        })
    }

    /// The readings themselves, with their cars' numbers.
    pub(crate) fn readings(&self) -> impl Iterator<Item = (u32, &Reading)> {
        self.readings.iter().map(|(identity, reading)| (identity.car, reading))
    }

    /// The number of a car, by pseudonym.
    pub(crate) fn car_number(&self, pseudonym: &str) -> Option<u32> {
        self.cars.find_pseudonym(pseudonym)
    }
}

/// Notes something of the reading of a row.
type Note<'b> = Box<dyn FnMut(usize, &RecordRef<'_>, &mut Reading) + 'b>;

/// Reads a topic from its beginning to its present end.
pub(crate) fn each_batch(
    log: &Arc<dyn Log>,
    topic: &Arc<str>,
    then: impl FnMut(&Batch) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    read::each_batch(log, &TopicExtent::of(log, topic)?, &CancellationToken::new(), then)
}

/// A column's values; none of the columns that are read here has nulls.
pub(crate) fn column<T: arrow::datatypes::ArrowPrimitiveType>(
    rows: &RecordBatch,
    name: &str,
) -> anyhow::Result<arrow::buffer::ScalarBuffer<T::Native>> {
    let column = rows.column_by_name(name).with_context(|| format!("no column {name}"))?;
    let array = column.as_primitive_opt::<T>().with_context(|| format!("column {name} is a {}", column.data_type()))?;
    Ok(array.values().clone())
}

/// A column of timestamps in milliseconds.
pub(crate) fn times(rows: &RecordBatch, name: &str) -> anyhow::Result<arrow::buffer::ScalarBuffer<i64>> {
    column::<TimestampMillisecondType>(rows, name)
}
