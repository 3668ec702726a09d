//! Measurements (`benches/`): programs with a main of their own, run by hand on a machine that does nothing else.

/// The arguments of a measurement: those of its command line without the `--bench` that `cargo bench` adds. The first
/// one is the program.
pub fn arguments() -> impl Iterator<Item = String> {
    std::env::args().filter(|argument| argument != "--bench")
}
