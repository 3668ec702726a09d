//! What is durable, and when others may see it.
//!
//! ```text
//! write   see `commit`: one fjall batch and fsync, then positions and next offsets are published
//! read    the blocks of a partition, from a position up to its published next offset
//! ```
//!
//! Memory, per log: the newest blocks stay in memory, packed as they are on disk, until there are 8 MiB of a kind of
//! topic (see `index`); then they go to a table. If the disk does not keep up, writers wait at 32 MiB. The cache of tables
//! is 16 MiB. On top come what appenders hold, and batches in the hands of readers.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use fjall::config::{BlockSizePolicy, CompressionPolicy, FilterPolicy};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};

use super::commit::Commits;
use super::maintenance::Compacted;
use super::topics::{Partition, Topic};
use crate::{Error, LogUrl, Position};

const CACHE_BYTES: u64 = 16 << 20;
const JOURNAL_BYTES: u64 = 64 << 20; // fjall's minimum, besides the active one
const BLOCKS_MEMTABLE_BYTES: u64 = 8 << 20;
const SMALL_MEMTABLE_BYTES: u64 = 2 << 20;
/// Small records share a block of a table and so compress; larger blocks of ours are blocks of their own.
const TABLE_BLOCK_BYTES: u32 = 16 << 10;

/// Group, topic, partition.
pub(super) type PositionKey = (Arc<str>, Arc<str>, u32);

/// The state of an open log that all its parts share.
pub(super) struct Store {
    pub(super) url: LogUrl,
    pub(super) db: Database,
    pub(super) meta: Keyspace,
    pub(super) index: Keyspace,
    /// The number of the next block. A block below it is published, or never will be.
    pub(super) next_block: AtomicU64,
    positions_keyspace: Keyspace,
    topics: RwLock<HashMap<Arc<str>, Arc<Topic>>>,
    /// The committed positions, as stored.
    positions: RwLock<HashMap<PositionKey, u64>>,
    pub(super) commits: Commits,
    /// Held while a topic is created.
    pub(super) creating: Mutex<()>,
    /// Why nothing can be written any more.
    failure: OnceLock<String>,
    /// Counts publications.
    published: Mutex<u64>,
    wake: Condvar,
    pub(super) groups: Mutex<HashSet<String>>,
    /// What compaction found last, by topic and partition; held while maintenance runs, so one runs at a time.
    pub(super) compacted: Mutex<HashMap<(Arc<str>, u32), Compacted>>,
}

/// Opens or creates the fjall database at `path`.
pub(super) fn database(path: &Path) -> fjall::Result<Database> {
    Database::builder(path)
        .cache_size(CACHE_BYTES)
        .max_journaling_size(JOURNAL_BYTES)
        // Blocks come packed.
        .journal_compression(CompressionType::None)
        .manual_journal_persist(true)
        // With more, one of them spins while another one compacts.
        .worker_threads(1)
        .open()
}

/// The settings of a keyspace of blocks: large values, keys that only grow and are there when they are looked for.
pub(super) fn blocks_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(BLOCKS_MEMTABLE_BYTES)
        .data_block_size_policy(BlockSizePolicy::all(TABLE_BLOCK_BYTES))
        .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
        .filter_policy(FilterPolicy::disabled())
        .manual_journal_persist(true)
}

fn small_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(SMALL_MEMTABLE_BYTES).manual_journal_persist(true)
}

impl Store {
    pub(super) fn open(url: LogUrl, path: &Path) -> Result<Self, Error> {
        let failed = |e| open_error(&url, e);
        let db = database(path).map_err(failed)?;
        let meta = db.keyspace("meta", small_options).map_err(failed)?;
        let index = db.keyspace("index", small_options).map_err(failed)?;
        let positions_keyspace = db.keyspace("positions", small_options).map_err(failed)?;
        let store = Self {
            db,
            meta,
            index,
            next_block: AtomicU64::new(0),
            positions_keyspace,
            topics: RwLock::default(),
            positions: RwLock::default(),
            commits: Commits::default(),
            creating: Mutex::default(),
            failure: OnceLock::new(),
            published: Mutex::default(),
            wake: Condvar::new(),
            groups: Mutex::default(),
            compacted: Mutex::default(),
            url,
        };
        store.load_topics()?;
        store.load_positions()?;
        Ok(store)
    }

    /// Shows readers what has become durable: positions never without their outputs.
    pub(super) fn publish(
        &self,
        outputs: impl Iterator<Item = (Arc<Partition>, u64)>,
        positions: impl IntoIterator<Item = (PositionKey, u64)>,
    ) {
        let mut visible = self.positions.write().unwrap_or_else(PoisonError::into_inner);
        for (partition, next) in outputs {
            partition.publish(next);
        }
        visible.extend(positions);
        drop(visible);
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.wake.notify_all();
    }

    pub(super) fn put_position(&self, batch: &mut OwnedWriteBatch, key: &PositionKey, offset: u64) {
        let (group, topic, partition) = key;
        batch.insert(&self.positions_keyspace, position_key(group, topic, *partition), offset.to_le_bytes());
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

    /// The committed positions of `group` in these partitions of `topic`.
    pub(super) fn committed(
        &self,
        group: &str,
        topic: &str,
        partitions: impl IntoIterator<Item = u32>,
    ) -> Vec<Option<u64>> {
        let (group, topic): (Arc<str>, Arc<str>) = (group.into(), topic.into());
        let positions = self.positions.read().unwrap_or_else(PoisonError::into_inner);
        partitions.into_iter().map(|p| positions.get(&(group.clone(), topic.clone(), p)).copied()).collect()
    }

    /// Whether the log can still be written to.
    pub(super) fn check_writable(&self) -> Result<(), Error> {
        match self.failure.get() {
            None => Ok(()),
            Some(cause) => {
                Err(self.refused("a write", format!("an earlier write failed, so nothing more is written: {cause}")))
            }
        }
    }

    pub(super) fn durable_batch(&self) -> OwnedWriteBatch {
        self.db.batch().durability(Some(PersistMode::SyncData))
    }

    /// A write that failed leaves the journal in an unknown state: only opening the log again finds out what holds.
    pub(super) fn failed(&self, operation: &'static str, cause: fjall::Error) -> Error {
        self.stop(operation, describe(&cause))
    }

    /// From here on nothing is written.
    pub(super) fn stop(&self, operation: &'static str, cause: String) -> Error {
        let what = self.failure.get_or_init(|| format!("{cause}: put that right, then start again"));
        self.refused(operation, what.clone())
    }

    pub(super) fn refused(&self, operation: &'static str, what: String) -> Error {
        Error::Refused { operation, log: self.url.to_string(), source: what.into() }
    }

    pub(super) fn corrupt(&self, place: String, what: &str) -> Error {
        Error::Corrupt { log: self.url.to_string(), place, what: what.to_owned() }
    }

    /// A read that failed at `offset` of `partition`.
    pub(super) fn unreadable(&self, partition: &Partition, offset: u64, cause: &fjall::Error) -> Error {
        if is_damage(cause) {
            return self.corrupt(partition.place(offset), &describe(cause));
        }
        Error::Unavailable { operation: "a read", log: self.url.to_string(), source: describe(cause).into() }
    }

    pub(super) fn topics(&self) -> RwLockReadGuard<'_, HashMap<Arc<str>, Arc<Topic>>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn topics_mut(&self) -> RwLockWriteGuard<'_, HashMap<Arc<str>, Arc<Topic>>> {
        self.topics.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn load_positions(&self) -> Result<(), Error> {
        let mut positions = self.positions.write().unwrap_or_else(PoisonError::into_inner);
        for entry in self.positions_keyspace.iter() {
            let (key, value) = entry.into_inner().map_err(|e| open_error(&self.url, e))?;
            let parsed = parse_position_key(&key).zip(value.first_chunk::<8>().map(|o| u64::from_le_bytes(*o)));
            let (key, offset) =
                parsed.ok_or_else(|| self.corrupt("a committed position".into(), "it cannot be read"))?;
            positions.insert(key, offset);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("url", &self.url).finish_non_exhaustive()
    }
}

/// A position of `group` as the key under which it is stored.
pub(super) fn key_of(group: &Arc<str>, position: &Position) -> (PositionKey, u64) {
    ((group.clone(), position.topic.clone(), position.partition), position.offset)
}

/// `group NUL topic NUL partition (u32 BE)`; neither name has a NUL.
fn position_key(group: &str, topic: &str, partition: u32) -> Vec<u8> {
    [group.as_bytes(), &[0], topic.as_bytes(), &[0], &partition.to_be_bytes()].concat()
}

fn parse_position_key(key: &[u8]) -> Option<PositionKey> {
    let (names, partition) = key.split_last_chunk::<4>()?;
    let names = std::str::from_utf8(names.strip_suffix(&[0])?).ok()?;
    let (group, topic) = names.split_once('\0')?;
    Some((group.into(), topic.into(), u32::from_be_bytes(*partition)))
}

/// The end of a time-out, which a caller may mean to be without end.
pub(super) fn deadline(timeout: Duration) -> Instant {
    const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + timeout.min(FOREVER)
}

/// A database that did not open.
pub(super) fn open_error(url: &LogUrl, cause: fjall::Error) -> Error {
    let what = describe(&cause);
    match &cause {
        fjall::Error::Locked => Error::InUse { path: url.to_string().into() },
        _ if is_damage(&cause) => Error::Corrupt { log: url.to_string(), place: "its store".into(), what },
        fjall::Error::Io(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Error::Open {
            log: url.to_string(),
            source: format!("{what}: choose a directory that this user may write to").into(),
        },
        fjall::Error::Io(e)
            if matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) =>
        {
            Error::Open {
                log: url.to_string(),
                source: format!("{what}: free some space, or choose another disk").into(),
            }
        }
        _ => Error::Open { log: url.to_string(), source: format!("{what}: choose another directory").into() },
    }
}

fn is_damage(cause: &fjall::Error) -> bool {
    use fjall::{Error as E, LsmError as L};
    match cause {
        E::JournalRecovery(_) | E::InvalidVersion(_) | E::Decompress(_) | E::InvalidTrailer | E::InvalidTag(_) => true,
        E::Unrecoverable => true,
        E::Storage(L::Io(e)) | E::Io(e) => e.kind() == std::io::ErrorKind::UnexpectedEof,
        E::Storage(_) => true,
        _ => false,
    }
}

/// fjall's errors print their structure: a cause that is a system error says more by itself.
fn describe(cause: &fjall::Error) -> String {
    match cause {
        fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e)) => e.to_string(),
        fjall::Error::Poisoned => "a write in the background failed, most likely for want of disk space".to_owned(),
        other => other.to_string(),
    }
}
