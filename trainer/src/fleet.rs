//! The rows of a training set, by car: readings in the order they came, and what the workshop found.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::Context;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::TimestampMillisecondType;
use chrono::DateTime;
use model::{Readings, Row};
use sha2::{Digest, Sha256};

/// An alert within this time after a repair still counts to the fault: the score falls over the next readings.
const GRACE_MS: i64 = 3_600_000;

const DAY_MS: i64 = 24 * 3_600_000;

/// All cars of a training set. Ordered by pseudonym, so that nothing depends on where a car's readings lay.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    /// By pseudonym.
    pub cars: BTreeMap<String, Car>,
    /// How many readings were added.
    pub rows: u64,
    /// How many of them are held.
    pub held: u64,
    /// How many findings.
    pub findings: u64,
    /// Which cars are held, if not all can be.
    draw: Option<Draw>,
}

/// Draws cars until they have no more readings than may be held: those with the lowest numbers. A car's number is a
/// hash of its name, so that the same cars are drawn in whatever order readings come.
#[derive(Debug, Clone)]
struct Draw {
    seed: u64,
    max_readings: u64,
    /// Cars from this number on are not held.
    below: u64,
    /// The cars that are held, by number.
    order: BTreeSet<(u64, String)>,
}

impl Draw {
    fn number(&self, name: &str) -> u64 {
        number_of(self.seed, b"draw", name)
    }
}

/// A number that follows from `seed` and `pseudonym`: another one for each `purpose`, evenly distributed.
pub(crate) fn number_of(seed: u64, purpose: &[u8], pseudonym: &str) -> u64 {
    let hash = Sha256::new().chain_update(purpose).chain_update(seed.to_le_bytes()).chain_update(pseudonym).finalize();
    hash.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
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

/// Readings that were left out because of their event times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Strays {
    /// How many.
    pub(crate) readings: u64,
    /// The earliest of their event times.
    pub(crate) earliest_ms: i64,
    /// The latest of their event times.
    pub(crate) latest_ms: i64,
    /// The event times that stay in.
    pub(crate) kept: std::ops::RangeInclusive<i64>,
}

impl fmt::Display for Strays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let day = |ms: i64| DateTime::from_timestamp_millis(ms).unwrap_or_default().format("%Y-%m-%d");
        let (first, last) = (day(*self.kept.start()), day(*self.kept.end()));
        let (readings, earliest, latest) = (self.readings, day(self.earliest_ms), day(self.latest_ms));
        write!(
            f,
            "leaving out {readings} readings of clocks that were wrong: their event times are between {earliest} and \
             {latest}, those of the others between {first} and {last}"
        )
    }
}

impl Fleet {
    /// An empty one that holds at most so many readings.
    pub fn new(seed: u64, max_readings: u64) -> Self {
        let draw = Draw { seed, max_readings, below: u64::MAX, order: BTreeSet::new() };
        Self { draw: Some(draw), ..Self::default() }
    }

    /// Adds readings (schema telemetry.v2).
    pub fn add_readings(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        let readings = Readings::new(batch)?;
        for i in 0..readings.len() {
            self.add(readings.car(i), readings.event_time_ms(i), readings.row(i));
        }
        Ok(())
    }

    fn add(&mut self, name: &str, time_ms: i64, row: Row) {
        self.rows += 1;
        if !self.cars.contains_key(name) {
            if let Some(draw) = &mut self.draw {
                let number = draw.number(name);
                if number >= draw.below {
                    return;
                }
                draw.order.insert((number, name.to_owned()));
            }
            self.cars.insert(name.to_owned(), Car::default());
        }
        let car = self.cars.get_mut(name).expect("a car that was inserted if it was missing");
        car.times_ms.push(time_ms);
        car.rows.push(row);
        self.held += 1;
        self.draw_fewer();
    }

    /// Gives up the car with the highest number while too much is held.
    fn draw_fewer(&mut self) {
        let Some(draw) = &mut self.draw else { return };
        while self.held > draw.max_readings {
            let Some((number, name)) = draw.order.pop_last() else { return };
            draw.below = number;
            if let Some(car) = self.cars.remove(&name) {
                self.held -= car.times_ms.len() as u64;
            }
        }
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

    /// Leaves out the readings whose event times are far from those of all others: clocks that were wrong. Otherwise
    /// one of them would move the split by time, the count of car-days, and the version.
    ///
    /// Far is further from the middle 98% than these are long, and than a day: readings that were stored for a long
    /// time, and a fleet that begins, stay in.
    pub(crate) fn leave_out_strays(&mut self) -> Option<Strays> {
        let mut times: Vec<i64> = self.cars.values().flat_map(|car| &car.times_ms).copied().collect();
        let last = times.len().checked_sub(1)?;
        let low = *times.select_nth_unstable(last / 100).1;
        let high = *times.select_nth_unstable(last - last / 100).1;
        let margin = (high - low).max(DAY_MS);
        let kept = low.saturating_sub(margin)..=high.saturating_add(margin);
        let mut strays = Strays { readings: 0, earliest_ms: i64::MAX, latest_ms: i64::MIN, kept: kept.clone() };
        for car in self.cars.values_mut().filter(|car| !car.times_ms.iter().all(|time| kept.contains(time))) {
            let mut keep = car.times_ms.iter().map(|time| kept.contains(time)).collect::<Vec<_>>().into_iter();
            car.rows.retain(|_| keep.next().unwrap_or(true));
            car.times_ms.retain(|time| {
                let keep = kept.contains(time);
                if !keep {
                    strays.readings += 1;
                    strays.earliest_ms = strays.earliest_ms.min(*time);
                    strays.latest_ms = strays.latest_ms.max(*time);
                }
                keep
            });
        }
        self.cars.retain(|_, car| !car.times_ms.is_empty());
        self.held -= strays.readings;
        (strays.readings > 0).then_some(strays)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A fleet of 50 cars, car i with 10 + i readings, which are added in this order.
    fn filled(max_readings: u64, reverse: bool) -> Fleet {
        let mut fleet = Fleet::new(1, max_readings);
        let mut readings: Vec<_> = (0..50).flat_map(|car| (0..10 + car).map(move |i| (car, i))).collect();
        if reverse {
            readings.reverse();
        }
        for (car, i) in readings {
            fleet.add(&format!("car {car}"), i, [0.0; model::FEATURE_COUNT]);
            assert!(fleet.held <= max_readings, "at any time");
        }
        fleet
    }

    #[test]
    fn a_large_fleet_is_drawn_from_by_car_in_whatever_order_it_comes() {
        let all = filled(u64::MAX, false);
        assert_eq!((all.cars.len(), all.held), (50, (10..60).sum()));
        let some = filled(700, false);
        assert!((500..=700).contains(&some.held), "{}", some.held);
        for (name, car) in &some.cars {
            assert_eq!(car.times_ms.len(), all.cars[name].times_ms.len(), "all of a car, or nothing");
        }
        let names = |fleet: &Fleet| fleet.cars.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&filled(700, true)), names(&some));
        let fewer = filled(300, false);
        assert!(fewer.cars.keys().all(|name| some.cars.contains_key(name)), "more room adds cars and changes none");
    }

    #[test]
    fn readings_of_wrong_clocks_are_left_out_and_counted() {
        let mut fleet = Fleet::new(1, u64::MAX);
        for i in 0..1000 {
            fleet.add(&format!("car {}", i % 7), 1_700_000_000_000 + 60_000 * i, [0.0; model::FEATURE_COUNT]);
        }
        assert_eq!(fleet.clone().leave_out_strays(), None);
        let before = fleet.event_time_ms();
        for wrong_ms in [946_684_800_000, 4_070_908_800_000] {
            fleet.add("car 3", wrong_ms, [1.0; model::FEATURE_COUNT]);
        }
        fleet.add("a car that has nothing else", 0, [1.0; model::FEATURE_COUNT]);
        let strays = fleet.leave_out_strays().expect("three");
        assert_eq!((strays.readings, strays.earliest_ms, strays.latest_ms), (3, 0, 4_070_908_800_000));
        assert!(strays.to_string().contains("leaving out 3 readings"), "{strays}");
        assert_eq!((fleet.event_time_ms(), fleet.cars.len(), fleet.held), (before, 7, 1000));
        assert!(fleet.cars.values().all(|car| car.rows.iter().all(|row| row[0] == 0.0)), "rows go with their times");
    }
}
