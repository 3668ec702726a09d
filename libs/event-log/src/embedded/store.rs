//! What is durable, and when others may see it.
//!
//! ```text
//! write   see `commit`: one fjall batch and fsync, then positions and next offsets are published
//! read    the blocks of a partition, from a position up to its published next offset
//! ```

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::commit::{Commits, Request};
use super::disk::Disk;
use super::partition::Partition;
use super::positions::{self, PositionKey, Positions};
use super::topics::{Topic, Topics};
use crate::{Error, LogUrl};

/// The state of an open log that all its parts share.
pub(super) struct Store {
    pub(super) disk: Disk,
    pub(super) topics: Topics,
    pub(super) positions: Positions,
    commits: Commits,
    /// Counts publications.
    published: Mutex<u64>,
    wake: Condvar,
    pub(super) groups: Mutex<HashSet<String>>,
}

impl Store {
    pub(super) fn open(url: LogUrl, path: &Path) -> Result<Self, Error> {
        let disk = Disk::open(url, path)?;
        Ok(Self {
            topics: Topics::load(&disk)?,
            positions: Positions::load(&disk)?,
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
        for request in requests {
            for (partition, blocks) in request.outputs {
                let next = next_offsets.entry(Arc::as_ptr(&partition)).or_insert_with(|| {
                    let next = partition.next();
                    (partition.clone(), next)
                });
                for block in blocks {
                    let span = block.span;
                    disk.put_block(&mut batch, &partition, next.1, number, block);
                    (next.1, number) = (next.1 + span, number + 1);
                }
            }
            positions.extend(request.positions);
        }
        for (key, offset) in &positions {
            positions::put(disk, &mut batch, key, *offset);
        }
        batch.commit().map_err(|e| disk.failed("commit", e))?;
        self.publish(next_offsets.into_values(), positions);
        // After publishing, so that maintenance takes no block for dead that is about to be seen.
        disk.next_block.store(number, Ordering::Release);
        Ok(())
    }

    /// Shows readers what has become durable: positions never without their outputs.
    fn publish(&self, outputs: impl Iterator<Item = (Arc<Partition>, u64)>, positions: Vec<(PositionKey, u64)>) {
        let mut visible = self.positions.write();
        for (partition, next) in outputs {
            partition.publish(next);
        }
        visible.extend(positions);
        drop(visible);
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.wake.notify_all();
    }

    /// How often something was published: read it before looking for records, so that nothing is missed in between.
    pub(super) fn publications(&self) -> u64 {
        *self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is published after `seen`, or until `deadline`. Returns whether something was.
    pub(super) fn wait_for_more(&self, seen: u64, deadline: Instant) -> bool {
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let timeout = deadline.saturating_duration_since(Instant::now());
        let (published, _) = self
            .wake
            .wait_timeout_while(published, timeout, |published| *published == seen)
            .unwrap_or_else(PoisonError::into_inner);
        *published != seen
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("url", &self.disk.url).finish_non_exhaustive()
    }
}

/// The end of a time-out, which a caller may mean to be without end.
pub(super) fn deadline(timeout: Duration) -> Instant {
    const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + timeout.min(FOREVER)
}
