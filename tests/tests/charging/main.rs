//! A stream that only a site's contract knows, `examples/charging`: added by files alone to a site that runs, and
//! carried from MQTT to Parquet like the platform's own.
//!
//! ```text
//!  platform's contract ─► stages run, a fleet sends ─► deploy and restart, one by one, with the longer contract
//!                                                          └─► cars send charging sessions ─► audit of both streams
//! ```
#![allow(clippy::unwrap_used)]

mod mqtt;
mod site;

use std::path::Path;

use serde_json::Value;
use site::{Site, contract, parquet_rows, until};
use whole_pipeline_tests::audit::Audit;
use whole_pipeline_tests::kafka::{Broker, free_address};
use whole_pipeline_tests::process::Process;

const BROKEN: &[u8] = br#"{"vin":"WVWZZZ1JZXW000001","boot_id":1,"seq":0,"event":"start","card":"9999 8888"}"#;

#[test]
fn a_stream_is_added_to_a_running_site_on_kafka() {
    let Some(broker) = Broker::start() else { return };
    let site = Site::new();
    let log = broker.url();
    let (key, lake, cloud, mqtt) = (site.key(), site.path("lake"), site.path("cloud-log"), free_address());
    Process::start("carstream", &["deploy", "--edge-log", &log]).succeed();
    let start = |stage: &str, more: &[&str]| {
        let args: &[&str] = match stage {
            "mqtt-bridge" => &["--log", &log, "--listen", &mqtt, "--pseudonym-key-file", &key],
            "preprocessor" => &["--log", &log, "--pseudonym-key-file", &key],
            "replicator" => &["--edge-log", &log, "--cloud-log", &cloud],
            "sink" => &["--log", &log, "--lake", &lake, "--max-age", "1s"],
            other => panic!("no stage {other}"),
        };
        Process::start(stage, &[args, more].concat())
    };
    let mut running: Vec<_> =
        ["preprocessor", "replicator", "sink", "mqtt-bridge"].map(|stage| (stage, start(stage, &[]))).into();
    running[3].1.line_with(&["MQTT at 127.0.0.1:"]);
    let ledgers = [site.path("first.csv"), site.path("second.csv")];
    let fleet = |first: &str, duration: &str, ledger: &str, more: &[&str]| {
        let args = ["--cars", "30", "--first-car", first, "--seed", "3", "--speedup", "2400", "--duration", duration];
        Process::start("simulator", &[&args[..], &["--mqtt", &mqtt, "--ledger", ledger], more].concat())
    };
    let first = fleet("0", "30s", &ledgers[0], &[]);
    assert!(
        mqtt::publish(&mqtt, "vehicles/WVWZZZ1JZXW000001/charging", BROKEN).is_err(),
        "nobody knows the stream yet"
    );

    // The longer contract, stage by stage, while cars send.
    let longer = ["--contract", &contract()];
    Process::start("carstream", &[&["deploy", "--edge-log", &log], &longer[..]].concat()).succeed();
    for at in 0..running.len() {
        let (stage, process) = running.remove(at);
        process.terminate();
        process.succeed();
        running.insert(at, (stage, start(stage, &longer)));
    }
    running[3].1.line_with(&["MQTT at 127.0.0.1:"]);
    let second = fleet("30", "10s", &ledgers[1], &longer);
    mqtt::publish(&mqtt, "vehicles/WVWZZZ1JZXW000001/charging", BROKEN).unwrap();
    first.succeed();
    second.succeed();

    let places = ["--edge-log", &log, "--pseudonym-key-file", &key, "--scores", "no", "--wait", "120s"];
    let ledgers = ["--ledger", &ledgers[0], "--ledger", &ledgers[1]];
    let edge = Audit::of(&[&places[..], &ledgers].concat());
    edge.assert_clean();
    // The cars' ledgers are about their readings: with another stream they say nothing.
    let charging = Audit::of(&[&places[..], &ledgers, &["--stream", "charging"], &longer].concat());
    assert_eq!((charging.code, charging.count("dead_letters")), (Some(0), 1), "{}", charging.said);
    assert!(charging.count("clean") > 100, "{}", charging.said);
    until("the lake to hold the sessions", || {
        parquet_rows(&Path::new(&lake).join("charging")) as u64 == charging.count("clean")
    });
    let listed = site::output("carstream", &[&["dead-letter", "list", "--log", &log, "--json"], &longer[..]].concat());
    let line = listed.lines().find(|line| line.contains("charging.dead-letter")).unwrap();
    assert!(line.contains("missing-field") && !line.contains("9999"), "{line}");

    for (_, process) in &running {
        process.terminate();
    }
    for (_, process) in running {
        process.succeed();
    }
    // All hops, now that no stage has the cloud's embedded log open.
    let all = ["--cloud-log", &cloud, "--lake", &lake];
    Audit::of(&[&places[..], &all, &ledgers].concat()).assert_clean();
    let whole = Audit::of(&[&places[..], &all, &["--stream", "charging"], &longer].concat());
    assert_eq!((whole.code, whole.count("lost"), whole.count("doubled")), (Some(0), 0, 0), "{}", whole.said);
    let counts = ["clean", "replicated", "parquet_rows"].map(|hop| whole.count(hop));
    assert_eq!(counts, [charging.count("clean"); 3], "{}", whole.said);
}

#[test]
fn a_stream_is_added_to_an_edge_box() {
    let site = Site::new();
    let (key, log, cloud, mqtt) = (site.key(), site.path("site-log"), site.path("cloud-log"), free_address());
    let start = |more: &[&str]| {
        let args = ["edge", "--log", &log, "--cloud-log", &cloud, "--pseudonym-key-file", &key, "--listen", &mqtt];
        // Models are announced by nobody here.
        let lake = ["--lake", &site.path("lake")];
        let mut edge = Process::start("carstream", &[&args[..], &lake, more].concat());
        edge.line_with(&["MQTT at 127.0.0.1:"]);
        edge
    };
    let fleet = |first: &str, ledger: &str, more: &[&str]| {
        let args = ["--cars", "20", "--first-car", first, "--seed", "4", "--speedup", "2400", "--duration", "6s"];
        let mqtt = ["--mqtt", &mqtt, "--ledger", ledger];
        Process::start("simulator", &[&args[..], &mqtt, more].concat()).succeed();
    };
    let ledgers = [site.path("first.csv"), site.path("second.csv")];
    let longer = ["--contract", &contract()];
    let short = start(&[]);
    fleet("0", &ledgers[0], &[]);
    short.terminate();
    short.succeed();
    let long = start(&longer);
    fleet("20", &ledgers[1], &longer);
    mqtt::publish(&mqtt, "vehicles/WVWZZZ1JZXW000001/charging", BROKEN).unwrap();
    long.terminate();
    long.succeed();
    let places = ["--edge-log", &log, "--cloud-log", &cloud, "--pseudonym-key-file", &key, "--scores", "no"];
    Audit::of(&[&places[..], &["--ledger", &ledgers[0], "--ledger", &ledgers[1]]].concat()).assert_clean();
    let charging = Audit::of(&[&places[..], &["--stream", "charging"], &longer].concat());
    assert_eq!((charging.code, charging.count("dead_letters")), (Some(0), 1), "{}", charging.said);
    assert!(charging.count("clean") > 20, "{}", charging.said);
    assert_eq!(charging.count("replicated"), charging.count("clean"), "{}", charging.said);
}

#[test]
fn the_demo_carries_and_accounts_for_it() {
    let site = Site::new();
    let keep = site.path("demo");
    let demo = ["demo", "--cars", "60", "--duration", "10s", "--speedup", "1200", "--keep", &keep, "--json"];
    let report: Value =
        serde_json::from_str(&site::output("carstream", &[&demo[..], &["--contract", &contract()]].concat())).unwrap();
    let charging = &report["streams"]["charging"];
    assert!(charging["clean"].as_u64().unwrap() > 20, "{report}");
    for hop in ["replicated", "parquet_rows"] {
        assert_eq!(charging[hop], charging["clean"], "{report}");
    }
    let count = |hop: &str| charging[hop].as_u64().unwrap();
    assert_eq!(count("raw"), count("clean") + count("duplicates_removed") + count("dead_letters"), "{report}");
    assert_eq!((&charging["lost"], &charging["doubled"]), (&0.into(), &0.into()), "{report}");
}

#[test]
fn a_reading_can_be_tried_without_a_log() {
    let samples = std::fs::read(Path::new(&contract()).join("streams/charging/samples.ndjson")).unwrap();
    let input = [&samples[..], BROKEN, b"\n", &samples[..]].concat();
    let args = ["preprocessor", "--contract", &contract(), "try", "charging"];
    let said = site::output_of("carstream", &args, &input);
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> = lines.iter().map(|line| line["verdict"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["clean", "clean", "dead-letter", "duplicate", "duplicate"], "{said}");
    assert_eq!(lines[0]["record"]["station"], "DE*CS*0042");
    assert_eq!(lines[2]["reason"], "missing-field", "{said}");
    assert!(!said.contains("9999") && !said.contains("1234 5678") && !said.contains("WVWZZZ"), "{said}");
}

#[test]
fn what_is_written_for_a_new_stream_passes_the_check() {
    let site = Site::new();
    let own = site.path("own");
    for name in ["payments", "door_events"] {
        let said = site::output("carstream", &["contract", "new", name, "--contract", &own]);
        assert!(said.contains("contract check --contract"), "{said}");
    }
    let said = site::output("carstream", &["contract", "check", "--contract", &own]);
    assert!(said.starts_with("4 streams"), "{said}");
    let said = site::output("carstream", &["contract", "explain", "door_events", "--contract", &own]);
    assert!(said.contains("preprocessor-door_events") && said.contains("replicator-edge-door_events"), "{said}");
    let again = Process::start("carstream", &["contract", "new", "payments", "--contract", &own]);
    let (code, said) = again.end();
    assert!(code == Some(64) && said.contains("stream payments exists"), "{said}");
    let query = Path::new(&own).join("streams/payments/query.sql");
    let text = std::fs::read_to_string(&query).unwrap().replace("pseudonym(r.vin) AS car", "r.vin AS car");
    std::fs::write(&query, text).unwrap();
    let (code, said) = Process::start("carstream", &["contract", "check", "--contract", &own]).end();
    assert!(code == Some(64) && said.contains("query.sql:") && said.contains("tagged"), "{said}");
}
