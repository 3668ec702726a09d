//! One of carstream's binaries as a process: what it says, how it is stopped, how it ends.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use whole_pipeline_tests::binary;

/// Generous: debug this by looking at what the process said, not by waiting less.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running process. Killed when dropped, so that a failed test leaves none behind.
pub(crate) struct Process {
    name: String,
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    listener: Option<std::thread::JoinHandle<()>>,
}

impl Process {
    /// Starts a binary. Its settings are its arguments alone.
    pub(crate) fn start(name: &str, args: &[&str]) -> Self {
        let mut command = Command::new(binary(name));
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("CARSTREAM_") {
                command.env_remove(variable);
            }
        }
        let mut child = command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
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

    /// Everything it has said so far.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }

    /// Waits for a line with all of these words.
    pub(crate) fn line_with(&mut self, words: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.said.lock().unwrap().iter().find(|line| words.iter().all(|w| line.contains(w))).cloned();
            if let Some(line) = found {
                return line;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{} ended ({ended:?}) without a line with {words:?}:\n{}", self.name, self.said());
            assert!(Instant::now() < deadline, "{} never said {words:?}:\n{}", self.name, self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks it to stop, as a service manager does.
    pub(crate) fn terminate(&self) {
        let kill = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(kill.success(), "{} is gone", self.name);
    }

    /// Waits for its end. Returns its exit code, and everything that it said.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let status = self.wait();
        self.listener.take().unwrap().join().unwrap();
        (status.code(), self.said())
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn succeed(self) -> String {
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

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
