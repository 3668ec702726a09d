//! How fast the bridge is, and what a connection costs: QoS 1 publishes acknowledged per second, CPU time of the bridge
//! per message, memory and CPU time per idle connection. Linux only (it reads /proc).
//!
//! ```text
//! cargo bench -p mqtt-bridge --bench load -- --connections 50 --seconds 5 --idle 10000
//! cargo bench -p mqtt-bridge --bench load -- --connections 50 --seconds 5 --idle 5000 --tls
//! ```
//!
//! The bridge runs in a process of its own, on an embedded log in a temporary directory, or (`--no-log`) on one that
//! keeps nothing and calls everything durable after a millisecond, which leaves the cost of the bridge itself.
#![allow(missing_docs)]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use certificates::{Authority, CarKey, KeyPem};
use clap::Parser;
use event_log::{
    AppendError, Appender, Completion, Consumer, Error, Log, LogArgs, LogUrl, OnCompletion, ProcessorOptions, Range,
    Reader, Record, TopicDescription, TopicSpec, Transactor,
};
use mqtt_bridge::{Args, Bridge, Metrics};
use parking_lot::Mutex;
use test_support::measurement;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Clone, Parser)]
struct Load {
    /// Connections that publish.
    #[arg(long, default_value_t = 50)]
    connections: usize,
    /// Publishes of one connection that are sent at once, before waiting for their acknowledgements.
    #[arg(long, default_value_t = 32)]
    window: u16,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 600)]
    payload: usize,
    /// Seconds of load.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Idle connections, for the memory of one.
    #[arg(long, default_value_t = 5_000)]
    idle: usize,
    /// Keep nothing.
    #[arg(long)]
    no_log: bool,
    /// With TLS and a certificate for each connection.
    #[arg(long)]
    tls: bool,
    /// (For the bridge's own process.)
    #[arg(long, hide = true)]
    serve: bool,
    /// (For the bridge's own process.)
    #[arg(long, hide = true)]
    secrets: Option<PathBuf>,
}

/// A connection of either kind.
type Connection = Box<dyn Stream>;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let load = Load::parse_from(measurement::arguments());
    if load.serve {
        return serve(&load).await;
    }
    let secrets = tempfile::tempdir()?;
    let factory = load.tls.then(|| Factory::new(secrets.path())).transpose()?.map(Arc::new);
    let mut bridge = Command::new(std::env::current_exe()?)
        .args(measurement::arguments().skip(1))
        .arg("--serve")
        .arg("--secrets")
        .arg(secrets.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(bridge.stdout.take().context("piped")?).read_line(&mut line)?;
    let address: SocketAddr = line.trim().parse().context("the bridge did not start")?;
    let pid = bridge.id();

    let (before, cpu_before) = (resident_bytes(pid)?, cpu_seconds(pid)?);
    let mut idle = Vec::new();
    for i in 0..load.idle {
        idle.push(connect(address, &format!("idle{i:013}"), factory.as_deref()).await?);
    }
    let (after, cpu) = (resident_bytes(pid)?, cpu_seconds(pid)? - cpu_before);
    if load.idle > 0 {
        println!("memory    {} bytes per idle connection ({} of them)", (after - before) / load.idle as u64, load.idle);
        println!("CPU       {:.0} µs of the bridge's process per connect", cpu * 1e6 / load.idle as f64);
    }

    let cpu_before = cpu_seconds(pid)?;
    let started = Instant::now();
    let until = started + Duration::from_secs(load.seconds);
    let publish = |i| tokio::spawn(publish(address, i, load.clone(), factory.clone(), until));
    let publishers: Vec<_> = (0..load.connections).map(publish).collect();
    let mut acknowledged = 0;
    for publisher in publishers {
        acknowledged += publisher.await??;
    }
    let (elapsed, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds(pid)? - cpu_before);
    println!("messages  {:.0} QoS 1 publishes acknowledged per second", acknowledged as f64 / elapsed);
    println!("CPU       {:.2} µs of the bridge's process per message", cpu * 1e6 / acknowledged as f64);
    drop(bridge.stdin.take()); // the bridge stops
    bridge.wait()?;
    Ok(())
}

/// The bridge's own process: stops when standard input ends.
async fn serve(load: &Load) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let log_args = LogArgs::new(LogUrl::Directory(directory.path().join("log")));
    let mut args = Args::new("127.0.0.1:0".parse()?, log_args.clone(), None);
    if let (true, Some(secrets)) = (load.tls, &load.secrets) {
        args.tls.tls_listen = Some((std::net::Ipv4Addr::LOCALHOST, 0).into());
        args.tls.tls_cert = Some(secrets.join("mqtt-bridge.crt"));
        args.tls.tls_key = Some(secrets.join("mqtt-bridge.key"));
        args.tls.tls_client_ca = Some(secrets.join("ca.crt"));
    }
    let log: Arc<dyn Log> = if load.no_log { Arc::new(Nowhere(log_args.log)) } else { log_args.open()? };
    let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
    let bridge = Bridge::bind_on(log, args, metrics).await?;
    println!("{}", bridge.tls_local_addr().unwrap_or(bridge.local_addr()));
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().lines().count();
        stop.cancel();
    });
    bridge.serve(shutdown).await
}

/// Makes a site's certificates, and then each client's.
struct Factory {
    ca: String,
    authority: Authority,
    key: CarKey,
}

impl Factory {
    fn new(directory: &Path) -> anyhow::Result<Self> {
        let (ca_key, key) = (KeyPem::generate(), KeyPem::generate());
        let ca = Authority::create(&ca_key)?;
        let authority = Authority::from_pem(ca.as_bytes(), &ca_key)?;
        std::fs::write(directory.join("ca.crt"), &ca)?;
        std::fs::write(directory.join("mqtt-bridge.crt"), authority.server(&["localhost".to_owned()], &key)?)?;
        std::fs::write(directory.join("mqtt-bridge.key"), key.0)?;
        Ok(Self { ca, authority, key: CarKey::generate() })
    }

    fn connector(&self, vin: &str) -> anyhow::Result<TlsConnector> {
        let mut roots = RootCertStore::empty();
        roots.add(certificates::from_pem(self.ca.as_bytes())?.remove(0))?;
        let config = ClientConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![self.authority.car_with_key(vin, &self.key)?], self.key.private())?;
        Ok(Arc::new(config).into())
    }
}

async fn connect(address: SocketAddr, client_id: &str, factory: Option<&Factory>) -> anyhow::Result<Connection> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let mut stream: Connection = match factory {
        None => Box::new(socket),
        Some(factory) => Box::new(factory.connector(client_id)?.connect("localhost".try_into()?, socket).await?),
    };
    let mut packet = vec![0x10, 12 + client_id.len() as u8, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0];
    packet.extend((client_id.len() as u16).to_be_bytes());
    packet.extend(client_id.as_bytes());
    stream.write_all(&packet).await?;
    stream.flush().await?;
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).await?;
    anyhow::ensure!(connack == [0x20, 2, 0, 0], "refused: {connack:02x?}");
    Ok(stream)
}

/// Publishes until the end. Returns how many publishes were acknowledged.
async fn publish(
    address: SocketAddr,
    number: usize,
    load: Load,
    factory: Option<Arc<Factory>>,
    until: Instant,
) -> anyhow::Result<u64> {
    let vin = format!("WVWZZZ1JZX{number:07}");
    let mut stream = connect(address, &vin, factory.as_deref()).await?;
    let topic = format!("vehicles/{vin}/telemetry");
    let mut burst = Vec::new();
    for packet_id in 1..=load.window {
        let remaining = 2 + topic.len() + 2 + load.payload;
        burst.push(0x32);
        burst.extend(length_bytes(remaining));
        burst.extend((topic.len() as u16).to_be_bytes());
        burst.extend(topic.as_bytes());
        burst.extend(packet_id.to_be_bytes());
        burst.resize(burst.len() + load.payload, b'x');
    }
    let mut pubacks = vec![0; 4 * usize::from(load.window)];
    let mut acknowledged = 0;
    while Instant::now() < until {
        stream.write_all(&burst).await?;
        stream.flush().await?;
        stream.read_exact(&mut pubacks).await?;
        acknowledged += u64::from(load.window);
    }
    Ok(acknowledged)
}

fn length_bytes(mut remaining: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = (remaining & 0x7f) as u8;
        remaining >>= 7;
        bytes.push(if remaining > 0 { byte | 0x80 } else { byte });
        if remaining == 0 {
            return bytes;
        }
    }
}

fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1_024)
}

/// User and system time, in Linux's ticks of 10 ms.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}

/// A log that keeps nothing and calls everything durable after a millisecond.
#[derive(Debug)]
struct Nowhere(LogUrl);

impl Nowhere {
    fn cannot(&self, operation: &'static str) -> Error {
        Error::Refused { operation, log: self.0.to_string(), source: "this log keeps nothing".into() }
    }
}

impl Log for Nowhere {
    fn url(&self) -> &LogUrl {
        &self.0
    }
    fn ensure_topic(&self, _: &TopicSpec) -> Result<(), Error> {
        Ok(())
    }
    /// No topic exists, so that the bridge creates each.
    fn describe(&self, topic: &str) -> Result<TopicDescription, Error> {
        Err(Error::UnknownTopic { log: self.0.to_string(), topic: topic.to_owned() })
    }
    fn committed(&self, _: &str, _: &str) -> Result<Vec<Option<u64>>, Error> {
        Err(self.cannot("committed"))
    }
    fn appender(self: Arc<Self>, on_completion: OnCompletion) -> Result<Arc<dyn Appender>, Error> {
        let appender = Arc::new(Forgets::default());
        let forgets = Arc::downgrade(&appender);
        std::thread::spawn(move || {
            while let Some(appender) = forgets.upgrade() {
                let done = std::mem::take(&mut *appender.queue.lock());
                on_completion(&done);
                drop(appender);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Ok(appender)
    }
    fn reader(self: Arc<Self>, _: Vec<Range>) -> Result<Box<dyn Reader>, Error> {
        Err(self.cannot("reader"))
    }
    fn consumer(self: Arc<Self>, _: &ProcessorOptions) -> Result<Box<dyn Consumer>, Error> {
        Err(self.cannot("consumer"))
    }
    fn transactor(self: Arc<Self>, _: &ProcessorOptions) -> Result<Box<dyn Transactor>, Error> {
        Err(self.cannot("transactor"))
    }
}

#[derive(Default)]
struct Forgets {
    queue: Mutex<Vec<Completion>>,
}

impl Appender for Forgets {
    fn append(&self, _: &Arc<str>, _: &Record<'_>, token: u64) -> Result<(), AppendError> {
        let mut queue = self.queue.lock();
        queue.push(Completion { token, durable: true });
        Ok(())
    }
    fn flush(&self, _: Duration) -> bool {
        true
    }
}
