//! The demo's settings.

use std::path::PathBuf;

use service::ContractArgs;

/// Settings of the demo. Nothing of it needs Docker, Java or a network.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// How many cars.
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=15_000))]
    pub cars: u32,
    /// For how long the cars send, in seconds.
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub duration: u32,
    /// The fleet: the same seed gives the same cars, faults and readings.
    #[arg(long, default_value_t = 7, value_name = "N")]
    pub seed: u64,
    /// How many seconds pass in the cars' world for one of ours.
    #[arg(long, default_value_t = 2400, value_name = "FACTOR", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub speedup: u32,
    /// Keep the files in this directory; otherwise in a fresh one among the system's temporary files. A run that was
    /// interrupted, even by kill -9, goes on where it was if its directory is named here.
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// What the site has. Further streams are sent, carried and accounted for beside the readings.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// Print the report as one line of JSON on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
}
