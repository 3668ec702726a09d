//! Clients that others wrote: paho-mqtt and mosquitto_pub publish a reading and see it acknowledged.
//!
//! `scripts/install-test-tools` installs them. Without them these tests say so and do nothing, but fail in CI.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use support::tls::Site;
use support::{CAR, KEY, PATIENCE, TestBridge, wait_until};
use telemetry::pseudonym::PseudonymKey;
use test_support::process::OwnedChild;

const READING: &str = r#"{"vin":"WVWZZZ1JZXW000001","speed":12.5}"#;

/// Says that a tool is missing; in CI that is a failure.
fn skip(tool: &str) {
    let message = format!("skipped: {tool} is missing; scripts/install-test-tools installs it");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
    eprintln!("{message}");
}

/// The Python of the test tools.
fn python() -> Option<PathBuf> {
    let cache = std::env::var_os("CARSTREAM_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/carstream")))?;
    Some(cache.join("test-tools/bin/python")).filter(|python| python.exists())
}

fn paho(bridge: &TestBridge, version: &str, client_id: &str, alert: bool) -> Option<OwnedChild> {
    let Some(python) = python() else {
        skip("the Python of the test tools");
        return None;
    };
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/paho_client.py"));
    command.arg(bridge.address.ip().to_string()).arg(bridge.address.port().to_string());
    command.args([version, CAR, client_id, READING]).args(alert.then_some("alert"));
    Some(OwnedChild::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped())).unwrap())
}

fn succeeds(mut child: OwnedChild) {
    let deadline = std::time::Instant::now() + PATIENCE + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if std::time::Instant::now() > deadline {
            child.kill().unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
}

fn has_the_reading(bridge: &TestBridge) {
    let records = bridge.records("telemetry.raw");
    assert_eq!(records.len(), 1);
    assert_eq!((&records[0].key[..], &records[0].value[..]), (CAR, READING.as_bytes()));
    assert_eq!(bridge.metric("pubacks_total"), 1);
}

#[test]
fn paho_publishes_and_gets_its_alert() {
    for version in ["3.1.1", "5"] {
        let bridge = TestBridge::start(|_| {});
        bridge.gate.hold();
        let Some(mut child) = paho(&bridge, version, CAR, true) else { return };
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        wait_until("the log has the reading", || bridge.gate.held() == 1 || child.try_wait().unwrap().is_some());
        assert_eq!(bridge.metric("pubacks_total"), 0);
        bridge.gate.open();
        assert_eq!(lines.next().as_deref(), Some("acknowledged"), "{version}");
        assert_eq!(lines.next().as_deref(), Some("subscribed"), "{version}");
        let pseudonym = PseudonymKey::from_bytes(KEY).unwrap().pseudonym(CAR);
        bridge.append("alerts", &pseudonym, b"{\"state\":\"open\"}");
        let alert = format!("vehicles/{CAR}/alerts 1 {{\"state\":\"open\"}}");
        assert_eq!(lines.next(), Some(alert), "{version}");
        succeeds(child);
        has_the_reading(&bridge);
        assert_eq!(bridge.metric(&format!("connects_total{{version=\"{version}\"}}")), 1);
    }
}

#[test]
fn paho_without_a_client_id_is_given_one() {
    for version in ["3.1.1", "5"] {
        let bridge = TestBridge::start(|_| {});
        let Some(child) = paho(&bridge, version, "", false) else { return };
        succeeds(child);
        has_the_reading(&bridge);
    }
}

#[test]
fn mosquitto_pub_publishes_with_its_random_client_id() {
    if Command::new("mosquitto_pub").arg("--help").output().is_err() {
        return skip("mosquitto_pub");
    }
    for version in ["311", "5"] {
        let bridge = TestBridge::start(|_| {});
        let mut command = Command::new("mosquitto_pub");
        command
            .args(["-h", &bridge.address.ip().to_string(), "-p", &bridge.address.port().to_string()])
            .args(["-V", version, "-q", "1", "-t", &format!("vehicles/{CAR}/telemetry"), "-m", READING])
            .stderr(Stdio::piped());
        succeeds(OwnedChild::spawn(&mut command).unwrap());
        has_the_reading(&bridge);
    }
}

#[test]
fn mosquitto_pub_publishes_over_tls_with_a_certificate() {
    if Command::new("mosquitto_pub").arg("--help").output().is_err() {
        return skip("mosquitto_pub");
    }
    let site = Site::new();
    let (certificate, key) = site.car_files(CAR);
    for (version, tls) in [("311", "tlsv1.2"), ("5", "tlsv1.3")] {
        let bridge = TestBridge::start(|args| site.configure(args));
        let publish = |topic: &str| {
            let mut command = Command::new("mosquitto_pub");
            command
                .args(["-h", "localhost", "-p", &bridge.tls_address.unwrap().port().to_string()])
                .args(["--tls-version", tls, "--cafile"])
                .arg(site.ca_file())
                .arg("--cert")
                .arg(&certificate)
                .arg("--key")
                .arg(&key)
                .args(["-V", version, "-q", "1", "-t", topic, "-m", READING])
                .stderr(Stdio::piped());
            OwnedChild::spawn(&mut command).unwrap()
        };
        succeeds(publish(&format!("vehicles/{CAR}/telemetry")));
        has_the_reading(&bridge);
        let mut foreign = publish("vehicles/WVWZZZ1JZXW000002/telemetry");
        let mut said = String::new();
        foreign.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let ended = foreign.wait().unwrap();
        assert!(!ended.success() || said.contains("failed"), "{version}: {said}");
        assert_eq!(bridge.metric("pubacks_total"), 1);
    }
}
