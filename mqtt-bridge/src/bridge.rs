//! The listeners: they accept connections, and at shutdown let them finish.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use contract::Topic;
use event_log::{Appender, Error, Log};
use parking_lot::Mutex;
use service::{ConfigError, HostPort, Waiting, retry_until};
use telemetry::pseudonym::PseudonymKey;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Metrics;
use crate::alerts::Follower;
use crate::args::{Args, Listen};
use crate::clients::{Directory, Slots};
use crate::close::Refusal;
use crate::complaints::Complaints;
use crate::connection::{self, Arrival};
use crate::log_watch::LogWatch;
use crate::metrics::KindLabel;
use crate::session::Rules;
use crate::shared::{AssignedIds, KindOfMessage, Room, Shared};
use crate::tls::{self, Tls};
use crate::topics::{Level, Topics};

/// A fleet that comes back after a tunnel (or after our restart) comes at once.
const BACKLOG: u32 = 4_096;

/// Connections above `--max-connections` that get an answer; further ones are closed without one.
const MAX_REFUSALS_AT_A_TIME: usize = 256;

/// How long to wait before accepting again when the process has no more files.
const ACCEPT_RETRY_MS: u64 = 100;

/// Time after the last connection's deadline for the farewell packets.
const LAST_WORDS_S: u64 = 2;

/// A bridge that listens, and has its log.
pub struct Bridge {
    /// Without TLS, with TLS, or both, in this order.
    doors: Vec<Door>,
    shared: Arc<Shared>,
    follower: Option<Follower>,
    log: Arc<dyn Log>,
}

/// Where clients come in.
#[derive(Debug)]
struct Door {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
}

impl std::fmt::Debug for Bridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bridge").field("doors", &self.doors).finish_non_exhaustive()
    }
}

impl Bridge {
    /// Opens the log, waiting for it as long as it takes, and then listens. Dropping the future stops the wait.
    ///
    /// # Errors
    /// [`ConfigError`] for settings that cannot work; a log that can't be opened or has the wrong topics; a port that
    /// is in use.
    pub async fn bind(args: Args, metrics: Metrics) -> anyhow::Result<Self> {
        args.check()?;
        let stop = CancellationToken::new();
        let stop_with_us = stop.clone().drop_guard();
        let (log_args, readiness) = (args.log.clone(), metrics.readiness.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let waiting = Waiting::new(format!("the log {}", log_args.log)).with_readiness(&readiness);
            retry_until(&stop, waiting, Error::is_retriable, || log_args.open())
        });
        let log = opened.await??.context("stopped while waiting for the log")?;
        drop(stop_with_us);
        Self::bind_on(log, args, metrics).await
    }

    /// The same with a log that is open. `args.log` is not looked at.
    pub async fn bind_on(log: Arc<dyn Log>, args: Args, metrics: Metrics) -> anyhow::Result<Self> {
        args.check()?;
        // A Kafka that does not answer shows only after seconds.
        tracing::info!("opening the topics of cars in {}", log.url());
        let topics = Arc::new(Topics::new(&args.contract.load()?));
        let key = read_key(&args)?;
        let tls = Tls::new(&args.tls, metrics.clone())?;
        let slots = Arc::new(Slots::default());
        let directory = Arc::new(Directory::default());
        let room = Arc::new(Room::default());
        let (appender, follower) = {
            let stop = CancellationToken::new();
            let stop_with_us = stop.clone().drop_guard();
            let (log, slots, room) = (log.clone(), slots.clone(), room.clone());
            let follows = topics.alerts().filter(|_| key.is_some()).map(|topic| (topic.clone(), directory.clone()));
            let (metrics, topics) = (metrics.clone(), topics.clone());
            let prepared =
                tokio::task::spawn_blocking(move || prepare(log, &topics, slots, room, follows, &metrics, &stop));
            let prepared = prepared.await??.context("stopped while waiting for the log")?;
            drop(stop_with_us);
            prepared
        };
        let mut doors = Vec::new();
        if let Listen::At(address) = &args.listen {
            doors.push(Door::open(address, "--listen", "CARSTREAM_MQTT_LISTEN", None).await?);
        }
        if let (Some(address), Some(tls)) = (&args.tls.tls_listen, tls) {
            doors.push(Door::open(address, "--tls-listen", "CARSTREAM_MQTT_TLS_LISTEN", Some(tls.into())).await?);
        }
        let kind = |level: &Level| KindOfMessage {
            topic: level.topic.name.clone(),
            published: metrics.publishes.get_or_create_owned(&KindLabel { kind: level.name.clone() }),
        };
        let kinds = topics.levels().iter().map(kind).collect();
        let shared = Arc::new(Shared {
            rules: Rules {
                alerts: key.is_some() && topics.alerts().is_some(),
                client_id: args.client_id,
                limits: args.limits,
                topics,
            },
            kinds,
            appender,
            slots,
            directory,
            budget: Semaphore::new(args.limits.max_unacknowledged_bytes as usize),
            unfinished: AtomicUsize::new(0),
            max_unfinished: args.limits.max_unacknowledged_bytes as usize / 2,
            room,
            cars: Arc::default(),
            metrics,
            key,
            abandon: CancellationToken::new(),
            open: AtomicUsize::new(0),
            log_trouble: Mutex::new(Waiting::new(format!("the log {} to accept records", log.url()))),
            complaints: Complaints::default(),
            assigned_ids: AssignedIds::default(),
        });
        Ok(Self { doors, shared, follower, log })
    }

    /// Where it listens, without TLS if it does; the port is known also if any was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.doors[0].address
    }

    /// Where it listens with TLS.
    pub fn tls_local_addr(&self) -> Option<SocketAddr> {
        self.doors.iter().find(|door| door.tls.is_some()).map(|door| door.address)
    }

    /// Serves until `shutdown`; then acknowledges what was accepted, as far as the log commits it within
    /// `--drain-timeout`, and closes all connections.
    ///
    /// # Errors
    /// A log that takes nothing more: then it ends, so that whoever supervises it opens the log again.
    pub async fn serve(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { doors, shared, follower, log } = self;
        let topic =
            shared.kinds.first().map(|kind| kind.topic.clone()).context("the contract has no topic for cars")?;
        let mut watch = LogWatch::start(&log, topic, &shared.metrics.readiness).context("cannot start a thread")?;
        drop(log);
        shared.metrics.readiness.started();
        let shutdown = shutdown.child_token();
        let follower = follower.map(|follower| {
            let shutdown = shutdown.clone();
            tokio::task::spawn_blocking(move || follower.run(&shutdown))
        });
        let tasks = TaskTracker::new();
        let mut watching = JoinSet::new();
        for door in doors {
            if let Some(tls) = &door.tls {
                watching.spawn(tls.clone().follow(shutdown.clone()));
            }
            watching.spawn(door.watch(shared.clone(), tasks.clone(), shutdown.clone()));
        }
        let mut failed = Ok(());
        tokio::select! {
            () = shutdown.cancelled() => {}
            Ok(error) = &mut watch.failed => failed = Err(error).context("the log takes nothing more"),
        }
        shutdown.cancel();
        watching.join_all().await;
        if failed.is_err() {
            shared.abandon.cancel(); // nothing more will be confirmed
        }
        drain(&shared, &tasks).await;
        if let Some(follower) = follower {
            follower.await.context("the thread that follows alerts")?;
        }
        failed
    }
}

impl Door {
    async fn open(at: &HostPort, setting: &str, variable: &str, tls: Option<Arc<Tls>>) -> anyhow::Result<Self> {
        let found = tokio::net::lookup_host(at.as_pair()).await.map(Vec::from_iter);
        let found = found.with_context(|| {
            format!(
                "cannot listen at {at}: unknown name; choose an address of this machine with {setting} ({variable})"
            )
        })?;
        let listen = |address: &SocketAddr| -> std::io::Result<_> {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?; // a restart needs no pause
            socket.bind(*address)?;
            let listener = socket.listen(BACKLOG)?;
            Ok((listener.local_addr()?, listener))
        };
        // A name may have several addresses, as localhost has: the first one that can be had, and the last error.
        let mut opened = Err(std::io::ErrorKind::AddrNotAvailable.into());
        for address in &found {
            opened = listen(address);
            if opened.is_ok() {
                break;
            }
        }
        let (address, listener) = opened.map_err(|error| {
            let remedy = match error.kind() {
                ErrorKind::PermissionDenied => {
                    format!("this user may not use ports below 1024; choose another with {setting} ({variable})")
                }
                ErrorKind::AddrInUse => {
                    format!("stop what uses the port, or choose another one with {setting} ({variable})")
                }
                ErrorKind::AddrNotAvailable => {
                    format!("this machine does not have the address; choose another with {setting} ({variable})")
                }
                _ => return anyhow::Error::new(error).context(format!("cannot listen at {at} ({setting})")),
            };
            anyhow::anyhow!("cannot listen at {at}: {remedy}")
        })?;
        Ok(Self { listener, address, tls })
    }

    /// Takes connections until shutdown.
    async fn watch(self, shared: Arc<Shared>, tasks: TaskTracker, shutdown: CancellationToken) {
        let with = if self.tls.is_some() { " with TLS" } else { "" };
        tracing::info!("MQTT{with} at {}", self.address);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => self.admit(&shared, &tasks, stream),
                    Err(error) => {
                        tracing::warn!("cannot accept a connection: {error} (too many open files? raise ulimit -n)");
                        tokio::time::sleep(Duration::from_millis(ACCEPT_RETRY_MS)).await;
                    }
                },
            }
        }
    }

    /// Takes a connection, if there is room.
    fn admit(&self, shared: &Arc<Shared>, tasks: &TaskTracker, stream: TcpStream) {
        let open = shared.open.fetch_add(1, Ordering::Relaxed);
        let max = shared.rules.limits.max_connections;
        if open >= max.saturating_add(MAX_REFUSALS_AT_A_TIME) {
            shared.closed_one();
            shared.metrics.refused_connect("flood");
            return;
        }
        // Answers are small, and the client waits for them. If the socket is gone by now, the connection's task
        // notices.
        let _ = stream.set_nodelay(true);
        let slot = shared.slots.take();
        let refusal = (open >= max).then_some(Refusal::Busy);
        let arrival = Arrival { opened: Instant::now(), refusal, car: None, place: None };
        match &self.tls {
            None => tasks.spawn(connection::serve(shared.clone(), slot, stream, arrival)),
            Some(tls) => tasks.spawn(tls::serve(shared.clone(), slot, stream, tls.clone(), arrival)),
        };
    }
}

/// Lets all connections finish, but not longer than the deadline.
async fn drain(shared: &Shared, tasks: &TaskTracker) {
    tasks.close();
    for mailbox in shared.slots.all() {
        mailbox.drain();
    }
    let timeout = shared.rules.limits.drain.timeout;
    let last_words = Duration::from_secs(LAST_WORDS_S);
    if tokio::time::timeout(timeout + last_words, tasks.wait()).await.is_err() {
        tracing::warn!(
            "the log did not confirm {} records within {:?}: they are not acknowledged, so the cars will send them \
             again",
            shared.metrics.in_flight(),
            timeout
        );
        shared.abandon.cancel();
        tasks.wait().await;
    }
}

/// What is needed of the log: topics, an appender, and a follower of alerts. Blocking. `None`: stopped.
#[allow(clippy::type_complexity)]
fn prepare(
    log: Arc<dyn Log>,
    topics: &Topics,
    slots: Arc<Slots>,
    room: Arc<Room>,
    follows: Option<(Topic, Arc<Directory>)>,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> Result<Option<(Arc<dyn Appender>, Option<Follower>)>, Error> {
    let alerts = follows.as_ref().map(|(topic, _)| topic);
    for topic in topics.levels().iter().map(|level| &level.topic).chain(alerts) {
        let waiting = Waiting::new(format!("topic {} in {}", topic.name, log.url())).with_readiness(&metrics.readiness);
        let ensured = retry_until(stop, waiting, Error::is_retriable, || ::topics::ensure(log.as_ref(), topic))?;
        if ensured.is_none() {
            return Ok(None);
        }
    }
    let appender = log.clone().appender(Box::new(move |completions| {
        slots.complete(completions);
        room.make(completions.len());
    }))?;
    let Some((topic, directory)) = follows else { return Ok(Some((appender, None))) };
    let waiting = Waiting::new(format!("topic {} in {}", topic.name, log.url())).with_readiness(&metrics.readiness);
    let follower = retry_until(stop, waiting, Error::is_retriable, || {
        Follower::new(log.clone(), &topic.name, directory.clone(), metrics.clone())
    })?;
    Ok(follower.map(|follower| (appender, Some(follower))))
}

fn read_key(args: &Args) -> anyhow::Result<Option<PseudonymKey>> {
    let Some(path) = args.pseudonym_key_file.as_ref().filter(|_| !args.no_alerts) else { return Ok(None) };
    let key = PseudonymKey::from_file(path)
        .map_err(|error| ConfigError(vec![format!("--pseudonym-key-file {}: {error}", path.display())]))?;
    Ok(Some(key))
}
