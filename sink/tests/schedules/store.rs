//! The store that all sinks of a schedule share, and a connection to it for each of their lives.
//!
//! ```text
//! Connection (a Life of a sink) ── fault? ──► World: the objects
//!   error before or after the effect, no answer before or after it, late effect, slowness, conflict,
//!   and of the sink itself: death before or after the effect, frozen before it
//! ```
//!
//! No partial effects: S3 shows an object whole or not at all, and lists what it has acknowledged. That the directory
//! store does so too is for tests that kill processes.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use test_support::random::Random;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// An error, and no effect.
    Refused,
    /// The effect, and an error.
    AnswerLost,
    /// Neither effect nor answer.
    Hangs,
    /// The effect, and no answer.
    HangsAfter,
    /// No answer, and the effect some time later: the request was under way when its sender gave it up.
    Late(Duration),
    /// The effect a little later.
    Slow(Duration),
    /// Refused as if another writer were at it (409), without one.
    Conflict,
    /// The sink dies before the effect.
    Dies,
    /// The sink dies after the effect.
    DiesAfter,
    /// The sink is frozen before the effect, until it is thawed.
    Freezes,
}

const KINDS: usize = 10;

impl Fault {
    fn draw(random: &mut Random, writes: bool) -> Self {
        let late = Duration::from_millis(random.between(1, 400));
        let slow = Duration::from_millis(random.between(1, 20));
        let of_all = [Self::Refused, Self::Hangs, Self::Slow(slow), Self::Dies, Self::Freezes];
        let of_writes = [Self::AnswerLost, Self::HangsAfter, Self::Late(late), Self::Conflict, Self::DiesAfter];
        if writes && random.chance(1, 2) { *random.one_of(&of_writes) } else { *random.one_of(&of_all) }
    }

    /// Its place in [`Counts`].
    fn index(self) -> Option<usize> {
        Some(match self {
            Self::None => return None,
            Self::Refused => 0,
            Self::AnswerLost => 1,
            Self::Hangs => 2,
            Self::HangsAfter => 3,
            Self::Late(_) => 4,
            Self::Slow(_) => 5,
            Self::Conflict => 6,
            Self::Dies => 7,
            Self::DiesAfter => 8,
            Self::Freezes => 9,
        })
    }
}

const NAMES: [&str; KINDS] = [
    "refused",
    "answer lost",
    "hung before",
    "hung after",
    "late",
    "slow",
    "conflict",
    "died before",
    "died after",
    "frozen",
];

/// How often each kind of fault happened.
#[derive(Debug, Default)]
pub(crate) struct Counts([AtomicU64; KINDS]);

impl Clone for Counts {
    fn clone(&self) -> Self {
        Self(std::array::from_fn(|i| AtomicU64::new(self.0[i].load(Ordering::Relaxed))))
    }
}

impl Counts {
    pub(crate) fn every_kind_happened(&self) -> bool {
        self.0.iter().all(|count| count.load(Ordering::Relaxed) > 0)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = NAMES.iter().zip(&self.0).map(|(name, count)| format!("{} {name}", count.load(Ordering::Relaxed)));
        f.write_str(&counts.collect::<Vec<_>>().join(", "))
    }
}

/// The store of one schedule.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) seed: u64,
    /// The objects.
    pub(crate) objects: InMemory,
    /// Whether a conditional create is one; otherwise it overwrites.
    honest: bool,
    /// This many of a hundred operations have a fault.
    faults_per_cent: u64,
    attempts: Mutex<HashMap<String, u64>>,
    story: Mutex<Vec<String>>,
    counts: Arc<Counts>,
    late: TaskTracker,
}

impl World {
    pub(crate) fn new(seed: u64, honest: bool, counts: Arc<Counts>) -> Arc<Self> {
        Arc::new(Self {
            seed,
            objects: InMemory::new(),
            honest,
            faults_per_cent: *Random::named(seed, "faults").one_of(&[3, 8, 15, 30]),
            attempts: Mutex::default(),
            story: Mutex::default(),
            counts,
            late: TaskTracker::new(),
        })
    }

    pub(crate) fn life(self: &Arc<Self>, slot: u32, life: u32, faulty: bool) -> Arc<Life> {
        let name = format!("{}{life}", char::from(b'A' + slot as u8));
        Arc::new(Life { world: self.clone(), name, faulty, state: watch::Sender::new(State::Runs) })
    }

    /// Until every late request has arrived.
    pub(crate) async fn settle(&self) {
        self.late.close();
        self.late.wait().await;
    }

    /// What happened, in the order in which it did.
    pub(crate) fn story(&self) -> String {
        self.story.lock().unwrap().join("\n")
    }

    fn tell(&self, line: String) {
        self.story.lock().unwrap().push(line);
    }

    fn attempt(&self, key: &str) -> u64 {
        let mut attempts = self.attempts.lock().unwrap();
        let attempt = attempts.entry(key.to_owned()).or_default();
        *attempt += 1;
        *attempt
    }

    async fn put(&self, who: &str, at: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        if !self.honest {
            options.mode = PutMode::Overwrite;
        }
        let result = self.objects.put_opts(at, payload, options).await;
        self.tell(format!("{who} put {at}: {}", if result.is_ok() { "created" } else { "is there already" }));
        result
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Runs,
    Frozen,
    Dead,
}

/// A process, as the store sees it.
#[derive(Debug)]
pub(crate) struct Life {
    world: Arc<World>,
    name: String,
    faulty: bool,
    state: watch::Sender<State>,
}

impl Life {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn connect(self: Arc<Self>) -> Connection {
        Connection(self)
    }

    pub(crate) fn is_frozen(&self) -> bool {
        *self.state.borrow() == State::Frozen
    }

    pub(crate) fn is_dead(&self) -> bool {
        *self.state.borrow() == State::Dead
    }

    pub(crate) fn die(&self) {
        self.change(State::Dead);
    }

    pub(crate) fn thaw(&self) {
        if self.is_frozen() {
            self.change(State::Runs);
        }
    }

    /// Until it is dead.
    pub(crate) async fn died(&self) {
        self.until(|state| state == State::Dead).await;
    }

    /// Until it is dead or frozen.
    pub(crate) async fn stopped_short(&self) {
        self.until(|state| state != State::Runs).await;
    }

    fn change(&self, to: State) {
        self.state.send_if_modified(|state| {
            // The dead stay dead.
            let changes = *state != State::Dead && *state != to;
            if changes {
                *state = to;
                self.world.tell(format!("{} is now {to:?}", self.name));
            }
            changes
        });
    }

    async fn until(&self, wanted: impl Fn(State) -> bool) {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|state| wanted(*state)).await;
    }

    /// Goes on while it lives and is not frozen; the dead never do.
    async fn alive(&self) {
        self.until(|state| state == State::Runs).await;
    }

    /// The fault of an operation that is about to be.
    async fn fault(&self, operation: &str, object: &str, writes: bool) -> Fault {
        self.alive().await;
        if !self.faulty {
            return Fault::None;
        }
        let key = format!("{} {operation} {object}", self.name);
        let attempt = self.world.attempt(&key);
        let mut random = Random::named(self.world.seed, &format!("{key} {attempt}"));
        if random.between(0, 99) >= self.world.faults_per_cent {
            return Fault::None;
        }
        let fault = Fault::draw(&mut random, writes);
        self.world.tell(format!("{key}, attempt {attempt}: {fault:?}"));
        if let Some(index) = fault.index() {
            self.world.counts.0[index].fetch_add(1, Ordering::Relaxed);
        }
        match fault {
            Fault::Dies => {
                self.die();
                std::future::pending().await
            }
            Fault::Freezes => {
                self.change(State::Frozen);
                self.alive().await;
            }
            Fault::Hangs => std::future::pending().await,
            Fault::Slow(how_long) => tokio::time::sleep(how_long).await,
            _ => {}
        }
        fault
    }
}

fn unreachable_store() -> Error {
    Error::Generic { store: "faulty", source: "the network is down".into() }
}

/// A sink's connection to the store.
#[derive(Debug)]
pub(crate) struct Connection(Arc<Life>);

#[async_trait]
impl ObjectStore for Connection {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let Life { world, name, .. } = &*self.0;
        let fault = self.0.fault("put", at.as_ref(), true).await;
        match fault {
            Fault::Refused => return Err(unreachable_store()),
            Fault::Conflict => {
                return Err(Error::AlreadyExists { path: at.to_string(), source: "409 Conflict".into() });
            }
            Fault::Late(after) => {
                let (world, name, at) = (world.clone(), format!("{name} (late)"), at.clone());
                let tracker = world.late.clone();
                tracker.spawn(async move {
                    tokio::time::sleep(after).await;
                    let _ = world.put(&name, &at, payload, options).await;
                });
                return std::future::pending().await;
            }
            _ => {}
        }
        let result = world.put(name, at, payload, options).await;
        match fault {
            Fault::AnswerLost => return Err(unreachable_store()),
            Fault::HangsAfter => return std::future::pending().await,
            Fault::DiesAfter => self.0.die(),
            _ => {}
        }
        self.0.alive().await;
        result
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "multipart".to_owned(), implementer: "faulty".to_owned() })
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let operation = if options.head { "head" } else { "get" };
        if self.0.fault(operation, at.as_ref(), false).await == Fault::Refused {
            return Err(unreachable_store());
        }
        let result = self.0.world.objects.get_opts(at, options).await;
        self.0.alive().await;
        result
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.world.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (life, prefix) = (self.0.clone(), prefix.cloned());
        let listed = async move {
            let of = prefix.as_ref().map_or("", |prefix| prefix.as_ref()).to_owned();
            if life.fault("list", &of, false).await == Fault::Refused {
                return Err(unreachable_store());
            }
            let found: Vec<_> = life.world.objects.list(prefix.as_ref()).try_collect().await?;
            life.world.tell(format!("{} list {of}: {} objects", life.name, found.len()));
            life.alive().await;
            Ok(futures_util::stream::iter(found.into_iter().map(Ok)))
        };
        futures_util::stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let of = prefix.map_or("", |prefix| prefix.as_ref());
        if self.0.fault("list folders", of, false).await == Fault::Refused {
            return Err(unreachable_store());
        }
        let result = self.0.world.objects.list_with_delimiter(prefix).await;
        self.0.alive().await;
        result
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(Error::NotImplemented { operation: "copy".to_owned(), implementer: "faulty".to_owned() })
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store of {}", self.0.name)
    }
}
