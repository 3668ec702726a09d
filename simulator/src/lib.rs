//! A fleet of cars.

pub mod args;
pub mod car;
mod fleet;
mod generate;
mod parquet_file;
mod payload;
mod random;

use tokio_util::sync::CancellationToken;

pub use args::{Args, FleetArgs, Format, GenerateArgs, RunArgs};
pub use fleet::{Breaker, fleet};
pub use generate::generate;
pub use payload::{Breakage, write_broken, write_driver, write_finding, write_reading};

/// What the binary does.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    match args.command {
        Some(args::Command::Generate(args)) => {
            tokio::task::spawn_blocking(move || generate(&args, &shutdown)).await?
        }
        _ => anyhow::bail!("no network yet"),
    }
}
