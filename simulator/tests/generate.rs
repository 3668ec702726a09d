//! `simulator generate` as users call it: the process, its exit codes, its output.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

fn simulator(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_simulator")).args(arguments).output().unwrap()
}

/// FNV-1a: any hash will do, this one needs no crate.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn the_same_fleet_as_ever() {
    // If this changes, every fleet of every seed has changed: stored models and expectations go with it.
    let out = simulator(&[
        "generate",
        "--seed=7",
        "--cars=5",
        "--duration=12h",
        "--newer-schema-share=0.5",
        "--fault-share=0.3",
    ]);
    assert!(out.status.success());
    let lines = out.stdout.iter().filter(|&&byte| byte == b'\n').count();
    assert_eq!((lines, hash(&out.stdout)), (2134, 0xc825a9f8da1b3f59));
}

#[test]
fn parts_of_a_fleet_make_the_whole() {
    let whole = simulator(&["generate", "--cars", "6", "--duration", "3h"]).stdout;
    let mut parts = simulator(&["generate", "--cars", "4", "--duration", "3h"]).stdout;
    parts.extend(simulator(&["generate", "--cars", "2", "--first-car", "4", "--duration", "3h"]).stdout);
    assert!(whole == parts && !whole.is_empty());
    // The span is duration times speed-up.
    assert!(whole == simulator(&["generate", "--cars", "6", "--duration", "3s", "--speedup", "3600"]).stdout);
}

#[test]
fn parquet_has_the_rows_of_the_whole_payloads() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("readings.parquet");
    let findings = directory.path().join("findings.ndjson");
    let common = ["generate", "--cars", "12", "--duration", "10h", "--broken-share", "0.1", "--fault-share", "0.1"];
    let lines = simulator(&common).stdout;
    let out = simulator(
        &[
            &common[..],
            &["--format", "parquet", "--output", file.to_str().unwrap(), "--faults", findings.to_str().unwrap()],
        ]
        .concat(),
    );
    assert!(out.status.success() && out.stdout.is_empty());
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(&file).unwrap()).unwrap();
    assert!(reader.schema().field_with_name("coolant_temp").is_ok());
    let rows = reader.metadata().file_metadata().num_rows() as usize;
    let all = lines.iter().filter(|&&byte| byte == b'\n').count();
    assert!(rows < all && rows > all * 8 / 10, "{rows} of {all}");
    let findings = std::fs::read_to_string(findings).unwrap();
    assert!(findings.lines().count() > 3);
    for line in findings.lines() {
        let finding: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(finding["began_ms"].as_i64() < finding["repaired_ms"].as_i64());
    }
}

#[test]
fn payloads_are_what_the_schemas_say() {
    let directory = tempfile::tempdir().unwrap();
    let findings = directory.path().join("findings.ndjson");
    let args = ["generate", "--cars", "40", "--duration", "20h", "--fault-share", "0.1", "--newer-schema-share", "0.5"];
    let out = simulator(&[&args[..], &["--faults", findings.to_str().unwrap()]].concat());
    let schemas = contract::Contract::builtin().schemas();
    for (payloads, file) in [(out.stdout, "telemetry_raw.avsc"), (std::fs::read(findings).unwrap(), "fault_raw.avsc")] {
        let mut decoder = telemetry::json::JsonDecoder::new(schemas.file(file).unwrap());
        let mut rows = 0;
        for payload in payloads.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            decoder.decode(payload).unwrap_or_else(|reject| panic!("{reject}: {}", String::from_utf8_lossy(payload)));
            rows += 1;
        }
        assert!(rows > 10, "{rows} rows for {file}");
    }
    let mut decoder = telemetry::json::JsonDecoder::new(schemas.file("driver.avsc").unwrap());
    for car in simulator::fleet(&simulator::FleetArgs { cars: 200, ..simulator::FleetArgs::default() }) {
        let mut payload = Vec::new();
        simulator::write_driver(&car, &mut payload);
        decoder.decode(&payload).unwrap();
    }
}

#[test]
fn exit_codes_teach() {
    let no_duration = simulator(&["generate", "--cars", "0"]);
    assert_eq!(no_duration.status.code(), Some(64));
    let said = String::from_utf8(no_duration.stderr).unwrap();
    assert!(said.contains("--duration") && said.contains("--cars 0"), "{said}");
    assert_eq!(simulator(&["--no-such-option"]).status.code(), Some(64));
    let unwritable = simulator(&["generate", "--duration", "1h", "--output", "/no/such/place"]);
    assert_eq!(unwritable.status.code(), Some(1));
    assert!(String::from_utf8(unwritable.stderr).unwrap().contains("/no/such/place"));
    assert!(simulator(&["--help"]).status.success());
}
