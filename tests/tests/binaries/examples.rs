//! The Python programs of `examples/`, run as their README says.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use event_log::{Log, Record};
use whole_pipeline_tests::process::Process;

/// More than the programs wait for by themselves.
const PATIENCE_S: &str = "100";

#[test]
fn the_lake_is_read_and_a_car_gets_its_alert() {
    let Some(python) = python() else { return };
    let directory = tempfile::tempdir().unwrap();
    let keep = directory.path().join("demo");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let demo = ["demo", "--cars", "150", "--duration", "20s", "--speedup", "1200", "--keep", &path("demo")];
    Process::start("carstream", &demo).succeed();

    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(keep.join("report.json")).unwrap()).unwrap();
    let counts = format!("{} readings, {} scores", report["ledger"]["parquet_rows"], report["ledger"]["scored"]);
    for program in ["lake_duckdb.py", "lake_pandas.py", "lake_polars.py", "lake_spark.py", "lake_iceberg.py"] {
        let said = run(&python, program, &[&path("demo/lake")]);
        assert_eq!(said.lines().last(), Some(&*counts), "{program} said:\n{said}");
    }

    std::fs::write(path("site.key"), "a key of one test site, and no other").unwrap();
    let models: Vec<_> = std::fs::read_dir(keep.join("lake/models/telemetry-anomaly")).unwrap().collect();
    let model = models[0].as_ref().unwrap().path().display().to_string();
    let settings = ["--log", &path("site"), "--pseudonym-key-file", &path("site.key"), "--model", &model];
    let mut site = Process::start("carstream", &[&["edge", "--listen", "127.0.0.1:0"], &settings[..]].concat());
    let line = site.line_with(&["MQTT at 127.0.0.1:"]);
    let port = line.rsplit(':').next().unwrap().trim().to_owned();
    for (vin, leak) in [("WVWZZZ1JZXW000001", &[][..]), ("WVWZZZ1JZXW000002", &["--leak"][..])] {
        let args = [&["--port", &port, "--vin", vin, "--wait", PATIENCE_S], leak].concat();
        let said = run(&python, "car.py", &args);
        let acknowledged = |line: &str| line.starts_with("300 of 300 readings acknowledged, alerts: ");
        assert!(said.lines().last().is_some_and(acknowledged), "car.py said:\n{said}");
        // A model of a short demo, with a key of its own, has false alarms now and then; of this tyre it has none.
        let named = said.contains(r#""features":["tire_pressure_11""#);
        assert_eq!(named, !leak.is_empty(), "the alert of the leak names the tyre first:\n{said}");
    }
    site.terminate();
    site.succeed();
}

/// Appends an alert, which a stock Kafka client must then print.
pub(crate) fn kafka_has_this_alert(bootstrap: &str, kafka: &Arc<dyn Log>) {
    let Some(python) = python() else { return };
    let alert = br#"{"alert_id":"1","car":"of the example","state":"open","opened_ms":1,"event_time_ms":1,"score":9.5,
        "threshold":5,"features":["speed"],"model_version":"1"}"#;
    let appender = kafka.clone().appender(Box::new(|completions| assert!(completions.iter().all(|c| c.durable))));
    let appender = appender.unwrap();
    let record = Record { key: b"of the example", value: Some(alert), headers: &[], timestamp_ms: 0 };
    appender.append(&"alerts".into(), &record, 0).unwrap();
    assert!(appender.flush(Duration::from_secs(60)));

    let said = run(&python, "alerts_kafka.py", &["--kafka", bootstrap, "--until-end"]);
    let line = "open    car of the example  score 9.5 (threshold 5.0)  speed";
    assert_eq!(said.lines().filter(|printed| printed.ends_with(line)).count(), 1, "alerts_kafka.py said:\n{said}");
}

/// What a program printed; it must succeed.
fn run(python: &Path, program: &str, args: &[&str]) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let output = Command::new(python).arg(folder.join(program)).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} failed:\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// The interpreter of scripts/install-test-tools. Without it this part is skipped, but not in CI.
fn python() -> Option<PathBuf> {
    let cache = std::env::var_os("CARSTREAM_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/carstream")))?;
    let python = cache.join("test-tools/bin/python");
    let needed = "import confluent_kafka, duckdb, paho.mqtt, pandas, polars, pyarrow, pyiceberg, pyspark";
    if Command::new(&python).args(["-c", needed]).output().is_ok_and(|o| o.status.success()) {
        return Some(python);
    }
    let missing = format!("{} with the packages of the examples: run scripts/install-test-tools", python.display());
    assert!(std::env::var_os("CI").is_none(), "missing: {missing}");
    eprintln!("skipped: missing {missing}");
    None
}
