//! Which directories this process has open, and how a directory is opened.
//!
//! A directory is claimed, opened, closed and released under one lock, so that whoever opens it again right after it
//! was let go finds it either open or free, never half closed.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::{Condvar, Mutex};

use super::Embedded;
use super::disk::{self, database};
use super::maintenance::Maintenance;
use super::store::Store;
use crate::{Clock, Error, LogUrl};

/// A socket that the process with the log may make in its directory, for commands on the open log.
pub const CONTROL_SOCKET: &str = "control";

const LOCK_FILE: &str = "lock";
const STORE_FOLDER: &str = "store";
/// A store is made here and then renamed: fjall does not recover from a crash while it creates one.
const NEW_STORE_FOLDER: &str = "store.new";

#[derive(Default)]
struct OpenDirectories {
    open: Mutex<HashMap<PathBuf, Weak<Embedded>>>,
    released: Condvar,
}

static OPEN: LazyLock<OpenDirectories> = LazyLock::new(OpenDirectories::default);

/// A directory that this process holds. Dropped after everything in it is closed.
#[derive(Debug)]
pub(super) struct Claim {
    path: PathBuf,
    lock: Option<DirectoryLock>,
}

/// The lock of a directory among processes.
#[derive(Debug)]
struct DirectoryLock(File);

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Closing would do, were it not for a child process that is just being started and still shares the file.
        if let Err(e) = self.0.unlock() {
            tracing::warn!("the directory of a log stays locked until this process ends: {e}");
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut open = OPEN.open.lock();
        self.lock.take();
        open.remove(&self.path);
        OPEN.released.notify_all();
    }
}

/// Opens the log in `path`, or gives the one that is open, whose clock stays.
pub(super) fn open(path: &Path, clock: Clock) -> Result<Arc<Embedded>, Error> {
    let cannot = |what: &str, cause: io::Error| {
        let remedy = match cause.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "choose a directory that this user may write to"
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space, or choose another disk",
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => "choose a directory, not a file",
            _ => return open_error(path, format!("{what}: {cause}: choose another directory")),
        };
        // The kind is what the remedy is about: without the system's number.
        open_error(path, format!("{what}: {}: {remedy}", cause.kind()))
    };
    std::fs::create_dir_all(path).map_err(|e| cannot("the directory cannot be created", e))?;
    let canonical = path.canonicalize().map_err(|e| cannot("the directory cannot be found", e))?;

    let mut open = OPEN.open.lock();
    while let Some(held) = open.get(&canonical) {
        if let Some(log) = held.upgrade() {
            return Ok(log);
        }
        // Its last holder is about to close it.
        OPEN.released.wait(&mut open);
    }
    check_folder(path, &canonical).map_err(|e| cannot("the directory cannot be read", e))??;
    let lock_file = canonical.join(LOCK_FILE);
    let lock = File::options().create(true).append(true).open(&lock_file);
    let lock = lock.map_err(|e| cannot("its lock cannot be written", e))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(e)) => return Err(cannot("it cannot be locked", e)),
    }
    let lock = DirectoryLock(lock);

    let url = LogUrl::Directory(path.to_owned());
    create_store(&canonical).map_err(|e| disk::open_error(&url, e))?;
    let store = Arc::new(Store::open(url.clone(), &canonical.join(STORE_FOLDER), clock)?);
    let maintenance = Maintenance::start(store.clone()).map_err(|e| {
        open_error(path, format!("its maintenance thread cannot start: {e}: lower the number of threads"))
    })?;
    let claim = Claim { path: canonical.clone(), lock: Some(lock) };
    let log = Arc::new(Embedded { url, store, maintenance, _claim: claim });
    open.insert(canonical, Arc::downgrade(&log));
    Ok(log)
}

fn open_error(path: &Path, what: String) -> Error {
    Error::Open { log: path.display().to_string(), source: what.into() }
}

/// Refuses a directory that holds something else: better than mixing a log into somebody's files.
fn check_folder(path: &Path, canonical: &Path) -> io::Result<Result<(), Error>> {
    for entry in std::fs::read_dir(canonical)? {
        let name = entry?.file_name();
        if ![LOCK_FILE, STORE_FOLDER, NEW_STORE_FOLDER, CONTROL_SOCKET].iter().any(|ours| name == *ours) {
            let name = name.to_string_lossy();
            let what = format!("it is not the directory of a log, it holds {name}: choose an empty or a new directory");
            return Ok(Err(open_error(path, what)));
        }
    }
    Ok(Ok(()))
}

fn create_store(folder: &Path) -> fjall::Result<()> {
    let (store, new) = (folder.join(STORE_FOLDER), folder.join(NEW_STORE_FOLDER));
    if store.try_exists()? {
        return Ok(());
    }
    if new.try_exists()? {
        std::fs::remove_dir_all(&new)?;
    }
    drop(database(&new)?);
    std::fs::rename(&new, &store)?;
    File::open(folder)?.sync_all()?;
    Ok(())
}
