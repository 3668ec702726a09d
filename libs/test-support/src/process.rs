//! Processes that do not outlive their test, however it ends: by an assertion, a panic, Ctrl-C, or kill -9.
//!
//! ```text
//!  test ──── starts ────► child
//!    │ holds a pipe                 closed by a test that has died
//!    └──────────────────► watcher ─────────────────────────────────► kill -9 child
//! ```
//!
//! `Drop` covers a test that fails. The watcher is a shell that waits at the other end of a pipe, and covers a test
//! process that dies: the operating system closes the pipe. (`PR_SET_PDEATHSIG` would need `unsafe` or `setpriv`,
//! exists on Linux only, and fires when the *thread* that started the child ends.)

use std::ffi::OsStr;
use std::io::{self, Write};
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A child that is killed when this is dropped, and when this process dies.
#[derive(Debug)]
pub struct OwnedChild {
    child: Child,
    _watcher: Watcher,
}

impl OwnedChild {
    /// Starts a command.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let child = command.spawn()?;
        let _watcher = Watcher::start(["kill", "-KILL", &child.id().to_string()])?;
        Ok(Self { child, _watcher })
    }

    /// Sends a signal, as [`signal`] does.
    pub fn signal(&self, name: &str) {
        signal(name, &self.child.id().to_string());
    }
}

impl Deref for OwnedChild {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.child
    }
}

impl DerefMut for OwnedChild {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for OwnedChild {
    fn drop(&mut self) {
        // It may have ended, and been reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command when this process dies before this is dropped.
#[derive(Debug)]
pub struct Watcher(Child);

impl Watcher {
    /// For a server that a script keeps in the background: scripts/kafka, scripts/s3, scripts/schema-registry. They
    /// know it by the directory of its data, whether it runs at the moment or not.
    pub fn of_server(script: impl AsRef<OsStr>, data: &Path) -> io::Result<Self> {
        Self::start([script.as_ref(), "stop".as_ref(), "--kill".as_ref(), "--data".as_ref(), data.as_ref()])
    }

    pub(crate) fn start<S: AsRef<OsStr>>(on_death: impl IntoIterator<Item = S>) -> io::Result<Self> {
        // Deaf to what ends the test: it has work to do then. A line means that nothing is left to do.
        let mut command = Command::new("sh");
        command.args(["-c", r#"trap "" INT TERM HUP; read -r _ || exec "$@""#, "watcher"]).args(on_death);
        // A reader of the test's output must not wait for this process.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(Self)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            let _ = pipe.write_all(b"done\n");
        }
        let _ = self.0.wait();
    }
}

/// Sends a signal, by its name (`TERM`, `STOP`), to a process that a test has started. It must still exist.
pub fn signal(name: &str, pid: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), pid]).status().expect("kill runs");
    assert!(status.success(), "kill -{name} {pid}");
}
