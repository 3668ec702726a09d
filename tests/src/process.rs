//! One of carstream's binaries as a process: what it says, how it is stopped, how it ends.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use test_support::process::OwnedChild;

use crate::binary;

/// Generous: debug this by looking at what the process said, not by waiting less.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running process. Killed when dropped, so that a failed test leaves none behind.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: OwnedChild,
    said: Arc<Mutex<Vec<String>>>,
    listener: Option<std::thread::JoinHandle<()>>,
}

impl Process {
    /// Starts a binary. Its settings are its arguments alone.
    pub fn start(name: &str, args: &[&str]) -> Self {
        Self::start_with(name, args, &[])
    }

    /// Like [`start`](Self::start), with these variables of its environment.
    pub fn start_with(name: &str, args: &[&str], variables: &[(String, String)]) -> Self {
        let mut command = Command::new(binary(name));
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("CARSTREAM_") {
                command.env_remove(variable);
            }
        }
        command
            .args(args)
            .envs(variables.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = OwnedChild::spawn(&mut command).unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let said = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let listener = {
            let said = said.clone();
            std::thread::spawn(move || {
                for line in stderr.lines().map_while(Result::ok) {
                    said.lock().unwrap().push(line);
                }
            })
        };
        Self { name: name.to_owned(), child, said, listener: Some(listener) }
    }

    /// Its whole output so far.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }

    /// Waits for a line with all of these words.
    pub fn line_with(&mut self, words: &[&str]) -> String {
        self.line_that(words, |line| words.iter().all(|word| line.contains(word)))
    }

    /// Waits for a line with any of these words.
    pub fn line_with_any(&mut self, words: &[&str]) -> String {
        self.line_that(words, |line| words.iter().any(|word| line.contains(word)))
    }

    fn line_that(&mut self, words: &[&str], is_meant: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.try_wait().unwrap();
            let found = self.said.lock().unwrap().iter().find(|line| is_meant(line)).cloned();
            if let Some(line) = found {
                return line;
            }
            assert!(ended.is_none(), "{} ended ({ended:?}) without a line with {words:?}:\n{}", self.name, self.said());
            assert!(Instant::now() < deadline, "{} never said {words:?}:\n{}", self.name, self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop, waits until it says that it heard, and asks again. Returns its exit code: 130, unless it had
    /// drained before the second signal.
    pub fn terminate_twice(mut self) -> Option<i32> {
        self.terminate();
        let deadline = Instant::now() + PATIENCE;
        while !self.has_ended() && !self.said().contains("a second signal exits at once") {
            assert!(Instant::now() < deadline, "{} did not hear the first signal:\n{}", self.name, self.said());
            std::thread::sleep(Duration::from_millis(1));
        }
        // It may end at this moment; a process that has not been waited for can still be signalled.
        self.terminate();
        self.wait().code()
    }

    /// Asks it to stop, as a service manager does.
    pub fn terminate(&self) {
        self.child.signal("TERM");
    }

    /// Waits for its end. Returns its exit code, and everything that it said.
    pub fn end(mut self) -> (Option<i32>, String) {
        let status = self.wait();
        self.listener.take().unwrap().join().unwrap();
        (status.code(), self.said())
    }

    /// Waits for its end, which must be a good one.
    pub fn succeed(self) -> String {
        let name = self.name.clone();
        let (code, said) = self.end();
        assert_eq!(code, Some(0), "{name} said:\n{said}");
        said
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "{} does not end:\n{}", self.name, self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
