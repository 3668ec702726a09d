//! The most memory that the sink takes with many partitions and a store that hangs, and then while it catches up.
//!
//!     cargo bench -p sink --bench memory -- [PARTITIONS] [READINGS] [LOG]
//!
//! The store takes every request and answers none, so that all that can be held is held: records up to --max-memory,
//! and the objects of the uploads under way. Reads /proc, so Linux only. LOG is a fresh kafka://HOST:PORT; without it
//! the log is the embedded one, in this process: its caches count too.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use event_log::{AppendError, LogArgs, Record};
use lake::Lake;
use support::faults::{Fault, FaultyStore, Plan};
use support::{PATIENCE, Place, assert_complete, readings, start_on, wait_until};
use test_support::clock::yesterday_ms;
use test_support::measurement;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn memory_mb(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(line)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::main]
async fn main() {
    let mut arguments = measurement::arguments().skip(1);
    let mut number = |default| arguments.next().map_or(default, |n| n.parse::<u64>().unwrap());
    let (partitions, count) = (number(64), number(1_000_000));
    let place = Place::new();
    let log_url = arguments.next().map_or_else(|| place.log_url(), |url| url.parse().unwrap());
    let log = LogArgs::new(log_url.clone()).open().unwrap();
    let spec = event_log::TopicSpec { partitions: partitions as u32, ..topics::builtin("telemetry") };
    log.ensure_topic(&spec).unwrap();
    let topic: Arc<str> = "telemetry".into();
    let appender = log.clone().appender(Box::new(|_| {})).unwrap();
    for first in (0..count).step_by(20_000) {
        for (i, value) in (first..).zip(readings(first, 20_000.min(count - first), 2)) {
            let key = format!("{:032x}", i % 10_000);
            let timestamp_ms = yesterday_ms() + i as i64;
            let record = Record { key: key.as_bytes(), value: Some(&value), headers: &[], timestamp_ms };
            while let Err(AppendError::Full) = appender.append(&topic, &record, i) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    assert!(appender.flush(PATIENCE));
    drop(appender);
    // Let the log finish what it does in the background.
    tokio::time::sleep(Duration::from_secs(3)).await;
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before_mb = memory_mb("VmRSS");

    let mut args = place.args(&["telemetry"]);
    args.log = LogArgs::new(log_url);
    args.store_timeout = Duration::from_secs(2);
    let max_memory_mb = args.max_memory >> 20;
    let lake = place.lake();
    let store = FaultyStore::new(lake.store().clone(), Plan::All(Fault::Hangs));
    let sink = start_on(args, log.clone(), Lake::with_store(store.clone(), lake.url().clone()));
    // Every upload under way has been encoded and tried twice.
    wait_until("uploads that hang", async || sink.metrics.retries.get() >= 16).await;
    let (hangs_mb, held_mb) = (memory_mb("VmHWM"), sink.metrics.buffered_bytes.get() >> 20);
    store.set(Plan::All(Fault::None));
    sink.stop().await.unwrap();
    println!(
        "{partitions} partitions, {count} readings: {before_mb} MB before, at most {hangs_mb} MB while the store hung \
         ({held_mb} MB of records held; --max-memory is {max_memory_mb} MB), {} MB while it caught up",
        memory_mb("VmHWM"),
    );
    assert_complete(&log, &lake, "telemetry", "telemetry.v2.avsc").await;
}
