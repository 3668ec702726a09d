//! Group commit: what waits becomes durable together, in the order in which it came.
//!
//! ```text
//! appender ──┐                  one of them writes for all:
//! stage A ───┼─► queue ─► give offsets ─► one fjall batch + fsync ─► publish ─► wake readers and committers
//! stage B ───┘   while that waits for the disk, the next ones gather
//! ```
//!
//! With several stages in a process the disk is asked once for all of them, and none is starved by a busier one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::block::Block;
use super::disk::Disk;
use super::partition::Partition;
use super::positions::PositionKey;
use crate::Error;

/// Blocks and positions that become durable and visible together or not at all.
pub(super) struct Request {
    /// By partition, each once.
    pub(super) outputs: Vec<(Arc<Partition>, Vec<Block>)>,
    pub(super) positions: Vec<(PositionKey, u64)>,
}

/// What waits to be written. Tickets count requests, from 1.
#[derive(Default)]
pub(super) struct Commits {
    queue: Mutex<Queue>,
    done: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Request>,
    /// The last ticket given.
    last: u64,
    /// The last ticket whose outcome is known.
    decided: u64,
    /// The first ticket that failed: from there on all do.
    failed_from: Option<u64>,
    /// Whether somebody is writing.
    writing: bool,
}

impl Commits {
    /// Returns when the request is written, by this caller or by another one, or never will be.
    ///
    /// `write` makes requests durable and visible, all of them or, failing, the log unwritable.
    pub(super) fn commit(
        &self,
        disk: &Disk,
        request: Request,
        write: impl Fn(Vec<Request>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut queue = self.queue.lock();
        disk.check_writable()?;
        queue.waiting.push(request);
        queue.last += 1;
        let ticket = queue.last;
        while queue.decided < ticket {
            if queue.writing {
                self.done.wait(&mut queue);
                continue;
            }
            queue.writing = true;
            let (requests, from, to) = (std::mem::take(&mut queue.waiting), queue.decided + 1, queue.last);
            drop(queue);
            // A panic, which is printed, must not leave the others waiting for ever.
            let written = catch_unwind(AssertUnwindSafe(|| write(requests)));
            let failed = written.unwrap_or_else(|_| Err(disk.stop("commit", "a panic".to_owned()))).is_err();
            queue = self.queue.lock();
            queue.writing = false;
            queue.decided = to;
            if failed {
                queue.failed_from.get_or_insert(from);
            }
            self.done.notify_all();
        }
        match queue.failed_from {
            Some(from) if ticket >= from => disk.check_writable(),
            _ => Ok(()),
        }
    }
}
