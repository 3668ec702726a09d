//! The real bridge on a real log, the embedded one.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use event_log::{LogArgs, LogUrl, Range, Read};
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A bridge in this process.
pub struct Bridge {
    pub address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Bridge {
    /// Listens at `address`; its log is in the directory `log`.
    pub async fn start(address: &str, log: &Path) -> Self {
        Self::start_with(Self::args(address, log)).await
    }

    /// Listens at `address` with TLS, and nowhere without; its files are in the directory `secrets`.
    pub async fn start_tls(address: &str, log: &Path, secrets: &Path) -> Self {
        let mut args = Self::args(address, log);
        args.listen = mqtt_bridge::Listen::Nowhere;
        args.tls.tls_listen = Some(address.parse().unwrap());
        args.tls.tls_cert = Some(secrets.join("mqtt-bridge.crt"));
        args.tls.tls_key = Some(secrets.join("mqtt-bridge.key"));
        args.tls.tls_client_ca = Some(secrets.join("ca.crt"));
        Self::start_with(args).await
    }

    fn args(address: &str, log: &Path) -> mqtt_bridge::Args {
        let log = LogArgs::new(LogUrl::Directory(log.to_owned()));
        mqtt_bridge::Args::new(address.parse().unwrap(), log, None)
    }

    async fn start_with(args: mqtt_bridge::Args) -> Self {
        let metrics = mqtt_bridge::Metrics::new(&mut Registry::default());
        let bridge = mqtt_bridge::Bridge::bind(args, metrics).await.unwrap();
        let (address, stop) = (bridge.local_addr(), CancellationToken::new());
        let task = tokio::spawn(bridge.serve(stop.clone()));
        Self { address, stop, task }
    }

    /// Drains it.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// An authority and a certificate for `localhost`, as files.
pub fn make_secrets(directory: &Path) {
    use certificates::{Authority, KeyPem};
    let (ca_key, key) = (KeyPem::generate(), KeyPem::generate());
    let ca = Authority::create(&ca_key).unwrap();
    let authority = Authority::from_pem(ca.as_bytes(), &ca_key).unwrap();
    let certificate = authority.server(&["localhost".to_owned()], &key).unwrap();
    for (name, text) in
        [("ca.crt", ca), ("ca.key", ca_key.0), ("mqtt-bridge.crt", certificate), ("mqtt-bridge.key", key.0)]
    {
        std::fs::write(directory.join(name), text).unwrap();
    }
}

/// All values of a topic, as JSON, with their keys.
pub fn records(log: &Path, topic: &str) -> Vec<(String, serde_json::Value)> {
    let log = event_log::open(&LogUrl::Directory(log.to_owned()), &[]).unwrap();
    let description = log.describe(topic).unwrap();
    let ranges = description
        .partitions
        .iter()
        .zip(0..)
        .map(|(bounds, partition)| Range {
            topic: topic.into(),
            partition,
            start: bounds.first,
            end: Some(bounds.next),
        })
        .collect();
    let mut reader = log.reader(ranges).unwrap();
    let mut found = Vec::new();
    loop {
        match reader.next(10_000, Duration::from_millis(100)).unwrap() {
            Read::Batch(batch) => found.extend(batch.iter().map(|record| {
                let key = String::from_utf8(record.key.to_vec()).unwrap();
                (key, serde_json::from_slice(record.value.unwrap()).unwrap())
            })),
            Read::Idle => {}
            Read::End => return found,
        }
    }
}
