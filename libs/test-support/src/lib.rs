//! What tests of several crates share: the day they run on. A dev-dependency; nothing that is shipped uses it.

pub mod clock;
