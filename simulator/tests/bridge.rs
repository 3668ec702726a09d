//! A fleet and the real bridge on a real log: what is acknowledged is in the log, though the bridge goes away meanwhile.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use event_log::{LogArgs, LogUrl, Range, Read};
use prometheus_client::registry::Registry;
use simulator::{FleetArgs, Metrics, RunArgs, run_with};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Bridge {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Bridge {
    async fn start(address: &str, log: &Path) -> Self {
        let log = LogArgs::new(LogUrl::Directory(log.to_owned()));
        let args = mqtt_bridge::Args::new(address.parse().unwrap(), log, None);
        let metrics = mqtt_bridge::Metrics::new(&mut Registry::default());
        let bridge = mqtt_bridge::Bridge::bind(args, metrics).await.unwrap();
        let (address, stop) = (bridge.local_addr(), CancellationToken::new());
        let task = tokio::spawn(bridge.serve(stop.clone()));
        Self { address, stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// All values of a topic, as JSON, with their keys.
fn records(log: &Path, topic: &str) -> Vec<(String, serde_json::Value)> {
    let log = event_log::open(&LogUrl::Directory(log.to_owned()), &[]).unwrap();
    let description = log.describe(topic).unwrap();
    let ranges = description
        .partitions
        .iter()
        .zip(0..)
        .map(|(bounds, partition)| Range {
            topic: topic.into(),
            partition,
            start: bounds.first,
            end: Some(bounds.next),
        })
        .collect();
    let mut reader = log.reader(ranges).unwrap();
    let mut found = Vec::new();
    loop {
        match reader.next(10_000, Duration::from_millis(100)).unwrap() {
            Read::Batch(batch) => found.extend(batch.iter().map(|record| {
                let key = String::from_utf8(record.key.to_vec()).unwrap();
                (key, serde_json::from_slice(record.value.unwrap()).unwrap())
            })),
            Read::Idle => {}
            Read::End => return found,
        }
    }
}

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
        drain_timeout: Duration::from_secs(60),
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
