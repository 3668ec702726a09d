//! Holds what the cars say they sent against what is found at every hop, reading by reading.
//!
//! ```text
//!  ledger.csv ──► expected: (car, boot, seq) of each acknowledged, valid reading
//!                     │ seen at:  raw · clean · cloud · Parquet · scores
//!                     ▼
//!               missing anywhere → lost     more than once past the duplicate filter → doubled
//! ```
//!
//! Every hop is read from its beginning, from the log or the store itself: no stage's own counter is believed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, Int64Type, TimestampMillisecondType};
use event_log::{Batch, Log, Range, Read};
use telemetry::avro::AvroDecoder;
use telemetry::json::JsonDecoder;
use telemetry::pseudonym::PseudonymKey;
use telemetry::schema::Schemas;

use super::report::Ledger;

/// How many lost and doubled readings are named.
const FINDINGS: usize = 10;

/// Records a read.
const READ_RECORDS: usize = 8192;

/// The places where each reading should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hop {
    Raw,
    Clean,
    Cloud,
    Lake,
    Scores,
}

impl Hop {
    const ALL: [Hop; 5] = [Hop::Raw, Hop::Clean, Hop::Cloud, Hop::Lake, Hop::Scores];

    fn name(self) -> &'static str {
        ["telemetry.raw", "telemetry at the edge", "telemetry in the cloud", "Parquet", "scores"][self as usize]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Identity {
    car: u32,
    boot_id: i64,
    seq: i64,
}

/// What is known of one reading.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reading {
    /// Acknowledged, so that it must be everywhere.
    pub(crate) acknowledged: bool,
    /// Wall clock when the car first sent it.
    pub(crate) sent_ms: i64,
    /// Where it was seen, how often.
    seen: [u8; 5],
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

/// The account of one run.
pub(crate) struct Account {
    /// VINs and pseudonyms alike, so that both sides of the preprocessor find the car.
    cars: HashMap<String, u32>,
    readings: HashMap<Identity, Reading>,
    pub(crate) ledger: Ledger,
    pub(crate) dropped: u64,
    pub(crate) unacknowledged: u64,
    broken_acknowledged: u64,
    unexpected: Vec<String>,
    doubled_unexpected: u64,
}

impl Account {
    /// Reads the simulator's ledger.
    pub(crate) fn open(ledger: &Path, key: &PseudonymKey) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(ledger).with_context(|| format!("cannot read {}", ledger.display()))?;
        let mut account = Self {
            cars: HashMap::new(),
            readings: HashMap::new(),
            ledger: Ledger::default(),
            dropped: 0,
            unacknowledged: 0,
            broken_acknowledged: 0,
            unexpected: Vec::new(),
            doubled_unexpected: 0,
        };
        for (number, line) in text.lines().enumerate().skip(1) {
            account.entry(line, key).with_context(|| format!("{} line {}", ledger.display(), number + 1))?;
        }
        Ok(account)
    }

    fn entry(&mut self, line: &str, key: &PseudonymKey) -> anyhow::Result<()> {
        let cells: Vec<_> = line.split(',').collect();
        let [vin, boot_id, seq, payload, outcome, event_time_ms, first_sent_ms, _, _] = cells[..] else {
            bail!("{} cells instead of 9", cells.len());
        };
        let acknowledged = outcome == "acknowledged";
        match outcome {
            "acknowledged" => self.ledger.acknowledged += 1,
            "unacknowledged" => self.unacknowledged += 1,
            "dropped" => {
                self.dropped += 1;
                return Ok(());
            }
            other => bail!("unknown outcome {other:?}"),
        }
        self.ledger.sent += u64::from(!first_sent_ms.is_empty());
        if payload == "broken" {
            self.broken_acknowledged += u64::from(acknowledged);
            return Ok(());
        }
        let car = self.car(vin, key);
        let identity = Identity { car, boot_id: boot_id.parse()?, seq: seq.parse()? };
        let reading = Reading {
            acknowledged,
            sent_ms: first_sent_ms.parse().unwrap_or_default(),
            event_time_ms: event_time_ms.parse()?,
            ..Reading::default()
        };
        ensure!(self.readings.insert(identity, reading).is_none(), "reading {boot_id}/{seq} is there twice");
        Ok(())
    }

    fn car(&mut self, vin: &str, key: &PseudonymKey) -> u32 {
        if let Some(car) = self.cars.get(vin) {
            return *car;
        }
        let car = self.cars.len() as u32 / 2;
        self.cars.insert(vin.to_owned(), car);
        self.cars.insert(key.pseudonym(vin), car);
        car
    }

    /// Counts the raw topic: JSON as the cars sent it.
    pub(crate) fn count_raw(&mut self, log: &Arc<dyn Log>) -> anyhow::Result<()> {
        let schema = Schemas::builtin().file("telemetry_raw.avsc").context("telemetry_raw.avsc is built in")?;
        let mut decoder = JsonDecoder::new(schema);
        each_batch(log, "telemetry.raw", |batch| {
            self.ledger.raw += batch.len() as u64;
            for record in batch.iter() {
                // What cannot be decoded is broken: those are held against the dead letters, by number.
                let _ = decoder.decode(record.value.unwrap_or_default());
            }
            self.see(Hop::Raw, &decoder.finish(), "vin", |_, _| {})
        })
    }

    /// Counts a topic of Avro readings. `trained_until`: where the training ended, by partition.
    pub(crate) fn count_topic(
        &mut self,
        hop: Hop,
        log: &Arc<dyn Log>,
        topic: &str,
        trained_until: &HashMap<u32, u64>,
    ) -> anyhow::Result<()> {
        let reader = if hop == Hop::Scores { "score.avsc" } else { "telemetry.v2.avsc" };
        let mut decoder = AvroDecoder::new(Schemas::builtin(), reader)?;
        each_batch(log, topic, |batch| {
            for record in batch.iter() {
                if let Err(reject) = decoder.decode(record.value.unwrap_or_default()) {
                    bail!("{topic}/{} offset {}: {}", batch.partition(), record.offset, reject.detail);
                }
            }
            let rows = decoder.finish();
            let scores = (hop == Hop::Scores).then(|| column::<Float32Type>(&rows, "score")).transpose()?;
            let until = trained_until.get(&batch.partition()).copied().unwrap_or(0);
            self.see(hop, &rows, "car", |index, reading| {
                let record = batch.get(index);
                reading.trained_on |= record.offset < until;
                if let Some(scores) = &scores {
                    reading.score = Some(Scored { score: scores[index], at_ms: record.timestamp_ms });
                }
            })
        })
    }

    /// Counts rows of Parquet.
    pub(crate) fn count_rows(&mut self, rows: &RecordBatch) -> anyhow::Result<()> {
        self.see(Hop::Lake, rows, "car", |_, _| {})
    }

    fn see(
        &mut self,
        hop: Hop,
        rows: &RecordBatch,
        car: &str,
        mut then: impl FnMut(usize, &mut Reading),
    ) -> anyhow::Result<()> {
        let cars = rows.column_by_name(car).with_context(|| format!("no column {car}"))?.as_string::<i32>();
        let boot_ids = column::<Int64Type>(rows, "boot_id")?;
        let seqs = column::<Int64Type>(rows, "seq")?;
        for index in 0..rows.num_rows() {
            let car = self.cars.get(cars.value(index)).copied();
            let identity = car.map(|car| Identity { car, boot_id: boot_ids[index], seq: seqs[index] });
            match identity.and_then(|identity| self.readings.get_mut(&identity)) {
                Some(reading) => {
                    let seen = &mut reading.seen[hop as usize];
                    *seen = seen.saturating_add(1);
                    then(index, reading);
                }
                // A broken reading may decode and yet be refused, say for another car's VIN.
                None if hop == Hop::Raw => {}
                None => {
                    self.doubled_unexpected += 1;
                    let (boot, seq) = (boot_ids[index], seqs[index]);
                    self.unexpected.push(format!("{}: boot {boot} seq {seq} was never sent", hop.name()));
                }
            }
        }
        Ok(())
    }

    /// The readings themselves, with their cars' numbers.
    pub(crate) fn readings(&self) -> impl Iterator<Item = (u32, &Reading)> {
        self.readings.iter().map(|(identity, reading)| (identity.car, reading))
    }

    /// The number of a car, by pseudonym.
    pub(crate) fn car_number(&self, pseudonym: &str) -> Option<u32> {
        self.cars.get(pseudonym).copied()
    }

    /// Fills in the counts, and names the first readings that are missing or doubled.
    ///
    /// Scores count as a hop only where there was a model.
    pub(crate) fn settle(&mut self, scored: bool) -> Vec<String> {
        let hops: Vec<_> = Hop::ALL.into_iter().filter(|hop| scored || *hop != Hop::Scores).collect();
        let mut totals = [0u64; 5];
        let (mut lost, mut doubled) = (Vec::new(), std::mem::take(&mut self.unexpected));
        let (mut lost_count, mut doubled_count) = (0, self.doubled_unexpected);
        for (identity, reading) in &self.readings {
            for hop in Hop::ALL {
                totals[hop as usize] += u64::from(reading.seen[hop as usize]);
            }
            self.ledger.duplicates_removed += u64::from(reading.seen[Hop::Raw as usize].saturating_sub(1));
            let name = |hop: &Hop| {
                format!("{}: car {} boot {} seq {}", hop.name(), identity.car, identity.boot_id, identity.seq)
            };
            if reading.acknowledged
                && let Some(hop) = hops.iter().find(|hop| reading.seen[**hop as usize] == 0)
            {
                lost_count += 1;
                lost.push(format!("lost before {}", name(hop)));
            }
            if let Some(hop) = hops[1..].iter().find(|hop| reading.seen[**hop as usize] > 1) {
                doubled_count += 1;
                doubled.push(format!("doubled in {}", name(hop)));
            }
        }
        self.ledger.clean = totals[Hop::Clean as usize];
        self.ledger.replicated = totals[Hop::Cloud as usize];
        self.ledger.parquet_rows = totals[Hop::Lake as usize];
        self.ledger.scored = totals[Hop::Scores as usize];
        let broken_lost = self.broken_acknowledged.saturating_sub(self.ledger.dead_letters);
        if broken_lost > 0 {
            lost.push(format!("{broken_lost} broken readings were acknowledged and are no dead letters"));
        }
        self.ledger.lost = lost_count + broken_lost;
        self.ledger.doubled = doubled_count;
        lost.sort();
        doubled.sort();
        lost.truncate(FINDINGS);
        doubled.truncate(FINDINGS);
        lost.extend(doubled);
        lost
    }
}

/// Reads a topic from its beginning to its present end.
pub(crate) fn each_batch(
    log: &Arc<dyn Log>,
    topic: &str,
    mut then: impl FnMut(&Batch) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let ranges = log
        .describe(topic)?
        .partitions
        .iter()
        .enumerate()
        .map(|(partition, bounds)| Range {
            topic: topic.into(),
            partition: partition as u32,
            start: bounds.first,
            end: Some(bounds.next),
        })
        .collect();
    let mut reader = log.clone().reader(ranges)?;
    loop {
        match reader.next(READ_RECORDS, Duration::from_millis(100))? {
            Read::Batch(batch) => then(&batch)?,
            Read::Idle => {}
            Read::End => return Ok(()),
        }
    }
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
