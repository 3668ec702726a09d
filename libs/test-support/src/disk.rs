//! A disk that a test can fill and free: a small file system in memory.
//!
//! Only root may mount one, on Linux. Without that right a test says that it is skipped, in CI too.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process::Watcher;

/// A file system of its own; gone with the value.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
    _watcher: Watcher,
}

impl Disk {
    /// Mounts a disk of this size (`300k`, `1g`) at a directory, which is created if it is missing. `None`, with a word
    /// about it, without the right to do so.
    ///
    /// # Panics
    /// If the directory cannot be created, or the shell is missing.
    pub fn mount(at: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).expect("the directory is created");
        if !mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "none"], at) {
            eprintln!("skipped: only root may mount a small disk");
            return None;
        }
        let unmount = [OsStr::new("umount"), OsStr::new("--lazy"), at.as_os_str()];
        let _watcher = Watcher::start(unmount).expect("sh runs");
        Some(Self { at: at.to_owned(), _watcher })
    }

    /// Gives it another size.
    ///
    /// # Panics
    /// If it holds more.
    pub fn resize(&self, size: &str) {
        assert!(self.try_resize(size), "{} holds more than {size}", self.at.display());
    }

    /// Fills it: it becomes as small as what it holds.
    ///
    /// # Panics
    /// If `df` does not say how much that is.
    pub fn fill(&self) {
        // Somebody may write in between; then once more.
        while !self.try_resize(&self.used().to_string()) {}
    }

    fn try_resize(&self, size: &str) -> bool {
        mount(&["-o", &format!("remount,size={size}")], &self.at)
    }

    fn used(&self) -> u64 {
        let output = Command::new("df").args(["--output=used", "--block-size=1"]).arg(&self.at).output();
        let output = String::from_utf8(output.expect("df runs").stdout).expect("a number");
        output.lines().nth(1).and_then(|used| used.trim().parse().ok()).expect("a number below its title")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}

fn mount(arguments: &[&str], at: &Path) -> bool {
    Command::new("mount").args(arguments).arg(at).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
