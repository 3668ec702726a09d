//! The state of the cars of one partition, and its form as bytes.
//!
//! ```text
//! format u8 │ count u32 │ car, … │ count u32 │ alert, …         in the order of their pseudonyms; little-endian
//! car       │ length u16, pseudonym │ CarState 444 bytes
//! alert     │ length u16, pseudonym │ AlertState 5 bytes
//! ```

use std::collections::HashMap;

use anyhow::{Context, ensure};
use model::{AlertRule, AlertState, CarState, Verdict};

/// What comes first. A new number whenever the same readings would make other state, or the same state other bytes.
pub const FORMAT: u8 = 2;

/// The state of the cars of one partition.
#[derive(Debug, Default, PartialEq)]
pub struct Cars {
    /// By pseudonym.
    pub states: HashMap<String, CarState>,
    /// Cars whose alert state is not that of a car that never stood out.
    alerts: HashMap<String, AlertState>,
}

impl Cars {
    /// Takes the next verdict on a car. Returns whether it should have an open alert.
    pub(crate) fn observe(&mut self, car: &str, rule: &AlertRule, verdict: &Verdict) -> bool {
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
        let per_car = 2 + 32 + CarState::STORED_BYTES;
        let mut out = Vec::with_capacity(9 + self.states.len() * per_car + self.alerts.len() * 40);
        out.push(FORMAT);
        put_all(&mut out, &self.states, |state| state.to_bytes());
        put_all(&mut out, &self.alerts, |state| state.to_bytes());
        out
    }

    /// From bytes of [`Cars::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> anyhow::Result<Self> {
        let (format, mut rest) = bytes.split_first().context("the state of cars is empty")?;
        ensure!(*format == FORMAT, "the state of cars has format {format}, this program reads {FORMAT}");
        let states = get_all(&mut rest, CarState::from_bytes)?;
        let alerts = get_all(&mut rest, |bytes| AlertState::from_bytes(*bytes))?;
        ensure!(rest.is_empty(), "the state of cars has {} bytes after its end", rest.len());
        Ok(Self { states, alerts })
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
    restored: impl Fn(&[u8; N]) -> T,
) -> anyhow::Result<HashMap<String, T>> {
    let count = u32::from_le_bytes(*take(from)?) as usize;
    // Not more than there can be, whatever the count says.
    let mut all = HashMap::with_capacity(count.min(from.len() / N));
    for _ in 0..count {
        let length = usize::from(u16::from_le_bytes(*take(from)?));
        let (car, rest) = from.split_at_checked(length).context("the state of cars ends early")?;
        *from = rest;
        let car = std::str::from_utf8(car).context("the state of cars has a name that is not UTF-8")?;
        all.insert(car.to_owned(), restored(take(from)?));
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
            cars.states.insert(format!("{i:032x}"), state);
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
