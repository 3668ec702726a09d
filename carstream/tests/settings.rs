//! How settings are read, by the binary itself: which stage it is, and what it makes of the environment.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

const CARSTREAM: &str = env!("CARGO_BIN_EXE_carstream");

/// Exit code, standard output, standard error, without the variables of whoever runs the tests.
fn run(program: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(program);
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("CARSTREAM_") {
            command.env_remove(variable);
        }
    }
    let output = command.args(arguments).envs(variables.iter().copied()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn carstream(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let (code, _, said) = run(Path::new(CARSTREAM), arguments, variables);
    (code, said)
}

#[test]
fn a_stage_is_a_command_or_a_link_and_calls_itself_what_was_typed() {
    let directory = tempfile::tempdir().unwrap();
    for stage in carstream::STAGES {
        let link = directory.path().join(stage);
        std::os::unix::fs::symlink(CARSTREAM, &link).unwrap();
        for (program, before, typed) in [
            (link.as_path(), vec![], stage.to_owned()),
            (Path::new(CARSTREAM), vec![stage], format!("carstream {stage}")),
        ] {
            let with = |last| [&before[..], &[last]].concat();
            let (code, help, _) = run(program, &with("--help"), &[]);
            assert!(code == Some(0) && help.contains(&format!("Usage: {typed} ")), "{help}");
            assert!(help.contains("--admin") && help.contains("CARSTREAM_ADMIN"), "{help}");
            let (code, _, said) = run(program, &with("--no-such-setting"), &[]);
            assert!(code == Some(64) && said.contains(&format!("Usage: {typed} ")), "{said}");
            let (code, version, _) = run(program, &with("--version"), &[]);
            assert!(code == Some(0) && version.trim_end().ends_with(env!("CARGO_PKG_VERSION")), "{version}");
        }
    }
    let (code, help, _) = run(Path::new(CARSTREAM), &["--help"], &[]);
    assert!(code == Some(0) && carstream::STAGES.iter().all(|stage| help.contains(&format!("\n  {stage} "))), "{help}");
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let empty = [
        ("CARSTREAM_LAKE", ""),
        ("CARSTREAM_BATCH_RECORDS", ""),
        ("CARSTREAM_ADMIN", ""),
        ("CARSTREAM_S3_ALLOW_HTTP", ""),
    ];
    let (code, said) = carstream(&["scorer", "--scorer-group", " "], &empty);
    assert_eq!((code, said.as_str()), (Some(64), "error: --scorer-group must not be empty\n"));
    let (_, said) = carstream(&["scorer"], &[("CARSTREAM_BATCH_RECORDS", "0"), ("CARSTREAM_LAKE", "")]);
    let named = "error: CARSTREAM_BATCH_RECORDS (--batch-records) must be at least 1\n";
    assert_eq!(said, named, "one that is not empty counts");
}

#[test]
fn a_switch_takes_the_usual_words() {
    let asks_for_the_key = |value: &str| {
        let (code, said) = carstream(&["mqtt-bridge", "--max-alerts", "0"], &[("CARSTREAM_MQTT_NO_ALERTS", value)]);
        assert_eq!(code, Some(64), "{said}");
        said.contains("--pseudonym-key-file (CARSTREAM_PSEUDONYM_KEY_FILE) is missing")
    };
    for on in ["1", "true", "yes", "on", "ON"] {
        assert!(!asks_for_the_key(on), "{on}");
    }
    for off in ["0", "false", "no", "off", ""] {
        assert!(asks_for_the_key(off), "{off}");
    }
    let (code, said) = carstream(&["mqtt-bridge"], &[("CARSTREAM_MQTT_NO_ALERTS", "maybe")]);
    assert!(code == Some(64) && said.contains("maybe") && said.contains("yes or on"), "{said}");
}

#[test]
fn a_list_is_split_at_commas_in_a_variable_and_never_on_the_command_line() {
    let logs = ["replicator", "--edge-log", "a", "--cloud-log", "b"];
    let variable = [("CARSTREAM_REPLICATOR_TOPICS", "telemetry.raw,drivers")];
    let (code, said) = carstream(&logs, &variable);
    assert!(
        code == Some(64) && said.contains("\"telemetry.raw\" holds") && said.contains("\"drivers\" holds"),
        "{said}"
    );
    for given in [vec!["--topic", "telemetry,faults"], vec!["--topic=telemetry,faults"]] {
        let (code, said) = carstream(&[&logs[..], &given].concat(), &variable);
        assert_eq!(code, Some(64));
        assert!(said.contains("\"telemetry,faults\" holds") && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn a_problem_names_the_variable_that_the_value_came_from() {
    let variable = [("CARSTREAM_MQTT_MAX_PACKET_BYTES", "7B")];
    let (code, said) = carstream(&["mqtt-bridge", "--no-alerts"], &variable);
    assert_eq!(code, Some(64));
    assert!(said.contains("error: CARSTREAM_MQTT_MAX_PACKET_BYTES (--max-packet-bytes) 7B is not in"), "{said}");
    let (_, said) = carstream(&["mqtt-bridge", "--no-alerts", "--max-packet-bytes", "7B"], &variable);
    assert!(said.contains("error: --max-packet-bytes 7B is not in"), "{said}");
    // What clap cannot read.
    let variable = [("CARSTREAM_MQTT_MAX_PACKET_BYTES", "7")];
    let (code, said) = carstream(&["mqtt-bridge"], &variable);
    assert_eq!(code, Some(64));
    assert!(
        said.contains("'CARSTREAM_MQTT_MAX_PACKET_BYTES (--max-packet-bytes <SIZE>)': \"7\" is not a size"),
        "{said}"
    );
    let (_, said) = carstream(&["mqtt-bridge", "--max-packet-bytes", "8"], &variable);
    assert!(said.contains("for '--max-packet-bytes <SIZE>': \"8\""), "{said}");
    // What is missing.
    let (code, said) = carstream(&["edge"], &[]);
    let missing = "error: --log DIR (CARSTREAM_LOG) is missing\n\
                   error: --pseudonym-key-file FILE (CARSTREAM_PSEUDONYM_KEY_FILE) is missing\n\n\
                   Usage: carstream edge ";
    assert!(code == Some(64) && said.starts_with(missing) && said.contains("try '--help'"), "{said}");
    let (_, said) = carstream(&["contract", "new"], &[]);
    assert!(said.contains("error: --contract DIR (CARSTREAM_CONTRACT) is missing"), "{said}");
    assert!(said.contains("error: STREAM is missing"), "{said}");
}

#[test]
fn a_variable_that_is_no_setting_is_reported() {
    let variables = [("CARSTREAM_LOGLEVEL", "debug"), ("CARSTREAM_SINK_MAX_AGE", "15s"), ("CARSTREAM_CACHE", "/tmp")];
    let (_, said) = carstream(&["scorer", "--scorer-group", " "], &variables);
    let lines: Vec<_> = said.lines().filter(|line| line.contains("WARN")).collect();
    let wanted = "CARSTREAM_LOGLEVEL is no setting: did you mean CARSTREAM_LOG_LEVEL?";
    assert!(lines.len() == 1 && lines[0].ends_with(wanted), "{said}");
}

#[test]
fn a_file_in_place_of_a_directory_is_a_bad_setting() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, [b'k'; 32]).unwrap();
    let file = file.to_str().unwrap();
    for (arguments, setting) in [
        (&["edge", "--log", file, "--pseudonym-key-file", file, "--model", file][..], "--log"),
        (&["scorer", "--log", file], "--log"),
        (&["preprocessor", "--log", file, "--pseudonym-key-file", file], "--log"),
        (&["mqtt-bridge", "--log", file, "--no-alerts"], "--log"),
        (&["replicator", "--edge-log", file, "--cloud-log", "b"], "--edge-log"),
        (&["sink", "--log", "kafka://localhost:9", "--lake", file], "--lake"),
        (&["trainer", "--lake", file], "--lake"),
        (&["dead-letter", "list", "--log", file], "--log"),
        (&["audit", "--lake", file], "--lake"),
        (&["deploy", "--edge-log", file], "--edge-log"),
        (&["secrets", "--dir", file], "--dir"),
        (&["demo", "--keep", file], "--keep"),
    ] {
        let (code, said) = carstream(arguments, &[]);
        let wanted = format!("error: {setting} {file}: is a file: choose a directory\n");
        assert!(code == Some(64) && said.contains(&wanted) && !said.contains("os error"), "{arguments:?}: {said}");
    }
}

#[test]
fn the_edge_box_reports_all_problems_before_it_opens_anything() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (log, key, model, contract) = (path("log"), path("no.key"), path("no-model"), path("no-contract"));
    let settings = ["edge", "--log", &log, "--pseudonym-key-file", &key, "--model", &model, "--contract", &contract];
    let (code, said) = carstream(&settings, &[("CARSTREAM_LAKE", "s3://bucket"), ("CARSTREAM_MQTT_MAX_ALERTS", "0")]);
    assert_eq!(code, Some(64), "{said}");
    for problem in [&key, &model, &contract, "CARSTREAM_MQTT_MAX_ALERTS (--max-alerts)"] {
        assert_eq!(said.lines().filter(|line| line.contains(problem as &str)).count(), 1, "{said}");
    }
    assert!(said.lines().count() == 4 && !Path::new(&log).exists(), "{said}");
}

#[test]
fn a_number_without_a_unit_is_refused_with_the_units() {
    let (code, said) = carstream(&["sink", "--max-age", "60"], &[]);
    assert!(
        code == Some(64) && said.contains("'60' for '--max-age <DURATION>'") && said.contains("(ms, s, m, h or d)"),
        "{said}"
    );
    let (code, said) = carstream(&["sink"], &[("CARSTREAM_SINK_MAX_MEMORY", "67108864")]);
    assert!(code == Some(64) && said.contains("(B, KiB, MiB or GiB)"), "{said}");
}
