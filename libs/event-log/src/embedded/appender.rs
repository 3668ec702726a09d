//! Appending single records: one queue, one thread, one write for all that wait.
//!
//! ```text
//! append ─► queue: a batch per partition, tokens ─► thread "log-appender": take all, pack, write, complete
//! ```
//!
//! While one write waits for the disk, the next one gathers: the busier, the larger the writes.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Embedded;
use super::block::MAX_RECORD_BYTES;
use super::block::pack_new;
use super::commit::Request;
use super::partition::Partition;
use super::store::Store;
use super::topics::Topic;
use crate::{AppendError, Appender, Batch, Completion, Error, OnCompletion, Record, partition_for_key};

/// Queued and not completed; for one process that is more than the disk takes in a tenth of a second.
const MAX_QUEUED_RECORDS: usize = 64 * 1024;
/// Of keys, values and headers.
const MAX_QUEUED_BYTES: usize = 64 << 20;

pub(super) struct EmbeddedAppender {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    log: Arc<Embedded>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Something was queued, or the appender was closed.
    filled: Condvar,
    /// Records completed.
    drained: Condvar,
}

#[derive(Default)]
struct Queue {
    topics: HashMap<Arc<str>, TopicQueue>,
    tokens: Vec<u64>,
    /// Including what is being written.
    records: usize,
    bytes: usize,
    closed: bool,
}

struct TopicQueue {
    topic: Arc<Topic>,
    /// By partition.
    batches: Vec<Batch>,
}

impl EmbeddedAppender {
    pub(super) fn new(log: Arc<Embedded>, on_completion: OnCompletion) -> Result<Self, Error> {
        let queue = Mutex::default();
        let shared = Arc::new(Shared { queue, filled: Condvar::new(), drained: Condvar::new() });
        let (store, of_thread) = (log.store.clone(), shared.clone());
        let thread = std::thread::Builder::new()
            .name("log-appender".to_owned())
            .spawn(move || write_queued(&store, &of_thread, &on_completion))
            .map_err(|e| log.store.disk.refused("start an appender", format!("its thread cannot start: {e}")))?;
        Ok(Self { shared, thread: Some(thread), log })
    }

    fn check(&self, topic: &Arc<str>, record: &Record<'_>) -> Result<usize, Error> {
        let disk = &self.log.store.disk;
        disk.check_writable()?;
        let bytes = record.size();
        if bytes > MAX_RECORD_BYTES {
            return Err(disk.too_large(topic, bytes));
        }
        if record.headers.iter().any(|(name, _)| name.len() > usize::from(u16::MAX)) {
            return Err(disk.refused("append a record", format!("a header name of a record for {topic} is too long")));
        }
        Ok(bytes)
    }
}

impl Appender for EmbeddedAppender {
    fn append(&self, topic: &Arc<str>, record: &Record<'_>, token: u64) -> Result<(), AppendError> {
        let bytes = self.check(topic, record)?;
        let mut queue = self.shared.queue.lock();
        // One record always fits, so that a large one is not refused for ever.
        if queue.records >= MAX_QUEUED_RECORDS || (queue.records > 0 && queue.bytes + bytes > MAX_QUEUED_BYTES) {
            return Err(AppendError::Full);
        }
        if !queue.topics.contains_key(topic) {
            let known = self.log.store.topic(topic)?;
            let batches = known.partitions.iter().map(|p| Batch::new(topic.clone(), p.index)).collect();
            queue.topics.insert(topic.clone(), TopicQueue { topic: known, batches });
        }
        let Some(waiting) = queue.topics.get_mut(topic) else { return Err(AppendError::Full) };
        let partition = partition_for_key(record.key, waiting.batches.len() as u32);
        let headers = record.headers.iter().copied();
        waiting.batches[partition as usize].push(0, record.timestamp_ms, record.key, record.value, headers);
        queue.tokens.push(token);
        queue.records += 1;
        queue.bytes += bytes;
        if queue.tokens.len() == 1 {
            self.shared.filled.notify_one();
        }
        Ok(())
    }

    fn flush(&self, timeout: Duration) -> bool {
        let mut queue = self.shared.queue.lock();
        self.shared.drained.wait_while_for(&mut queue, |queue| queue.records > 0, timeout);
        queue.records == 0
    }
}

impl Drop for EmbeddedAppender {
    /// Waits until everything queued has completed.
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.filled.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic in that thread was printed, and its tokens never completed: nothing false was reported as
            // durable.
            let _ = thread.join();
        }
    }
}

/// The thread: until the appender is closed and everything is written.
fn write_queued(store: &Store, shared: &Shared, on_completion: &OnCompletion) {
    let (mut tokens, mut completions, mut taken) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(bytes) = take_queued(shared, &mut tokens, &mut taken) {
        let outputs = taken.drain(..).map(|(partition, batch)| (partition, pack_new(&batch))).collect();
        let written = store.commit(Request { outputs, positions: Vec::new() });
        if let Err(e) = &written {
            let cause = std::error::Error::source(e).map(ToString::to_string).unwrap_or_default();
            tracing::error!(records = tokens.len(), "{e}: {cause}");
        }
        completions.clear();
        completions.extend(tokens.drain(..).map(|token| Completion { token, durable: written.is_ok() }));
        on_completion(&completions);

        let mut queue = shared.queue.lock();
        queue.records -= completions.len();
        queue.bytes -= bytes;
        drop(queue);
        shared.drained.notify_all();
    }
}

/// Waits for records and takes all there are. `None`: closed and empty.
fn take_queued(shared: &Shared, tokens: &mut Vec<u64>, taken: &mut Vec<(Arc<Partition>, Batch)>) -> Option<usize> {
    let mut queue = shared.queue.lock();
    shared.filled.wait_while(&mut queue, |queue| queue.tokens.is_empty() && !queue.closed);
    if queue.tokens.is_empty() {
        return None;
    }
    std::mem::swap(&mut queue.tokens, tokens);
    for waiting in queue.topics.values_mut() {
        for (partition, batch) in waiting.topic.partitions.iter().zip(&mut waiting.batches) {
            if !batch.is_empty() {
                let empty = Batch::new(partition.topic.clone(), partition.index);
                taken.push((partition.clone(), std::mem::replace(batch, empty)));
            }
        }
    }
    Some(taken.iter().map(|(_, batch)| batch.bytes()).sum())
}
