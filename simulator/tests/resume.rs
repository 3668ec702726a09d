//! A fleet whose process is killed resumes where its ledger ends, with the same result as one that was never killed.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use simulator::fleet;
use support::bridge::{Bridge, records};
use support::ledger;
use test_support::process::OwnedChild;

/// For whatever has to happen; reached only when it does not.
const PATIENCE: Duration = Duration::from_secs(120);

const FLEET: [&str; 12] =
    ["--cars", "30", "--seed", "5", "--speedup", "3600", "--duration", "5s", "--fault-share", "0.3", "--ramp", "100ms"];

type Key = (String, u64, u64);

/// Starts the binary; it says nothing unless something is wrong.
fn start(mqtt: &str, ledger: &Path, more: &[&str]) -> OwnedChild {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulator"));
    command
        .args(FLEET)
        .args(["--mqtt", mqtt, "--log-level", "warn", "--ledger"])
        .arg(ledger)
        .args(more)
        .stderr(Stdio::piped());
    OwnedChild::spawn(&mut command).unwrap()
}

/// Waits for its end; gives the exit code, and what it said.
fn end(mut child: OwnedChild) -> (Option<i32>, String) {
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code(), said)
}

/// All readings and findings of the span, from the cars alone.
fn undisturbed(start_ms: Option<i64>) -> (BTreeSet<Key>, BTreeSet<(String, i64)>) {
    let args = simulator::Args::parse_from([&["simulator"], &FLEET[..]].concat()).run.fleet;
    let args = simulator::FleetArgs { start_time: start_ms, ..args };
    let end_ms = args.end_ms().unwrap();
    let (mut readings, mut findings) = (BTreeSet::new(), BTreeSet::new());
    for mut car in fleet(&args) {
        let vin = car.vin().to_owned();
        while car.next_time_ms() < end_ms {
            let reading = car.next_reading();
            readings.insert((vin.clone(), reading.boot_id, u64::from(reading.seq)));
            findings.extend(car.take_finding().map(|fault| (vin.clone(), fault.began_ms)));
        }
        findings.extend(car.inspect(end_ms).map(|fault| (vin, fault.began_ms)));
    }
    (readings, findings)
}

/// Waits until the ledger has this length; then kills the process.
fn kill_at(mut child: OwnedChild, ledger: &Path, bytes: u64) {
    let deadline = Instant::now() + PATIENCE;
    while std::fs::metadata(ledger).map_or(0, |file| file.len()) < bytes {
        if child.try_wait().unwrap().is_some() {
            panic!("it ended by itself, before {bytes} bytes: {:?}", end(child));
        }
        assert!(Instant::now() < deadline, "the ledger never grew to {bytes} bytes");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_it_comes_to_the_same_end() {
    let (readings, _) = undisturbed(None);
    assert!(readings.len() > 5_000, "{} readings show too little", readings.len());
    let directory = tempfile::tempdir().unwrap();
    let (log, path) = (directory.path().join("log"), directory.path().join("ledger.csv"));
    let bridge = Bridge::start("127.0.0.1:0", &log).await;
    let mqtt = bridge.address.to_string();

    // Some 75 bytes a row: kills spread over the run, the first one in the middle of the first batches.
    let whole = readings.len() as u64 * 75;
    for share in [0.0, 0.15, 0.16, 0.4, 0.7, 0.9] {
        let child = start(&mqtt, &path, &["--resume"]);
        kill_at(child, &path, (whole as f64 * share) as u64 + 200);
        let state = std::fs::read_to_string(directory.path().join("ledger.csv.run")).unwrap();
        assert!(state.contains(r#""complete":false"#), "{state}");
        // As if it had been killed in the middle of a row.
        let torn = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&torn[..], &b"0CS12345X0T0000"[..]].concat()).unwrap();
    }
    let (code, said) = end(start(&mqtt, &path, &["--resume"]));
    assert_eq!(code, Some(0), "{said}");

    let rows = ledger(&path);
    assert!(rows.iter().all(|row| row.outcome == "acknowledged"));
    let keys: BTreeSet<Key> = rows.iter().map(|row| (row.vin.clone(), row.boot_id, u64::from(row.seq))).collect();
    assert_eq!(keys.len(), rows.len(), "a row each");
    assert!(keys == readings, "{} rows, {} readings", keys.len(), readings.len());
    let state = std::fs::read_to_string(directory.path().join("ledger.csv.run")).unwrap();
    assert!(state.contains(r#""complete":true,"covered":true,"unacknowledged":0"#), "{state}");

    bridge.stop().await;
    // A finished one is left as it is, and needs no server. Others don't touch it.
    let before = std::fs::read(&path).unwrap();
    let (code, said) = end(start(&mqtt, &path, &["--resume"]));
    assert_eq!(code, Some(0), "{said}");
    for (more, problem) in
        [(&[][..], "exists already"), (&["--resume", "--broken-share", "0.1"], "--broken-share was 0")]
    {
        let (code, said) = end(start(&mqtt, &path, more));
        assert!(code == Some(64) && said.contains(problem), "{code:?} {said}");
    }
    assert!(std::fs::read(&path).unwrap() == before);

    let logged: Vec<Key> = records(&log, "telemetry.raw")
        .into_iter()
        .map(|(key, json)| (key, json["boot_id"].as_u64().unwrap(), json["seq"].as_u64().unwrap()))
        .collect();
    let distinct: BTreeSet<Key> = logged.iter().cloned().collect();
    assert!(distinct == readings, "{} in the log, {} acknowledged", distinct.len(), readings.len());
    assert!(logged.len() > distinct.len(), "no kill came between a PUBACK and its row: nothing was shown");
    let found: BTreeSet<_> =
        records(&log, "faults.raw").into_iter().map(|(key, json)| (key, json["began_ms"].as_i64().unwrap())).collect();
    // Every run of the ledger began when the first one did.
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let (_, findings) = undisturbed(state["fleet"]["start-time"].as_i64());
    assert!(!findings.is_empty() && found == findings, "{found:?} {findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_when_there_was_no_server_is_sent_by_the_next_run() {
    let (readings, _) = undisturbed(None);
    let directory = tempfile::tempdir().unwrap();
    let (log, path) = (directory.path().join("log"), directory.path().join("ledger.csv"));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut first = start(&nobody, &path, &["--drain-timeout", "200ms"]);
    while !path.exists() {
        assert!(first.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    let (code, said) = end(start(&nobody, &path, &["--resume"]));
    assert!(code == Some(64) && said.contains("another simulator is writing it"), "{code:?} {said}");
    let (code, said) = end(first);
    assert!(code == Some(1) && said.contains("were not acknowledged"), "{code:?} {said}");
    let rows = ledger(&path);
    assert!(
        rows.len() == readings.len() && rows.iter().all(|row| row.outcome == "unacknowledged" && row.attempts == 0)
    );

    let bridge = Bridge::start("127.0.0.1:0", &log).await;
    let (code, said) = end(start(&bridge.address.to_string(), &path, &["--resume"]));
    assert_eq!(code, Some(0), "{said}");
    bridge.stop().await;
    let rows = ledger(&path);
    let keys: BTreeSet<Key> = rows
        .iter()
        .filter(|row| row.outcome == "acknowledged")
        .map(|row| (row.vin.clone(), row.boot_id, u64::from(row.seq)))
        .collect();
    assert!(rows.len() == readings.len() && keys == readings, "{} rows, {} keys", rows.len(), keys.len());
}
