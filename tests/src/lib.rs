//! What the tests of the whole pipeline share: where the binaries are, how they are run, what the audit says, a
//! Kafka of a test's own, stages that lie, and a log that fails by a seed.

pub mod audit;
pub mod faults;
pub mod kafka;
pub mod process;
pub mod sabotage;
pub mod state;

use std::path::PathBuf;

/// The path of one of carstream's binaries, built beside the test that asks.
///
/// # Panics
/// If it is missing: `cargo build --release --workspace --bins` builds it, `scripts/test` does so first.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let folder = test.parent().and_then(|deps| deps.parent()).expect("tests are in target/release/deps");
    let binary = folder.join(name).with_extension(std::env::consts::EXE_EXTENSION);
    assert!(binary.exists(), "{} is missing: run scripts/test, which builds it first", binary.display());
    binary
}
