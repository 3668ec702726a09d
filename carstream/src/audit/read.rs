//! Reads the hops record by record, and gives the reading and the place of each.
//!
//! It judges nothing: the first pass counts what comes from here, the second one looks for single readings.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context, bail};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use contract::ModelDefinition;
use event_log::{Batch, Log, RecordRef, batches};
use lake::Lake;
use pipeline::DeadLetterHeader;
use schema_registry::SchemaSource;
use telemetry::json::JsonDecoder;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::Hop;
use super::extent::{LakeExtent, TopicExtent};
use super::flow::Flow;
use crate::dead_letter::REPLAYED_FROM;

/// Records a read.
const READ_RECORDS: usize = 8192;

/// A record of a topic, or a row of the lake.
#[derive(Debug, Clone)]
pub(crate) struct HopRecord<'a> {
    pub(crate) hop: Hop,
    pub(crate) place: PlaceRef<'a>,
    pub(crate) timestamp_ms: i64,
    pub(crate) kind: RecordKind<'a>,
    /// Of a raw record: its key, the VIN of whoever sent it, and its bytes.
    pub(crate) raw: Option<(&'a [u8], &'a [u8])>,
}

/// Whether a record is a reading.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RecordKind<'a> {
    /// A reading. Its car is a VIN in the raw topic, and a pseudonym everywhere else.
    Reading { car: &'a str, boot_id: i64, seq: i64 },
    /// Nothing that could be used, and why.
    Unusable(&'a str),
}

/// A place, stored cheaply.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlaceRef<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    /// Of a row: its object, and its number in there from 0.
    pub(crate) row: Option<(&'a str, u64)>,
}

impl fmt::Display for PlaceRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, partition, offset, row } = self;
        match row {
            Some((object, row)) => write!(f, "{object} row {row} (offset {offset})"),
            None => write!(f, "{topic}/{partition} offset {offset}"),
        }
    }
}

/// A dead letter of a reading.
#[derive(Debug)]
pub(crate) struct DeadLetter<'a> {
    pub(crate) place: PlaceRef<'a>,
    pub(crate) reason: &'a str,
    /// Topic, partition and offset that it was read from.
    pub(crate) source: Option<(&'a str, u32, u64)>,
    /// The VIN of whoever sent it, as the bridge has it.
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    /// Its raw record was itself put there by a replay.
    pub(crate) replayed: bool,
}

/// Reads a topic to the end of the extent.
pub(crate) fn each_batch(
    log: &Arc<dyn Log>,
    extent: &TopicExtent,
    shutdown: &CancellationToken,
    mut then: impl FnMut(&Batch) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let topic = &extent.topic;
    let stop = || shutdown.is_cancelled();
    for batch in batches(log, extent.ranges(), READ_RECORDS)?.until(&stop) {
        // Retention may remove what was about to be read; the next run then begins later.
        then(&batch.with_context(|| format!("cannot read {topic} in {}", log.url()))?)?;
    }
    if stop() {
        bail!("stopped while reading {topic}");
    }
    Ok(())
}

/// The records of a topic of readings that should be readings: not those that ask for a car to be forgotten.
pub(crate) fn readings(batch: &Batch) -> impl Iterator<Item = RecordRef<'_>> {
    batch.iter().filter(|record| !contract::is_forget(record.value, record.headers.get(contract::FORGET)))
}

/// Reads the raw topic: JSON as the cars sent it.
pub(crate) fn raw(
    flow: &Flow,
    log: &Arc<dyn Log>,
    extent: &TopicExtent,
    shutdown: &CancellationToken,
    mut then: impl FnMut(&HopRecord<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut decoder = JsonDecoder::new(&flow.stream.input.schema);
    let identity = flow.raw_identity();
    each_batch(log, extent, shutdown, |batch| {
        let decoded: Vec<_> = readings(batch).map(|record| decoder.decode(record.value.unwrap_or_default())).collect();
        let rows = Identities::of(&decoder.finish(), identity)?;
        let mut row = 0;
        for (record, decoded) in readings(batch).zip(decoded) {
            let kind = match &decoded {
                Ok(()) => {
                    row += 1;
                    match rows.get(row - 1) {
                        reading @ RecordKind::Reading { car, .. } if car.as_bytes() == record.key => reading,
                        _ => RecordKind::Unusable("the key is not the VIN of the payload"),
                    }
                }
                Err(reject) => RecordKind::Unusable(reject.reason),
            };
            let place =
                PlaceRef { topic: &extent.topic, partition: batch.partition(), offset: record.offset, row: None };
            let raw = Some((record.key, record.value.unwrap_or_default()));
            then(&HopRecord { hop: Hop::Raw, place, timestamp_ms: record.timestamp_ms, kind, raw })?;
        }
        Ok(())
    })
}

/// Reads a topic of Avro, as this schema has it, with the columns that identify a clean reading.
pub(crate) fn avro(
    flow: &Flow,
    hop: Hop,
    log: &Arc<dyn Log>,
    schemas: &SchemaSource,
    extent: &TopicExtent,
    shutdown: &CancellationToken,
    mut then: impl FnMut(&HopRecord<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let schema = match (&flow.model, hop) {
        (Some(model), Hop::Scores) => ModelDefinition::schema(&model.scores),
        _ => &flow.clean_schema,
    };
    let mut decoder = schemas.decoder(schema)?;
    let identity = flow.stream.clean_identity();
    each_batch(log, extent, shutdown, |batch| {
        schemas.resolve(&mut decoder, batch.iter().filter_map(|record| record.value))?;
        let decoded: Vec<_> = readings(batch).map(|record| decoder.decode(record.value.unwrap_or_default())).collect();
        let rows = Identities::of(&decoder.finish(), identity)?;
        let mut row = 0;
        for (record, decoded) in readings(batch).zip(decoded) {
            let kind = match &decoded {
                Ok(()) => {
                    row += 1;
                    rows.get(row - 1)
                }
                Err(reject) => RecordKind::Unusable(reject.reason),
            };
            let place =
                PlaceRef { topic: &extent.topic, partition: batch.partition(), offset: record.offset, row: None };
            then(&HopRecord { hop, place, timestamp_ms: record.timestamp_ms, kind, raw: None })?;
        }
        Ok(())
    })
}

/// Reads the objects of the lake. `unusable` gets the name of an object that cannot be read to its end, and why.
pub(crate) fn objects(
    flow: &Flow,
    lake: &Lake,
    extent: &LakeExtent,
    runtime: &Handle,
    shutdown: &CancellationToken,
    mut then: impl FnMut(&HopRecord<'_>) -> anyhow::Result<()>,
    mut unusable: impl FnMut(&str, String),
) -> anyhow::Result<()> {
    for object in &extent.objects {
        let name = object.name.to_string();
        let mut reader = lake.read_object(object.name.clone(), &object.footer, flow.identity_schema());
        let mut row = 0;
        loop {
            if shutdown.is_cancelled() {
                bail!("stopped while reading {name}");
            }
            let read = match runtime.block_on(reader.next()) {
                Ok(Some(rows)) => rows,
                Ok(None) => break,
                Err(lake::Error::Unusable { what, .. }) => {
                    unusable(&name, what);
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let rows = Identities::of(&read.batch, flow.stream.clean_identity())?;
            for (index, (offset, timestamp_ms)) in
                read.offsets.values().iter().zip(read.timestamps_ms.values()).enumerate()
            {
                let (offset, timestamp_ms) = (*offset as u64, *timestamp_ms);
                let partition = object.name.partition;
                let place = PlaceRef { topic: flow.clean(), partition, offset, row: Some((&name, row)) };
                then(&HopRecord { hop: Hop::Lake, place, timestamp_ms, kind: rows.get(index), raw: None })?;
                row += 1;
            }
        }
    }
    Ok(())
}

/// Reads the dead letters of readings.
pub(crate) fn dead_letters(
    log: &Arc<dyn Log>,
    extent: &TopicExtent,
    shutdown: &CancellationToken,
    mut then: impl FnMut(&DeadLetter<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    each_batch(log, extent, shutdown, |batch| {
        for record in batch.iter() {
            let text = |name| record.headers.get(name).and_then(|value| std::str::from_utf8(value).ok());
            let topic = text(DeadLetterHeader::TOPIC);
            let partition = text(DeadLetterHeader::PARTITION).and_then(|text| text.parse().ok());
            let offset = text(DeadLetterHeader::OFFSET).and_then(|text| text.parse().ok());
            let source =
                topic.zip(partition).zip(offset).map(|((topic, partition), offset)| (topic, partition, offset));
            let (partition, offset) = (batch.partition(), record.offset);
            then(&DeadLetter {
                place: PlaceRef { topic: &extent.topic, partition, offset, row: None },
                reason: text(DeadLetterHeader::REASON).unwrap_or("no reason"),
                source,
                key: record.key,
                value: record.value.unwrap_or_default(),
                replayed: record.headers.get(REPLAYED_FROM).is_some(),
            })?;
        }
        Ok(())
    })
}

/// Boot id and sequence number of bytes that may be no JSON at all: the numbers behind the names of these two fields.
///
/// Good enough to tell which of a car's broken readings this is, and nothing else: whose it is says the record's key.
pub(crate) fn guess(payload: &[u8], [boot_id, seq]: [&str; 2]) -> Option<(i64, i64)> {
    Some((number_behind(payload, boot_id)?, number_behind(payload, seq)?))
}

fn number_behind(payload: &[u8], field: &str) -> Option<i64> {
    let name = format!("\"{field}\":").into_bytes();
    let at = payload.windows(name.len()).position(|window| *window == name)? + name.len();
    let rest = payload[at..].trim_ascii_start();
    let digits = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
    // Digits that end with the payload may have been cut off.
    let whole = (digits < rest.len()).then_some(&rest[..digits])?;
    std::str::from_utf8(whole).ok()?.parse().ok()
}

/// The columns that say which reading a row is.
struct Identities {
    cars: arrow::array::StringArray,
    boot_ids: arrow::buffer::ScalarBuffer<i64>,
    seqs: arrow::buffer::ScalarBuffer<i64>,
}

impl Identities {
    fn of(rows: &RecordBatch, [car, boot_id, seq]: [&str; 3]) -> anyhow::Result<Self> {
        let column = |name: &str| rows.column_by_name(name).with_context(|| format!("there is no column {name}"));
        let number = |name: &str| {
            let numbers = column(name)?.as_primitive_opt::<Int64Type>();
            Ok::<_, anyhow::Error>(numbers.with_context(|| format!("column {name} holds no numbers"))?.values().clone())
        };
        let cars = column(car)?.as_string_opt::<i32>().with_context(|| format!("column {car} holds no text"))?;
        Ok(Self { cars: cars.clone(), boot_ids: number(boot_id)?, seqs: number(seq)? })
    }

    fn get(&self, row: usize) -> RecordKind<'_> {
        RecordKind::Reading { car: self.cars.value(row), boot_id: self.boot_ids[row], seq: self.seqs[row] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_payloads_often_still_say_which_they_are() {
        let guess = |payload: &[u8]| guess(payload, ["boot_id", "seq"]);
        let whole = br#"{"vin":"V","boot_id":81,"seq": 7,"speed":1}"#;
        assert_eq!(guess(whole), Some((81, 7)));
        let end = whole.len() - br#","speed":1}"#.len();
        assert_eq!(guess(&whole[..end + 1]), Some((81, 7)), "cut off behind the number");
        assert_eq!(guess(&whole[..end]), None, "there may have been more of it");
        for none in [
            &b"speed=fast"[..],
            b"",
            br#"{"boot_id":1}"#,
            br#"{"boot_id":-1,"seq":2}"#,
            br#"{"boot_id":99999999999999999999,"seq":2}"#,
        ] {
            assert_eq!(guess(none), None);
        }
    }
}
