//! What all processes of carstream share: settings, logging, admin port, signals, exit codes.
//!
//! ```text
//! main ─► parse settings ─► logging ─► run(args, shutdown) ─► drained ─► exit 0
//!            │ bad: 64                    ▲           │ failed: 1
//!            ▼                 SIGTERM/Ctrl-C; a second one, or --stop-timeout, exits at once
//! ```
//!
//! Nothing here knows a topic or a reading. The contract, which does, is only read here and handed on.

mod admin;
mod clock;
mod contract;
mod periodic;
mod process;
mod readiness;
mod registrar;
pub mod settings;
pub mod values;
mod waiting;

use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use tokio_util::sync::CancellationToken;

pub use crate::contract::{ContractArgs, read_contract};
pub use admin::{AdminError, stage, with_admin};
pub use clock::now_ms;
pub use periodic::Periodic;
pub use readiness::Readiness;
pub use registrar::{Histograms, Registrar};
use settings::Variables;
pub use values::{HostPort, missing_directory, not_a_directory};
pub use waiting::{Waiting, chain, retry_until};

/// Exit code for settings that cannot work, as in BSD's `sysexits.h` (EX_USAGE).
pub const EXIT_CONFIG: u8 = 64;

/// The exit code of a process that did not end in time.
const EXIT_FAILURE: i32 = 1;

/// The exit code after a second signal: 128 + SIGINT, as shells report it.
const EXIT_SECOND_SIGNAL: i32 = 130;

/// Long enough for a commit that waits for a broker, after a drain that took all of its time.
const STOP_TIMEOUT: &str = "120s";

/// Enough to commit accepted records, short enough for an upgrade.
const DRAIN_TIMEOUT: &str = "30s";

/// Settings that every process has.
#[derive(Debug, Clone, clap::Args)]
pub struct ServiceArgs {
    /// Log this much, on standard error.
    #[arg(long, env = "CARSTREAM_LOG_LEVEL", value_name = "LEVEL", value_enum, default_value_t, global = true)]
    pub log_level: LogLevel,
    /// Serve /metrics, /livez and /readyz at this address, such as 127.0.0.1:9100; without it nothing is served.
    ///
    /// /livez answers 200 as long as the process serves. /readyz answers 200 when it is ready, and until then 503 with
    /// a line that says what it is waiting for.
    #[arg(long, env = "CARSTREAM_ADMIN", value_name = "HOST:PORT", global = true)]
    pub admin: Option<HostPort>,
    /// Exit with code 1 this long after a signal, even if a drain or a broker needs longer.
    #[arg(long, env = "CARSTREAM_STOP_TIMEOUT", value_name = "DURATION", default_value = STOP_TIMEOUT,
        value_parser = values::duration, global = true)]
    pub stop_timeout: Duration,
}

impl Default for ServiceArgs {
    fn default() -> Self {
        settings::defaults(&[])
    }
}

/// What a stage that is stopped may still do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct DrainArgs {
    /// When stopped, process what was received before the signal, for at most this long; the next start does the rest.
    #[arg(id = "drain_timeout", long = "drain-timeout", env = "CARSTREAM_DRAIN_TIMEOUT", value_name = "DURATION",
        default_value = DRAIN_TIMEOUT, value_parser = values::duration)]
    pub timeout: Duration,
}

/// How much to log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogLevel {
    /// A human must act.
    Error,
    /// Something was wrong, and was handled.
    Warn,
    /// What the process is doing.
    #[default]
    Info,
    /// For finding faults.
    Debug,
    /// Everything.
    Trace,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// Settings that cannot work. All problems are reported together; the process exits with [`EXIT_CONFIG`].
#[derive(Debug)]
pub struct ConfigError(pub Vec<String>);

impl ConfigError {
    /// `Ok` if there are no problems.
    pub fn check(problems: impl IntoIterator<Item = String>) -> Result<(), Self> {
        let problems: Vec<_> = problems.into_iter().collect();
        if problems.is_empty() { Ok(()) } else { Err(Self(problems)) }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for ConfigError {}

/// The whole `main` of a binary: parses `A`, sets up logging, runs, drains at SIGINT or SIGTERM.
///
/// Exit codes: 0 clean, 1 failure, 64 bad configuration. A second signal exits at once with 130.
pub fn main<A, F, Fut>(run: F) -> ExitCode
where
    A: clap::Parser + AsRef<ServiceArgs>,
    F: FnOnce(A, CancellationToken) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let argv: Vec<OsString> = std::env::args_os().collect();
    let (args, variables): (A, _) = match settings::parse(&argv) {
        Ok(parsed) => parsed,
        Err(error) => {
            // Printing fails only if standard error is gone; the exit code still tells.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(EXIT_CONFIG),
            };
        }
    };
    init_logging(args.as_ref().log_level);
    let stop_timeout = args.as_ref().stop_timeout;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        tokio::spawn(cancel_on_signal(shutdown.clone(), stop_timeout));
        run(args, shutdown).await
    });
    // A blocking task that outlived the drain must not keep the process.
    runtime.shutdown_background();
    exit_code(result, &variables)
}

/// The stage that this process was started as, by the name of its binary or of the link to it.
pub fn started_as() -> Option<String> {
    let program = std::env::args_os().next()?;
    Some(Path::new(&program).file_stem()?.to_str()?.to_owned())
}

/// What to type to run a stage: its name, where this process was started so, or else `carstream STAGE`.
pub fn command_of(stage: &str) -> String {
    if started_as().is_some_and(|name| name == stage) { stage.to_owned() } else { format!("carstream {stage}") }
}

/// Logs to standard error at `level`. A second call has no effect.
pub fn init_logging(level: LogLevel) {
    use std::io::IsTerminal;
    let _ = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::from(level))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
}

fn exit_code(result: anyhow::Result<()>, variables: &Variables) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if let Some(ConfigError(problems)) = error.downcast_ref() {
        for problem in problems {
            eprintln!("error: {}", variables.name_in(problem));
        }
        return ExitCode::from(EXIT_CONFIG);
    }
    eprintln!("error: {}", waiting::chain(error.as_ref()));
    ExitCode::FAILURE
}

async fn cancel_on_signal(shutdown: CancellationToken, stop_timeout: Duration) {
    // Listened to from the start to the end: a signal between two waits is not missed.
    let mut signals = Signals::listen();
    signals.next().await;
    tracing::info!("stopping: finishing accepted work; a second signal exits at once");
    shutdown.cancel();
    tokio::select! {
        () = signals.next() => std::process::exit(EXIT_SECOND_SIGNAL),
        () = tokio::time::sleep(stop_timeout) => {
            eprintln!(
                "error: not stopped {stop_timeout:?} after the signal (--stop-timeout): exiting; the next start \
                 processes everything that is not committed"
            );
            std::process::exit(EXIT_FAILURE);
        }
    }
}

/// SIGINT and SIGTERM; elsewhere, Ctrl-C.
#[cfg(unix)]
struct Signals {
    interrupt: Option<tokio::signal::unix::Signal>,
    terminate: Option<tokio::signal::unix::Signal>,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        // Without signals the process ends by being killed, which it withstands.
        Self { interrupt: signal(SignalKind::interrupt()).ok(), terminate: signal(SignalKind::terminate()).ok() }
    }

    async fn next(&mut self) {
        async fn next(signal: &mut Option<tokio::signal::unix::Signal>) {
            match signal {
                Some(signal) => drop(signal.recv().await),
                None => std::future::pending().await,
            }
        }
        tokio::select! {
            () = next(&mut self.interrupt) => {}
            () = next(&mut self.terminate) => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> Self {
        Self
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without signals the process ends by being killed, which it withstands.
            std::future::pending::<()>().await;
        }
    }
}
