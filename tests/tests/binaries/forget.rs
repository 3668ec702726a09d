//! A car is forgotten while all stages run, on Kafka.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use event_log::Log;
use telemetry::pseudonym::PseudonymKey;
use whole_pipeline_tests::process::Process;
use whole_pipeline_tests::{binary, state};

/// Two cars of a ledger.
pub(crate) fn two_cars(ledger: &Path) -> [String; 2] {
    let text = std::fs::read_to_string(ledger).unwrap();
    let vins: std::collections::BTreeSet<_> = text.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
    let mut vins = vins.into_iter().map(str::to_owned);
    [vins.next().unwrap(), vins.next().unwrap()]
}

/// Has one of two cars forgotten by these running stages, which it then stops.
pub(crate) fn one_of([asks, other]: &[String; 2], log: (&str, &Arc<dyn Log>), key_file: &str, stages: Vec<Process>) {
    let (url, log) = log;
    let key = PseudonymKey::from_file(key_file.as_ref()).unwrap();
    let knows = |vin: &str| {
        let in_preprocessor = state::knows(log, "preprocessor.state", vin);
        (in_preprocessor, state::knows(log, "scorer.state", &key.pseudonym(vin)))
    };
    assert_eq!([knows(asks), knows(other)], [(true, true); 2], "in the snapshots of the stop before");
    let output = Command::new(binary("carstream"))
        .args(["forget", "--log", url, "--pseudonym-key-file", key_file, "--vin", asks, "--wait", "180s"])
        .env_clear()
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for group in ["preprocessor-telemetry", "preprocessor-faults", "scorer"] {
        assert!(said.contains(&format!("forgotten by: {group}\n")), "{said}");
    }
    for stage in &stages {
        stage.terminate();
    }
    for stage in stages {
        stage.succeed();
    }
    assert_eq!([knows(asks), knows(other)], [(false, false), (true, true)]);
}
