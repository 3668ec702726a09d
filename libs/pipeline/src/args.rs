//! The settings that every stage with this loop has.

use std::time::Duration;

use service::{settings, values};

use crate::ForgetAfter;

/// How instances share the work, and how often each one commits.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct LoopArgs {
    /// Use this name within the consumer group: unique to each process, and the same after a restart.
    ///
    /// Instances share the partitions; a second process with the same name takes over from the first, which stops.
    /// @host is the name of the host, container or pod.
    #[arg(long, env = "CARSTREAM_INSTANCE", value_name = "NAME", default_value = "1",
        value_parser = values::instance_name)]
    pub instance: String,
    /// Commit at the latest after this many records.
    // Enough to make a commit cheap, few enough to hold a few megabytes.
    #[arg(long, env = "CARSTREAM_BATCH_RECORDS", value_name = "RECORDS", default_value_t = 4096)]
    pub batch_records: usize,
    /// Commit at the latest this long after the first record of a batch: shorter for less latency, longer for less CPU.
    #[arg(long, env = "CARSTREAM_BATCH_WAIT", value_name = "DURATION", default_value = "50ms",
        value_parser = values::duration)]
    pub batch_wait: Duration,
}

impl Default for LoopArgs {
    fn default() -> Self {
        settings::defaults(&[])
    }
}

impl LoopArgs {
    /// What of the settings cannot work.
    pub fn problems(&self) -> Vec<String> {
        if self.batch_records == 0 { vec!["--batch-records must be at least 1".to_owned()] } else { Vec::new() }
    }
}

/// How often a stage with state writes it down.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct SnapshotArgs {
    /// Write a snapshot of a partition's state after this many of its records: fewer for a quicker start after a crash,
    /// more for less work.
    ///
    /// A clean stop writes one in any case.
    #[arg(long, env = "CARSTREAM_SNAPSHOT_RECORDS", value_name = "RECORDS", default_value_t = crate::SNAPSHOT_RECORDS)]
    pub snapshot_records: u64,
}

impl Default for SnapshotArgs {
    fn default() -> Self {
        settings::defaults(&[])
    }
}

impl SnapshotArgs {
    /// What of the settings cannot work.
    pub fn problems(&self) -> Vec<String> {
        if self.snapshot_records == 0 { vec!["--snapshot-records must be at least 1".to_owned()] } else { Vec::new() }
    }
}

/// For how long a stage with state knows a car.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct ForgetArgs {
    /// Forget a car that has sent nothing for this long, by the timestamps of records; never: know it for ever.
    ///
    /// The same for preprocessor and scorer. A car that sends again later is a new car.
    #[arg(long, env = "CARSTREAM_FORGET_AFTER", value_name = "DURATION|never", default_value_t = ForgetAfter::DEFAULT)]
    pub forget_after: ForgetAfter,
}
