//! kill -9 at random moments: the demo and the edge box resume where they stopped, and lose and double nothing.
//!
//! Four kills each; `CARSTREAM_KILLS=20 cargo test --release -p whole-pipeline-tests --test kills` does twenty. The
//! moments come from a seed (`CARSTREAM_KILL_SEED`), as far as the clock of a busy machine lets them.
#![allow(clippy::unwrap_used)]

mod demo;
mod edge;

/// How many kills, unless `CARSTREAM_KILLS` says otherwise.
const KILLS: u32 = 4;

fn setting<T: std::str::FromStr>(variable: &str, default: T) -> T {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is no number")),
        Err(_) => default,
    }
}

fn kills() -> u32 {
    setting("CARSTREAM_KILLS", KILLS)
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same seed gives the same moments for ever.
struct Random(u64);

impl Random {
    fn seeded() -> Self {
        let seed = setting("CARSTREAM_KILL_SEED", 1);
        eprintln!("{} kills, CARSTREAM_KILL_SEED={seed}", kills());
        Self(seed)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % n
    }

    /// Within a range, ends included.
    fn ms(&mut self, from: u64, to: u64) -> std::time::Duration {
        std::time::Duration::from_millis(from + self.below(to - from + 1))
    }
}
