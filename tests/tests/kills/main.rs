//! kill -9 at random moments: the demo and the edge box resume where they stopped, and lose and double nothing. Beside
//! that, an edge box with a wrong clock, and one with a full disk.
//!
//! Four kills each; `CARSTREAM_KILLS=20 cargo test --release -p whole-pipeline-tests --test kills` does twenty. The
//! moments come from a seed (`CARSTREAM_KILL_SEED`), as far as the clock of a busy machine lets them.
#![allow(clippy::unwrap_used)]

mod clock;
mod demo;
mod disk;
mod edge;

use test_support::random::Random;

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

/// The moments of the kills.
fn moments() -> Random {
    let seed = setting("CARSTREAM_KILL_SEED", 1);
    eprintln!("{} kills, CARSTREAM_KILL_SEED={seed}", kills());
    Random::new(seed)
}
