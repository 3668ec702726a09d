//! The database in the log's directory: its keyspaces, how they are written, and what its errors mean.
//!
//! Memory, per log: the newest blocks stay in memory, packed as they are on disk, until there are 8 MiB of a kind of
//! topic (see `index`); then they go to a table. If the disk does not keep up, writers wait at 32 MiB. The cache of
//! tables is 16 MiB. On top come what appenders hold, and batches in the hands of readers.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use fjall::config::{BlockSizePolicy, CompressionPolicy, FilterPolicy};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};

use super::block::MAX_RECORD_BYTES;
use crate::{Error, LogUrl};

const CACHE_BYTES: u64 = 16 << 20;
const JOURNAL_BYTES: u64 = 64 << 20; // fjall's minimum, besides the active one
const BLOCKS_MEMTABLE_BYTES: u64 = 8 << 20;
const SMALL_MEMTABLE_BYTES: u64 = 2 << 20;
/// Small records share a block of a table and so compress; larger blocks of ours are blocks of their own.
const TABLE_BLOCK_BYTES: u32 = 16 << 10;
/// Four tables in waiting; fjall itself would only stop one kind of topic at a time.
const MAX_UNWRITTEN_BYTES: u64 = 32 << 20;

/// Below this much free space, or this share of the disk if that is less, retention gives up records that a group has
/// not read. Room for the journal and tables being written, and for an operator to act.
const MAX_RESERVE_BYTES: u64 = 1 << 30;
const RESERVE_SHARE: u64 = 20;

/// An open database.
pub(super) struct Disk {
    pub(super) url: LogUrl,
    path: PathBuf,
    pub(super) db: Database,
    /// Topics and bounds, see `topics`.
    pub(super) meta: Keyspace,
    /// Where blocks are, see `index`.
    pub(super) index: Keyspace,
    /// Committed positions, see `positions`.
    pub(super) positions: Keyspace,
    /// The number of the next block. A block below it is published, or never will be.
    pub(super) next_block: AtomicU64,
    /// Why nothing can be written any more.
    failure: OnceLock<String>,
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

impl Disk {
    pub(super) fn open(url: LogUrl, path: &Path) -> Result<Self, Error> {
        let failed = |e| open_error(&url, e);
        let db = database(path).map_err(failed)?;
        let meta = db.keyspace("meta", small_options).map_err(failed)?;
        let index = db.keyspace("index", small_options).map_err(failed)?;
        let positions = db.keyspace("positions", small_options).map_err(failed)?;
        Ok(Self {
            db,
            meta,
            index,
            positions,
            next_block: AtomicU64::new(0),
            failure: OnceLock::new(),
            url,
            path: path.to_owned(),
        })
    }

    /// Opens or creates a keyspace of blocks: large values, keys that only grow and exist when they are looked up.
    pub(super) fn blocks(&self, name: &str) -> fjall::Result<Keyspace> {
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(BLOCKS_MEMTABLE_BYTES)
                .data_block_size_policy(BlockSizePolicy::all(TABLE_BLOCK_BYTES))
                .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
                .filter_policy(FilterPolicy::disabled())
                .manual_journal_persist(true)
        };
        self.db.keyspace(name, options)
    }

    /// Whether the disk has so little room left that records are given up.
    pub(super) fn is_short(&self) -> bool {
        match rustix::fs::statvfs(&self.path) {
            Ok(found) => {
                let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
                bytes(found.f_bavail) < MAX_RESERVE_BYTES.min(bytes(found.f_blocks) / RESERVE_SHARE)
            }
            Err(cause) => {
                tracing::debug!(log = %self.url, "cannot tell how full the disk is: {cause}");
                false
            }
        }
    }

    /// Whether the log can still be written to.
    pub(super) fn check_writable(&self) -> Result<(), Error> {
        match self.failure.get() {
            None => Ok(()),
            Some(cause) => {
                Err(self.refused("write", format!("an earlier write failed, so nothing more is written: {cause}")))
            }
        }
    }

    pub(super) fn durable_batch(&self) -> OwnedWriteBatch {
        self.db.batch().durability(Some(PersistMode::SyncData))
    }

    /// Bounds the memory of what is in the journal and not yet in tables.
    pub(super) fn wait_for_tables(&self) -> fjall::Result<()> {
        while self.db.write_buffer_size() > MAX_UNWRITTEN_BYTES && self.db.outstanding_flushes() > 0 {
            self.db.persist(PersistMode::Buffer)?; // fails if the one who writes tables has failed
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// A write that failed leaves the journal in an unknown state: only opening the log again finds out what holds.
    pub(super) fn failed(&self, operation: &'static str, cause: fjall::Error) -> Error {
        self.stop(operation, describe(&cause))
    }

    /// From here on nothing is written.
    pub(super) fn stop(&self, operation: &'static str, cause: String) -> Error {
        let what = self.failure.get_or_init(|| format!("{cause}: fix this, then start again"));
        self.refused(operation, what.clone())
    }

    pub(super) fn refused(&self, operation: &'static str, what: String) -> Error {
        Error::Refused { operation, log: self.url.to_string(), source: what.into() }
    }

    pub(super) fn too_large(&self, topic: &str, bytes: usize) -> Error {
        let remedy = "the embedded log takes no larger ones; make such records smaller";
        Error::TooLarge { log: self.url.to_string(), topic: topic.to_owned(), bytes, limit: MAX_RECORD_BYTES, remedy }
    }

    pub(super) fn corrupt(&self, place: String, what: &str) -> Error {
        Error::Corrupt { log: self.url.to_string(), place, what: what.to_owned() }
    }

    /// A read that failed while the log was being opened.
    pub(super) fn unopened(&self, cause: fjall::Error) -> Error {
        open_error(&self.url, cause)
    }

    /// A read that failed at `place`.
    pub(super) fn unreadable(&self, place: String, cause: &fjall::Error) -> Error {
        if is_damage(cause) {
            return self.corrupt(place, &describe(cause));
        }
        Error::Unavailable { operation: "read", log: self.url.to_string(), source: describe(cause).into() }
    }
}

fn small_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(SMALL_MEMTABLE_BYTES).manual_journal_persist(true)
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
        fjall::Error::Poisoned => "a background write failed, most likely because the disk is full".to_owned(),
        other => other.to_string(),
    }
}
