//! A fleet against a real socket: everything arrives, in order, and the ledger says so, whatever the server does.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prometheus_client::registry::Registry;
use service::DrainArgs;
use simulator::{FleetArgs, Metrics, RunArgs, fleet, run_with};
use support::{Behaviour, Peer, ledger};
use tokio_util::sync::CancellationToken;

type Key = (String, u64, u32);

/// Hours of many cars in a second or two.
fn args(peer: &str, cars: u32) -> RunArgs {
    RunArgs {
        fleet: FleetArgs {
            seed: 7,
            cars,
            duration: Some(Duration::from_secs(2)),
            speedup: 7_200.0,
            fault_share: 0.05,
            ..FleetArgs::default()
        },
        mqtt: peer.to_owned(),
        ramp: Duration::from_millis(100),
        drain: DrainArgs { timeout: Duration::from_secs(60) },
        ..RunArgs::default()
    }
}

fn metrics() -> Metrics {
    Metrics::new(&mut Registry::default())
}

/// The readings that a run with these settings has, from the cars alone.
fn expected(args: &FleetArgs) -> BTreeSet<Key> {
    let end_ms = args.end_ms().unwrap();
    let mut keys = BTreeSet::new();
    for mut car in fleet(args) {
        while car.next_time_ms() < end_ms {
            let reading = car.next_reading();
            assert!(keys.insert((car.vin().to_owned(), reading.boot_id, reading.seq)));
        }
    }
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reading_is_acknowledged_once_though_connections_break() {
    let peer = Peer::start(Behaviour { cut_after: Some(40), unacknowledged: 5, ..Behaviour::default() }).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.csv");
    let args = RunArgs { ledger: Some(path.clone()), ..args(&peer.address.to_string(), 25) };
    let expected = expected(&args.fleet);
    let summary = run_with(args, metrics(), CancellationToken::new()).await.unwrap();

    let rows = ledger(&path);
    let acknowledged: BTreeSet<Key> = rows
        .iter()
        .filter(|row| row.outcome == "acknowledged" && row.payload == "valid")
        .map(|row| (row.vin.clone(), row.boot_id, row.seq))
        .collect();
    assert!(acknowledged == expected, "{} of {} acknowledged", acknowledged.len(), expected.len());
    assert_eq!(rows.len(), expected.len(), "one row each");
    assert_eq!((summary.acknowledged, summary.readings), (expected.len() as u64, expected.len() as u64));
    assert_eq!((summary.unacknowledged, summary.dropped, summary.faults_unacknowledged), (0, 0, 0));

    // What the server saw: all of it, in order per car, repeats marked, the driver first.
    let seen = peer.publishes();
    let mut repeats = 0;
    let mut last: BTreeMap<String, (bool, i64)> = BTreeMap::new();
    let mut arrived = BTreeSet::new();
    let mut findings = BTreeSet::new();
    for publish in &seen {
        let json: serde_json::Value = serde_json::from_slice(&publish.payload).unwrap();
        let (introduced, last_ms) = last.entry(publish.client.clone()).or_default();
        let kind = publish.topic.strip_prefix(&format!("vehicles/{}/", publish.client)).unwrap();
        match kind {
            "drivers" => *introduced = true,
            "faults" => {
                findings.insert((publish.client.clone(), json["began_ms"].as_i64().unwrap()));
            }
            _ => {
                assert!(*introduced, "a reading before the driver");
                let key =
                    (publish.client.clone(), json["boot_id"].as_u64().unwrap(), json["seq"].as_u64().unwrap() as u32);
                let event_time_ms = json["event_time_ms"].as_i64().unwrap();
                if arrived.insert(key) {
                    assert!(event_time_ms > *last_ms, "out of order");
                    *last_ms = event_time_ms;
                } else {
                    assert!(publish.dup, "a repeat without DUP");
                    repeats += 1;
                }
            }
        }
    }
    assert!(arrived == expected);
    assert!(repeats > 0 && summary.duplicates_sent >= repeats, "{repeats} of {}", summary.duplicates_sent);
    assert!(rows.iter().any(|row| row.attempts > 1));
    let reported: BTreeSet<_> = summary.faults.iter().map(|fault| (fault.vin.clone(), fault.began_ms)).collect();
    assert!(!reported.is_empty());
    assert_eq!(findings, reported);
    let seen = peer.seen.lock().unwrap();
    let connect = &seen.connects[0];
    let will = connect.last_will.as_ref().unwrap();
    assert_eq!(will.topic, format!("vehicles/{}/status", connect.client_id));
    assert_eq!(&will.message[..], format!(r#"{{"vin":"{}","status":"lost"}}"#, connect.client_id).as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_runs_of_a_seed_send_the_same_in_the_same_order() {
    let mut runs = Vec::new();
    for cut_after in [None, Some(25)] {
        let peer = Peer::start(Behaviour { cut_after, unacknowledged: 3, ..Behaviour::default() }).await;
        let summary = run_with(args(&peer.address.to_string(), 8), metrics(), CancellationToken::new()).await.unwrap();
        let mut per_car: BTreeMap<String, Vec<bytes::Bytes>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for publish in peer.publishes() {
            if publish.topic.ends_with("/telemetry") && seen.insert(publish.payload.clone()) {
                per_car.entry(publish.client).or_default().push(publish.payload);
            }
        }
        runs.push((per_car, summary.faults));
    }
    assert!(runs[0] == runs[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_for_a_server_that_comes_later() {
    // A port that is free now; nobody else is given it within the next moment.
    let address = Peer::start(Behaviour::default()).await.address;
    let run = tokio::spawn(run_with(args(&address.to_string(), 3), metrics(), CancellationToken::new()));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let peer = Peer::start_at(address, Behaviour::default()).await;
    let summary = run.await.unwrap().unwrap();
    assert_eq!(summary.acknowledged, summary.readings);
    assert!(summary.readings > 0);
    // The last output is still on its way.
    while peer.seen.lock().unwrap().disconnects < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_early_and_accounts_for_everything() {
    let peer = Peer::start(Behaviour::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.csv");
    let mut args = RunArgs { ledger: Some(path.clone()), ..args(&peer.address.to_string(), 10) };
    args.fleet.duration = None;
    let stop = CancellationToken::new();
    let metrics = metrics();
    let run = tokio::spawn(run_with(args, metrics.clone(), stop.clone()));
    while metrics.acknowledged.get() < 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    let summary = run.await.unwrap().unwrap();
    assert_eq!(summary.acknowledged, summary.readings);
    assert_eq!(ledger(&path).len() as u64, summary.readings);
    assert_eq!((metrics.in_flight.get(), metrics.buffered.get(), metrics.cars_connected.get()), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_acknowledges_leaves_rows_that_say_so() {
    let peer = Peer::start(Behaviour { silent: true, ..Behaviour::default() }).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.csv");
    let args = RunArgs {
        ledger: Some(path.clone()),
        buffer: 40,
        drain: DrainArgs { timeout: Duration::from_millis(300) },
        ..args(&peer.address.to_string(), 5)
    };
    let expected = expected(&args.fleet);
    let summary = run_with(args, metrics(), CancellationToken::new()).await.unwrap();
    assert_eq!((summary.acknowledged, summary.readings), (0, expected.len() as u64));
    assert!(summary.dropped > 0 && summary.unacknowledged > 0);
    assert_eq!(summary.dropped + summary.unacknowledged, summary.readings);
    let rows = ledger(&path);
    let keys: BTreeSet<Key> = rows.iter().map(|row| (row.vin.clone(), row.boot_id, row.seq)).collect();
    assert!(keys == expected && rows.len() == expected.len());
    assert_eq!(rows.iter().filter(|row| row.outcome == "dropped").count() as u64, summary.dropped);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_payloads_are_sent_counted_and_given_up_if_the_server_hangs_up_on_them() {
    let peer = Peer::start(Behaviour { max_payload: Some(10_000), ..Behaviour::default() }).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.csv");
    let mut args = RunArgs { ledger: Some(path.clone()), ..args(&peer.address.to_string(), 4) };
    args.fleet.broken_share = 0.05;
    let summary = run_with(args, metrics(), CancellationToken::new()).await.unwrap();
    let rows = ledger(&path);
    let given_up: Vec<_> = rows.iter().filter(|row| row.outcome == "dropped").collect();
    assert!(!given_up.is_empty() && given_up.iter().all(|row| row.payload == "broken" && row.attempts >= 5));
    assert_eq!(rows.iter().filter(|row| row.payload == "broken").count() as u64, summary.broken);
    assert_eq!(summary.acknowledged + summary.dropped, summary.readings);
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_are_counted_and_acknowledged() {
    let peer = Peer::start(Behaviour { alerts: 3, ..Behaviour::default() }).await;
    let mut args = args(&peer.address.to_string(), 4);
    args.linger = Duration::from_secs(1);
    let summary = run_with(args, metrics(), CancellationToken::new()).await.unwrap();
    let seen = peer.seen.lock().unwrap();
    assert!(summary.alerts_received >= 12, "{}", summary.alerts_received);
    // A car in a tunnel may not have been able to disconnect.
    assert!(seen.alerts_acknowledged >= 12 && seen.alerts_acknowledged as u64 <= summary.alerts_received);
}

/// Other systems give a loopback interface one address.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn source_addresses_are_taken_in_turn() {
    let peer = Peer::start(Behaviour::default()).await;
    let mut args = args(&peer.address.to_string(), 4);
    args.source_addresses = ["127.0.0.2", "127.0.0.3"].map(|address| address.parse().unwrap()).to_vec();
    let sources: BTreeSet<_> = args.source_addresses.iter().copied().collect();
    let summary = run_with(args, metrics(), CancellationToken::new()).await.unwrap();
    assert_eq!(summary.acknowledged, summary.readings);
    assert_eq!(peer.seen.lock().unwrap().sources, sources);
}

#[tokio::test]
async fn bad_settings_are_told_together() {
    let mut args = args("nowhere", 0);
    args.fleet.speedup = 0.0;
    let error = run_with(args, metrics(), CancellationToken::new()).await.unwrap_err();
    let service::ConfigError(problems) = error.downcast_ref().unwrap();
    assert_eq!(problems.len(), 3, "{problems:?}");
}
