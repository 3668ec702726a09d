//! A fleet and the real bridge on a real log: what is acknowledged is in the log, though the bridge goes away
//! meanwhile.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use prometheus_client::registry::Registry;
use service::DrainArgs;
use simulator::{FleetArgs, Metrics, RunArgs, run_with};
use support::bridge::{Bridge, records};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_is_in_the_log_though_the_bridge_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let (log, path) = (directory.path().join("log"), directory.path().join("ledger.csv"));
    let bridge = Bridge::start("127.0.0.1:0", &log).await;
    let address = bridge.address.to_string();
    let args = RunArgs {
        fleet: FleetArgs {
            seed: 3,
            cars: 30,
            duration: Some(Duration::from_secs(4)),
            speedup: 3_600.0,
            fault_share: 0.3,
            ..FleetArgs::default()
        },
        mqtt: address.clone(),
        ledger: Some(path.clone()),
        ramp: Duration::from_millis(100),
        drain: DrainArgs { timeout: Duration::from_secs(60) },
        ..RunArgs::default()
    };
    let metrics = Metrics::new(&mut Registry::default());
    let run = tokio::spawn(run_with(args, metrics.clone(), CancellationToken::new()));
    while metrics.acknowledged.get() < 1_000 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bridge.stop().await;
    let bridge = Bridge::start(&address, &log).await;
    let summary = run.await.unwrap().unwrap();
    bridge.stop().await;

    assert_eq!((summary.acknowledged, summary.dropped, summary.unacknowledged), (summary.readings, 0, 0));
    let acknowledged: BTreeSet<_> =
        support::ledger(&path).into_iter().map(|row| (row.vin, row.boot_id, u64::from(row.seq))).collect();
    assert_eq!(acknowledged.len() as u64, summary.readings);
    let readings = records(&log, "telemetry.raw");
    let logged: BTreeSet<_> = readings
        .iter()
        .map(|(key, json)| {
            assert_eq!(json["vin"], *key);
            (key.clone(), json["boot_id"].as_u64().unwrap(), json["seq"].as_u64().unwrap())
        })
        .collect();
    assert!(logged == acknowledged, "{} in the log, {} acknowledged", logged.len(), acknowledged.len());
    let doubled = (readings.len() - logged.len()) as u64;
    assert!(doubled <= summary.duplicates_sent, "{doubled} doubled of {} repeated", summary.duplicates_sent);
    assert!(summary.duplicates_sent > 0, "a network that never fails proves nothing");
    let found: BTreeSet<_> =
        records(&log, "faults.raw").into_iter().map(|(key, json)| (key, json["began_ms"].as_i64().unwrap())).collect();
    let reported: BTreeSet<_> = summary.faults.iter().map(|fault| (fault.vin.clone(), fault.began_ms)).collect();
    assert!(!reported.is_empty());
    assert_eq!(found, reported);
    let drivers: BTreeSet<_> = records(&log, "drivers").into_iter().map(|(key, _)| key).collect();
    assert_eq!(drivers.len(), 30);
}
