//! Starting, waiting, stopping.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Command, Output};
use std::time::Duration;

use event_log::{LogArgs, LogUrl};
use mqtt_bridge::{Args, Metrics};
use prometheus_client::registry::Registry;
use support::client::{Client, V3, V5};
use support::gate::Trouble;
use support::{A_MOMENT, CAR, PATIENCE, TestBridge, any_port, key_file, wait_until};
use test_support::process::OwnedChild;
use tokio_util::sync::CancellationToken;

const TELEMETRY: &str = "vehicles/WVWZZZ1JZXW000001/telemetry";

#[test]
fn a_drain_acknowledges_what_was_accepted_and_says_goodbye() {
    for level in [V3, V5] {
        let mut bridge = TestBridge::start(|_| {});
        let mut car = Client::connect(bridge.address, level, CAR);
        let mut idle = Client::connect(bridge.address, level, "idle");
        bridge.gate.hold();
        car.publish(TELEMETRY, 1, b"accepted");
        wait_until("the log has it", || bridge.gate.held() == 1);
        bridge.shutdown.cancel();
        idle.expect_end(0x8b);
        car.publish(TELEMETRY, 2, b"too late"); // not read any more
        car.expect_silence();
        assert!(!bridge.is_stopped());
        assert!(std::net::TcpStream::connect(bridge.address).is_err(), "nobody is accepted any more");
        bridge.gate.open();
        car.expect_pubacks([1]);
        car.expect_end(0x8b);
        bridge.stopped().unwrap();
        assert_eq!(bridge.records("telemetry.raw").len(), 1);
        assert_eq!((bridge.metric("connections"), bridge.metric("in_flight")), (0, 0));
    }
}

#[test]
fn a_drain_ends_at_its_deadline_without_acknowledging_what_is_undecided() {
    let mut bridge = TestBridge::start(|args| args.limits.drain.timeout = Duration::from_secs(1));
    let mut car = Client::connect(bridge.address, V5, CAR);
    bridge.gate.hold();
    car.publish(TELEMETRY, 1, b"undecided");
    wait_until("the log has it", || bridge.gate.held() == 1);
    bridge.shutdown.cancel();
    car.expect_end(0x8b); // and no PUBACK before
    bridge.stopped().unwrap();
}

#[test]
fn a_bridge_whose_log_does_not_answer_is_not_ready_until_it_does() {
    let mut bridge = TestBridge::start(|_| {});
    wait_until("it is ready", || bridge.readiness.is_ready());
    bridge.gate.set_trouble(Some(Trouble::Unavailable));
    wait_until("it is not", || !bridge.readiness.is_ready());
    let why = bridge.readiness.reasons().join("; ");
    assert!(why.contains("the log") && why.contains("no answer"), "{why}");
    bridge.gate.set_trouble(None);
    wait_until("it is again", || bridge.readiness.is_ready());
    bridge.shutdown.cancel();
    bridge.stopped().unwrap();
}

/// A store that failed once takes nothing more until it is opened again: so the process ends, and is started again.
#[test]
fn a_bridge_whose_log_takes_nothing_more_ends_though_no_car_says_anything() {
    let mut bridge = TestBridge::start(|args| args.limits.drain.timeout = PATIENCE);
    let mut car = Client::connect(bridge.address, V5, CAR);
    bridge.gate.hold();
    car.publish(TELEMETRY, 1, b"undecided");
    wait_until("the log has it", || bridge.gate.held() == 1);
    bridge.gate.set_trouble(Some(Trouble::Ended));
    car.expect_end(0x8b); // and no PUBACK before, nor a wait for one
    let error = format!("{:#}", bridge.stopped().unwrap_err());
    assert!(error.contains("takes nothing more") && error.contains("the disk was full"), "{error}");
}

#[test]
fn a_bridge_that_waits_for_its_log_stops_when_told() {
    // A port that nobody listens at.
    let port = std::net::TcpListener::bind(any_port()).unwrap().local_addr().unwrap().port();
    let log = LogArgs::new(LogUrl::Kafka { bootstrap: format!("127.0.0.1:{port}") });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let shutdown = CancellationToken::new();
    let metrics = Metrics::new(&mut Registry::default());
    let running = runtime.spawn(mqtt_bridge::run_with(Args::new(any_port(), log, None), metrics, shutdown.clone()));
    std::thread::sleep(A_MOMENT);
    assert!(!running.is_finished(), "it waits");
    shutdown.cancel();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, running).await }).expect("stops").unwrap().unwrap();
    runtime.shutdown_timeout(Duration::from_millis(1));
}

fn binary(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mqtt-bridge")).args(arguments).env_remove("CARSTREAM_LOG").output().unwrap()
}

#[test]
fn the_binary_says_what_is_wrong_with_its_settings() {
    let output = binary(&["--max-in-flight=0", "--max-connections=0"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{said}");
    for part in ["--max-in-flight", "--max-connections", "--pseudonym-key-file"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let directory = tempfile::tempdir().unwrap();
    let short = directory.path().join("short");
    std::fs::write(&short, "abc").unwrap();
    for key in [short.to_str().unwrap(), "/nonexistent/key"] {
        let output = binary(&["--log", directory.path().join("log").to_str().unwrap(), "--pseudonym-key-file", key]);
        assert_eq!(output.status.code(), Some(64));
        assert!(String::from_utf8(output.stderr).unwrap().contains(key));
    }
}

#[test]
fn the_binary_names_a_port_that_is_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind(any_port()).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let log = directory.path().join("log");
    let key = key_file(&directory);
    let output =
        binary(&["--listen", &address, "--log", log.to_str().unwrap(), "--pseudonym-key-file", key.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&address) && said.contains("--listen"), "{said}");
}

#[cfg(unix)]
#[test]
fn the_binary_serves_and_stops_at_sigterm() {
    use std::io::{BufRead, BufReader};
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mqtt-bridge"));
    command
        .args(["--listen", "127.0.0.1:0", "--no-alerts", "--log"])
        .arg(directory.path().join("log"))
        .stderr(std::process::Stdio::piped());
    let mut child = OwnedChild::spawn(&mut command).unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let line = said.find(|line| line.contains("MQTT at ")).expect("it says where it listens");
    let address = line.rsplit("MQTT at ").next().unwrap().trim().parse().unwrap();
    let mut cars = [(V3, CAR), (V5, "WVWZZZ1JZXW000002")].map(|(level, vin)| Client::connect(address, level, vin));
    for car in &mut cars {
        car.publish(TELEMETRY, 1, b"x");
        car.expect_pubacks([1]);
    }
    child.signal("TERM");
    // MQTT 5: server shutting down. MQTT 3.1.1 has no word for it: closed.
    for car in &mut cars {
        car.expect_end(0x8b);
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(said.all(|line| !line.contains(CAR)), "no VIN in logs");
}
