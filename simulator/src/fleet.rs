//! The cars of a run, and what each of them sends: readings, some of them broken on purpose, until the span is covered.

use crate::args::FleetArgs;
use crate::car::{Car, Reading};
use crate::payload::{Breakage, write_broken, write_reading};
use crate::random::{Purpose, hash, hash_unit};

/// The cars that these settings name, in order. Each is made when it is asked for.
pub fn fleet(args: &FleetArgs) -> impl Iterator<Item = Car> + use<> {
    let spec = args.spec();
    (args.first_car..args.first_car + args.cars).map(move |index| Car::new(&spec, index))
}

/// Decides which readings are sent broken, and how: by seed, car and reading, whatever else happens.
#[derive(Debug, Clone, Copy)]
pub struct Breaker {
    seed: u64,
    share: f64,
    oversized_bytes: usize,
}

impl Breaker {
    /// As the settings want it.
    pub fn new(args: &FleetArgs) -> Self {
        Self { seed: args.seed, share: args.broken_share, oversized_bytes: args.broken_bytes }
    }

    /// How `reading` is broken; `None`: not at all.
    pub fn breakage(&self, car: &Car, reading: &Reading) -> Option<Breakage> {
        if self.share <= 0.0 {
            return None;
        }
        let number = reading.boot_id ^ (u64::from(reading.seq) << 20);
        if hash_unit(self.seed, car.index(), Purpose::Broken, number) >= self.share {
            return None;
        }
        let kind = hash(self.seed, car.index(), Purpose::Broken, !number) % Breakage::ALL.len() as u64;
        Some(Breakage::ALL[kind as usize])
    }

    /// Appends the payload of `reading`, whole or broken.
    pub fn write(&self, car: &Car, reading: &Reading, out: &mut Vec<u8>) {
        match self.breakage(car, reading) {
            None => write_reading(car, reading, out),
            Some(breakage) => write_broken(car, reading, breakage, self.seed, self.oversized_bytes, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_readings_have_the_wanted_share_and_all_kinds() {
        let args = FleetArgs { cars: 20, broken_share: 0.1, ..FleetArgs::default() };
        let breaker = Breaker::new(&args);
        let (mut broken, mut all, mut kinds) = (0, 0, std::collections::HashSet::new());
        for mut car in fleet(&args) {
            for _ in 0..500 {
                let reading = car.next_reading();
                all += 1;
                if let Some(breakage) = breaker.breakage(&car, &reading) {
                    broken += 1;
                    kinds.insert(format!("{breakage:?}"));
                }
            }
        }
        assert!((800..1_200).contains(&broken), "{broken} of {all}");
        assert_eq!(kinds.len(), Breakage::ALL.len());
    }
}
