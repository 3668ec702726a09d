//! The front door of carstream, and every stage: a link with the name of a stage is that stage.

use std::process::ExitCode;

use service::ServiceArgs;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match service::started_as().as_deref() {
        Some("simulator") => run(simulator::run),
        Some("mqtt-bridge") => run(mqtt_bridge::run),
        Some("preprocessor") => run(preprocessor::run),
        Some("replicator") => run(replicator::run),
        Some("sink") => run(sink::run),
        Some("trainer") => run(trainer::run),
        Some("scorer") => run(scorer::run),
        _ => run(carstream::run),
    }
}

fn run<A, F, Fut>(run: F) -> ExitCode
where
    A: clap::Parser + AsRef<ServiceArgs>,
    F: FnOnce(A, CancellationToken) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    service::main(|args, shutdown| {
        carstream::warn_of_unknown_variables();
        run(args, shutdown)
    })
}
