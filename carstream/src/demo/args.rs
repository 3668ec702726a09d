//! The demo's settings.

use std::path::PathBuf;
use std::time::Duration;

use service::ContractArgs;

/// Settings of the demo. Nothing of it needs Docker, Java or a network.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Simulate this many cars.
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=15_000))]
    pub cars: u32,
    /// Let the cars send for this long, up to 1d.
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = duration)]
    pub duration: Duration,
    /// Derive everything random from this: the same seed gives the same cars, faults and readings.
    #[arg(long, default_value_t = 7, value_name = "N")]
    pub seed: u64,
    /// Let this many seconds of a car's life pass in one second of the clock.
    #[arg(
        long,
        default_value_t = 2400,
        value_name = "FACTOR",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(simulator::MAX_SPEEDUP))
    )]
    pub speedup: u32,
    /// Keep the files in this directory, instead of in a new one among the system's temporary files.
    ///
    /// A run that was interrupted, even by kill -9, resumes where it was if its directory is named here.
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// The site's contract. Further streams are sent, carried and accounted for beside the readings.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// Print the report as one line of JSON on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let range = Duration::from_secs(1)..=Duration::from_secs(86_400);
    service::values::duration(text).and_then(|duration| match range.contains(&duration) {
        true => Ok(duration),
        false => Err("must be within 1s and 1d".to_owned()),
    })
}
