//! A real schema registry, started by `scripts/schema-registry`, and a way to it that can be shut.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use test_support::process::Watcher;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Apicurio at a port of its own. Stopped when dropped.
pub(crate) struct Apicurio {
    script: PathBuf,
    port: u16,
    data: tempfile::TempDir,
    _watcher: Watcher,
}

impl Apicurio {
    /// A place for one, not started yet. `None`: this machine has no script named, and the test is skipped; but not in
    /// CI.
    pub(crate) fn place() -> Option<Self> {
        let Some(script) = std::env::var_os("CARSTREAM_TEST_SCHEMA_REGISTRY_SCRIPT") else {
            assert!(
                !std::env::var("CI").is_ok_and(|ci| ci == "true"),
                "in CI, CARSTREAM_TEST_SCHEMA_REGISTRY_SCRIPT must name scripts/schema-registry"
            );
            eprintln!("skipped: CARSTREAM_TEST_SCHEMA_REGISTRY_SCRIPT names no script; scripts/test does");
            return None;
        };
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let data = tempfile::tempdir().unwrap();
        let _watcher = Watcher::of_server(&script, data.path()).unwrap();
        Some(Self { script: script.into(), port, data, _watcher })
    }

    /// The URL that it has, or will have.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/apis/ccompat/v7", self.port)
    }

    /// Starts it, and waits until it answers.
    pub(crate) fn start(&self) {
        let started = self.run("start", &[]);
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        assert_eq!(String::from_utf8_lossy(&started.stdout).trim(), self.url());
    }

    /// kill -9.
    pub(crate) fn kill(&self) {
        assert!(self.run("stop", &["--kill"]).status.success());
    }

    fn run(&self, command: &str, more: &[&str]) -> Output {
        let (port, data) = (self.port.to_string(), self.data.path().display().to_string());
        Command::new(&self.script).args([command, "--port", &port, "--data", &data]).args(more).output().unwrap()
    }
}

impl Drop for Apicurio {
    fn drop(&mut self) {
        self.run("stop", &["--kill"]);
    }
}

/// A port in front of a registry: while it is shut, nobody gets through, and who was through is cut off.
#[derive(Clone)]
pub(crate) struct Gate {
    address: SocketAddr,
    /// Cancelled: shut.
    open: Arc<Mutex<CancellationToken>>,
}

impl Gate {
    pub(crate) async fn before(registry: &Apicurio) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gate = Self { address: listener.local_addr().unwrap(), open: Arc::default() };
        let (open, port) = (gate.open.clone(), registry.port);
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let open = open.lock().unwrap().clone();
                tokio::spawn(open.run_until_cancelled_owned(async move {
                    if let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                }));
            }
        });
        gate
    }

    /// The registry's URL through this gate.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/apis/ccompat/v7", self.address)
    }

    pub(crate) fn shut(&self) {
        self.open.lock().unwrap().cancel();
    }

    pub(crate) fn open(&self) {
        *self.open.lock().unwrap() = CancellationToken::new();
    }
}
