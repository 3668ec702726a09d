//! What keeps the log from growing for ever: retention by age (see `retention`), compaction by key.
//!
//! ```text
//! retention   first ──► behind the blocks that are old and read; stored, then shown, then tables without live blocks
//!             dropped
//! compaction  each block again without the records that a later one of the same key supersedes
//! ```
//!
//! Both run in the background every few seconds, and both may be cut off at any point: a block is replaced or kept
//! whole, and a first offset that was shown never goes back.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use fjall::{AbstractTree, Keyspace};
use parking_lot::{Condvar, Mutex};

use super::block;
use super::disk::Disk;
use super::index::Place;
use super::partition::Partition;
use super::retention::Retention;
use super::store::Store;
use super::topics::encode_bounds;
use crate::{Batch, Error};

const INTERVAL: Duration = Duration::from_secs(5);
/// In the background, a partition is compacted when at least this many records came since, and as many as were kept.
/// Few, since records may be large (a snapshot of state has some of half a megabyte) and are not to pile up; with few
/// records it costs little.
const MIN_DIRTY_RECORDS: u64 = 64;
/// How long a tombstone stays for readers on their way to it; Kafka's `delete.retention.ms`.
const TOMBSTONE_MS: i64 = 24 * 3600 * 1000;

/// How much a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effort {
    /// What is worth its cost.
    Due,
    /// All that can be done.
    Everything,
}

/// What a partition looked like after its last compaction.
#[derive(Debug, Clone, Copy, Default)]
struct Compacted {
    next: u64,
    kept: u64,
}

/// Maintenance of one log, and the thread that does it until dropped.
#[derive(Debug)]
pub(super) struct Maintenance {
    upkeep: Arc<Upkeep>,
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Upkeep {
    store: Arc<Store>,
    retention: Retention,
    /// What compaction found last, by topic and partition; held during a run, so that one runs at a time.
    compacted: Mutex<HashMap<(Arc<str>, u32), Compacted>>,
}

impl Maintenance {
    pub(super) fn start(store: Arc<Store>) -> io::Result<Self> {
        let upkeep = Arc::new(Upkeep { store, retention: Retention::default(), compacted: Mutex::default() });
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let of_thread = (upkeep.clone(), stop.clone());
        let run_until_stopped = move || {
            let (upkeep, stop) = of_thread;
            loop {
                if let Err(e) = upkeep.run(Effort::Due) {
                    let cause = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
                    let log = &upkeep.store.disk.url;
                    tracing::warn!(%log, "cannot apply retention and compaction, trying again later: {e}: {cause}");
                }
                let (stopped, wake) = &*stop;
                let mut stopped = stopped.lock();
                wake.wait_while_for(&mut stopped, |stopped| !*stopped, INTERVAL);
                if *stopped {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("log-maintenance".to_owned()).spawn(run_until_stopped)?;
        Ok(Self { upkeep, stop, thread: Some(thread) })
    }

    /// Does now all that can be done.
    pub(super) fn run(&self) -> Result<(), Error> {
        self.upkeep.run(Effort::Everything)
    }

    /// What it has done, and what it keeps.
    pub(super) fn retention(&self) -> &Retention {
        &self.upkeep.retention
    }
}

impl Drop for Maintenance {
    fn drop(&mut self) {
        let (stopped, wake) = &*self.stop;
        *stopped.lock() = true;
        wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic in there was printed.
            let _ = thread.join();
        }
        if let Err(e) = self.upkeep.store.store_time() {
            tracing::debug!("cannot store the time of the log, which resumes from its last commit: {e}");
        }
    }
}

impl Upkeep {
    /// One run over all topics.
    fn run(&self, effort: Effort) -> Result<(), Error> {
        let (disk, now_ms) = (&self.store.disk, self.store.time.now_ms());
        let mut compacted = self.compacted.lock();
        self.store.time.watch(&disk.url);
        self.retention.run(&self.store, Disk::is_short)?;
        let topics = self.store.topics.all();
        // By retention: those share a keyspace.
        let mut aging: HashMap<Duration, Vec<Arc<Partition>>> = HashMap::new();
        for (topic, partition) in topics.iter().flat_map(|topic| topic.partitions.iter().map(move |p| (topic, p))) {
            if topic.stored.compacted {
                let last = compacted.entry((topic.name.clone(), partition.index)).or_default();
                let dirty = partition.next().saturating_sub(last.next);
                if effort == Effort::Everything || dirty >= last.kept.max(MIN_DIRTY_RECORDS) {
                    *last = compact(disk, partition, now_ms)?;
                }
            } else if let Some(retention) = topic.stored.retention() {
                aging.entry(retention).or_default().push(partition.clone());
            }
        }
        let mut dropped = false;
        for partitions in aging.values() {
            dropped |= drop_tables(disk, &partitions[0].blocks, partitions)?;
        }
        if dropped {
            // fjall lets go of dropped files when, after a later write, some keyspace begins a new table: the smallest
            // does.
            let reclaimed =
                disk.meta.insert("reclaimed", now_ms.to_le_bytes()).and_then(|()| disk.meta.rotate_memtable());
            reclaimed.map_err(|e| disk.failed("apply retention", e))?;
        }
        Ok(())
    }
}

/// Drops the tables of a keyspace that hold no live block. Returns whether there were any.
fn drop_tables(disk: &Disk, blocks: &Keyspace, partitions: &[Arc<Partition>]) -> Result<bool, Error> {
    // In this order: a block that is not published by now has a number from here on.
    let end = disk.next_block.load(Ordering::Acquire);
    let mut live_from = end;
    for partition in partitions {
        if let Some(place) = disk.places(partition, partition.first()..partition.next()).next() {
            live_from = live_from.min(place?.number);
        }
    }
    let Some(last) = live_from.checked_sub(1) else { return Ok(false) };
    let failed = |e: fjall::Error| disk.failed("apply retention", e);
    if live_from == end && blocks.last_key_value().is_some() {
        // Nothing may come after it: what is in memory becomes a table now, and goes with a later run.
        blocks.rotate_memtable().map_err(failed)?;
    }
    let tables = blocks.table_count();
    blocks.tree.drop_range::<[u8; 8], _>(..=last.to_be_bytes()).map_err(|e| failed(e.into()))?;
    Ok(blocks.table_count() < tables)
}

/// Removes the records that a later one of the same key supersedes, and tombstones whose time is over.
fn compact(disk: &Disk, partition: &Partition, now_ms: i64) -> Result<Compacted, Error> {
    let (first, next) = (partition.first(), partition.next());
    let mut records = Batch::new(partition.topic.clone(), partition.index);
    let mut last_of_key: HashMap<Box<[u8]>, u64> = HashMap::new();
    for place in disk.places(partition, first..next) {
        unpack(disk, partition, &place?, &mut records)?;
        for record in records.iter() {
            match last_of_key.get_mut(record.key) {
                Some(last) => *last = record.offset,
                None => drop(last_of_key.insert(record.key.into(), record.offset)),
            }
        }
    }
    let mut kept = Batch::new(partition.topic.clone(), partition.index);
    let mut total = 0;
    for place in disk.places(partition, first..next) {
        let place = place?;
        unpack(disk, partition, &place, &mut records)?;
        kept.reset_columns();
        for (index, record) in records.iter().enumerate() {
            let is_last = last_of_key.get(record.key) == Some(&record.offset);
            let is_over = record.value.is_none() && place.appended_ms < now_ms.saturating_sub(TOMBSTONE_MS);
            if is_last && !is_over {
                kept.extend_from(&records, index..index + 1);
            }
        }
        total += kept.len() as u64;
        if kept.len() < records.len() {
            replace(disk, partition, &place, next, &kept)?;
        }
    }
    Ok(Compacted { next, kept: total })
}

fn unpack(disk: &Disk, partition: &Partition, place: &Place, records: &mut Batch) -> Result<(), Error> {
    let corrupt = |what| disk.corrupt(partition.location(place.first), what);
    // Only compaction removes blocks here, and this is the only one that runs.
    let bytes = disk.block(partition, place)?.ok_or_else(|| corrupt("its block is missing"))?;
    block::unpack(place.first, &bytes, records).map_err(corrupt)
}

/// Replaces a block. Not synced: after a crash either one may be there, and both are right.
fn replace(disk: &Disk, partition: &Partition, place: &Place, next: u64, kept: &Batch) -> Result<(), Error> {
    disk.check_writable()?;
    let mut batch = disk.db.batch();
    if kept.is_empty() {
        disk.remove_block(&mut batch, partition, place);
        // If this was the last block, the offsets still must not be given again.
        batch.insert(&disk.meta, partition.bounds_key(), encode_bounds(partition.first(), next));
    } else {
        let block = block::pack_sparse(kept, place.first);
        disk.put_block(&mut batch, partition, place.first, place.number, place.appended_ms, block);
    }
    batch.commit().map_err(|e| disk.failed("compact a topic", e))
}
