//! Two Kafka clusters of a test's own, started by scripts/kafka, and replicators as processes that can be killed.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{Log, LogUrl};
use test_support::process::{OwnedChild, Watcher};

use crate::support::PATIENCE;

/// A broker; killed with the test.
pub struct Broker {
    script: String,
    data: tempfile::TempDir,
    bootstrap: String,
    _watcher: Watcher,
}

impl Broker {
    /// Two of them. `None`, with a word about it, where there is no Kafka; in CI that is a failure.
    pub fn two() -> Option<[Broker; 2]> {
        let is_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let (Some(_), Some(script)) = (variable("CARSTREAM_TEST_KAFKA"), variable("CARSTREAM_TEST_KAFKA_SCRIPT"))
        else {
            let what = "CARSTREAM_TEST_KAFKA must name a broker, and CARSTREAM_TEST_KAFKA_SCRIPT scripts/kafka";
            assert!(!is_ci, "in CI, {what}");
            eprintln!("skipped: {what}");
            return None;
        };
        let script = &script;
        Some(std::thread::scope(|scope| {
            [(); 2].map(|()| scope.spawn(move || Self::start(script))).map(|broker| broker.join().unwrap())
        }))
    }

    fn start(script: &str) -> Broker {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let bootstrap = format!("127.0.0.1:{port}");
        let data = tempfile::tempdir().unwrap();
        let _watcher = Watcher::of_server(script, data.path()).unwrap();
        let broker = Broker { script: script.to_owned(), data, bootstrap, _watcher };
        broker.script(&["start", "--port", &port.to_string()]);
        broker
    }

    fn script(&self, arguments: &[&str]) {
        let data = self.data.path().to_str().unwrap();
        let status = Command::new(&self.script).args(arguments).args(["--data", data]).status().unwrap();
        assert!(status.success(), "{} {arguments:?}", self.script);
    }

    pub fn url(&self) -> LogUrl {
        format!("kafka://{}", self.bootstrap).parse().unwrap()
    }

    pub fn log(&self) -> Arc<dyn Log> {
        event_log::open(&self.url(), &[]).unwrap()
    }

    /// Runs one of Kafka's own tools on this broker, which must succeed.
    pub fn tool(&self, class: &str, arguments: &[&str]) {
        if let Err(said) = self.try_tool(class, arguments) {
            panic!("{class} {arguments:?}: {said}");
        }
    }

    /// Runs one of Kafka's own tools on this broker.
    pub fn try_tool(&self, class: &str, arguments: &[&str]) -> Result<(), String> {
        let class = format!("org.apache.kafka.tools.{class}");
        let mut command = Command::new(&self.script);
        command.args(["run", &class, "--bootstrap-server", &self.bootstrap]).args(arguments);
        let output = command.output().unwrap();
        output.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Removes the records of a partition before `offset`, as retention does.
    pub fn delete_records(&self, topic: &str, partition: u32, offset: u64) {
        let file = self.data.path().join("delete-records.json");
        let what = format!(
            r#"{{"partitions": [{{"topic": "{topic}", "partition": {partition}, "offset": {offset}}}], "version": 1}}"#
        );
        std::fs::write(&file, what).unwrap();
        self.tool("DeleteRecordsCommand", &["--offset-json-file", file.to_str().unwrap()]);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.script(&["stop", "--kill"]);
    }
}

/// A replicator as a process.
pub struct Process(OwnedChild);

impl Process {
    /// Starts one that copies `topic`, and that its group gives up after `session_ms` of silence.
    pub fn start(edge: &Broker, cloud: &Broker, topic: &str, instance: &str, session_ms: &str) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_replicator"));
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("CARSTREAM_") {
                command.env_remove(variable);
            }
        }
        command
            .args(["--edge-log", &edge.url().to_string(), "--cloud-log", &cloud.url().to_string()])
            .args(["--topic", topic, "--instance", instance, "--batch-records", "200", "--batch-wait", "20ms"])
            .args(["--cloud-kafka-option", &format!("session.timeout.ms={session_ms}")])
            .args(["--cloud-kafka-option", "heartbeat.interval.ms=1000"]);
        Process(OwnedChild::spawn(command.stderr(Stdio::piped())).unwrap())
    }

    pub fn signal(&self, name: &str) {
        self.0.signal(name);
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for its end: its exit code, and what it said.
    pub fn end(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        let mut status = None;
        while status.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
            status = self.0.try_wait().unwrap();
        }
        let _ = self.0.kill();
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = status.unwrap_or_else(|| panic!("the replicator does not end:\n{said}"));
        (status.code(), said)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let mut said = String::new();
        if std::thread::panicking()
            && let Some(stderr) = &mut self.0.stderr
            && stderr.read_to_string(&mut said).is_ok()
        {
            eprintln!("process {} had said:\n{said}", self.0.id());
        }
    }
}
