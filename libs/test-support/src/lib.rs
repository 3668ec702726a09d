//! What tests of several crates share: the day they run on, numbers that follow from a seed, and processes that end
//! with them. A dev-dependency; nothing that is shipped uses it.

pub mod clock;
pub mod measurement;
pub mod process;
pub mod random;
