//! A broker of a test's own, to be killed and paused.

use std::path::Path;
use std::process::Command;

use event_log::LogUrl;
use tempfile::TempDir;
use test_support::process::{self, Watcher};

/// A broker of this test's own, started by scripts/kafka.
pub struct Broker {
    script: String,
    data: TempDir,
    port: u16,
    options: Vec<String>,
    pub url: LogUrl,
    _watcher: Watcher,
}

impl Broker {
    /// Starts it. None, and a word why, if nobody says where the script is.
    pub fn start() -> Option<Broker> {
        Self::start_with(&[])
    }

    /// The same, with these options of scripts/kafka.
    pub fn start_with(options: &[&str]) -> Option<Broker> {
        let Ok(script) = std::env::var("CARSTREAM_TEST_KAFKA_SCRIPT") else {
            eprintln!("skipped: CARSTREAM_TEST_KAFKA_SCRIPT does not name scripts/kafka");
            return None;
        };
        let port = unused_port();
        let url = format!("kafka://127.0.0.1:{port}").parse().expect("a URL");
        let data = tempfile::tempdir().expect("a temporary directory");
        let _watcher = Watcher::of_server(&script, data.path()).expect("a shell");
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let broker = Broker { script, data, port, options, url, _watcher };
        broker.start_again();
        Some(broker)
    }

    fn run(&self, arguments: &[&str]) {
        let data = self.data.path().to_str().expect("text");
        let status =
            Command::new(&self.script).args(arguments).args(["--data", data]).status().expect("the script runs");
        assert!(status.success(), "{} {arguments:?}", self.script);
    }

    /// Starts it again, with what it had stored.
    pub fn start_again(&self) {
        let port = self.port.to_string();
        let options = self.options.iter().map(String::as_str);
        self.run(&["start", "--port", &port].into_iter().chain(options).collect::<Vec<_>>());
    }

    /// kill -9.
    pub fn kill(&self) {
        self.run(&["stop", "--kill"]);
    }

    /// Where its partitions are.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// Stops it where it is (SIGSTOP) until [`Broker::resume`]: connections stay, and nothing is answered.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.data.path().join("pid")).expect("the broker runs");
        process::signal(signal, pid.trim());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Nothing listens on a port that was just given back.
fn unused_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}
