//! The audit, compared with independent counts: Kafka's console consumer over the topics, DuckDB and pyarrow over the
//! Parquet.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use whole_pipeline_tests::binary;

/// After this long without a record the console consumer assumes the end of the topic.
const CONSOLE_TIMEOUT_MS: &str = "8000";

/// Rows, and different readings among them, by each of the two.
const COUNT_ROWS: &str = r#"
import duckdb, json, sys, pyarrow.dataset
folder = sys.argv[1]
by_duckdb = duckdb.sql(
    f"select count(*), count(distinct (car, boot_id, seq)) from read_parquet('{folder}/**/*.parquet')").fetchall()[0]
table = pyarrow.dataset.dataset(folder, format="parquet").to_table(columns=["car", "boot_id", "seq"])
different = {(row["car"], row["boot_id"], row["seq"]) for row in table.to_pylist()}
print(json.dumps({"duckdb": by_duckdb, "pyarrow": [table.num_rows, len(different)]}))
"#;

/// Runs `carstream audit`; it must find nothing. Returns what it counted.
pub(crate) fn audit(args: &[&str]) -> Value {
    let output = Command::new(binary("carstream")).args(["audit", "--json"]).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let found = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "the audit found something:\n{found}\n{said}");
    let report: Value = serde_json::from_str(&found).unwrap();
    assert_eq!((&report["caught_up"], &report["ledger_complete"]), (&true.into(), &true.into()), "{found}");
    report["ledger"].clone()
}

/// Whether Kafka's own consumer finds as many records as the audit says there are.
pub(crate) fn console_consumer_agrees(ledger: &Value, bootstrap: &str) {
    let Some(kafka) = kafka_script() else { return };
    std::thread::scope(|scope| {
        let clean = scope.spawn(|| {
            let keys = ["print.key=true", "print.value=false"].map(|p| ["--formatter-property", p]).concat();
            console_consumer(&kafka, bootstrap, "telemetry", &keys)
        });
        let raw = console_consumer(&kafka, bootstrap, "telemetry.raw", &[]);
        let readings: BTreeSet<_> = raw.iter().map(|line| identity(line)).collect();
        let count = |key: &str| ledger[key].as_u64().unwrap() as usize;
        assert_eq!(raw.len(), count("raw"), "records of telemetry.raw");
        assert_eq!(readings.len(), count("acknowledged"), "different readings in telemetry.raw");
        assert_eq!(raw.len() - readings.len(), count("duplicates_removed"));
        assert_eq!(clean.join().unwrap().len(), count("clean"), "records of telemetry");
    });
}

/// Whether DuckDB and pyarrow find as many rows as the audit says there are, each reading once.
pub(crate) fn python_agrees(ledger: &Value, lake: &Path) {
    let Some(python) = python() else { return };
    let output = Command::new(python).args(["-c", COUNT_ROWS]).arg(lake.join("telemetry")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = &ledger["parquet_rows"];
    for reader in ["duckdb", "pyarrow"] {
        assert_eq!(found[reader], serde_json::json!([rows, rows]), "{reader}");
    }
}

/// The lines that Kafka's console consumer prints of a topic: one per committed record.
fn console_consumer(kafka: &Path, bootstrap: &str, topic: &str, more: &[&str]) -> Vec<String> {
    let args = ["--isolation-level", "read_committed", "--from-beginning", "--timeout-ms", CONSOLE_TIMEOUT_MS];
    let output = Command::new(kafka)
        .args(["run", "org.apache.kafka.tools.consumer.ConsoleConsumer", "--bootstrap-server", bootstrap])
        .args(["--topic", topic])
        .args(args)
        .args(more)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    let total = format!("Processed a total of {} messages", lines.len());
    assert!(said.contains(&total), "the console consumer did not end with {total:?}:\n{said}");
    lines
}

fn identity(payload: &str) -> (String, u64, u64) {
    let reading: Value = serde_json::from_str(payload).unwrap();
    let number = |name: &str| reading[name].as_u64().unwrap();
    (reading["vin"].as_str().unwrap().to_owned(), number("boot_id"), number("seq"))
}

/// `scripts/kafka`. Without it this part is skipped, but not in CI.
fn kafka_script() -> Option<PathBuf> {
    if let Some(script) = std::env::var_os("CARSTREAM_TEST_KAFKA_SCRIPT") {
        return Some(script.into());
    }
    let missing = "CARSTREAM_TEST_KAFKA_SCRIPT names no scripts/kafka: the console consumer is not asked";
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    eprintln!("skipped: {missing}");
    None
}

/// The interpreter of scripts/install-test-tools. Without it this part is skipped, but not in CI.
fn python() -> Option<PathBuf> {
    let cache = std::env::var_os("CARSTREAM_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/carstream")))?;
    let python = cache.join("test-tools/bin/python");
    if Command::new(&python).args(["-c", "import pyarrow, duckdb"]).output().is_ok_and(|o| o.status.success()) {
        return Some(python);
    }
    let missing = format!("{} with pyarrow and duckdb is missing: run scripts/install-test-tools", python.display());
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    eprintln!("skipped: {missing}");
    None
}
