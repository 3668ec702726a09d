//! The seven stages as processes: settings, waiting, a whole pipeline on a real Apache Kafka, stopping.
//!
//! What needs Kafka needs a *fresh* broker at `CARSTREAM_TEST_KAFKA=HOST:PORT`, because the topics of the platform have
//! fixed names; `scripts/test` starts one for each run.
#![allow(clippy::unwrap_used)]

mod examples;
mod forget;
mod independent;
mod monitoring;
mod pipeline;
mod signals;

use whole_pipeline_tests::process::Process;

/// Every stage, in the order of a reading's way.
const STAGES: [&str; 7] = ["simulator", "mqtt-bridge", "preprocessor", "replicator", "sink", "trainer", "scorer"];

/// An address where nobody listens: the port was free a moment ago.
fn nobody() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn help_and_version_are_no_failures() {
    for stage in STAGES {
        for flag in ["--help", "--version"] {
            Process::start(stage, &[flag]).succeed();
        }
    }
}

#[test]
fn wrong_settings_are_reported_together_with_exit_code_64() {
    let cases: [(&str, &[&str], &[&str]); 7] = [
        ("simulator", &["--cars", "0", "--fault-share", "2"], &["--cars", "--fault-share"]),
        (
            "mqtt-bridge",
            &["--max-connections", "0", "--max-in-flight", "0"],
            &["--max-connections", "--max-in-flight", "--pseudonym-key-file"],
        ),
        ("preprocessor", &["--batch-records", "0"], &["--batch-records", "--pseudonym-key-file"]),
        (
            "replicator",
            &["--edge-log", "edge", "--cloud-log", "edge", "--topic", "telemetry.raw"],
            &["--edge-log", "telemetry.raw"],
        ),
        (
            "sink",
            &["--topic=alerts", "--topic=telemetry", "--topic=telemetry"],
            &["alerts", "telemetry is named twice"],
        ),
        ("trainer", &["--epochs", "0", "--batch-size", "0"], &["--epochs", "--batch-size"]),
        (
            "scorer",
            &["--model", "/nowhere", "--batch-records", "0", "--scorer-group", ""],
            &["/nowhere", "--batch-records", "--scorer-group"],
        ),
    ];
    for (stage, args, problems) in cases {
        let (code, said) = Process::start(stage, args).end();
        assert_eq!(code, Some(64), "{stage} said:\n{said}");
        for problem in problems {
            let line = said.lines().find(|line| line.starts_with("error:") && line.contains(problem));
            assert!(line.is_some(), "{stage} did not say what is wrong with {problem}:\n{said}");
        }
    }
    for stage in STAGES {
        let (code, said) = Process::start(stage, &["--no-such-setting"]).end();
        assert_eq!(code, Some(64), "{stage} said:\n{said}");
    }
}

/// A mistyped directory would be made, and found empty for ever.
#[test]
fn what_a_stage_only_reads_must_exist() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("site.key"), "a key of one test site, and no other").unwrap();
    let (key, typo, there) = (path("site.key"), path("typo"), path("there"));
    let cases: [(&str, Vec<&str>, &str); 6] = [
        ("preprocessor", vec!["--log", &typo, "--pseudonym-key-file", &key], "--log"),
        ("replicator", vec!["--edge-log", &typo, "--cloud-log", &there], "--edge-log"),
        ("sink", vec!["--log", &typo, "--lake", &there], "--log"),
        ("trainer", vec!["--lake", &typo, "--no-announce"], "--lake"),
        ("trainer", vec!["--from", "log", "--log", &typo], "--log"),
        ("scorer", vec!["--log", &typo, "--lake", &there], "--log"),
    ];
    for (stage, args, setting) in cases {
        let (code, said) = Process::start(stage, &args).end();
        assert_eq!(code, Some(64), "{stage} said:\n{said}");
        assert!(said.contains(&format!("error: {setting} {typo}: the directory does not exist")), "{stage}: {said}");
        assert!(!std::path::Path::new(&typo).exists(), "{stage} made it");
    }
}

#[test]
fn a_stage_says_in_one_line_what_it_waits_for_and_stops_cleanly() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("site.key"), "a key of one test site, and no other").unwrap();
    let (key, lake, cloud) = (path("site.key"), path("lake"), path("cloud-log"));
    let nobody = nobody();
    let log = format!("kafka://{nobody}");
    let cases: [(&str, Vec<&str>); 7] = [
        ("simulator", vec!["--mqtt", &nobody, "--cars", "3"]),
        ("mqtt-bridge", vec!["--log", &log, "--listen", "127.0.0.1:0", "--pseudonym-key-file", &key]),
        ("preprocessor", vec!["--log", &log, "--pseudonym-key-file", &key]),
        ("replicator", vec!["--edge-log", &log, "--cloud-log", &cloud]),
        ("sink", vec!["--log", &log, "--lake", &lake]),
        ("trainer", vec!["--from", "log", "--log", &log, "--lake", &lake]),
        ("scorer", vec!["--log", &log, "--lake", &lake]),
    ];
    let start =
        |(stage, args): &(&str, Vec<&str>)| Process::start(stage, &[args, &["--admin", "127.0.0.1:0"][..]].concat());
    let mut running: Vec<_> = cases.iter().map(start).collect();
    for process in &mut running {
        process.line_with(&["waiting for", &nobody]);
        // Alive, and not ready: it says why.
        let admin = monitoring::admin_of(process);
        assert_eq!(monitoring::ask(&admin, "/livez"), (200, "ok\n".to_owned()));
        let (status, said) = monitoring::ask(&admin, "/readyz");
        assert_eq!(status, 503, "{said}");
        assert!(said.starts_with("waiting for ") && said.contains(&nobody) && said.lines().count() == 1, "{said}");
        assert!(monitoring::ask(&admin, "/metrics").1.contains("\ncarstream_ready 0\n"));
    }
    for process in &running {
        process.terminate();
    }
    for process in running {
        process.succeed();
    }
}
