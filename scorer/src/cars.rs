//! The state of the cars of one partition, and its form as bytes.
//!
//! ```text
//! format u8 │ clock 18 bytes │ count u32 │ car, … │ count u32 │ alert, …
//! car       │ length u16, pseudonym │ days silent u32 │ CarState 445 bytes
//! alert     │ length u16, pseudonym │ AlertState 5 bytes
//! ```
//!
//! In the order of the pseudonyms; little-endian.

use std::collections::HashMap;

use anyhow::{Context, ensure};
use model::features::Row;
use model::{AlertRule, AlertState, CarState, Model, Verdict};
use pipeline::{ForgetAfter, RecordClock};

/// What comes first. A new number whenever the same state would make other bytes.
pub const FORMAT: u8 = 3;

/// A new number whenever the same readings would make other state: snapshots with another one are not restored.
pub const RULES: u8 = 2;

/// The state of the cars of one partition.
#[derive(Debug, Default, PartialEq)]
pub struct Cars {
    clock: RecordClock,
    /// By pseudonym.
    pub states: HashMap<String, Car>,
    /// Cars whose alert state is not that of a car that never stood out.
    alerts: HashMap<String, AlertState>,
}

/// What is known of one car.
#[derive(Debug, PartialEq)]
pub struct Car {
    /// What its next reading is compared with.
    pub state: CarState,
    /// The day of the clock on which it was last heard of.
    pub heard: u32,
}

impl Cars {
    /// Lets time pass up to a record of this time, and forgets the cars that have been silent for too long by then.
    /// Returns them, sorted.
    pub(crate) fn pass_time(&mut self, time_ms: i64, forget_after: ForgetAfter) -> Vec<String> {
        if !self.clock.advance(time_ms) {
            return Vec::new();
        }
        let today = self.clock.day();
        let mut forgotten: Vec<_> =
            self.states.extract_if(|_, car| forget_after.is_over(car.heard, today)).map(|(car, _)| car).collect();
        forgotten.sort_unstable();
        for car in &forgotten {
            self.alerts.remove(car);
        }
        forgotten
    }

    /// Forgets a car at once. Returns whether anything was known of it.
    pub(crate) fn forget(&mut self, car: &str) -> bool {
        self.alerts.remove(car);
        self.states.remove(car).is_some()
    }

    /// Judges the next reading of a car. Returns the verdict, and whether the car should have an open alert.
    pub(crate) fn judge(&mut self, model: &Model, car: &str, event_time_ms: i64, row: &Row) -> (Verdict, bool) {
        if !self.states.contains_key(car) {
            self.states.insert(car.to_owned(), Car { state: model.new_car(), heard: 0 });
        }
        let known = self.states.get_mut(car).expect("it was inserted if it was missing");
        known.heard = self.clock.day();
        let verdict = model.score_reading(&mut known.state, event_time_ms, row);
        (verdict, self.observe(car, &model.manifest().alert, &verdict))
    }

    /// Takes the next verdict on a car. Returns whether it should have an open alert.
    fn observe(&mut self, car: &str, rule: &AlertRule, verdict: &Verdict) -> bool {
        let Some(state) = self.alerts.get_mut(car) else {
            let mut state = AlertState::default();
            state.observe(rule, verdict);
            let open = state.is_open();
            if state != AlertState::default() {
                self.alerts.insert(car.to_owned(), state);
            }
            return open;
        };
        state.observe(rule, verdict);
        let open = state.is_open();
        if *state == AlertState::default() {
            self.alerts.remove(car);
        }
        open
    }

    pub(crate) fn open_alerts(&self) -> usize {
        self.alerts.values().filter(|state| state.is_open()).count()
    }

    /// As bytes: the same state always gives the same.
    pub fn to_bytes(&self) -> Vec<u8> {
        let per_car = 2 + 32 + Car::STORED_BYTES;
        let room = 1 + RecordClock::STORED_BYTES + 8 + self.states.len() * per_car + self.alerts.len() * 40;
        let mut out = Vec::with_capacity(room);
        let today = self.clock.day();
        out.push(FORMAT);
        out.extend_from_slice(&self.clock.to_bytes());
        put_all(&mut out, &self.states, |car| car.to_bytes(today));
        put_all(&mut out, &self.alerts, |state| state.to_bytes());
        out
    }

    /// From bytes of [`Cars::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> anyhow::Result<Self> {
        let (format, mut rest) = bytes.split_first().context("the state of cars is empty")?;
        ensure!(*format == FORMAT, "the state of cars has format {format}, this program reads {FORMAT}");
        let clock = RecordClock::from_bytes(take(&mut rest)?).context("the state of cars has no clock")?;
        let today = clock.day();
        let states = get_all(&mut rest, |bytes| Car::from_bytes(bytes, today))?;
        let alerts = get_all(&mut rest, |bytes| Ok(AlertState::from_bytes(*bytes)))?;
        ensure!(rest.is_empty(), "the state of cars has {} bytes after its end", rest.len());
        Ok(Self { clock, states, alerts })
    }
}

impl Car {
    const STORED_BYTES: usize = 4 + CarState::STORED_BYTES;

    fn to_bytes(&self, today: u32) -> [u8; Self::STORED_BYTES] {
        let mut bytes = [0; Self::STORED_BYTES];
        bytes[..4].copy_from_slice(&today.saturating_sub(self.heard).to_le_bytes());
        bytes[4..].copy_from_slice(&self.state.to_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; Self::STORED_BYTES], today: u32) -> anyhow::Result<Self> {
        let mut rest = &bytes[..];
        let silent = u32::from_le_bytes(*take(&mut rest)?);
        let heard = today.checked_sub(silent).context("the state of cars has a car that is older than its clock")?;
        Ok(Self { state: CarState::from_bytes(take(&mut rest)?), heard })
    }
}

fn put_all<T, const N: usize>(out: &mut Vec<u8>, of: &HashMap<String, T>, stored: impl Fn(&T) -> [u8; N]) {
    let mut cars: Vec<_> = of.iter().collect();
    cars.sort_unstable_by_key(|(car, _)| *car);
    out.extend_from_slice(&(cars.len() as u32).to_le_bytes());
    for (car, state) in cars {
        out.extend_from_slice(&(car.len() as u16).to_le_bytes());
        out.extend_from_slice(car.as_bytes());
        out.extend_from_slice(&stored(state));
    }
}

fn get_all<T, const N: usize>(
    from: &mut &[u8],
    restored: impl Fn(&[u8; N]) -> anyhow::Result<T>,
) -> anyhow::Result<HashMap<String, T>> {
    let count = u32::from_le_bytes(*take(from)?) as usize;
    // Not more than there can be, whatever the count says.
    let mut all = HashMap::with_capacity(count.min(from.len() / N));
    for _ in 0..count {
        let length = usize::from(u16::from_le_bytes(*take(from)?));
        let (car, rest) = from.split_at_checked(length).context("the state of cars ends early")?;
        *from = rest;
        let car = std::str::from_utf8(car).context("the state of cars has a name that is not UTF-8")?;
        all.insert(car.to_owned(), restored(take(from)?)?);
    }
    Ok(all)
}

fn take<'a, const N: usize>(from: &mut &'a [u8]) -> anyhow::Result<&'a [u8; N]> {
    let (taken, rest) = from.split_first_chunk().context("the state of cars ends early")?;
    *from = rest;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use model::Scaling;

    use super::*;

    fn cars() -> Cars {
        let scaling = Scaling::fit(std::iter::empty());
        let mut cars = Cars::default();
        for i in 0..50 {
            let mut state = CarState::new(&scaling);
            for t in 0..i {
                state.observe(&Default::default(), &scaling, t, &[0.1 * t as f32 + 1.0; 18]);
                state.smooth(&Default::default(), &[0.3 * t as f64; 18]);
            }
            cars.pass_time(1_795_219_200_000 + i * 10_000_000, ForgetAfter::DEFAULT);
            cars.states.insert(format!("{i:032x}"), Car { state, heard: cars.clock.day() });
            let bad = Verdict { score: 9.0, anomalous: true, judged: true, ..Verdict::none(1.0) };
            for _ in 0..i % 7 {
                cars.observe(&format!("{i:032x}"), &AlertRule::default(), &bad);
            }
        }
        cars
    }

    #[test]
    fn cars_survive_being_stored() {
        let cars = cars();
        assert!(cars.open_alerts() > 5 && cars.alerts.len() < 50);
        let bytes = cars.to_bytes();
        let restored = Cars::from_bytes(&bytes).unwrap();
        assert_eq!(restored, cars);
        assert_eq!(restored.to_bytes(), bytes);
        assert_eq!(Cars::from_bytes(&Cars::default().to_bytes()).unwrap(), Cars::default());
    }

    #[test]
    fn a_silent_car_is_forgotten_with_its_alert() {
        let mut cars = cars();
        let (day, all) = (cars.clock.day(), cars.states.len());
        let mut days = 0;
        while cars.states.len() == all {
            days += 1;
            cars.pass_time(1_795_219_200_000 + (5 + days) * 24 * 3600 * 1000, ForgetAfter::DEFAULT);
        }
        assert_eq!(cars.clock.day(), 91, "{day}: ninety whole days after the first ones were heard of");
        assert!(cars.states.values().all(|car| car.heard > 0) && !cars.states.is_empty());
        assert!(cars.alerts.keys().all(|car| cars.states.contains_key(car)) && !cars.alerts.is_empty());
    }

    #[test]
    fn what_is_cut_off_or_of_another_format_is_refused() {
        let bytes = cars().to_bytes();
        for end in (0..bytes.len()).step_by(13) {
            assert!(Cars::from_bytes(&bytes[..end]).is_err(), "cut off at {end}");
        }
        assert!(Cars::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
        assert!(Cars::from_bytes(&[&[9], &bytes[1..]].concat()).is_err());
        assert!(Cars::from_bytes(&[FORMAT, 255, 255, 255, 255]).is_err());
    }
}
