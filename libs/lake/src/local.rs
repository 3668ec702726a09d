//! A directory as an object store that keeps what it has acknowledged.
//!
//! ```text
//! .incoming/NAME#N   write ─► fsync ─┐
//!                                    ├─ hard link to the object's name: fails if it is there ─► fsync its folders
//! topic/date=…/…     ◄───────────────┘                                   then remove the first name
//! ```
//!
//! `object_store`'s own local store writes beside the object and never calls fsync: after a power cut an acknowledged
//! object may be empty or missing, and the log may have expired what it held. So creation is done here; everything
//! else is handed to it. It ignores names that end in `#` and digits, so a half-written file is never listed.
//!
//! A file in `.incoming` is locked while its writer lives. An unlocked file found at start was left by a crash and is
//! removed. Multipart uploads, copies and renames are refused: nothing here needs them, and they would not be durable.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Where files are until they are whole and durable.
const INCOMING: &str = ".incoming";

/// The name of this store in errors.
const STORE: &str = "directory";

/// A directory as an object store. Its methods need a tokio runtime.
#[derive(Debug)]
pub(crate) struct Directory {
    inner: LocalFileSystem,
    root: Arc<FsPath>,
    /// Makes names in `.incoming` unique within this process.
    next_name: AtomicU64,
}

impl Directory {
    /// Opens `root`, which is created if it does not exist, and removes what a crash has left half-written.
    pub(crate) fn open(root: &FsPath) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let root = fs::canonicalize(root)?;
        if let Some(parent) = root.parent() {
            // The folder's own name must be as durable as what is put into it. Without the right to read the parent
            // the folder was there before us.
            let _ = sync_directory(parent);
        }
        remove_orphans(&root.join(INCOMING))?;
        let inner = LocalFileSystem::new_with_prefix(&root).map_err(io::Error::other)?;
        Ok(Self { inner, root: root.into(), next_name: AtomicU64::new(0) })
    }

    fn incoming_name(&self) -> String {
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        let n = self.next_name.fetch_add(1, Ordering::Relaxed);
        format!("{}-{nanos}#{n}", std::process::id())
    }
}

/// Removes files that no living process writes to.
fn remove_orphans(incoming: &FsPath) -> io::Result<()> {
    let entries = match fs::read_dir(incoming) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        // A file that cannot be opened, locked or removed takes space and does no harm.
        if let Ok(file) = File::open(&path)
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

/// Makes the entries of a folder durable.
fn sync_directory(path: &FsPath) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Creates a file that nobody takes for an orphan.
///
/// A process that starts between its creation and its lock may remove it, but only while holding the lock: a file that
/// still exists once it is locked stays.
fn create_locked(path: &FsPath) -> io::Result<File> {
    loop {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        // Where files cannot be locked, none is taken for an orphan either.
        let _ = file.lock();
        if path.try_exists()? {
            return Ok(file);
        }
    }
}

/// Writes an object so that it exists, whole and durable, or not at all.
fn put(root: &FsPath, target: &FsPath, name: &str, payload: &PutPayload, mode: &PutMode) -> Result<()> {
    let incoming = root.join(INCOMING);
    let failed = |what: &'static str, path: &FsPath| {
        let path = path.to_owned();
        move |source: io::Error| Error::Generic { store: STORE, source: Box::new(FileError { what, path, source }) }
    };
    fs::create_dir_all(&incoming).map_err(failed("create", &incoming))?;
    let temporary = incoming.join(name);
    let write = || -> io::Result<File> {
        let mut file = create_locked(&temporary)?;
        payload.iter().try_for_each(|part| file.write_all(part))?;
        file.sync_all()?;
        Ok(file)
    };
    let written = write().map_err(failed("write", &temporary)).and_then(|locked| {
        let folder = target.parent().unwrap_or(root);
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
        match mode {
            PutMode::Overwrite => fs::rename(&temporary, target).map_err(failed("rename to", target))?,
            _ => fs::hard_link(&temporary, target).map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => {
                    Error::AlreadyExists { path: target.display().to_string(), source: Box::new(source) }
                }
                _ => failed("create", target)(source),
            })?,
        }
        // Every folder up to the root: whoever created one may have been cut off before making its name durable.
        for folder in target.ancestors().skip(1).take_while(|folder| folder.starts_with(root)) {
            sync_directory(folder).map_err(failed("fsync", folder))?;
        }
        drop(locked);
        Ok(())
    });
    // After a rename it is gone; otherwise a failure leaves it to the next start.
    let _ = fs::remove_file(&temporary);
    written
}

/// An I/O error with the file that it is about.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}", path.display())]
struct FileError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn unsupported(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: STORE.to_owned() }
}

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "directory {}", self.root.display())
    }
}

#[async_trait]
impl ObjectStore for Directory {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if matches!(options.mode, PutMode::Update(_)) {
            return Err(unsupported("put with PutMode::Update"));
        }
        let target = self.inner.path_to_filesystem(location)?;
        let (root, name, mode) = (self.root.clone(), self.incoming_name(), options.mode);
        tokio::task::spawn_blocking(move || put(&root, &target, &name, &payload, &mode)).await??;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(unsupported("multipart upload"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(unsupported("copy"))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;
    use object_store::ObjectStoreExt;

    use super::*;

    async fn create(store: &Directory, name: &str, bytes: &'static [u8]) -> Result<PutResult> {
        store.put_opts(&Path::from(name), bytes.into(), PutMode::Create.into()).await
    }

    async fn listed(store: &Directory) -> Vec<String> {
        let mut names: Vec<_> = store.list(None).map_ok(|o| o.location.to_string()).try_collect().await.unwrap();
        names.sort();
        names
    }

    #[tokio::test]
    async fn an_object_is_created_once_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = Directory::open(&folder.path().join("new/lake")).unwrap();
        create(&store, "a/b/c", b"first").await.unwrap();
        let again = create(&store, "a/b/c", b"second").await.unwrap_err();
        assert!(matches!(again, Error::AlreadyExists { .. }), "{again}");
        assert_eq!(&store.get(&Path::from("a/b/c")).await.unwrap().bytes().await.unwrap()[..], b"first");
        assert_eq!(listed(&store).await, ["a/b/c"]);
        assert_eq!(fs::read_dir(folder.path().join("new/lake").join(INCOMING)).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn of_many_who_create_one_name_one_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let stores: Vec<_> = (0..8).map(|_| Directory::open(folder.path()).unwrap()).collect();
        let results = futures_util::future::join_all(stores.iter().map(|store| create(store, "a/b", b"x"))).await;
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
        assert!(results.iter().flat_map(|r| r.as_ref().err()).all(|e| matches!(e, Error::AlreadyExists { .. })));
    }

    #[tokio::test]
    async fn half_written_files_are_not_listed_and_go_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let store = Directory::open(folder.path()).unwrap();
        create(&store, "a", b"whole").await.unwrap();
        let orphan = folder.path().join(INCOMING).join("123-456#7");
        let written_now = folder.path().join(INCOMING).join("124-456#8");
        fs::write(&orphan, "hal").unwrap();
        let file = File::create(&written_now).unwrap();
        file.lock().unwrap();
        assert_eq!(listed(&store).await, ["a"]);
        let again = Directory::open(folder.path()).unwrap();
        assert!(!orphan.exists(), "left by a crash");
        assert!(written_now.exists(), "its writer lives");
        assert_eq!(listed(&again).await, ["a"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn who_starts_while_others_write_disturbs_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = Directory::open(folder.path()).unwrap();
        let root = folder.path().to_owned();
        let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let starts = {
            let done = done.clone();
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    remove_orphans(&root.join(INCOMING)).unwrap();
                }
            })
        };
        let mut failed = 0;
        for n in 0..1_000 {
            failed += usize::from(create(&store, &format!("object-{n}"), b"x").await.is_err());
        }
        done.store(true, Ordering::Relaxed);
        starts.join().unwrap();
        assert_eq!((failed, listed(&store).await.len()), (0, 1_000));
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_is_named_in_the_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(Directory::open(&folder.path().join("file/lake")).is_err());
        let store = Directory::open(folder.path()).unwrap();
        let error = create(&store, "file/object", b"x").await.unwrap_err();
        let text = format!("{:#}", anyhow_chain(&error));
        assert!(text.contains("/file"), "{text}");
    }

    fn anyhow_chain(error: &dyn std::error::Error) -> String {
        std::iter::successors(Some(error), |e| e.source()).map(|e| e.to_string()).collect::<Vec<_>>().join(": ")
    }
}
