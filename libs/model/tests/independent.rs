//! Scores against an independent computation in Python from the same files (tests/independent/score.py), and the
//! weights opened by Python's safetensors.
//!
//! `expected.csv` was made by
//!
//!     cd libs/model/tests/independent && python score.py manifest.json weights.safetensors readings.csv > expected.csv
//!
//! The model was trained on simulated cars (`cargo bench -p trainer --bench measure`), the readings are four of
//! another fleet: with a stuck sensor, a leaking tyre, a worn bearing and a weak battery cell.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use model::{CarState, FEATURES, Model, Row, Verdict};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/independent").join(name)
}

fn lines(name: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(file(name)).unwrap();
    text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect()
}

fn verdicts() -> Vec<Verdict> {
    let model = Model::from_parts(
        &std::fs::read(file("manifest.json")).unwrap(),
        &std::fs::read(file("weights.safetensors")).unwrap(),
    )
    .unwrap();
    let mut states: HashMap<String, CarState> = HashMap::new();
    let readings = lines("readings.csv");
    assert_eq!(readings[0][2..], FEATURES.map(str::to_owned));
    let verdict = |line: &Vec<String>| {
        let raw: Row = std::array::from_fn(|i| line[i + 2].parse().unwrap());
        let state = states.entry(line[0].clone()).or_insert_with(|| model.new_car());
        model.score_reading(state, line[1].parse().unwrap(), &raw)
    };
    readings[1..].iter().map(verdict).collect()
}

#[test]
fn scores_agree_with_an_independent_computation() {
    let (verdicts, expected) = (verdicts(), lines("expected.csv"));
    assert_eq!(verdicts.len(), expected.len() - 1);
    assert!(verdicts.iter().filter(|v| v.judged).count() > 500 && verdicts.iter().any(|v| v.anomalous));
    let close = |a: f32, b: &str| (f64::from(a) - b.parse::<f64>().unwrap()).abs() <= 1e-5 * f64::from(a).max(1.0);
    for (row, (verdict, expected)) in verdicts.iter().zip(&expected[1..]).enumerate() {
        assert_eq!(verdict.judged, expected[0] == "1", "reading {row}");
        if !verdict.judged {
            continue;
        }
        assert!(close(verdict.score, &expected[1]), "reading {row}: {} is not {}", verdict.score, expected[1]);
        for (i, (feature, contribution)) in verdict.contributors.iter().enumerate() {
            let (name, size) = (&expected[2 + 2 * i], &expected[3 + 2 * i]);
            assert!(close(*contribution, size), "reading {row}: contribution {contribution} is not {size}");
            // Two features of one size may change places.
            let tied = i < 2 && close(*contribution, &expected[5 + 2 * i])
                || i > 0 && close(*contribution, &expected[1 + 2 * i]);
            assert!(FEATURES[*feature] == name || tied, "reading {row}: {} is not {name}", FEATURES[*feature]);
        }
    }
}

#[test]
fn pythons_safetensors_opens_the_weights() {
    let cache = std::env::var_os("CARSTREAM_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/carstream")));
    let python = cache.unwrap_or_default().join("test-tools/bin/python");
    let has_packages = |python: &Path| {
        let imported = Command::new(python).args(["-c", "import numpy, safetensors"]).output();
        imported.is_ok_and(|output| output.status.success())
    };
    if !has_packages(&python) {
        let missing =
            format!("{} with numpy and safetensors is missing: run scripts/install-test-tools", python.display());
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        println!("skipped: {missing}");
        return;
    }
    // A file written now, not the one in this folder.
    let weights = model::Weights::from_safetensors(&std::fs::read(file("weights.safetensors")).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let written = folder.path().join("weights.safetensors");
    std::fs::write(&written, weights.to_safetensors()).unwrap();
    let manifest = file("manifest.json");
    let (script, readings) = (file("score.py"), file("readings.csv"));
    let output = Command::new(&python).arg(script).args([&manifest, &written, &readings]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let first = |text: &str| text.lines().filter(|line| line.starts_with("1,")).count();
    let expected = std::fs::read_to_string(file("expected.csv")).unwrap();
    assert_eq!(first(&String::from_utf8(output.stdout).unwrap()), first(&expected));
}
