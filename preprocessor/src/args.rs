//! Settings.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use event_log::{LogArgs, LogUrl};
use schema_registry::SchemaRegistryArgs;
use service::{ContractArgs, ServiceArgs};
use telemetry::pseudonym::PseudonymKey;

/// Makes clean readings of raw ones: validated, each one once, joined, nothing personal, as Avro.
///
/// Runs every stream of the contract: of the platform's, telemetry.raw becomes telemetry and
/// faults.raw becomes faults. Records that cannot be used go to the stream's dead-letter topic, with
/// the reason.
/// To see what each stream lets out, and where it comes from:
///
///   preprocessor --check
///
/// To run, it needs the site's secret key for pseudonyms:
///
///   openssl rand -hex 32 > site.key
///   preprocessor --log /var/lib/carstream/log --pseudonym-key-file site.key
///
/// What each car has sent already is remembered over restarts, in topic preprocessor.state: a
/// repeat is removed however late it comes. That topic holds VINs, and stays at the edge.
#[derive(Debug, Clone, Parser)]
#[command(name = "preprocessor", version, verbatim_doc_comment)]
pub struct Args {
    /// The log: raw topics are read from it, clean ones and dead letters are written to it.
    #[command(flatten)]
    pub log: LogArgs,

    /// The file with the site's secret key for pseudonyms, at least 16 bytes. The bridge needs the same one.
    #[arg(long, env = "CARSTREAM_PSEUDONYM_KEY_FILE", value_name = "FILE")]
    pub pseudonym_key_file: Option<PathBuf>,

    /// Which streams there are.
    #[command(flatten)]
    pub contract: ContractArgs,

    /// Where schema ids come from.
    #[command(flatten)]
    pub schema_registry: SchemaRegistryArgs,

    /// Check the stream definitions, print what each lets out and where it comes from, and exit.
    #[arg(long)]
    pub check: bool,

    /// The name of this instance: its own for each process, and the same after a restart. Instances share the
    /// partitions. @host is the name of the host, container or pod.
    #[arg(long, env = "CARSTREAM_INSTANCE", default_value = DEFAULT_INSTANCE, value_name = "NAME", value_parser = service::instance_name)]
    pub instance: String,

    /// Commit at the latest after this many records.
    #[arg(long, env = "CARSTREAM_PREPROCESSOR_MAX_RECORDS", default_value_t = DEFAULT_MAX_RECORDS, value_name = "RECORDS")]
    pub max_records: usize,

    /// Commit at the latest this long after the first record of a batch, in milliseconds: shorter for less latency,
    /// longer for less work.
    #[arg(long, env = "CARSTREAM_PREPROCESSOR_MAX_WAIT_MS", default_value_t = DEFAULT_MAX_WAIT_MS, value_name = "MS")]
    pub max_wait_ms: u64,

    /// Write what is remembered of a partition's cars to topic preprocessor.state every so many records: fewer for a
    /// quicker start after a crash, more for less work. A clean stop writes it in any case.
    #[arg(long, env = "CARSTREAM_PREPROCESSOR_SNAPSHOT_RECORDS", default_value_t = pipeline::SNAPSHOT_RECORDS, value_name = "RECORDS")]
    pub snapshot_records: u64,

    /// What every process has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

const DEFAULT_INSTANCE: &str = "1";
/// Enough to make a commit cheap, few enough to hold a few megabytes.
const DEFAULT_MAX_RECORDS: usize = 4096;
const DEFAULT_MAX_WAIT_MS: u64 = 50;

impl AsRef<ServiceArgs> for Args {
    fn as_ref(&self) -> &ServiceArgs {
        &self.service
    }
}

impl Args {
    /// The defaults, for this log and this key file.
    pub fn new(log: LogUrl, pseudonym_key_file: PathBuf) -> Self {
        Self {
            log: LogArgs::new(log),
            pseudonym_key_file: Some(pseudonym_key_file),
            contract: ContractArgs::default(),
            schema_registry: SchemaRegistryArgs::default(),
            check: false,
            instance: DEFAULT_INSTANCE.to_owned(),
            max_records: DEFAULT_MAX_RECORDS,
            max_wait_ms: DEFAULT_MAX_WAIT_MS,
            snapshot_records: pipeline::SNAPSHOT_RECORDS,
            service: ServiceArgs::default(),
        }
    }

    pub(crate) fn max_wait(&self) -> Duration {
        Duration::from_millis(self.max_wait_ms)
    }

    /// What is wrong with the plain settings.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = self.schema_registry.problems();
        if self.max_records == 0 {
            problems.push("--max-records must be at least 1".to_owned());
        }
        if self.snapshot_records == 0 {
            problems.push("--snapshot-records must be at least 1".to_owned());
        }
        if self.instance.trim().is_empty() {
            problems.push("--instance must not be empty".to_owned());
        }
        problems
    }

    pub(crate) fn pseudonym_key(&self) -> Result<PseudonymKey, String> {
        let Some(path) = &self.pseudonym_key_file else {
            return Err(
                "--pseudonym-key-file is missing: the site's secret key, made with `openssl rand -hex 32`".into()
            );
        };
        let shown = path.display();
        let bytes = std::fs::read(path).map_err(|e| format!("cannot read --pseudonym-key-file {shown}: {e}"))?;
        PseudonymKey::from_bytes(&bytes).map_err(|e| format!("--pseudonym-key-file {shown}: {e}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_defaults_are_the_same_in_both_ways() {
        let parsed = Args::try_parse_from(["preprocessor", "--log", "log", "--pseudonym-key-file", "key"]).unwrap();
        assert_eq!(format!("{parsed:?}"), format!("{:?}", Args::new("log".parse().unwrap(), "key".into())));
    }

    #[test]
    fn key_files_that_cannot_be_used_say_why() {
        let directory = tempfile::tempdir().unwrap();
        let short = directory.path().join("short");
        std::fs::write(&short, "too short\n").unwrap();
        let problem = |path: PathBuf| Args::new("log".parse().unwrap(), path).pseudonym_key().unwrap_err();
        assert!(problem(short).contains("at least 16 bytes, this one has 9"));
        assert!(problem(directory.path().join("none")).contains("cannot read --pseudonym-key-file"));
        let mut args = Args::new("log".parse().unwrap(), "key".into());
        args.pseudonym_key_file = None;
        assert!(args.pseudonym_key().unwrap_err().contains("is missing"));
    }
}
