//! What is durable, and when others may see it.
//!
//! ```text
//! write   see `commit`: one fjall batch and fsync, then positions and next offsets are published
//! read    the blocks of a partition, from a position up to its published next offset
//! ```

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::commit::{Commits, Request};
use super::disk::Disk;
use super::groups::Groups;
use super::partition::Partition;
use super::positions::{self, PositionKey, Positions};
use super::time::{LogTime, Moment};
use super::topics::{Topic, Topics};
use crate::{Clock, Error, LogUrl};

/// Where log time is stored: see `topics`.
const MOMENT: &str = "time";

/// The state of an open log that all its parts share.
pub(super) struct Store {
    pub(super) disk: Disk,
    pub(super) topics: Topics,
    pub(super) positions: Positions,
    pub(super) readers: Groups,
    pub(super) time: LogTime,
    commits: Commits,
    /// Counts publications.
    published: Mutex<u64>,
    wake: Condvar,
    /// Groups with an open consumer.
    pub(super) groups: Mutex<HashSet<String>>,
}

impl Store {
    pub(super) fn open(url: LogUrl, path: &Path, clock: Clock) -> Result<Self, Error> {
        let disk = Disk::open(url, path)?;
        let topics = Topics::load(&disk)?;
        Ok(Self {
            positions: Positions::load(&disk)?,
            readers: Groups::load(&disk)?,
            time: LogTime::resume(&disk.url, clock, load_moment(&disk)?, newest_ms(&disk, &topics)?),
            topics,
            disk,
            commits: Commits::default(),
            published: Mutex::default(),
            wake: Condvar::new(),
            groups: Mutex::default(),
        })
    }

    /// The topic `name`.
    pub(super) fn topic(&self, name: &str) -> Result<Arc<Topic>, Error> {
        let unknown = || Error::UnknownTopic { log: self.disk.url.to_string(), topic: name.to_owned() };
        self.topics.get(name).ok_or_else(unknown)
    }

    /// Returns when the request is durable and visible, or will never be.
    pub(super) fn commit(&self, request: Request) -> Result<(), Error> {
        self.commits.commit(&self.disk, request, |requests| self.write(requests))
    }

    fn write(&self, requests: Vec<Request>) -> Result<(), Error> {
        let disk = &self.disk;
        disk.check_writable()?;
        disk.wait_for_tables().map_err(|e| disk.failed("commit", e))?;
        let mut batch = disk.durable_batch();
        let mut next_offsets: HashMap<*const Partition, (Arc<Partition>, u64)> = HashMap::new();
        let mut positions = Vec::new();
        let mut number = disk.next_block.load(Ordering::Relaxed); // nobody else writes
        let appended_ms = self.time.now_ms();
        for request in requests {
            for (partition, blocks) in request.outputs {
                let next = next_offsets.entry(Arc::as_ptr(&partition)).or_insert_with(|| {
                    let next = partition.next();
                    (partition.clone(), next)
                });
                for block in blocks {
                    let span = block.span;
                    disk.put_block(&mut batch, &partition, next.1, number, appended_ms, block);
                    (next.1, number) = (next.1 + span, number + 1);
                }
            }
            positions.extend(request.positions);
        }
        for (key, offset) in &positions {
            positions::put(disk, &mut batch, key, *offset);
        }
        if let Some(moment) = self.time.due() {
            batch.insert(&disk.meta, MOMENT, moment.encode());
        }
        batch.commit().map_err(|e| disk.failed("commit", e))?;
        self.publish(next_offsets.into_values(), positions);
        // After publishing, so that maintenance takes no block for dead that is about to be seen.
        disk.next_block.store(number, Ordering::Release);
        Ok(())
    }

    /// Stores log time. For the end: it is stored with commits otherwise.
    pub(super) fn store_time(&self) -> Result<(), Error> {
        let disk = &self.disk;
        disk.check_writable()?;
        let mut batch = disk.durable_batch();
        batch.insert(&disk.meta, MOMENT, self.time.moment().encode());
        batch.commit().map_err(|e| disk.failed("store the time", e))
    }

    /// Shows readers what has become durable: positions never without their outputs.
    fn publish(&self, outputs: impl Iterator<Item = (Arc<Partition>, u64)>, positions: Vec<(PositionKey, u64)>) {
        let mut visible = self.positions.write();
        for (partition, next) in outputs {
            partition.publish(next);
        }
        visible.extend(positions);
        drop(visible);
        *self.published.lock() += 1;
        self.wake.notify_all();
    }

    /// How often something was published: read it before looking for records, so that nothing is missed in between.
    pub(super) fn publications(&self) -> u64 {
        *self.published.lock()
    }

    /// Waits until something is published after `seen`, or until `deadline`. Returns whether something was.
    pub(super) fn wait_for_more(&self, seen: u64, deadline: Instant) -> bool {
        let mut published = self.published.lock();
        let timeout = deadline.saturating_duration_since(Instant::now());
        self.wake.wait_while_for(&mut published, |published| *published == seen, timeout);
        *published != seen
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("url", &self.disk.url).finish_non_exhaustive()
    }
}

fn load_moment(disk: &Disk) -> Result<Option<Moment>, Error> {
    let Some(bytes) = disk.meta.get(MOMENT).map_err(|e| disk.unopened(e))? else { return Ok(None) };
    Moment::decode(&bytes).map(Some).ok_or_else(|| disk.corrupt("its time".into(), "it cannot be read"))
}

/// When the last block was appended.
fn newest_ms(disk: &Disk, topics: &Topics) -> Result<Option<i64>, Error> {
    let mut newest = None;
    for partition in topics.all().iter().flat_map(|topic| &topic.partitions) {
        newest = newest.max(disk.place_before(partition, u64::MAX)?.map(|place| place.appended_ms));
    }
    Ok(newest)
}

/// The end of a time-out, which a caller may mean to be without end.
pub(super) fn deadline(timeout: Duration) -> Instant {
    const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + timeout.min(FOREVER)
}
