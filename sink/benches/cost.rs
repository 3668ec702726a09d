//! What the sink costs: CPU seconds per million readings from the embedded log to Parquet, and the most memory.
//!
//!     cargo bench -p sink --bench cost -- [READINGS]
//!
//! Reads /proc, so Linux only. The log is filled first and is not part of the figures.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use support::{Place, append, assert_complete, files, readings, start, wait_until};
use test_support::measurement;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Clock ticks a second in /proc: 100 on every Linux in use.
const TICKS_PER_S: f64 = 100.0;

fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS_PER_S
}

fn memory_mb(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(line)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::main]
async fn main() {
    let count: u64 = measurement::arguments().nth(1).map_or(500_000, |n| n.parse().unwrap());
    let place = Place::new();
    let log = place.log();
    for first in (0..count).step_by(20_000) {
        append(&log, "telemetry", first, &readings(first, 20_000.min(count - first), 2));
    }
    // Let the log finish what it does in the background.
    tokio::time::sleep(Duration::from_secs(3)).await;
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (cpu, began, before_mb) = (cpu_s(), Instant::now(), memory_mb("VmRSS"));
    let sink = start(place.args(&["telemetry"]));
    wait_until("most rows", async || sink.metrics.rows("telemetry") >= count.saturating_sub(500_000)).await;
    sink.stop().await.unwrap();
    let (cpu, took) = (cpu_s() - cpu, began.elapsed().as_secs_f64());
    let per_million = 1e6 / count as f64;
    let bytes: u64 = files(&place.lake_folder()).iter().map(|file| std::fs::metadata(file).unwrap().len()).sum();
    println!(
        "{count} readings: {:.2} CPU s per million, {:.2} s per million, {:.1} bytes of Parquet each, \
         {before_mb} MB before and at most {} MB while writing",
        cpu * per_million,
        took * per_million,
        bytes as f64 / count as f64,
        memory_mb("VmHWM"),
    );
    assert_complete(&log, &place.lake(), "telemetry", "telemetry.v2.avsc").await;
}
