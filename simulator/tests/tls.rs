//! A fleet over TLS: each car proves its identity, acknowledged readings are in the log, and they are the same as
//! without TLS.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use prometheus_client::registry::Registry;
use service::DrainArgs;
use simulator::{FleetArgs, Metrics, RunArgs, run_with};
use support::bridge::{Bridge, make_secrets, records};
use tokio_util::sync::CancellationToken;

fn args(mqtt: String) -> RunArgs {
    RunArgs {
        fleet: FleetArgs {
            seed: 5,
            cars: 20,
            duration: Some(Duration::from_secs(3)),
            speedup: 3_600.0,
            newer_schema_share: 0.5,
            ..FleetArgs::default()
        },
        mqtt,
        ramp: Duration::from_millis(100),
        drain: DrainArgs { timeout: Duration::from_secs(60) },
        ..RunArgs::default()
    }
}

fn with_tls(bridge: &Bridge, secrets: &Path) -> RunArgs {
    RunArgs {
        tls_ca: Some(secrets.join("ca.crt")),
        tls_ca_key: Some(secrets.join("ca.key")),
        ..args(format!("mqtts://localhost:{}", bridge.address.port()))
    }
}

/// Drives a fleet to its end, and gives every reading of the log. With `secrets` the bridge restarts meanwhile.
async fn drive(args: RunArgs, log: &Path, bridge: Bridge, secrets: Option<&Path>) -> BTreeMap<String, String> {
    let metrics = Metrics::new(&mut Registry::default());
    let run = tokio::spawn(run_with(args, metrics.clone(), CancellationToken::new()));
    let mut bridge = bridge;
    if let Some(secrets) = secrets {
        while metrics.acknowledged.get() < 300 {
            assert!(!run.is_finished(), "nothing to interrupt");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let address = bridge.address.to_string();
        bridge.stop().await;
        bridge = Bridge::start_tls(&address, log, secrets).await;
    }
    let summary = run.await.unwrap().unwrap();
    bridge.stop().await;
    assert!(summary.readings > 500, "{summary:?}");
    assert_eq!((summary.acknowledged, summary.dropped, summary.unacknowledged), (summary.readings, 0, 0));
    let readings = records(log, "telemetry.raw").into_iter().map(|(key, json)| {
        assert_eq!(json["vin"], *key);
        (format!("{key} {} {}", json["boot_id"], json["seq"]), json.to_string())
    });
    let readings: BTreeMap<_, _> = readings.collect();
    assert_eq!(readings.len() as u64, summary.readings);
    readings
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reading_is_acknowledged_and_the_same_as_without_tls() {
    let directory = tempfile::tempdir().unwrap();
    let (secrets, log, plain_log) = (directory.path(), directory.path().join("log"), directory.path().join("plain"));
    make_secrets(secrets);
    let bridge = Bridge::start_tls("127.0.0.1:0", &log, secrets).await;
    let plain = Bridge::start("127.0.0.1:0", &plain_log).await;
    let (tls_args, plain_args) = (with_tls(&bridge, secrets), args(plain.address.to_string()));
    let (with, without) =
        tokio::join!(drive(tls_args, &log, bridge, Some(secrets)), drive(plain_args, &plain_log, plain, None));
    assert!(with == without, "{} readings with TLS, {} without", with.len(), without.len());
}

#[tokio::test]
async fn a_car_without_a_certificate_is_not_let_in() {
    let directory = tempfile::tempdir().unwrap();
    make_secrets(directory.path());
    let bridge = Bridge::start_tls("127.0.0.1:0", &directory.path().join("log"), directory.path()).await;
    let mut args = with_tls(&bridge, directory.path());
    args.tls_ca_key = None;
    args.fleet.cars = 1;
    args.fleet.duration = Some(Duration::from_secs(1));
    args.drain.timeout = Duration::from_millis(500);
    let metrics = Metrics::new(&mut Registry::default());
    let summary = run_with(args, metrics.clone(), CancellationToken::new()).await.unwrap();
    assert_eq!((summary.acknowledged, summary.unacknowledged), (0, summary.readings));
    assert!(summary.readings > 0);
    bridge.stop().await;
}

#[tokio::test]
async fn files_that_cannot_work_are_bad_settings() {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_secrets(directory.path());
    make_secrets(other.path());
    let settings = |ca: &Path, key: &Path| RunArgs {
        tls_ca: Some(ca.to_owned()),
        tls_ca_key: Some(key.to_owned()),
        ..args("mqtts://localhost:8883".to_owned())
    };
    let (ca, key) = (directory.path().join("ca.crt"), other.path().join("ca.key"));
    for (args, says) in [
        (settings(&ca, &key), "belongs to none"),
        (settings(&key, &key), "no certificate"),
        (settings(&ca, &ca), "no private key"),
        (settings(Path::new("/nowhere"), &key), "No such file"),
    ] {
        let metrics = Metrics::new(&mut Registry::default());
        let error = run_with(args, metrics, CancellationToken::new()).await.unwrap_err();
        let problems = error.downcast::<service::ConfigError>().unwrap().to_string();
        assert!(problems.contains(says), "{problems}");
    }
}
