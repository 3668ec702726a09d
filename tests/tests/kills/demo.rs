//! The demo: killed while cars send, while it trains, while it drains.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use whole_pipeline_tests::binary;
use whole_pipeline_tests::process::Process;

use super::{kills, moments};

/// 1,200 times the speed of life for 16 s: more than five hours, enough to train on after three.
const DEMO: [&str; 8] = ["--cars", "100", "--seed", "7", "--duration", "16s", "--speedup", "1200"];

/// The fleet of such a demo, as `simulator generate` makes it.
const GENERATE: [&str; 14] = [
    "generate",
    "--cars",
    "100",
    "--seed",
    "7",
    "--duration",
    "16s",
    "--speedup",
    "1200",
    "--interval",
    "60s",
    "--broken-share",
    "0.001",
    "--newer-schema-share",
];

fn demo(keep: &str, more: &[&str]) -> Process {
    Process::start("carstream", &[&["demo", "--json", "--keep", keep][..], &DEMO[..], more].concat())
}

/// Lets it run for this long; then kills it. `false`: it had ended by itself.
fn kill_after(mut demo: Process, pause: Duration) -> bool {
    let at = Instant::now() + pause;
    while Instant::now() < at {
        if demo.has_ended() {
            demo.succeed();
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    demo.kill();
    true
}

#[test]
fn a_killed_demo_goes_on_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let keep = directory.path().join("demo");
    let shown = keep.display().to_string();
    let (mut random, kills) = (moments(), kills());
    let mut killed = 0;
    for kill in 0..kills {
        let mut demo = demo(&shown, &[]);
        // Half of the kills while cars send, short of the training; the others in the training and at the end.
        let pause = match kill * 4 / kills {
            0 | 1 => Duration::from_millis(random.between(100, u64::from(14_000 / kills))),
            2 => {
                demo.line_with_any(&["training from the lake", "the cars have finished"]);
                Duration::from_millis(random.between(0, 1_500))
            }
            _ => {
                demo.line_with_any(&["the cars have finished"]);
                Duration::from_millis(random.between(0, 400))
            }
        };
        eprintln!("kill {kill} after {} ms", pause.as_millis());
        killed += u32::from(kill_after(demo, pause));
    }
    assert!(killed * 10 >= kills * 9, "only {killed} of {kills} kills met a running demo");
    let said = demo(&shown, &[]).succeed();

    let report = report(&keep);
    let count = |key: &str| report["ledger"][key].as_u64().unwrap();
    eprintln!("{killed} kills: {}", report["ledger"]);
    assert_eq!((count("lost"), count("doubled")), (0, 0), "{report}\n{said}");
    assert_eq!(count("clean"), count("replicated"), "{report}");
    assert_eq!(count("clean"), count("parquet_rows"), "{report}");
    assert_eq!(count("clean"), count("scored"), "{report}");
    assert_eq!(count("raw"), count("clean") + count("duplicates_removed") + count("dead_letters"), "{report}");
    assert!(count("duplicates_removed") > 0, "no kill came between a PUBACK and its row: nothing was shown");

    // All readings of the span and no others, a row each.
    let ledger = std::fs::read_to_string(keep.join("ledger.csv")).unwrap();
    let readings: BTreeSet<_> = ledger.lines().skip(1).map(|row| row.split(',').take(3).collect::<Vec<_>>()).collect();
    let generated = Command::new(binary("simulator")).args(GENERATE).arg("0.25").output().unwrap().stdout;
    let generated = generated.iter().filter(|&&byte| byte == b'\n').count();
    assert_eq!((ledger.lines().count() - 1, readings.len()), (generated, generated));
    assert_eq!(count("acknowledged"), generated as u64, "{report}");

    // It is finished, and stays so.
    let before = std::fs::read(keep.join("report.json")).unwrap();
    demo(&shown, &[]).succeed();
    assert_eq!(std::fs::read(keep.join("report.json")).unwrap(), before);
    let (code, said) = Process::start("carstream", &["demo", "--keep", &shown, "--seed", "8"]).end();
    assert!(code == Some(64) && said.contains("continue it with --seed 7"), "{code:?} {said}");
}

fn report(keep: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(keep.join("report.json")).unwrap()).unwrap()
}
