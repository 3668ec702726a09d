//! A Kafka of one test, by scripts/kafka.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::net::TcpListener;
use std::process::Command;

use test_support::process::Watcher;

/// A port that was free a moment ago.
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// A broker; stopped when dropped, with its data gone.
#[derive(Debug)]
pub struct Broker {
    script: String,
    data: tempfile::TempDir,
    bootstrap: String,
    secured: String,
    _watcher: Watcher,
}

impl Broker {
    /// `None`, with a word about it, where there is no Kafka; in CI that is a failure.
    pub fn start() -> Option<Self> {
        Self::start_with(None)
    }

    /// The same, with a second listener for these users, who may do what they are [allowed](Self::allow).
    pub fn start_secured(users: &[&str]) -> Option<Self> {
        Self::start_with(Some(users))
    }

    fn start_with(users: Option<&[&str]>) -> Option<Self> {
        let script = std::env::var("CARSTREAM_TEST_KAFKA_SCRIPT").ok().filter(|script| !script.is_empty());
        let has_kafka = std::env::var_os("CARSTREAM_TEST_KAFKA").is_some();
        let Some(script) = script.filter(|_| has_kafka) else {
            let is_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
            assert!(!is_ci, "in CI, CARSTREAM_TEST_KAFKA and CARSTREAM_TEST_KAFKA_SCRIPT must be set");
            eprintln!("skipped: CARSTREAM_TEST_KAFKA_SCRIPT=scripts/kafka and CARSTREAM_TEST_KAFKA are not set");
            return None;
        };
        let data = tempfile::tempdir().unwrap();
        let _watcher = Watcher::of_server(&script, data.path()).unwrap();
        let broker = Self { script, data, bootstrap: free_address(), secured: free_address(), _watcher };
        let mut args = vec!["start".to_owned(), "--port".to_owned(), port(&broker.bootstrap).to_owned()];
        if let Some(users) = users {
            args.extend(["--secured".to_owned(), format!("{}:{}", port(&broker.secured), users.join(","))]);
        }
        broker.script(&args);
        Some(broker)
    }

    /// Where everything is allowed.
    pub fn url(&self) -> String {
        format!("kafka://{}", self.bootstrap)
    }

    /// Where users log in with SASL/PLAIN, each with its name as the password.
    pub fn secured_url(&self) -> String {
        format!("kafka://{}", self.secured)
    }

    /// Allows a user an operation on resources, which are options of Kafka's tool: `--topic NAME`…
    pub fn allow(&self, user: &str, operation: &str, resources: &[String]) {
        self.change_rights(&["--add"], user, operation, resources);
    }

    /// Takes that right back.
    pub fn forbid(&self, user: &str, operation: &str, resources: &[String]) {
        self.change_rights(&["--remove", "--force"], user, operation, resources);
    }

    fn change_rights(&self, change: &[&str], user: &str, operation: &str, resources: &[String]) {
        let tool = ["run", "org.apache.kafka.tools.AclCommand", "--bootstrap-server", &self.bootstrap];
        let right = ["--allow-principal", &format!("User:{user}"), "--operation", operation];
        let done = Command::new(&self.script).args(tool).args(change).args(right).args(resources).output().unwrap();
        assert!(done.status.success(), "{change:?} {right:?} {resources:?}: {done:?}");
    }

    fn script(&self, args: &[String]) {
        let status = Command::new(&self.script).args(args).arg("--data").arg(self.data.path()).status().unwrap();
        assert!(status.success(), "{} {args:?}", self.script);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = Command::new(&self.script).args(["stop", "--kill", "--data"]).arg(self.data.path()).status();
    }
}

fn port(address: &str) -> &str {
    address.rsplit(':').next().unwrap()
}
