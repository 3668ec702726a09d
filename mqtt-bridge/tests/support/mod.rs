//! A bridge in this process on an embedded log in a temporary directory, clients on raw sockets, and a log that holds
//! back its completions.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each test binary uses a part

pub mod client;
pub mod gate;
pub mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{Log, LogArgs, LogUrl, Range, Read, Record};
use mqtt_bridge::{Args, Bridge, Metrics};
use prometheus_client::registry::Registry;
use service::Readiness;
use tempfile::TempDir;
use test_support::clock::now_ms;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use gate::{Gate, GatedLog};

/// For whatever has to happen; reached only when it doesn't.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Long enough to see that something does not happen.
pub const A_MOMENT: Duration = Duration::from_millis(300);

/// A VIN.
pub const CAR: &str = "WVWZZZ1JZXW000001";

/// The site's secret.
pub const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

/// A running bridge.
pub struct TestBridge {
    pub address: SocketAddr,
    pub tls_address: Option<SocketAddr>,
    pub log: Arc<dyn Log>,
    pub gate: Arc<Gate>,
    pub shutdown: CancellationToken,
    pub readiness: Readiness,
    registry: Registry,
    serving: Option<JoinHandle<anyhow::Result<()>>>,
    runtime: Option<Runtime>,
    _directory: TempDir,
}

/// A record as read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub key: String,
    pub value: Vec<u8>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub timestamp_ms: i64,
}

impl TestBridge {
    /// Starts a bridge with these settings.
    pub fn start(configure: impl FnOnce(&mut Args)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key_file = directory.path().join("key");
        std::fs::write(&key_file, KEY).unwrap();
        let log_args = LogArgs::new(LogUrl::Directory(directory.path().join("log")));
        let log = log_args.open().unwrap();
        let mut args = Args::new(any_port(), log_args, Some(key_file));
        configure(&mut args);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let gate = Arc::new(Gate::default());
        let gated = Arc::new(GatedLog { inner: log.clone(), gate: gate.clone() });
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let readiness = metrics.readiness.clone();
        let bridge = runtime.block_on(Bridge::bind_on(gated, args, metrics)).unwrap();
        let (address, tls_address) = (bridge.local_addr(), bridge.tls_local_addr());
        let shutdown = CancellationToken::new();
        let serving = Some(runtime.spawn(bridge.serve(shutdown.clone())));
        Self {
            address,
            tls_address,
            log,
            gate,
            shutdown,
            readiness,
            registry,
            serving,
            runtime: Some(runtime),
            _directory: directory,
        }
    }

    /// What a topic holds, partition by partition.
    pub fn records(&self, topic: &str) -> Vec<Stored> {
        let description = self.log.describe(topic).unwrap();
        let ranges = (0..).zip(&description.partitions).map(|(partition, p)| Range {
            topic: topic.into(),
            partition,
            start: p.first,
            end: Some(p.next),
        });
        let mut reader = self.log.clone().reader(ranges.collect()).unwrap();
        let mut stored = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "reading {topic} takes too long");
            match reader.next(1_000, A_MOMENT).unwrap() {
                Read::End => return stored,
                Read::Idle => {}
                Read::Batch(batch) => stored.extend(batch.iter().map(|record| Stored {
                    key: String::from_utf8(record.key.to_vec()).unwrap(),
                    value: record.value.unwrap().to_vec(),
                    headers: record.headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect(),
                    timestamp_ms: record.timestamp_ms,
                })),
            }
        }
    }

    /// Appends a record, and waits until it is durable.
    pub fn append(&self, topic: &str, key: &str, value: &[u8]) {
        let appender = self.log.clone().appender(Box::new(|_| {})).unwrap();
        let record = Record { key: key.as_bytes(), value: Some(value), headers: &[], timestamp_ms: now_ms() };
        appender.append(&topic.into(), &record, 0).unwrap();
        assert!(appender.flush(PATIENCE));
    }

    /// The metrics as Prometheus sees them.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    /// One sample, 0 if it is missing.
    pub fn metric(&self, name: &str) -> i64 {
        let text = self.metrics();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("carstream_mqtt_bridge_")?.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    /// Waits until a sample has a value.
    pub fn wait_for(&self, name: &str, value: i64) {
        wait_until(&format!("{name} = {value}"), || self.metric(name) == value);
    }

    /// Waits until the bridge has returned.
    pub fn stopped(&mut self) -> anyhow::Result<()> {
        let serving = self.serving.take().expect("stopped once");
        let runtime = self.runtime.as_ref().unwrap();
        runtime.block_on(async { tokio::time::timeout(PATIENCE, serving).await.expect("drains").unwrap() })
    }

    /// Whether it has returned.
    pub fn is_stopped(&self) -> bool {
        self.serving.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for TestBridge {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.gate.open();
        if let (Some(serving), false) = (self.serving.take(), std::thread::panicking()) {
            let runtime = self.runtime.as_ref().unwrap();
            runtime
                .block_on(async { tokio::time::timeout(PATIENCE, serving).await.expect("drains").unwrap() })
                .unwrap();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A port of the system's choice.
pub fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A file with the site's secret.
pub fn key_file(directory: &TempDir) -> PathBuf {
    let path = directory.path().join("key");
    std::fs::write(&path, KEY).unwrap();
    path
}

/// Polls until `done`.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
