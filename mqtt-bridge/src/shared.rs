//! What the listeners and all connections share.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use event_log::{Appender, Error};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use service::Waiting;
use telemetry::pseudonym::PseudonymKey;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::Metrics;
use crate::clients::{Directory, Slots};
use crate::complaints::Complaints;
use crate::session::Rules;

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) rules: Rules,
    /// Where messages go, by [`Kind`](crate::topics::Kind).
    pub(crate) kinds: Vec<KindOfMessage>,
    pub(crate) appender: Arc<dyn Appender>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) directory: Arc<Directory>,
    /// `--max-unacknowledged-bytes`, as permits.
    pub(crate) budget: Semaphore,
    /// What incomplete packets have of it, and what they may have.
    pub(crate) unfinished: AtomicUsize,
    pub(crate) max_unfinished: usize,
    pub(crate) room: Arc<Room>,
    pub(crate) cars: Arc<Cars>,
    pub(crate) metrics: Metrics,
    pub(crate) key: Option<PseudonymKey>,
    /// Cancelled when the drain is over: nothing waits for the log any more.
    pub(crate) abandon: CancellationToken,
    /// Connections whose socket is open, refused ones included.
    pub(crate) open: AtomicUsize,
    pub(crate) log_trouble: Mutex<Waiting>,
    pub(crate) complaints: Complaints,
    pub(crate) assigned_ids: AssignedIds,
}

/// What cars publish under one level of their MQTT topics.
pub(crate) struct KindOfMessage {
    /// The topic of the log.
    pub(crate) topic: Arc<str>,
    pub(crate) published: Counter,
}

impl Shared {
    /// Gives bytes back to the budget.
    pub(crate) fn give_back(&self, bytes: u32) {
        if bytes > 0 {
            self.budget.add_permits(bytes as usize);
        }
    }

    /// A connection has ended.
    pub(crate) fn closed_one(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Logs that the log refuses records, but not for each of them.
    pub(crate) fn note_log_trouble(&self, error: &Error) {
        self.log_trouble.lock().note(error);
    }
}

/// How many connections each car has that has proved who it is.
#[derive(Debug, Default)]
pub(crate) struct Cars(Mutex<HashMap<Box<str>, usize>>);

/// One of a car's connections; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    cars: Arc<Cars>,
    vin: Box<str>,
}

impl Cars {
    /// A place, unless the car has as many as it may.
    pub(crate) fn enter(self: &Arc<Self>, vin: &str, max: usize) -> Option<Place> {
        let mut cars = self.0.lock();
        let taken = cars.entry(vin.into()).or_default();
        if *taken >= max {
            return None;
        }
        *taken += 1;
        Some(Place { cars: self.clone(), vin: vin.into() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut cars = self.cars.0.lock();
        if let Some(taken) = cars.get_mut(&self.vin) {
            *taken -= 1;
            if *taken == 0 {
                cars.remove(&self.vin);
            }
        }
    }
}

/// Client identifiers for clients that have none; never a VIN.
pub(crate) struct AssignedIds {
    /// Makes the identifiers differ between processes.
    process: u64,
    next: AtomicU64,
}

impl Default for AssignedIds {
    fn default() -> Self {
        Self { process: RandomState::new().hash_one(std::process::id()), next: AtomicU64::new(0) }
    }
}

impl AssignedIds {
    /// The next identifier.
    pub(crate) fn assign(&self) -> String {
        format!("assigned-{:016x}-{}", self.process, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// Where connections wait for room in the append queue.
///
/// Waiters are counted so that room for two records wakes two connections and not, as `notify_waiters` would, every
/// connection that waits. A connection that finds the queue full and is not counted yet when room is made misses that
/// wake; this is why it looks again by itself after a moment.
#[derive(Debug, Default)]
pub(crate) struct Room {
    waiting: AtomicUsize,
    made: Notify,
}

impl Room {
    /// Waits until there may be room.
    pub(crate) async fn wait(&self) {
        struct Leave<'a>(&'a AtomicUsize);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _leave = Leave(&self.waiting);
        self.made.notified().await;
    }

    /// The queue has room for this many records more.
    pub(crate) fn make(&self, records: usize) {
        for _ in 0..records.min(self.waiting.load(Ordering::Relaxed)) {
            self.made.notify_one();
        }
    }
}
