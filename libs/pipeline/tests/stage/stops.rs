//! Stops: with what the log holds processed.

use std::sync::Arc;

use event_log::Log;
use pipeline::{Metrics, run, run_and_drain};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::support::{Number, PATIENCE, append, check_numbers, is_done, open, options};

fn metrics() -> Metrics {
    Metrics::new(&mut Registry::default(), "test")
}

fn feed(log: &Arc<dyn Log>, records: usize) {
    append(log, "in", (0..records).map(|i| (format!("key{}", i % 7), i.to_string())));
}

#[test]
fn a_drain_processes_what_the_log_held_at_the_stop() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    feed(&log, 500);
    let stopped = CancellationToken::new();
    stopped.cancel();
    run(options(&log, 16), &mut Number::default(), &metrics(), &stopped).unwrap();
    assert_eq!(check_numbers(&log), 0, "without a drain a stop is at once");
    run_and_drain(options(&log, 16), &mut Number::default(), &metrics(), &stopped, PATIENCE).unwrap();
    assert!(is_done(&log));
    assert_eq!(check_numbers(&log), 500);
}

#[test]
fn a_stage_that_fails_does_not_wait_for_its_drain() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    append(&log, "in", [("key".to_owned(), "fatal".to_owned())]);
    let stopped = CancellationToken::new();
    stopped.cancel();
    let failed = run_and_drain(options(&log, 16), &mut Number::default(), &metrics(), &stopped, PATIENCE).unwrap_err();
    assert!(format!("{failed:#}").contains("cannot go on"), "{failed:#}");
}
