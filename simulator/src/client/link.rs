//! The life of one car on the network: measure when it is time, keep, send, repeat, hang up.
//!
//! ```text
//!           event time                window                     socket
//! Car ─────► readings ─► Queue ─────► in flight ─► Connection ─────────► bridge
//!                          ▲                          │ cut by tunnels, garages, servers
//!                          └── not acknowledged ◄─────┘ reconnect: backoff, jitter, then again in order with DUP
//! ```
//!
//! The schedule of readings comes from event time alone. What the network does decides when a reading arrives, how
//! often it is sent, and whether it is dropped at the bound of the queue; never which readings there are.

mod exchange;
mod resume;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use crate::car::{Car, Coverage, Fault, Reading};
use crate::client::connection::{Connection, KEEP_ALIVE_S};
use crate::client::queue::{Item, Pending, Queue};
use crate::client::shared::{HANDSHAKE_TIMEOUT, Shared, Totals};
use crate::ledger::{CarRows, Outcome, Row};
use crate::random::{Purpose, hash_unit};
use crate::samples;

/// Readings due within this time of the clock are sent together. At a speed-up of 1,000 that makes ten of a hundred
/// wake-ups; in real time every reading goes by itself.
const GATHER: Duration = Duration::from_millis(200);

/// A car that is late takes at most this many readings before it lets others run.
const GATHER_READINGS: usize = 256;

/// PINGREQ after this much silence of our own: well within the keep-alive.
const PING_AFTER: Duration = Duration::from_secs(KEEP_ALIVE_S as u64 * 2 / 3);

/// A server that owes us an answer and says nothing for this long is gone. Long, because one that waits for its log is
/// silent in good faith.
const SILENCE: Duration = Duration::from_secs(120);

/// Reconnects: from the first to the last, doubling, each with jitter, so that a fleet doesn't come back in step.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// A server may close the connection on a payload that is broken on purpose. After this many times the car drops it; it
/// never drops a valid reading.
const BROKEN_ATTEMPTS: u16 = 5;

/// Nothing to do: look again then.
const IDLE: Duration = Duration::from_secs(3_600);

/// Whether the server has the driver's record, without which no reading is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DriverRecord {
    Unsent,
    InFlight(u16),
    Acknowledged,
}

/// One car and its connection.
pub(crate) struct Link {
    shared: Arc<Shared>,
    car: Car,
    /// Within this process.
    number: u32,
    queue: Queue,
    connection: Option<Connection>,
    accepted: bool,
    connections: u32,
    driver: DriverRecord,
    /// There is a network where the car is.
    covered: bool,
    measuring: bool,
    /// Asked to stop.
    stopped: bool,
    last_gathered: Instant,
    retry_at: Instant,
    failures: u32,
    drain_until: Option<Instant>,
    linger_until: Option<Instant>,
    totals: Totals,
    rows: Vec<Row>,
    /// The ledger's record of this car, if the run is resumed; until it has caught up.
    earlier: Option<Box<CarRows>>,
    /// What the gauges know of this car: in flight, buffered.
    shown: (i64, i64),
}

impl Link {
    /// A car before its first reading. `earlier`: the ledger's record of it, if the run is resumed.
    pub(crate) fn new(shared: Arc<Shared>, car: Car, number: u32, earlier: Option<Box<CarRows>>) -> Box<Self> {
        let share = f64::from(number) / f64::from(shared.args.fleet.cars.max(1));
        let start = shared.start;
        let retry_at = start + shared.args.ramp.mul_f64(share);
        Box::new(Self {
            shared,
            car,
            number,
            queue: Queue::default(),
            connection: None,
            accepted: false,
            connections: 0,
            driver: DriverRecord::Unsent,
            covered: true,
            measuring: true,
            stopped: false,
            last_gathered: start,
            retry_at,
            failures: 0,
            drain_until: None,
            linger_until: None,
            totals: Totals { cars: 1, ..Totals::default() },
            rows: Vec::new(),
            earlier,
            shown: (0, 0),
        })
    }

    /// From the first reading to the last acknowledgement.
    pub(crate) async fn run(mut self: Box<Self>) {
        if self.catch_up().await {
            self.totals.caught_up = 1;
            self.drive().await;
        }
        self.end().await;
    }

    async fn drive(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut timer = std::pin::pin!(sleep_until(Instant::now()));
        let mut stopped = std::pin::pin!(shared.shutdown.cancelled());
        loop {
            let now = Instant::now();
            self.gather(now);
            if self.is_done(now) {
                break;
            }
            if self.wants_connection(now) {
                self.connect().await;
            }
            self.keep_alive(now);
            self.send();
            self.show();
            self.write_rows().await;
            timer.as_mut().reset(self.next_wake(now));
            tokio::select! {
                ready = ready(self.connection.as_ref().map(Connection::readiness)) => match ready {
                    Ok(()) => self.receive(),
                    Err(error) => self.lost(&error),
                },
                () = &mut timer => {}
                () = &mut stopped, if !self.stopped => self.stop(),
            }
        }
    }

    /// Takes the readings that are due.
    fn gather(&mut self, now: Instant) {
        if !self.measuring || self.last_gathered + GATHER > now && self.last_gathered != self.shared.start {
            return;
        }
        self.last_gathered = now;
        let event_now_ms = self.shared.event_time_ms(now);
        self.shared.metrics.event_time_seconds.set(event_now_ms as f64 / 1000.0);
        let end_ms = self.shared.args.fleet.end_ms().unwrap_or(i64::MAX);
        for _ in 0..GATHER_READINGS {
            let next_ms = self.car.next_time_ms();
            if next_ms.min(end_ms) > event_now_ms {
                return;
            }
            if next_ms >= end_ms {
                self.totals.covered = 1;
                self.stop_measuring(end_ms);
                return;
            }
            self.measure();
        }
    }

    fn measure(&mut self) {
        let (reading, broken) = self.take_reading();
        let coverage = reading.coverage;
        self.shared.metrics.readings.inc();
        let samples = samples::with(&reading, self.shared.samples.len());
        self.push(Item::Reading { reading, broken });
        samples.for_each(|sample| self.push(Item::Sample(sample)));
        if let Some(fault) = self.car.take_finding() {
            self.report(fault);
        }
        match coverage {
            Coverage::Online => self.covered = true,
            Coverage::Fading => {
                self.send();
                self.cut();
            }
            Coverage::Offline => self.covered = false,
        }
    }

    /// The next reading, and whether it is to be sent broken.
    fn take_reading(&mut self) -> (Reading, bool) {
        let reading = self.car.next_reading();
        let broken = self.shared.breaker.breakage(&self.car, &reading).is_some();
        self.totals.readings += 1;
        self.totals.broken += u64::from(broken);
        (reading, broken)
    }

    /// Findings are not in the ledger: a resumed run reports them all again, unless it is known to be finished.
    fn report(&mut self, fault: Fault) {
        self.totals.faults.push(fault.clone());
        if !self.shared.finished {
            self.push(Item::Finding(Box::new(fault)));
        }
    }

    fn push(&mut self, item: Item) {
        if let Some(dropped) = self.queue.push(item, self.shared.args.buffer) {
            self.settle(dropped, Outcome::Dropped);
        }
    }

    /// No more readings: those that are left, and the workshop's last findings, are sent wherever the car is.
    fn stop_measuring(&mut self, end_ms: i64) {
        self.measuring = false;
        self.covered = true;
        self.drain_until = Some(Instant::now() + self.shared.args.drain.timeout);
        if let Some(fault) = self.car.inspect(end_ms) {
            self.report(fault);
        }
    }

    /// The process was asked to stop.
    fn stop(&mut self) {
        self.stopped = true;
        if self.measuring {
            self.stop_measuring(self.car.next_time_ms());
        }
    }

    /// Everything is acknowledged and nothing is pending, or the time is up.
    fn is_done(&mut self, now: Instant) -> bool {
        let Some(drain_until) = self.drain_until else { return false };
        if !self.queue.is_empty() {
            // Asked to stop while there is no server: there is nobody to wait for.
            let alone = self.stopped && self.connection.is_none() && self.failures > 0;
            return alone || now >= drain_until;
        }
        let linger = if self.shared.finished { Duration::ZERO } else { self.shared.args.linger };
        let until = *self.linger_until.get_or_insert(now + linger);
        now >= until || self.stopped
    }

    fn wants_connection(&self, now: Instant) -> bool {
        self.connection.is_none() && self.covered && now >= self.retry_at
    }

    async fn connect(&mut self) {
        let opened = match self.shared.connect(self.number, self.car.vin()).await {
            Ok(stream) => Connection::open(stream, self.car.vin()),
            Err(error) => Err(error),
        };
        match opened {
            Ok(connection) => self.connection = Some(connection),
            Err(error) => self.lost(&error),
        }
    }

    fn keep_alive(&mut self, now: Instant) {
        let Some(connection) = &mut self.connection else { return };
        let silent = now.saturating_duration_since(connection.last_heard);
        let checked = if !self.accepted && silent >= HANDSHAKE_TIMEOUT {
            Err(io::Error::new(io::ErrorKind::TimedOut, "no CONNACK"))
        } else if (self.queue.in_flight() > 0 || connection.pinged) && silent >= SILENCE {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer"))
        } else if self.accepted && !connection.pinged && now.duration_since(connection.last_sent) >= PING_AFTER {
            connection.ping()
        } else {
            Ok(())
        };
        if let Err(error) = checked {
            self.lost(&error);
        }
    }

    /// The server is gone, or was never there.
    fn lost(&mut self, error: &io::Error) {
        tracing::debug!(car = self.car.index(), "connection lost: {error}");
        let was_accepted = self.accepted;
        self.hang_up();
        if !was_accepted {
            self.shared.no_server(error);
        }
        while let Some(given_up) = self.queue.remove_front_if(|front| {
            matches!(front.item, Item::Reading { broken: true, .. }) && front.attempts >= BROKEN_ATTEMPTS
        }) {
            self.settle(given_up, Outcome::Dropped);
        }
        let backoff = BACKOFF_MIN * (1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        self.retry_after(backoff.min(BACKOFF_MAX));
    }

    /// The car left the network.
    fn cut(&mut self) {
        self.covered = false;
        if let Some(connection) = self.connection.take() {
            connection.cut();
        }
        self.hang_up();
        self.retry_after(BACKOFF_MIN);
    }

    fn hang_up(&mut self) {
        self.connection = None;
        if std::mem::take(&mut self.accepted) {
            self.shared.metrics.cars_connected.dec();
        }
        if self.driver != DriverRecord::Acknowledged {
            self.driver = DriverRecord::Unsent;
        }
        let mut settled = Vec::new();
        self.queue.connection_lost(|pending| settled.push(pending));
        for pending in settled {
            self.settle(pending, Outcome::Acknowledged);
        }
    }

    /// Between half of `backoff` and all of it.
    fn retry_after(&mut self, backoff: Duration) {
        let number = u64::from(self.connections) << 32 | u64::from(self.failures);
        let jitter = hash_unit(self.shared.args.fleet.seed, self.car.index(), Purpose::Backoff, number);
        self.retry_at = Instant::now() + backoff.mul_f64(0.5 + 0.5 * jitter);
    }

    fn next_wake(&self, now: Instant) -> Instant {
        let mut wake = now + IDLE;
        if self.measuring {
            let end_ms = self.shared.args.fleet.end_ms().unwrap_or(i64::MAX);
            let due = self.shared.instant_of(self.car.next_time_ms().min(end_ms));
            wake = wake.min(due.max(self.last_gathered + GATHER));
        }
        match &self.connection {
            None if self.covered => wake = wake.min(self.retry_at),
            Some(connection) => {
                let silence = if self.accepted { SILENCE } else { HANDSHAKE_TIMEOUT };
                wake = wake.min(connection.last_heard + silence);
                if !connection.pinged {
                    wake = wake.min(connection.last_sent + PING_AFTER);
                }
            }
            None => {}
        }
        let deadline = if self.queue.is_empty() { self.linger_until } else { self.drain_until };
        deadline.map_or(wake, |deadline| wake.min(deadline))
    }

    async fn end(mut self: Box<Self>) {
        let left: Vec<Pending> = self.queue.drain().collect();
        for pending in left {
            self.settle(pending, Outcome::Unacknowledged);
        }
        self.show();
        self.write_rows().await;
        if let Some(connection) = self.connection.take() {
            /// A server that does not read its last bytes must not hold up the end.
            const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
            // Everything is settled; a connection that is already gone needs no DISCONNECT.
            let _ = timeout(CLOSE_TIMEOUT, connection.close()).await;
        }
        self.hang_up();
        self.shared.add(std::mem::take(&mut self.totals));
    }
}

/// Waits for the socket; for ever, if there is none.
async fn ready(socket: Option<(&TcpStream, Interest)>) -> io::Result<()> {
    match socket {
        Some((stream, interest)) => stream.ready(interest).await.map(|_| ()),
        None => std::future::pending().await,
    }
}
