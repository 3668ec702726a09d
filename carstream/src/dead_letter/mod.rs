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
use event_log::{Log, LogArgs};
use service::ConfigError;
use tokio_util::sync::CancellationToken;

pub use args::{Args, Command, Filter, ListArgs, Position, ReplayArgs, ShowArgs};
pub use list::{Count, Line, Listing};
pub use replay::Replayed;

pub(crate) use args::Question;

use crate::live::{self, Request};

/// The header of a raw record that a replay has put back: TOPIC/PARTITION/OFFSET of its dead letter.
pub const REPLAYED_FROM: &str = "replayed.from";

/// The topic of the marks.
const MARKS: &str = contract::own::REPLAYED;

/// Runs `carstream dead-letter`.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || run_blocking(args, &shutdown)).await.context("the command did not finish")?
}

fn run_blocking(args: Args, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let (log, contract, question) = args.command.into_parts()?;
    ConfigError::check(log.problems())?;
    if let Some(answer) = live::ask(&log.log, &Request::DeadLetter(question.clone()), shutdown)? {
        return answer.print();
    }
    print!("{}", answer(&question, &open(&log)?, &contract.load()?, shutdown)?);
    Ok(())
}

/// Carries out a command, and returns its output. Blocking.
pub(crate) fn answer(
    question: &Question,
    log: &Arc<dyn Log>,
    contract: &Contract,
    shutdown: &CancellationToken,
) -> anyhow::Result<String> {
    Ok(match question {
        Question::List { filter, limit, oldest, json } => {
            let listing = list::list(log, contract, filter, *limit, *oldest, shutdown)?;
            if *json { listing.to_json_lines() } else { listing.to_string() }
        }
        Question::Show { position, json } => show::show(log, position, *json, shutdown)?,
        Question::Replay { filter, dry_run, json } => {
            let replayed = replay::replay(log, contract, filter, *dry_run, shutdown)?;
            if *json { replayed.to_json() + "\n" } else { replayed.to_string() }
        }
    })
}

fn open(args: &LogArgs) -> anyhow::Result<Arc<dyn Log>> {
    ConfigError::check(crate::missing_log("--log", &args.log))?;
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
