//! What tests of several crates share: the day they run on, numbers that follow from a seed, logs that wrap another,
//! disks that fill, and processes that end with them. A dev-dependency; nothing that is shipped uses it.

pub mod clock;
pub mod disk;
mod log;
pub mod measurement;
pub mod process;
pub mod random;
