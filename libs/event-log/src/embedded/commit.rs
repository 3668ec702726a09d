//! Group commit: what waits becomes durable together, in the order in which it came.
//!
//! ```text
//! appender ──┐                  one of them writes for all:
//! stage A ───┼─► queue ─► give offsets ─► one fjall batch + fsync ─► publish ─► wake readers and committers
//! stage B ───┘   while that waits for the disk, the next ones gather
//! ```
//!
//! With several stages in a process the disk is asked once for all of them, and none is starved by a busier one.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fjall::PersistMode;

use super::block::Block;
use super::store::{PositionKey, Store};
use super::topics::Partition;
use crate::Error;

/// Four tables in waiting; fjall itself would only stop one kind of topic at a time.
const MAX_UNWRITTEN_BYTES: u64 = 32 << 20;

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
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Returns when the request is durable and visible, or will never be.
    pub(super) fn commit(&self, request: Request) -> Result<(), Error> {
        let mut queue = self.commits.lock();
        self.check_writable()?;
        queue.waiting.push(request);
        queue.last += 1;
        let ticket = queue.last;
        while queue.decided < ticket {
            if queue.writing {
                queue = self.commits.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            queue.writing = true;
            let (requests, from, to) = (std::mem::take(&mut queue.waiting), queue.decided + 1, queue.last);
            drop(queue);
            // A panic, which is printed, must not leave the others waiting for ever.
            let written = catch_unwind(AssertUnwindSafe(|| self.write(requests)));
            let failed = written.unwrap_or_else(|_| Err(self.stop("a commit", "a panic".to_owned()))).is_err();
            queue = self.commits.lock();
            queue.writing = false;
            queue.decided = to;
            if failed {
                queue.failed_from.get_or_insert(from);
            }
            self.commits.done.notify_all();
        }
        match queue.failed_from {
            Some(from) if ticket >= from => self.check_writable(),
            _ => Ok(()),
        }
    }

    fn write(&self, requests: Vec<Request>) -> Result<(), Error> {
        self.check_writable()?;
        self.wait_for_tables().map_err(|e| self.failed("a commit", e))?;
        let mut batch = self.durable_batch();
        let mut next_offsets: HashMap<*const Partition, (Arc<Partition>, u64)> = HashMap::new();
        let mut positions = Vec::new();
        let mut number = self.next_block.load(Ordering::Relaxed); // nobody else writes
        for request in requests {
            for (partition, blocks) in request.outputs {
                let next = next_offsets.entry(Arc::as_ptr(&partition)).or_insert_with(|| {
                    let next = partition.next();
                    (partition.clone(), next)
                });
                for block in blocks {
                    let span = block.span;
                    self.put_block(&mut batch, &partition, next.1, number, block);
                    (next.1, number) = (next.1 + span, number + 1);
                }
            }
            positions.extend(request.positions);
        }
        for (key, offset) in &positions {
            self.put_position(&mut batch, key, *offset);
        }
        batch.commit().map_err(|e| self.failed("a commit", e))?;
        self.publish(next_offsets.into_values(), positions);
        // After publishing, so that maintenance takes no block for dead that is about to be seen.
        self.next_block.store(number, Ordering::Release);
        Ok(())
    }

    /// Bounds the memory of what is in the journal and not yet in tables.
    fn wait_for_tables(&self) -> fjall::Result<()> {
        while self.db.write_buffer_size() > MAX_UNWRITTEN_BYTES && self.db.outstanding_flushes() > 0 {
            self.db.persist(PersistMode::Buffer)?; // fails if the one who writes tables has failed
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}
