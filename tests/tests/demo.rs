//! The demo as a library: the account holds, the same seed is the same run, and it can be stopped at any moment.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use carstream::demo::{self, Args, Report};
use service::ServiceArgs;
use tokio_util::sync::CancellationToken;

fn args(keep: &Path, seed: u64, duration_s: u64) -> Args {
    Args {
        cars: 150,
        duration: Duration::from_secs(duration_s),
        seed,
        speedup: 1200,
        keep: Some(keep.to_owned()),
        json: true,
        contract: Default::default(),
    }
}

fn nothing_lost_nothing_doubled(report: &Report) {
    let l = &report.ledger;
    assert_eq!((l.lost, l.doubled), (0, 0), "{report}");
    assert_eq!(l.raw, l.clean + l.duplicates_removed + l.dead_letters, "{report}");
    assert_eq!((l.clean, l.replicated), (l.replicated, l.parquet_rows), "{report}");
}

/// (VIN, boot, seq, event time) of every reading of the ledger.
fn readings(directory: &Path) -> BTreeSet<String> {
    let ledger = std::fs::read_to_string(directory.join("ledger.csv")).unwrap();
    let identity = |line: &str| {
        let cells: Vec<_> = line.split(',').collect();
        format!("{} {} {} {} {}", cells[0], cells[1], cells[2], cells[3], cells[5])
    };
    ledger.lines().skip(1).map(identity).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_seed_is_the_same_run_and_every_reading_is_accounted_for() {
    let directory = tempfile::tempdir().unwrap();
    let mut runs = Vec::new();
    for run in ["first", "second"] {
        let keep = directory.path().join(run);
        let report = demo::run(args(&keep, 7, 20), &ServiceArgs::default(), CancellationToken::new()).await.unwrap();
        nothing_lost_nothing_doubled(&report);
        assert_eq!(report.ledger.scored, report.ledger.clean, "{report}");
        assert!(report.ledger.dead_letters > 0, "no broken reading was sent: nothing was shown of them\n{report}");
        runs.push((readings(&keep), report));
    }
    assert!(runs[0].0 == runs[1].0, "other readings in the second run");
    assert_eq!(runs[0].1.ledger.sent, runs[1].1.ledger.sent);
    assert_eq!(runs[0].1.ledger.clean, runs[1].1.ledger.clean);

    // Another seed is another fleet.
    let keep = directory.path().join("other");
    demo::run(args(&keep, 8, 5), &ServiceArgs::default(), CancellationToken::new()).await.unwrap();
    assert!(readings(&keep).is_disjoint(&runs[0].0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn stopped_at_any_moment_it_drains_and_reports() {
    let directory = tempfile::tempdir().unwrap();
    for (number, after_ms) in [0, 150, 900, 3_000, 9_000].into_iter().enumerate() {
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            stop.cancel();
        });
        let keep = directory.path().join(number.to_string());
        let report = demo::run(args(&keep, 7, 30), &ServiceArgs::default(), shutdown).await.unwrap();
        nothing_lost_nothing_doubled(&report);
        assert!(report.to_string().contains("stopped early"), "after {after_ms} ms:\n{report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn files_of_another_run_are_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("precious"), "data").unwrap();
    let error = demo::run(args(directory.path(), 7, 5), &ServiceArgs::default(), CancellationToken::new())
        .await
        .map(|report| report.to_string())
        .unwrap_err();
    assert!(error.downcast_ref::<service::ConfigError>().is_some(), "{error:#}");
    assert!(error.to_string().contains("is not empty"), "{error:#}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}
