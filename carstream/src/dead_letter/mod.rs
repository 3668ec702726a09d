//! Dead letters: to list, to look at, and to put back once their cause is fixed.
//!
//! ```text
//!  telemetry.dead-letter ──► filter ──► list, show
//!                               │
//!                               ▼            ┌──────── one transaction ────────┐
//!                            replay ───────► │ raw record ─► telemetry.raw     │──► preprocessor: its second chance
//!                               ▲            │ mark ─► dead-letter.replayed    │
//!                               └── marks ◄──┴─────────────────────────────────┘
//! ```
//!
//! A dead letter is put back once: its mark is written with it or not at all, and whoever replays first takes over the
//! transactional id, which ends every replay that is under way elsewhere, and then reads the marks. What fails again
//! becomes another dead letter.
//!
//! It repairs nothing: the bytes are replayed unchanged.

mod args;
mod letters;
mod list;
mod marks;
mod replay;
mod show;

use std::sync::Arc;

use anyhow::Context;
use contract::Contract;
use event_log::{Log, LogArgs, LogUrl};
use service::ConfigError;
use tokio_util::sync::CancellationToken;

pub use args::{Args, Command, Filter, ListArgs, Position, ReplayArgs, ShowArgs};
pub use list::{Count, Line, Listing};
pub use replay::Replayed;

/// The header of a raw record that a replay has put back: TOPIC/PARTITION/OFFSET of its dead letter.
pub const REPLAYED_FROM: &str = "replayed.from";

/// The topic of the marks.
const MARKS: &str = contract::own::REPLAYED;

/// Runs `carstream dead-letter`.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || run_blocking(&args, &shutdown)).await.context("the command did not finish")?
}

fn run_blocking(args: &Args, shutdown: &CancellationToken) -> anyhow::Result<()> {
    match &args.command {
        Command::List(args) => {
            let listing =
                list::list(&open(&args.log)?, &args.contract.load()?, &args.filter, args.limit, args.oldest, shutdown)?;
            print!("{}", if args.json { listing.to_json_lines() } else { listing.to_string() });
        }
        Command::Show(args) => {
            print!("{}", show::show(&open(&args.log)?, &args.position, args.json, shutdown)?);
        }
        Command::Replay(args) => {
            if args.filter.is_empty() && !args.all {
                let problem = "no filter: name one, such as --reason, or use --all".to_owned();
                return Err(ConfigError(vec![problem]).into());
            }
            let replayed =
                replay::replay(&open(&args.log)?, &args.contract.load()?, &args.filter, args.dry_run, shutdown)?;
            if args.json {
                println!("{}", replayed.to_json());
            } else {
                print!("{replayed}");
            }
        }
    }
    Ok(())
}

/// Opens the log. A missing directory would be created, and found empty.
fn open(args: &LogArgs) -> anyhow::Result<Arc<dyn Log>> {
    ConfigError::check(args.problems())?;
    if let LogUrl::Directory(path) = &args.log
        && !path.is_dir()
    {
        return Err(ConfigError(vec![format!("--log {}: the directory does not exist", path.display())]).into());
    }
    Ok(args.open()?)
}

/// Lists dead letters: counts, and the newest (or oldest) `limit` of them. Blocking.
pub fn list(
    log: &Arc<dyn Log>,
    contract: &Contract,
    filter: &Filter,
    limit: usize,
    oldest: bool,
) -> anyhow::Result<Listing> {
    list::list(log, contract, filter, limit, oldest, &CancellationToken::new())
}

/// Puts dead letters back into their source topics, each once. With `dry_run` it only counts. Blocking.
///
/// At shutdown it ends between two transactions.
pub fn replay(
    log: &Arc<dyn Log>,
    contract: &Contract,
    filter: &Filter,
    dry_run: bool,
    shutdown: &CancellationToken,
) -> anyhow::Result<Replayed> {
    replay::replay(log, contract, filter, dry_run, shutdown)
}
