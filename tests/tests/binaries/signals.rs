//! Two signals under load: every stage exits at once, and later resumes as if nothing had happened.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use whole_pipeline_tests::audit::Audit;
use whole_pipeline_tests::process::Process;

const KEY: &str = "a key of one test site, and no other";

/// Any model does: it is one score a reading that counts.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../libs/model/tests/independent");

/// How long a stage works before the first signal: at once, in the middle, and when it may have nothing left.
const PAUSES_MS: [u64; 4] = [0, 10, 40, 150];

const PATIENCE: Duration = Duration::from_secs(120);

fn at_once_or_drained(code: Option<i32>, stage: &str) {
    assert!(code == Some(130) || code == Some(0), "{stage} ended with {code:?}");
}

/// Interrupts a stage that has work to do, several times; then lets it work until `is_done`.
fn interrupt(stage: &str, args: &[&str], is_done: impl Fn() -> bool) {
    for pause_ms in PAUSES_MS {
        let mut process = Process::start(stage, args);
        process.line_with_any(&[""]);
        std::thread::sleep(Duration::from_millis(pause_ms));
        at_once_or_drained(process.terminate_twice(), stage);
    }
    let deadline = Instant::now() + PATIENCE;
    while !is_done() {
        assert!(Instant::now() < deadline, "the {stage} stands still");
        let mut process = Process::start(stage, args);
        process.line_with_any(&[""]);
        std::thread::sleep(Duration::from_millis(300));
        process.terminate();
        process.succeed();
    }
}

#[test]
fn two_signals_end_every_stage_at_once_and_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("site.key"), KEY).unwrap();
    let (edge, cloud, lake, rows) = (path("edge-log"), path("cloud-log"), path("lake"), path("ledger.csv"));
    let key = path("site.key");

    let mqtt = crate::nobody();
    let bridge = || {
        let mut bridge =
            Process::start("mqtt-bridge", &["--log", &edge, "--listen", &mqtt, "--pseudonym-key-file", &key]);
        bridge.line_with(&["MQTT at"]);
        bridge
    };
    let cars = || {
        let fleet = ["--cars", "60", "--seed", "5", "--speedup", "9600", "--duration", "4s"];
        Process::start("simulator", &[&fleet[..], &["--mqtt", &mqtt, "--resume", "--ledger", &rows]].concat())
    };
    let some_rows = |least: u64| {
        let deadline = Instant::now() + PATIENCE;
        while std::fs::metadata(&rows).map_or(0, |file| file.len()) < least {
            assert!(Instant::now() < deadline, "the ledger does not grow");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let (first, fleet) = (bridge(), cars());
    some_rows(50_000);
    at_once_or_drained(first.terminate_twice(), "mqtt-bridge");
    let second = bridge();
    some_rows(100_000);
    at_once_or_drained(fleet.terminate_twice(), "simulator");
    cars().succeed();
    second.terminate();
    second.succeed();

    // The audit runs after each stage has reached the end that the stage before it left.
    let evidence = ["--pseudonym-key-file", &key, "--ledger", &rows];
    let audit = |hops: &[&str]| Audit::of(&[&evidence[..], hops].concat());
    let at_edge = ["--edge-log", &edge, "--scores", "no"];
    interrupt("preprocessor", &["--log", &edge, "--pseudonym-key-file", &key, "--batch-records", "500"], || {
        audit(&at_edge).caught_up()
    });
    let scored = ["--edge-log", &edge, "--scores", "yes"];
    interrupt("scorer", &["--log", &edge, "--model", MODEL, "--batch-records", "500"], || audit(&scored).caught_up());
    let copied = [&scored[..], &["--cloud-log", &cloud]].concat();
    interrupt("replicator", &["--edge-log", &edge, "--cloud-log", &cloud, "--batch-records", "500"], || {
        audit(&copied).caught_up()
    });
    let everything = [&copied[..], &["--lake", &lake]].concat();
    interrupt("sink", &["--log", &cloud, "--lake", &lake, "--max-age", "1s"], || audit(&everything).caught_up());
    let train = ["--lake", &lake, "--log", &cloud, "--min-rows", "1000", "--epochs", "10000"];
    let trainer = Process::start("trainer", &train);
    std::thread::sleep(Duration::from_millis(500));
    at_once_or_drained(trainer.terminate_twice(), "trainer");

    let audit = audit(&everything);
    audit.assert_clean();
    assert!(audit.count("clean") > 5_000, "too few to show anything: {}", audit.said);
    for hop in ["acknowledged", "clean", "scored", "replicated", "parquet_rows"] {
        assert_eq!(audit.count(hop), audit.count("sent"), "{hop}: {}", audit.said);
    }
}

/// Cars whose server takes connections and says nothing, so that they have somebody to wait for.
fn waiting_cars(directory: &Path, more: &[&str]) -> (Process, TcpListener, TcpStream) {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mqtt = silent.local_addr().unwrap().to_string();
    let ledger = directory.join("ledger.csv").display().to_string();
    let fleet = ["--cars", "5", "--speedup", "2400", "--mqtt", &mqtt, "--ledger", &ledger, "--admin", "127.0.0.1:0"];
    let mut cars = Process::start("simulator", &[&fleet[..], &["--drain-timeout", "1h"], more].concat());
    cars.line_with(&["metrics at"]);
    let (connection, _) = silent.accept().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    (cars, silent, connection)
}

#[test]
fn a_second_signal_does_not_wait_for_the_drain() {
    let directory = tempfile::tempdir().unwrap();
    let (cars, _silent, _connection) = waiting_cars(directory.path(), &[]);
    assert_eq!(cars.terminate_twice(), Some(130));
}

#[test]
fn a_drain_without_end_ends_at_the_stop_timeout() {
    let directory = tempfile::tempdir().unwrap();
    let (cars, _silent, _connection) = waiting_cars(directory.path(), &["--stop-timeout", "500ms"]);
    cars.terminate();
    let (code, said) = cars.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("not stopped 500ms after the signal"), "{said}");
}
