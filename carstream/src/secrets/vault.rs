//! The directory: locked, and each file complete or missing.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Anybody may see which secrets there are, …
const DIRECTORY_MODE: u32 = 0o755;

/// … but only their owner may read them. Certificates are for everybody.
const SECRET_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;

/// The directory, until it is dropped nobody else's.
#[derive(Debug)]
pub(super) struct Vault {
    directory: PathBuf,
    /// Also what is locked: nothing is left behind for it.
    handle: File,
    made: Vec<PathBuf>,
}

impl Vault {
    /// Makes the directory if need be, and waits until nobody else is at it.
    pub(super) fn open(directory: &Path) -> anyhow::Result<Self> {
        let open = || {
            if !directory.exists() {
                fs::create_dir_all(directory)?;
                fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE))?;
            }
            let handle = File::open(directory)?;
            handle.lock()?;
            Ok::<_, std::io::Error>(handle)
        };
        let handle = open().with_context(|| format!("cannot make or lock the directory {}", directory.display()))?;
        Ok(Self { directory: directory.to_owned(), handle, made: Vec::new() })
    }

    /// The contents of a file, if it exists.
    pub(super) fn read(&self, name: &str) -> anyhow::Result<Option<String>> {
        let path = self.directory.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// The contents of a file, which is created if it is missing.
    pub(super) fn ensure(
        &mut self,
        name: &str,
        make: impl FnOnce() -> anyhow::Result<String>,
    ) -> anyhow::Result<String> {
        if let Some(text) = self.read(name)? {
            return Ok(text);
        }
        let text = make()?;
        self.replace(name, &text)?;
        Ok(text)
    }

    /// Writes a file, at once or not at all.
    pub(super) fn replace(&mut self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.directory.join(name);
        let beside = self.directory.join(format!(".{name}.new"));
        let mode = if name.ends_with(".crt") { CERTIFICATE_MODE } else { SECRET_MODE };
        let write = || {
            remove_if_there(&beside)?; // of somebody who was killed here
            let mut file = OpenOptions::new().write(true).create_new(true).mode(SECRET_MODE).open(&beside)?;
            file.write_all(text.as_bytes())?;
            file.set_permissions(Permissions::from_mode(mode))?; // whatever the umask is
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            self.handle.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        self.made.push(path);
        Ok(())
    }

    /// Removes a file.
    pub(super) fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        let path = self.directory.join(name);
        let removed = remove_if_there(&path).and_then(|()| self.handle.sync_all());
        removed.with_context(|| format!("cannot remove {}", path.display()))
    }

    /// The files that were written, in order.
    pub(super) fn made(self) -> Vec<PathBuf> {
        self.made
    }
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
