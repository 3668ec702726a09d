//! The front door of carstream, and every stage: a link with the name of a stage is that stage.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match service::started_as().as_deref() {
        Some("simulator") => service::main(simulator::run),
        Some("mqtt-bridge") => service::main(mqtt_bridge::run),
        Some("preprocessor") => service::main(preprocessor::run),
        Some("replicator") => service::main(replicator::run),
        Some("sink") => service::main(sink::run),
        Some("trainer") => service::main(trainer::run),
        Some("scorer") => service::main(scorer::run),
        _ => service::main(carstream::run),
    }
}
