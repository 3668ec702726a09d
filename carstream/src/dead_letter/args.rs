//! The settings of `carstream dead-letter`.

use std::fmt;
use std::str::FromStr;

use event_log::LogArgs;
use serde::{Deserialize, Serialize};
use service::{ConfigError, ContractArgs, values};

/// List, show and replay records that could not be processed.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Count by topic and reason, and print one line for each of the newest.
    ///
    /// Prints no payload and no VIN. Those that were replayed are shown as such.
    List(ListArgs),
    /// Print one dead letter in full: headers, key and payload.
    ///
    /// What it prints is personal data (the VIN, the driver, the position of the car): treat it as such.
    Show(ShowArgs),
    /// Put dead letters back into the topic that they came from, each once, for when the cause is fixed.
    ///
    /// A replayed record has the original's bytes, key and headers, plus replayed.from; its time is that of the replay.
    /// The record and the mark that it was replayed are one transaction, so that no dead letter is ever replayed twice,
    /// even if this command is killed, or runs twice at once (on Kafka the later one continues, and the other one
    /// stops). A record that fails again becomes a new dead letter. Replays are written only to topics of raw readings:
    /// their duplicate filter lets a reading through once. Dead letters of the scorer are not replayed: their readings
    /// are in `telemetry` already, and would be doubled.
    Replay(ReplayArgs),
}

/// Settings of `list`.
#[derive(Debug, Clone, clap::Args)]
pub struct ListArgs {
    /// The log with the dead letters.
    #[command(flatten)]
    pub log: LogArgs,
    /// Which topics hold dead letters.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// Which ones.
    #[command(flatten)]
    pub filter: Filter,
    /// Print a line for at most this many; all are counted.
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub limit: usize,
    /// Print the oldest ones instead of the newest.
    #[arg(long)]
    pub oldest: bool,
    /// Print one line of JSON for each, and one with the counts at the end.
    #[arg(long)]
    pub json: bool,
}

/// Settings of `show`.
#[derive(Debug, Clone, clap::Args)]
pub struct ShowArgs {
    /// The log with the dead letters.
    #[command(flatten)]
    pub log: LogArgs,
    /// Show the dead letter at TOPIC/PARTITION/OFFSET, as `list` prints it.
    pub position: Position,
    /// Print one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// Settings of `replay`.
#[derive(Debug, Clone, clap::Args)]
pub struct ReplayArgs {
    /// The log with the dead letters.
    #[command(flatten)]
    pub log: LogArgs,
    /// Which topics hold dead letters.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// Which ones.
    #[command(flatten)]
    pub filter: Filter,
    /// Replay all, without a filter.
    #[arg(long)]
    pub all: bool,
    /// Change nothing, only count the dead letters that would be replayed.
    #[arg(long)]
    pub dry_run: bool,
    /// Print one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// A command without the log that it is about.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Question {
    /// See [`ListArgs`].
    List { filter: Filter, limit: usize, oldest: bool, json: bool },
    /// See [`ShowArgs`].
    Show { position: Position, json: bool },
    /// See [`ReplayArgs`].
    Replay { filter: Filter, dry_run: bool, json: bool },
}

impl Command {
    /// The log, the contract, and the command without them.
    pub(super) fn into_parts(self) -> Result<(LogArgs, ContractArgs, Question), ConfigError> {
        Ok(match self {
            Self::List(ListArgs { log, contract, filter, limit, oldest, json }) => {
                (log, contract, Question::List { filter, limit, oldest, json })
            }
            Self::Show(ShowArgs { log, position, json }) => {
                (log, ContractArgs::default(), Question::Show { position, json })
            }
            Self::Replay(ReplayArgs { log, contract, filter, all, dry_run, json }) => {
                if filter.is_empty() && !all {
                    let problem = "no filter: name one, such as --reason, or use --all".to_owned();
                    return Err(ConfigError(vec![problem]));
                }
                (log, contract, Question::Replay { filter, dry_run, json })
            }
        })
    }
}

/// Which dead letters. Everything that is given must hold.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
pub struct Filter {
    /// Take only those with this reason, such as out-of-range; may be repeated.
    #[arg(long, value_name = "REASON")]
    pub reason: Vec<String>,
    /// Take only those in this dead-letter topic; may be repeated; without it, those in all that the contract has.
    #[arg(long, value_name = "TOPIC")]
    pub topic: Vec<String>,
    /// Take only those of this time or later: 2026-11-21T08:15:00Z, 2026-11-21 (midnight, UTC), or an age such as 6h.
    #[arg(long, value_name = "TIME", value_parser = values::time_ms)]
    pub since: Option<i64>,
    /// Take only those from before this time.
    #[arg(long, value_name = "TIME", value_parser = values::time_ms)]
    pub until: Option<i64>,
    /// Take only those in this partition of the dead-letter topic.
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
    /// Take only those at this offset of the dead-letter topic or behind it.
    #[arg(long, value_name = "OFFSET")]
    pub from_offset: Option<u64>,
    /// Take only those before this offset of the dead-letter topic.
    #[arg(long, value_name = "OFFSET")]
    pub to_offset: Option<u64>,
}

impl Filter {
    /// Whether it lets everything through.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { reason, topic, since, until, partition, from_offset, to_offset } = self;
        let lists = reason.is_empty() && topic.is_empty();
        let times = since.is_none() && until.is_none();
        lists && times && partition.is_none() && from_offset.is_none() && to_offset.is_none()
    }
}

/// The place of a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The dead-letter topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.rsplitn(3, '/');
        let offset = parts.next().and_then(|part| part.parse().ok());
        let partition = parts.next().and_then(|part| part.parse().ok());
        let topic = parts.next().filter(|topic| !topic.is_empty());
        match (topic, partition, offset) {
            (Some(topic), Some(partition), Some(offset)) => Ok(Self { topic: topic.to_owned(), partition, offset }),
            _ => Err(format!("{text:?} is not TOPIC/PARTITION/OFFSET, as in telemetry.dead-letter/2/17")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_read_back() {
        let position: Position = "telemetry.dead-letter/2/17".parse().unwrap();
        assert_eq!(position, Position { topic: "telemetry.dead-letter".into(), partition: 2, offset: 17 });
        assert_eq!(position.to_string(), "telemetry.dead-letter/2/17");
        for wrong in ["", "t/1", "/1/2", "t/x/2", "t/1/-2"] {
            assert!(wrong.parse::<Position>().is_err(), "{wrong}");
        }
    }
}
