//! Random numbers that depend on what they are for and on nothing else.
//!
//! Every use has a stream of its own, derived from (seed, car, purpose, number): a car draws the same numbers in any
//! process, in any order of cars, whatever the network does and whatever the other streams are used for. There is no
//! global generator. Logarithms and powers of the platform's C library are avoided for the same reason: the model uses
//! `libm`, whose results are the same everywhere.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The purpose of a stream of random numbers. The numbers are part of the derivation: changing one changes every fleet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    /// VIN, driver, plate.
    Identity = 1,
    /// The constants of the car: mass, tyres, sensors, home.
    Vehicle = 2,
    /// The trips of one day.
    Day = 3,
    /// Drive cycle, road, sensor noise.
    Motion = 4,
    /// Which faults begin in one trip, and how they go.
    Fault = 5,
    /// Boot ids and trip ids.
    Ids = 6,
    /// Which readings are sent broken, and how.
    Broken = 7,
    /// Which readings meet a rare loss of the network.
    Network = 8,
    /// Jitter of reconnects. Does not touch what a car sends.
    Backoff = 9,
}

/// The generator of one purpose of one car; `number` tells days, trips and the like apart.
pub(crate) fn stream(seed: u64, car: u32, purpose: Purpose, number: u64) -> Random {
    Random(ChaCha8Rng::seed_from_u64(hash(seed, car, purpose, number)))
}

/// A well-mixed number for one purpose of one car, for single decisions that need no generator.
pub(crate) fn hash(seed: u64, car: u32, purpose: Purpose, number: u64) -> u64 {
    let place = (u64::from(car) << 8) | purpose as u64;
    mix(mix(mix(seed) ^ place) ^ number)
}

/// As [`hash`], between 0 and 1.
pub(crate) fn hash_unit(seed: u64, car: u32, purpose: Purpose, number: u64) -> f64 {
    unit_from(hash(seed, car, purpose, number))
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The upper 53 bits as a fraction: every value is exact in a double.
fn unit_from(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// A ChaCha8 generator with the few distributions that a car needs.
#[derive(Debug, Clone)]
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    /// 64 random bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        unit_from(self.0.next_u64())
    }

    /// Uniform in [low, high).
    pub(crate) fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in 0..n.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        // The bias of the multiplication is below 2^-32 for the small n used here.
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    /// True with probability `p`.
    pub(crate) fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// About normal, mean 0, standard deviation 1, never beyond ±3.5: the sum of four uniforms (Irwin–Hall). Cheap, and
    /// made of exact operations only.
    pub(crate) fn gauss(&mut self) -> f64 {
        /// Standard deviation 1 from four uniforms of variance 1/12 each.
        const SCALE: f64 = 1.732_050_807_568_877_2 / 65_536.0;
        let bits = self.0.next_u64();
        let sum = (bits & 0xFFFF) + ((bits >> 16) & 0xFFFF) + ((bits >> 32) & 0xFFFF) + (bits >> 48);
        (sum as f64 - 131_070.0) * SCALE
    }

    /// The generator itself, for `fake`.
    pub(crate) fn inner(&mut self) -> &mut ChaCha8Rng {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_every_part_of_their_name() {
        let first = hash(1, 2, Purpose::Day, 3);
        assert_eq!(first, hash(1, 2, Purpose::Day, 3));
        for other in [
            hash(2, 2, Purpose::Day, 3),
            hash(1, 3, Purpose::Day, 3),
            hash(1, 2, Purpose::Motion, 3),
            hash(1, 2, Purpose::Day, 4),
        ] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn gauss_has_mean_zero_and_deviation_one() {
        let mut random = stream(7, 0, Purpose::Motion, 0);
        let n = 100_000;
        let (mut sum, mut squares) = (0.0, 0.0);
        for _ in 0..n {
            let x = random.gauss();
            assert!(x.abs() < 3.5);
            sum += x;
            squares += x * x;
        }
        let mean = sum / f64::from(n);
        assert!(mean.abs() < 0.02, "mean {mean}");
        let deviation = (squares / f64::from(n) - mean * mean).sqrt();
        assert!((deviation - 1.0).abs() < 0.02, "deviation {deviation}");
    }
}
