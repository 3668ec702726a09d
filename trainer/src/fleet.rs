//! The rows of a training set, by car: readings in the order they came, and what the workshop found.

use std::collections::BTreeMap;

use anyhow::Context;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::TimestampMillisecondType;
use model::{Readings, Row};

/// An alert within this time after a repair still counts to the fault: the score falls over the next readings.
const GRACE_MS: i64 = 3_600_000;

/// All cars of a training set. Ordered by pseudonym, so that nothing depends on where a car's readings lay.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    /// By pseudonym.
    pub cars: BTreeMap<String, Car>,
    /// How many readings.
    pub rows: u64,
    /// How many findings.
    pub findings: u64,
}

/// One car.
#[derive(Debug, Clone, Default)]
pub struct Car {
    /// Event times, in the order of the log.
    pub times_ms: Vec<i64>,
    /// The features of each reading.
    pub rows: Vec<Row>,
    /// What the workshop found in it.
    pub faults: Vec<Fault>,
}

/// A finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// For example `bearing_wear`.
    pub kind: String,
    /// For example `bearing_12`.
    pub component: String,
    /// Event time of the first reading that it touched.
    pub began_ms: i64,
    /// Event time of the first reading without it.
    pub repaired_ms: i64,
}

impl Fault {
    /// Whether it was there at that time.
    pub fn is_there(&self, time_ms: i64) -> bool {
        (self.began_ms..self.repaired_ms).contains(&time_ms)
    }
}

impl Fleet {
    /// Adds readings (schema telemetry.v2).
    pub fn add_readings(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        let readings = Readings::new(batch)?;
        for i in 0..readings.len() {
            let name = readings.car(i);
            if !self.cars.contains_key(name) {
                self.cars.insert(name.to_owned(), Car::default());
            }
            let car = self.cars.get_mut(name).context("a car that was inserted")?;
            car.times_ms.push(readings.event_time_ms(i));
            car.rows.push(readings.row(i));
        }
        self.rows += readings.len() as u64;
        Ok(())
    }

    /// Adds findings (schema fault.avsc). Those of cars without readings are counted, and of no use.
    pub fn add_findings(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        let column = |name: &str| batch.column_by_name(name).with_context(|| format!("findings without a {name}"));
        let text = |name: &'static str| {
            let texts = column(name)?.as_string_opt::<i32>().filter(|c| c.null_count() == 0);
            texts.with_context(|| format!("column {name} of the findings holds no text"))
        };
        let time = |name: &'static str| {
            let times = column(name)?.as_primitive_opt::<TimestampMillisecondType>().filter(|c| c.null_count() == 0);
            times.with_context(|| format!("column {name} of the findings holds no times"))
        };
        let (cars, kinds, components) = (text("car")?, text("kind")?, text("component")?);
        let (began, repaired) = (time("began_ms")?, time("repaired_ms")?);
        for i in 0..batch.num_rows() {
            if let Some(car) = self.cars.get_mut(cars.value(i)) {
                car.faults.push(Fault {
                    kind: kinds.value(i).to_owned(),
                    component: components.value(i).to_owned(),
                    began_ms: began.value(i),
                    repaired_ms: repaired.value(i),
                });
            }
        }
        self.findings += batch.num_rows() as u64;
        Ok(())
    }

    /// First and last event time of the readings; `None` without readings.
    pub fn event_time_ms(&self) -> Option<[i64; 2]> {
        let times = || self.cars.values().flat_map(|car| &car.times_ms).copied();
        Some([times().min()?, times().max()?])
    }
}

impl Car {
    /// Whether a known fault was there at that time.
    pub fn is_faulty(&self, time_ms: i64) -> bool {
        self.faults.iter().any(|fault| fault.is_there(time_ms))
    }

    /// Whether an alert at that time is explained by a known fault.
    pub fn explains(&self, time_ms: i64) -> bool {
        self.faults.iter().any(|fault| (fault.began_ms..fault.repaired_ms + GRACE_MS).contains(&time_ms))
    }
}
