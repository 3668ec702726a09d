//! One stream's transform: from a batch of raw records to clean ones and dead letters.
//!
//! ```text
//!  raw batch ─► decode ─► origin ─► event time ─► duplicates ─► SQL ─► Avro ─► clean topic, key = pseudonym
//!                 │          │          │            │  │        └ filtered: counted
//!                 ▼          ▼          ▼            ▼  └ seen before: counted
//!              reason   topic-mismatch  …-window  sequence-too-old       ─► dead-letter topic
//!                                                 too-many-cars
//! ```
//!
//! A reading that becomes a dead letter is not remembered: sent again, or replayed once the cause is fixed, it gets
//! its chance. One that WHERE leaves out is. The memory is the stage's state: after a restart it is taken from a
//! snapshot, and from there on the same way is gone again without output.
//!
//! Nothing of a raw record but its timestamp goes along: headers hold the VIN.
//!
//! A record that asks for a car to be forgotten ([`contract::FORGET`]) takes the place of a reading: what was known of
//! the car ends with it, here and, under the pseudonym, in whatever follows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use anyhow::Context;
use arrow::array::{AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use event_log::{Batch, Record, RecordRef};
use pipeline::{Emit, Transform};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use schema_registry::SchemaSource;
use telemetry::avro::AvroEncoder;
use telemetry::json::JsonDecoder;
use telemetry::pseudonym::PseudonymKey;

use crate::CarsArgs;
use crate::duplicates::{Duplicates, Seen, stored};
use crate::event_time::{self, EventTimeArgs};
use crate::metrics::{Metrics, Stream, Table};
use crate::reason;
use crate::sql::{LookupTable, Query};
use contract::StreamDefinition;

/// The header in which the bridge notes the MQTT topic.
const MQTT_TOPIC: &str = "mqtt_topic";

/// The transform of one stream.
#[derive(Debug)]
pub struct Preprocess {
    definition: StreamDefinition,
    key: PseudonymKey,
    query: Query,
    decoder: JsonDecoder,
    event_time: EventTimeArgs,
    cars: CarsArgs,
    encoder: AvroEncoder,
    /// By partition.
    seen: HashMap<u32, Duplicates>,
    /// One per look-up of the query.
    lookups: Vec<LookupTable>,
    tables: Vec<TableInput>,
    metrics: StreamMetrics,
}

/// A table that the query looks into.
#[derive(Debug)]
struct TableInput {
    topic: Arc<str>,
    key: usize,
    decoder: JsonDecoder,
    /// The look-ups that it feeds.
    feeds: Vec<usize>,
    label: Table,
    /// Rows that each of its partitions may have.
    max_rows: usize,
    /// As many partitions as rows have come from.
    partitions: usize,
    warned: bool,
}

/// The metrics of this stream; of the tables, all.
#[derive(Debug)]
struct StreamMetrics {
    clean: Counter,
    duplicates: Counter,
    filtered: Counter,
    cars: Gauge,
    cars_forgotten: Counter,
    all: Metrics,
}

impl StreamMetrics {
    fn new(all: &Metrics, stream: &str) -> Self {
        let label = Stream { stream: stream.to_owned() };
        Self {
            clean: all.clean.get_or_create_owned(&label),
            duplicates: all.duplicates.get_or_create_owned(&label),
            filtered: all.filtered.get_or_create_owned(&label),
            cars: all.cars.get_or_create_owned(&label),
            cars_forgotten: all.cars_forgotten.get_or_create_owned(&label),
            all: all.clone(),
        }
    }
}

/// Rows of a batch that are let through, as far as the SQL is not asked.
struct Admitted {
    rows: RecordBatch,
    /// For each row its record in the batch.
    records: Vec<u32>,
    /// The records of the batch that ask for a car to be forgotten.
    requests: Vec<u32>,
    duplicates: u64,
    forgotten: u64,
}

impl Preprocess {
    /// Plans the statement; everything that is wrong with it is returned.
    pub fn new(
        definition: &StreamDefinition,
        schemas: &SchemaSource,
        key: &PseudonymKey,
        (event_time, cars): (EventTimeArgs, CarsArgs),
        metrics: &Metrics,
    ) -> Result<Self, Vec<String>> {
        let query = Query::plan(definition, key)?;
        let encoder = schemas.encoder(&definition.output.file).map_err(|e| vec![e.to_string()])?;
        let mut tables: Vec<TableInput> = Vec::new();
        for (lookup, table) in query.looked_up().enumerate() {
            let table = &definition.tables[table];
            match tables.iter_mut().find(|input| input.label.table == table.table) {
                Some(input) => input.feeds.push(lookup),
                None => tables.push(TableInput {
                    topic: table.topic.clone(),
                    key: table.key,
                    decoder: JsonDecoder::new(&table.schema),
                    feeds: vec![lookup],
                    label: Table { stream: definition.name.clone(), table: table.table.clone() },
                    max_rows: cars.max_cars_per_partition,
                    partitions: 0,
                    warned: false,
                }),
            }
        }
        Ok(Self {
            decoder: JsonDecoder::new(&definition.input.schema),
            event_time,
            cars,
            encoder,
            seen: HashMap::new(),
            lookups: query.tables(definition),
            tables,
            metrics: StreamMetrics::new(metrics, &definition.name),
            query,
            key: key.clone(),
            definition: definition.clone(),
        })
    }

    /// From now on writes with the ids of `schemas`.
    pub fn use_ids_of(&mut self, schemas: &SchemaSource) -> Result<(), telemetry::avro::Error> {
        self.encoder = schemas.encoder(&self.definition.output.file)?;
        Ok(())
    }

    /// The planned statement.
    pub fn query(&self) -> &Query {
        &self.query
    }

    /// The topics of the tables that the statement looks into.
    pub fn table_topics(&self) -> Vec<Arc<str>> {
        let mut topics: Vec<_> = self.tables.iter().map(|table| table.topic.clone()).collect();
        topics.sort();
        topics.dedup();
        topics
    }

    fn show_cars(&self) {
        self.metrics.cars.set(self.seen.values().map(Duplicates::cars).sum::<usize>() as i64);
    }

    /// Decodes a batch, and decides what of it is let through. The one way for new records and for replayed ones.
    fn admit(
        &mut self,
        batch: &Batch,
        mut reject: impl FnMut(&RecordRef<'_>, &'static str, &str),
    ) -> anyhow::Result<Admitted> {
        let (mut records, mut requests) = (Vec::with_capacity(batch.len()), Vec::new());
        for (i, record) in batch.iter().enumerate() {
            match record.value.map(|value| self.decoder.decode(value)) {
                Some(Ok(())) => records.push(i as u32),
                Some(Err(why)) => reject(&record, why.reason, &why.detail),
                None if contract::is_forget(None, record.headers.get(contract::FORGET)) => requests.push(i as u32),
                None => reject(&record, reason::NO_PAYLOAD, "the record has a key and no payload"),
            }
        }
        let rows = self.decoder.finish();
        let seen = self.seen.entry(batch.partition()).or_default();
        let [car, boot, seq] = self.definition.identity.map(|column| rows.column(column));
        let (cars, boots, seqs) =
            (car.as_string::<i32>(), boot.as_primitive::<Int64Type>(), seq.as_primitive::<Int64Type>());
        let event_time = self.definition.event_time.map(|column| {
            let times = rows.column(column).as_primitive::<TimestampMillisecondType>();
            (&self.definition.input.schema.fields[column], times)
        });
        let (mut duplicates, mut forgotten) = (0, 0);
        let mut next = requests.iter().copied().peekable();
        let keep: Vec<bool> = (0..rows.num_rows())
            .map(|row| {
                while let Some(request) = next.next_if(|request| *request < records[row]) {
                    forgotten += forget(seen, &batch.get(request as usize));
                }
                let (record, car) = (batch.get(records[row] as usize), cars.value(row));
                forgotten += seen.pass_time(record.timestamp_ms, self.cars.forget.forget_after) as u64;
                if let Err(detail) = check_origin(&record, car) {
                    reject(&record, reason::TOPIC_MISMATCH, detail);
                    return false;
                }
                let refusal = event_time.and_then(|(field, times)| {
                    self.event_time.refusal(field, times.value(row), event_time::received_ms(&record))
                });
                if let Some(detail) = refusal {
                    // A repeat stays one, however late it comes.
                    match seen.contains(car, boots.value(row), seqs.value(row)) {
                        true => duplicates += 1,
                        false => reject(&record, reason::EVENT_TIME_OUT_OF_WINDOW, &detail),
                    }
                    return false;
                }
                if seen.cars() >= self.cars.max_cars_per_partition && !seen.knows(car) {
                    let detail = "the partition has as many cars as --max-cars-per-partition allows, and this one is \
                        not among them";
                    reject(&record, reason::TOO_MANY_CARS, detail);
                    return false;
                }
                match seen.admit(car, boots.value(row), seqs.value(row), record.timestamp_ms) {
                    Seen::New => return true,
                    Seen::Before => duplicates += 1,
                    Seen::TooOld => {
                        let detail = "too many boots or gaps of the car came later: it is no longer known whether this \
                            reading was let through";
                        reject(&record, reason::SEQUENCE_TOO_OLD, detail);
                    }
                }
                false
            })
            .collect();
        forgotten += next.map(|request| forget(seen, &batch.get(request as usize))).sum::<u64>();
        if keep.iter().all(|keep| *keep) {
            return Ok(Admitted { rows, records, requests, duplicates, forgotten });
        }
        let mut kept = keep.iter();
        records.retain(|_| *kept.next().expect("one for each row"));
        let rows = filter_record_batch(&rows, &BooleanArray::from(keep))?;
        Ok(Admitted { rows, records, requests, duplicates, forgotten })
    }
}

impl Transform for Preprocess {
    fn reset(&mut self, _topic: &Arc<str>, partition: u32) {
        self.seen.remove(&partition);
        // Those of a partition that went to another instance are shown there.
        self.show_cars();
    }

    fn is_stateful(&self) -> bool {
        true
    }

    /// A reading that was let through stays so, even if the definition changes: only the rules of the memory count.
    fn state_version(&self) -> String {
        format!("duplicates-{}", stored::RULES)
    }

    fn snapshot(&self, _topic: &Arc<str>, partition: u32) -> Vec<u8> {
        self.seen.get(&partition).map_or_else(|| Duplicates::default().to_bytes(), Duplicates::to_bytes)
    }

    fn restore(&mut self, _topic: &Arc<str>, partition: u32, snapshot: &[u8]) -> anyhow::Result<()> {
        self.seen.insert(partition, Duplicates::from_bytes(snapshot)?);
        Ok(())
    }

    fn replay(&mut self, batch: &Batch) -> anyhow::Result<()> {
        self.admit(batch, |_, _, _| {}).map(|_| ())
    }

    fn table(&mut self, batch: &Batch) -> anyhow::Result<()> {
        for table in self.tables.iter_mut().filter(|table| table.topic == *batch.topic()) {
            table.take(batch, &mut self.lookups, &self.metrics.all)?;
        }
        Ok(())
    }

    fn apply(&mut self, batch: &Batch, emit: &mut Emit) -> anyhow::Result<()> {
        let admitted = self.admit(batch, |record, reason, detail| emit.dead_letter(record, reason, detail))?;
        let selected = self.query.run(&admitted.rows, &mut self.lookups)?;
        let messages = self.encoder.encode(&selected.batch)?;
        let keys: &StringArray = selected.batch.column(self.query.key_column()).as_string();
        let pass_on = |request: u32, emit: &mut Emit| {
            let request = batch.get(request as usize);
            let Ok(vin) = std::str::from_utf8(request.key) else { return };
            let pseudonym = self.key.pseudonym(vin);
            let (key, timestamp_ms) = (pseudonym.as_bytes(), request.timestamp_ms);
            let when = request.headers.get(contract::FORGET).unwrap_or_default();
            let record = Record { key, value: None, headers: &[(contract::FORGET, when)], timestamp_ms };
            emit.send(&self.definition.output_topic, &record);
        };
        let mut requests = admitted.requests.iter().copied().peekable();
        for ((row, key), message) in selected.rows.values().iter().zip(keys).zip(messages.iter()) {
            let record = admitted.records[*row as usize];
            while let Some(request) = requests.next_if(|request| *request < record) {
                pass_on(request, emit);
            }
            let raw = batch.get(record as usize);
            let key = key.context("the key is a pseudonym of a column that is never null")?;
            let clean =
                Record { key: key.as_bytes(), value: Some(message), headers: &[], timestamp_ms: raw.timestamp_ms };
            emit.send(&self.definition.output_topic, &clean);
        }
        requests.for_each(|request| pass_on(request, emit));
        let metrics = &self.metrics;
        emit.count(&metrics.clean, messages.len() as u64);
        emit.count(&metrics.duplicates, admitted.duplicates);
        emit.count(&metrics.cars_forgotten, admitted.forgotten);
        emit.count(&metrics.filtered, (admitted.records.len() - messages.len()) as u64);
        self.show_cars();
        Ok(())
    }
}

impl TableInput {
    /// Takes rows of the table. One that can't be used is left where it is, in the table's topic, counted, and logged
    /// once: it is no record of the stream, so that it can't be a dead letter of it, and the row before it holds.
    fn take(&mut self, batch: &Batch, lookups: &mut [LookupTable], metrics: &Metrics) -> anyhow::Result<()> {
        let mut changes: Vec<(&str, Option<usize>)> = Vec::with_capacity(batch.len());
        let mut bad = 0;
        let mut refuse = |record: &RecordRef<'_>, why: &str, warned: &mut bool| {
            bad += 1;
            if !std::mem::replace(warned, true) {
                let (topic, partition, offset) = (batch.topic(), batch.partition(), record.offset);
                tracing::warn!(%topic, partition, offset, "cannot use a row of a reference table: {why}; further ones \
                    are only counted");
            }
        };
        let mut records = Vec::with_capacity(batch.len());
        for (i, record) in batch.iter().enumerate() {
            let Ok(key) = std::str::from_utf8(record.key) else {
                refuse(&record, "its key is not UTF-8", &mut self.warned);
                continue;
            };
            match record.value.map(|value| self.decoder.decode(value)) {
                None => changes.push((key, None)),
                Some(Ok(())) => {
                    changes.push((key, Some(records.len())));
                    records.push(i);
                }
                Some(Err(why)) => refuse(&record, &why.to_string(), &mut self.warned),
            }
        }
        let rows = self.decoder.finish();
        let keys: &StringArray = rows.column(self.key).as_string();
        self.partitions = self.partitions.max(batch.partition() as usize + 1);
        let known = &lookups[self.feeds[0]];
        let room = self.max_rows.saturating_mul(self.partitions).saturating_sub(known.len());
        let mut new = HashSet::new();
        changes.retain(|(key, row)| {
            let Some(row) = *row else { return true };
            let record = batch.get(records[row]);
            let has_topic = record.headers.get(MQTT_TOPIC).is_some();
            let why = match () {
                () if keys.value(row) != *key => "its key is not that of its payload",
                // A table may also be filled by other means than MQTT.
                () if has_topic && check_origin(&record, key).is_err() => "the MQTT topic is not that of its key",
                () if known.contains(key) || new.contains(key) => return true,
                () if new.len() >= room => "the table has as many rows as --max-cars-per-partition allows",
                () => return new.insert(*key),
            };
            refuse(&record, why, &mut self.warned);
            false
        });
        for lookup in &self.feeds {
            lookups[*lookup].update(&rows, changes.iter().copied())?;
        }
        if bad > 0 {
            metrics.bad_table_rows.get_or_create(&self.label).inc_by(bad);
        }
        if let Some(lookup) = self.feeds.first() {
            metrics.table_rows.get_or_create(&self.label).set(lookups[*lookup].len() as i64);
        }
        Ok(())
    }
}

/// Forgets the car that a record asks for. Returns how many that are: 1, or 0 if nothing was known of it.
fn forget(seen: &mut Duplicates, request: &RecordRef<'_>) -> u64 {
    u64::from(std::str::from_utf8(request.key).is_ok_and(|car| seen.forget(car)))
}

/// Whether key and MQTT topic belong to the car in the payload. The error does not name the car.
fn check_origin(record: &RecordRef<'_>, car: &str) -> Result<(), &'static str> {
    if record.key != car.as_bytes() {
        return Err("the key is not the VIN of the payload");
    }
    let Some(topic) = record.headers.get(MQTT_TOPIC) else {
        return Err("there is no header mqtt_topic");
    };
    let of_car = topic.strip_prefix(b"vehicles/").and_then(|rest| rest.strip_prefix(car.as_bytes()));
    match of_car {
        Some([b'/', _, ..]) => Ok(()),
        _ => Err("the MQTT topic is not vehicles/{vin}/… with the VIN of the payload"),
    }
}
