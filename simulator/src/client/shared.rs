//! What the cars of a process share: the clock, the server's address, where rows, counts and findings go.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use parking_lot::Mutex;
use service::Waiting;
use tokio::net::{TcpSocket, lookup_host};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::args::{RunArgs, Server};
use crate::car::Fault;
use crate::client::tls::Tls;
use crate::client::transport::Transport;
use crate::fleet::Breaker;
use crate::ledger::{Earlier, Rows};
use crate::metrics::Metrics;
use crate::samples::Samples;

/// A server that does not answer the handshake within this time counts as missing.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// A resolved address is looked up again after a failure, but not more often than this.
const RESOLVE_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// What the cars of a process share.
pub(crate) struct Shared {
    pub(crate) args: RunArgs,
    tls: Option<Tls>,
    pub(crate) breaker: Breaker,
    /// Streams that only the contract knows.
    pub(crate) samples: Vec<Samples>,
    pub(crate) metrics: Metrics,
    pub(crate) ledger: Option<Rows>,
    pub(crate) shutdown: CancellationToken,
    /// When this process began, …
    pub(crate) start: Instant,
    /// … and the event time at which it did: the fleet's start, or the point that the resumed run had reached.
    pub(crate) start_ms: i64,
    /// A resumed run has nothing left to send.
    pub(crate) finished: bool,
    address: Mutex<Option<(SocketAddr, Instant)>>,
    waiting: Mutex<Waiting>,
    totals: Mutex<Totals>,
}

/// Sums over cars that have ended.
#[derive(Debug, Default, Clone)]
pub(crate) struct Totals {
    pub(crate) cars: u32,
    /// Cars that have taken all readings that earlier runs took.
    pub(crate) caught_up: u32,
    /// Cars that have reached the end of the span.
    pub(crate) covered: u32,
    pub(crate) readings: u64,
    pub(crate) sent: u64,
    pub(crate) acknowledged: u64,
    pub(crate) dropped: u64,
    pub(crate) unacknowledged: u64,
    pub(crate) broken: u64,
    pub(crate) repeated: u64,
    pub(crate) alerts: u64,
    pub(crate) faults: Vec<Fault>,
    pub(crate) unreported_faults: u64,
    /// Rows of the ledger that belong to no reading of its car.
    pub(crate) foreign_rows: u64,
}

impl Shared {
    /// `earlier`: the ledger's record, if the run is resumed.
    pub(crate) fn new(
        args: RunArgs,
        samples: Vec<Samples>,
        tls: Option<Tls>,
        metrics: Metrics,
        ledger: Option<Rows>,
        earlier: Option<&Earlier>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            start_ms: earlier.and_then(|earlier| earlier.event_time_ms).unwrap_or_else(|| args.fleet.start_ms()),
            finished: earlier.is_some_and(|earlier| earlier.finished),
            breaker: Breaker::new(&args.fleet),
            samples,
            waiting: Mutex::new(Waiting::new(format!("MQTT at {}", args.mqtt)).with_readiness(&metrics.readiness)),
            args,
            tls,
            metrics,
            ledger,
            shutdown,
            start: Instant::now(),
            address: Mutex::default(),
            totals: Mutex::new(earlier.map(|earlier| earlier.totals.clone()).unwrap_or_default()),
        }
    }

    /// The event time that it is now.
    pub(crate) fn event_time_ms(&self, now: Instant) -> i64 {
        let elapsed_s = now.saturating_duration_since(self.start).as_secs_f64();
        self.start_ms + (elapsed_s * self.args.fleet.speedup * 1_000.0) as i64
    }

    /// When it is that event time.
    pub(crate) fn instant_of(&self, event_time_ms: i64) -> Instant {
        let event_s = (event_time_ms - self.start_ms).max(0) as f64 / 1_000.0;
        self.start + Duration::from_secs_f64(event_s / self.args.fleet.speedup)
    }

    /// Connects car `number` of this process, which has this VIN, from its source address.
    pub(crate) async fn connect(&self, number: u32, vin: &str) -> io::Result<Transport> {
        let address = self.resolve().await?;
        let sources = &self.args.source_addresses;
        let source: Option<IpAddr> =
            if sources.is_empty() { None } else { Some(sources[number as usize % sources.len()]) };
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(source) = source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let stream = timeout(HANDSHAKE_TIMEOUT, socket.connect(address))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")))??;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Transport::Plain(stream)),
            Some(tls) => Ok(Transport::tls(stream, tls.session(vin)?)),
        }
    }

    /// There is no server: says so, now and then, for all cars together.
    pub(crate) fn no_server(&self, cause: &io::Error) {
        self.waiting.lock().note(cause);
        self.address.lock().take_if(|(_, at)| at.elapsed() > RESOLVE_AGAIN_AFTER);
    }

    /// There is one.
    pub(crate) fn server_is_there(&self) {
        self.waiting.lock().resolved();
        self.metrics.readiness.started();
    }

    /// A car has ended.
    pub(crate) fn add(&self, car: Totals) {
        let mut totals = self.totals.lock();
        totals.cars += car.cars;
        totals.caught_up += car.caught_up;
        totals.covered += car.covered;
        totals.readings += car.readings;
        totals.sent += car.sent;
        totals.acknowledged += car.acknowledged;
        totals.dropped += car.dropped;
        totals.unacknowledged += car.unacknowledged;
        totals.broken += car.broken;
        totals.repeated += car.repeated;
        totals.alerts += car.alerts;
        totals.faults.extend(car.faults);
        totals.unreported_faults += car.unreported_faults;
        totals.foreign_rows += car.foreign_rows;
    }

    /// The sums over all cars, once they have ended.
    pub(crate) fn totals(&self) -> Totals {
        self.totals.lock().clone()
    }

    async fn resolve(&self) -> io::Result<SocketAddr> {
        let known = *self.address.lock();
        if let Some((address, _)) = known {
            return Ok(address);
        }
        let server = Server::parse(&self.args.mqtt).map_err(io::Error::other)?;
        let address = lookup_host(server.address.as_pair())
            .await?
            .min_by_key(|address| address.is_ipv6())
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", self.args.mqtt)))?;
        *self.address.lock() = Some((address, Instant::now()));
        Ok(address)
    }
}
