//! Stops: with what the log holds processed, and in the middle of a replay.

use std::sync::Arc;

use event_log::{Batch, Log};
use pipeline::{Emit, Metrics, Options, Transform, run, run_and_drain};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::support::{Number, PATIENCE, append, check_numbers, is_done, open, options, run_with};

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

/// Is stopped while it replays.
struct StoppedInReplay {
    inner: Number,
    shutdown: CancellationToken,
    replayed: usize,
}

impl Transform for StoppedInReplay {
    fn reset(&mut self, topic: &Arc<str>, partition: u32) {
        self.inner.reset(topic, partition);
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn replay(&mut self, batch: &Batch) -> anyhow::Result<()> {
        self.shutdown.cancel();
        self.replayed += batch.len();
        self.inner.replay(batch)
    }

    fn snapshot(&self, topic: &Arc<str>, partition: u32) -> Vec<u8> {
        self.inner.snapshot(topic, partition)
    }

    fn apply(&mut self, batch: &Batch, emit: &mut Emit) -> anyhow::Result<()> {
        self.inner.apply(batch, emit)
    }
}

#[test]
fn a_stop_during_a_replay_is_heeded_and_leaves_no_snapshot_of_half_a_state() {
    // So many that a partition is replayed in several batches.
    const RECORDS: usize = 60_000;
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    feed(&log, RECORDS);
    run_with(options(&log, 4096), Number::default(), |_| is_done(&log)).unwrap();
    let with_snapshots = || Options { state: Some("state".into()), ..options(&log, 4096) };
    let shutdown = CancellationToken::new();
    let mut transform = StoppedInReplay { inner: Number::default(), shutdown: shutdown.clone(), replayed: 0 };
    run(with_snapshots(), &mut transform, &metrics(), &shutdown).unwrap();
    assert!(transform.replayed > 0 && transform.replayed < RECORDS / 3, "{} were replayed", transform.replayed);
    let snapshots = log.describe("state").unwrap().partitions;
    assert!(snapshots.iter().all(|partition| partition.next == 0), "{snapshots:?}");
    feed(&log, 70);
    run_with(with_snapshots(), Number::default(), |_| is_done(&log)).unwrap();
    assert_eq!(check_numbers(&log), RECORDS + 70);
}
