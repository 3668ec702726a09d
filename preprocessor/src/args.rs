//! Settings.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Parser;
use event_log::{LogArgs, LogUrl};
use pipeline::{ForgetAfter, ForgetArgs, LoopArgs, SnapshotArgs};
use schema_registry::SchemaRegistryArgs;
use service::{ContractArgs, DrainArgs, ServiceArgs, settings, values};
use telemetry::pseudonym::PseudonymKey;

use crate::event_time::{EventTimeArgs, Reach};

/// Turn raw readings into clean ones: validated, deduplicated, joined, without personal data, as Avro.
///
/// Runs every stream of the contract: of the platform's, telemetry.raw becomes telemetry and faults.raw becomes faults.
/// Records that cannot be used go to the stream's dead-letter topic, with the reason. To see the output columns of a
/// stream, and their origin:
///
///   carstream contract explain telemetry
///
/// To run, it needs the site's secret key for pseudonyms:
///
///   openssl rand -hex 32 > site.key
///   preprocessor --log /var/lib/carstream/log --pseudonym-key-file site.key
///
/// The readings that each car has sent are remembered across restarts, in topic preprocessor.state: a repeat is removed
/// whenever it arrives. That topic holds VINs, and stays at the edge.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "preprocessor",
    version,
    verbatim_doc_comment,
    subcommand_help_heading = "Instead of running the streams",
    subcommand_value_name = "COMMAND",
    // What `try` needs, too: before it or behind it.
    mut_arg("contract", |arg| arg.global(true)),
    mut_arg("event_time_behind", |arg| arg.global(true)),
    mut_arg("event_time_ahead", |arg| arg.global(true)),
    mut_arg("pseudonym_key_file", |arg| arg.global(true))
)]
pub struct Args {
    /// What to do instead of running the streams.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The log: raw topics are read from it, clean ones and dead letters are written to it.
    #[command(flatten)]
    pub log: LogArgs,

    /// Read the site's secret key for pseudonyms from this file, at least 16 bytes; a site has one key.
    #[arg(long, env = "CARSTREAM_PSEUDONYM_KEY_FILE", value_name = "FILE")]
    pub pseudonym_key_file: Option<PathBuf>,

    /// Which streams there are.
    #[command(flatten)]
    pub contract: ContractArgs,

    /// Where schema ids come from.
    #[command(flatten)]
    pub schema_registry: SchemaRegistryArgs,

    /// Which event times are accepted.
    #[command(flatten)]
    pub event_time: EventTimeArgs,

    /// Which cars are known, and how many.
    #[command(flatten)]
    pub cars: CarsArgs,

    /// Instances and batches.
    #[command(flatten)]
    pub pipeline: LoopArgs,
    /// Resume after gaps that retention has left, as if an operator had accepted each.
    #[arg(skip)]
    pub accept_gap: bool,

    /// Snapshots of what each car has sent already, in topic preprocessor.state.
    #[command(flatten)]
    pub snapshots: SnapshotArgs,

    /// What a stop waits for.
    #[command(flatten)]
    pub drain: DrainArgs,

    /// What every process has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Which cars a stream knows, and how many: the bounds of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct CarsArgs {
    /// When a car is forgotten.
    #[command(flatten)]
    pub forget: ForgetArgs,
    /// Know at most this many cars per partition of a stream, and make dead letters of the readings of further ones.
    ///
    /// Each takes about 1 kB. A reference table takes as many rows per partition.
    #[arg(long, env = "CARSTREAM_MAX_CARS_PER_PARTITION", value_name = "CARS", default_value_t = 50_000)]
    pub max_cars_per_partition: usize,
}

impl CarsArgs {
    /// What of the settings cannot work.
    fn problems(&self, event_time: &EventTimeArgs) -> Vec<String> {
        let mut problems = Vec::new();
        if self.max_cars_per_partition == 0 {
            problems.push("--max-cars-per-partition must be at least 1".to_owned());
        }
        let EventTimeArgs { event_time_behind, event_time_ahead } = *event_time;
        if let (ForgetAfter::Silence(silence), Reach::Within(behind), Reach::Within(ahead)) =
            (self.forget.forget_after, event_time_behind, event_time_ahead)
            && silence < behind.saturating_add(ahead)
        {
            problems.push(format!(
                "--forget-after {}: must be at least --event-time-behind and --event-time-ahead together: a repeat of \
                 a reading of a forgotten car would pass as new",
                self.forget.forget_after
            ));
        }
        problems
    }
}

/// What else the preprocessor does.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Send readings from standard input through one stream, without any log; print what becomes of each.
    ///
    /// Takes one JSON object per line, as cars send them, and prints one per line: verdict (clean, filtered, duplicate,
    /// dead-letter), line, and the clean record, or the reason and the detail. No value of a field that is tagged as
    /// personal data is printed. Without --pseudonym-key-file pseudonyms are those of a key of zeros.
    ///
    /// Exit code 0: all lines have a verdict, whichever; 64: bad settings, or a contract with problems.
    Try(TryArgs),
}

/// Which stream to try, and with which tables.
#[derive(Debug, Clone, clap::Args)]
pub struct TryArgs {
    /// Name of the stream.
    pub stream: String,
    /// Fill a reference table of the stream from a file with one JSON object per line; may be repeated.
    #[arg(long, value_name = "TABLE=FILE")]
    pub table: Vec<TableFile>,
    /// Judge event times as if the readings were received at this time: a date, or an age, such as 0s for now.
    ///
    /// Without it event times are not judged: only the bridge knows when a reading was received.
    #[arg(long, value_name = "TIME", value_parser = values::time_ms)]
    pub received: Option<i64>,
}

/// A reference table and the file of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableFile {
    pub(crate) table: String,
    pub(crate) file: PathBuf,
}

impl FromStr for TableFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (table, file) = text.split_once('=').ok_or_else(|| format!("{text:?} is not TABLE=FILE"))?;
        Ok(Self { table: table.to_owned(), file: file.into() })
    }
}

impl AsRef<ServiceArgs> for Args {
    fn as_ref(&self) -> &ServiceArgs {
        &self.service
    }
}

impl Args {
    /// The defaults, for this log and this key file.
    pub fn new(log: LogUrl, pseudonym_key_file: PathBuf) -> Self {
        let key_file = [("--pseudonym-key-file", pseudonym_key_file.as_os_str())];
        Self { log: LogArgs::new(log), ..settings::defaults(&key_file) }
    }

    /// What is wrong with the plain settings.
    pub(crate) fn problems(&self) -> Vec<String> {
        let (log, registry) = (self.log.problems(), self.schema_registry.problems());
        let event_time = [self.event_time.problems(), self.cars.problems(&self.event_time)].concat();
        [log, registry, event_time, self.pipeline.problems(), self.snapshots.problems()].concat()
    }

    pub(crate) fn pseudonym_key(&self) -> Result<PseudonymKey, String> {
        let Some(path) = &self.pseudonym_key_file else {
            return Err(
                "--pseudonym-key-file is missing: the site's secret key, made once with: openssl rand -hex 32 > FILE"
                    .into(),
            );
        };
        PseudonymKey::from_file(path).map_err(|error| format!("--pseudonym-key-file {}: {error}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_files_that_cannot_be_used_say_why() {
        let directory = tempfile::tempdir().unwrap();
        let short = directory.path().join("short");
        std::fs::write(&short, "too short\n").unwrap();
        let problem = |path: PathBuf| Args::new("log".parse().unwrap(), path).pseudonym_key().unwrap_err();
        assert!(problem(short).contains("at least 16 bytes, this one has 9"));
        assert!(problem(directory.path().join("none")).contains("made once for all its stages with: openssl rand"));
        let mut args = Args::new("log".parse().unwrap(), "key".into());
        args.pseudonym_key_file = None;
        assert!(args.pseudonym_key().unwrap_err().contains("is missing"));
    }

    #[test]
    fn a_car_is_known_for_as_long_as_its_repeats_are_in_the_window() {
        let mut args = Args::new("log".parse().unwrap(), "key".into());
        assert_eq!(args.problems(), [""; 0]);
        args.cars.forget.forget_after = "30d".parse().unwrap();
        let problems = args.problems();
        assert!(problems.len() == 1 && problems[0].contains("--forget-after 30d: must be at least"), "{problems:?}");
        args.event_time.event_time_ahead = Reach::Any;
        assert_eq!(args.problems(), [""; 0], "there is no such bound");
        args.cars.max_cars_per_partition = 0;
        assert_eq!(args.problems().len(), 1);
    }
}
