//! One process of the run: started, signalled, watched, and restarted as a container engine would.
//!
//! ```text
//!          start                    died, or ended with an error
//! Off ────────────► Running ─────────────────────────────────────► Down ── pause ──► Running
//!                    │   ▲
//!            SIGSTOP │   │ SIGCONT         SIGTERM, or it has done its work
//!                    └───┘ frozen    ────────────────────────────────────► Ended(code)
//! ```
//!
//! It never blocks: [`Process::tick`] looks, and says what happened. What a process writes goes to one file for all its
//! lives.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use test_support::process::OwnedChild;

/// What a container engine waits before it restarts a container, about.
const RESTART_PAUSE: Duration = Duration::from_millis(700);

/// Enough of the end of a file to hold a process's last words.
const TAIL_BYTES: u64 = 2_000;

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// What it is called in this run.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// Whether it ends by itself, with 0, once its work is done.
    pub(crate) finite: bool,
}

/// What a tick has found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It has died by our hand, and is being restarted.
    Killed,
    /// It has ended with an error although nobody asked it to, and is being restarted. With its last words.
    Failed(String),
    /// It runs again.
    Restarted,
    /// It has ended as it should.
    Ended,
    /// It was asked to stop, and ended with an error. With its last words.
    EndedBadly(String),
}

#[derive(Debug)]
enum State {
    Off,
    Running(OwnedChild),
    Down { until: Instant },
    Ended,
}

#[derive(Debug)]
pub(crate) struct Process {
    program: Program,
    output: PathBuf,
    state: State,
    starts: u32,
    killed: bool,
    stopping: bool,
    frozen: bool,
    /// Another has its place: it is not restarted.
    replaced: bool,
}

impl Process {
    /// A process that does not run yet; its output goes to a file in `logs`.
    pub(crate) fn new(program: Program, logs: &Path) -> Self {
        let output = logs.join(format!("{}.log", program.name));
        Self {
            program,
            output,
            state: State::Off,
            starts: 0,
            killed: false,
            stopping: false,
            frozen: false,
            replaced: false,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.program.name
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// How often it was started after its first start.
    pub(crate) fn restarts(&self) -> u32 {
        self.starts.saturating_sub(1)
    }

    pub(crate) fn start(&mut self) -> anyhow::Result<()> {
        let Program { name, path, args, env, .. } = &self.program;
        let open = || OpenOptions::new().create(true).append(true).open(&self.output);
        let mut output = open().with_context(|| format!("cannot write {}", self.output.display()))?;
        self.starts += 1;
        writeln!(output, "──── start {} of {name}", self.starts)?;
        let mut command = Command::new(path);
        for (variable, _) in std::env::vars_os() {
            // Its settings are what this run gives it, and nothing else.
            if variable.to_string_lossy().starts_with("CARSTREAM_") && !variable.eq("CARSTREAM_CACHE") {
                command.env_remove(variable);
            }
        }
        command.args(args).envs(env.iter().cloned());
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = OwnedChild::spawn(&mut command).with_context(|| format!("cannot start {}", path.display()))?;
        self.state = State::Running(child);
        (self.killed, self.frozen) = (false, false);
        Ok(())
    }

    /// Looks what has become of it.
    pub(crate) fn tick(&mut self) -> anyhow::Result<Option<Change>> {
        let status = match &mut self.state {
            State::Running(child) => child.try_wait()?,
            State::Down { until } if Instant::now() >= *until => {
                self.start()?;
                return Ok(Some(Change::Restarted));
            }
            State::Off | State::Down { .. } | State::Ended => None,
        };
        Ok(status.map(|status| self.gone(status)))
    }

    fn gone(&mut self, status: ExitStatus) -> Change {
        self.frozen = false;
        if self.stopping || (self.program.finite && status.success()) {
            self.state = State::Ended;
            return if status.success() { Change::Ended } else { Change::EndedBadly(self.last_words(status)) };
        }
        self.state = match self.replaced {
            true => State::Ended,
            false => State::Down { until: Instant::now() + RESTART_PAUSE },
        };
        match self.killed && status.signal() == Some(9) {
            true => Change::Killed,
            false => Change::Failed(self.last_words(status)),
        }
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.killed = true;
        self.signal("KILL")
    }

    /// SIGSTOP: the process is frozen, and does not notice.
    pub(crate) fn freeze(&mut self) -> anyhow::Result<()> {
        self.frozen = true;
        self.signal("STOP")
    }

    /// SIGCONT.
    pub(crate) fn thaw(&mut self) -> anyhow::Result<()> {
        if std::mem::take(&mut self.frozen) { self.signal("CONT") } else { Ok(()) }
    }

    /// Another process has its place from now on: when it ends, it is not restarted.
    pub(crate) fn give_up_place(&mut self) {
        self.replaced = true;
    }

    /// SIGTERM: it should drain, and end with 0. Not restarted any more.
    pub(crate) fn terminate(&mut self) -> anyhow::Result<()> {
        self.stopping = true;
        if matches!(self.state, State::Off | State::Down { .. }) {
            self.state = State::Ended;
        }
        if self.is_running() { self.signal("TERM") } else { Ok(()) }
    }

    fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let State::Running(child) = &self.state else { return Ok(()) };
        // A child that was not waited for keeps its process id, so this reaches no other process.
        let sent = Command::new("kill").args(["-s", signal, &child.id().to_string()]).stderr(Stdio::null()).status();
        ensure!(sent.context("cannot run kill")?.success(), "{} cannot be sent SIG{signal}", self.name());
        Ok(())
    }

    fn last_words(&self, status: ExitStatus) -> String {
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => status.to_string(),
        };
        let said = tail(&self.output).unwrap_or_default();
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        format!("{how}: {last}")
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
