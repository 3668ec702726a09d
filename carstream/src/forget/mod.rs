//! `carstream forget`: a car is forgotten on request, by every stage that knows it.
//!
//! ```text
//!  VIN ─┬─► forget record ─► raw topic of each stream, in the car's partition
//!       │                       └─► preprocessor drops what it knows ─► forget record ─► clean topic, under the
//!       │                                                                pseudonym └─► scorer drops what it knows
//!       └─► tombstone ─► compacted topics that cars publish to (drivers)
//!
//!  forget record of the clean topic, and the one that the scorer puts behind its scores ─► replicator ─► sink notes it
//!      in the lake ─► compaction erases the rows
//! ```
//!
//! The request goes the way of the car's readings, so that each stage meets it after all of them, in the transaction of
//! its position, and in every replay. Nothing is stopped, and nothing else is told.
//!
//! What retention removes by itself stays until then, and is named ([`remains`]).

mod remains;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use contract::{Contract, StreamDefinition};
use event_log::{Error, Log, LogArgs, LogUrl, Range, Record, append_and_wait, batches, partition_for_key, progress};
use service::{ConfigError, ContractArgs, values};
use telemetry::pseudonym::PseudonymKey;
use tokio_util::sync::CancellationToken;

use crate::live::{self, Request};

/// Forget a car: remove it from the state of preprocessor and scorer and from reference tables, while they run, and
/// have its rows erased from the lake.
///
/// For a car that sends no more: one that still sends is known again with its next reading, and what it repeats then is
/// taken for new. The request goes through the log, behind the readings of the car, and each stage carries it out when
/// it gets there. It may be repeated.
///
/// Prints the pseudonym of the car, what is forgotten, and what is still held where and until when. Keep what it
/// prints as you keep personal data: it links a car with its pseudonym.
///
/// Exit code 0: the stages have forgotten the car; 1: not within --wait, and they do so when they get there; 64:
/// settings.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  carstream forget --log kafka://edge:9092 --pseudonym-key-file site.key --vin WVWZZZ1JZXW000001
  carstream forget --log site-log --vin WVWZZZ1JZXW000001
      of a running edge box, which uses its own key")]
pub struct Args {
    /// The log of the edge site.
    #[command(flatten)]
    pub log: LogArgs,
    /// What the site has.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// Read the site's secret key for pseudonyms from this file; a running edge box uses its own.
    #[arg(long, env = "CARSTREAM_PSEUDONYM_KEY_FILE", value_name = "FILE")]
    pub pseudonym_key_file: Option<PathBuf>,
    /// Erase the car's rows under the pseudonym of this former key from the lake, too; may be repeated.
    #[arg(long = "former-key-file", value_name = "FILE")]
    pub former_key_files: Vec<PathBuf>,
    /// Forget the car with this vehicle identification number.
    #[arg(long, value_name = "VIN", value_parser = vin)]
    pub vin: String,
    /// Look for the positions of scorers in this consumer group.
    #[arg(long, env = "CARSTREAM_SCORER_GROUP", value_name = "NAME", default_value = scorer::DEFAULT_GROUP)]
    pub scorer_group: String,
    /// Wait at most this long until the stages have forgotten the car.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::duration)]
    pub wait: Duration,
}

/// How long one append may take.
const APPEND_TIMEOUT: Duration = Duration::from_secs(60);

/// How often to look whether a stage has come further.
const POLL: Duration = Duration::from_millis(200);

/// Records per read while looking for the request in a clean topic.
const READ_RECORDS: usize = 8192;

fn vin(text: &str) -> Result<String, String> {
    let is_vin = !text.is_empty() && text.len() <= 32 && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_vin { Ok(text.to_owned()) } else { Err("must have 1 to 32 letters and digits".to_owned()) }
}

/// Runs `carstream forget`.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || run_blocking(&args, &shutdown)).await.context("the command did not finish")?
}

fn run_blocking(args: &Args, stop: &CancellationToken) -> anyhow::Result<()> {
    let mut problems = args.log.problems();
    let former = args.former_key_files.iter().map(|path| Ok(crate::read_key(path)?.pseudonym(&args.vin)));
    let former: Result<Vec<_>, String> = former.collect();
    let former = former.map_err(|problem| problems.push(problem)).unwrap_or_default();
    ConfigError::check(problems)?;
    let request = Request::Forget { vin: args.vin.clone(), former: former.clone(), wait: args.wait };
    if let Some(answer) = live::ask(&args.log.log, &request, stop)? {
        return answer.print();
    }
    let mut problems = Vec::new();
    problems.extend(crate::missing_log("--log", &args.log.log));
    let contract = args.contract.load().map_err(|more| problems.extend(more.0)).ok();
    let key = match &args.pseudonym_key_file {
        Some(path) => crate::read_key(path).map_err(|problem| problems.push(problem)).ok(),
        None => {
            problems.push("--pseudonym-key-file is missing: the key that the site's preprocessor uses".to_owned());
            None
        }
    };
    ConfigError::check(problems)?;
    let (contract, key) = contract.zip(key).expect("their problems are problems");
    // A log in a directory is ours alone: no stage runs that could get there.
    let wait = if matches!(args.log.log, LogUrl::Directory(_)) { Duration::ZERO } else { args.wait };
    let site = Site { log: &args.log.open()?, contract: &contract, key: &key, scorer_group: &args.scorer_group };
    let done = forget(&site, &args.vin, &former, wait, stop)?;
    print!("{}", done.text);
    done.verdict()
}

/// The edge site that is to forget a car.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// Its log.
    pub log: &'a Arc<dyn Log>,
    /// Its contract.
    pub contract: &'a Contract,
    /// Its key for pseudonyms.
    pub key: &'a PseudonymKey,
    /// The consumer group of its scorer.
    pub scorer_group: &'a str,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// For a person: what is forgotten, and what is still held.
    pub text: String,
    /// Consumer groups that have not come to the request yet.
    pub awaited: Vec<String>,
}

impl Forgotten {
    /// An error, if a stage has not come to the request yet.
    pub fn verdict(&self) -> anyhow::Result<()> {
        if self.awaited.is_empty() {
            return Ok(());
        }
        bail!(
            "not confirmed yet by {}: the request is in the log, and is carried out when the stage gets there; is it \
             running, with the key of this command? Run this command again to see",
            self.awaited.join(", ")
        )
    }
}

/// Asks the stages of a site to forget a car, and waits for them, at most this long; the lake is also to forget it
/// under its former pseudonyms. Blocking.
pub fn forget(
    site: &Site<'_>,
    vin: &str,
    former: &[String],
    wait: Duration,
    stop: &CancellationToken,
) -> anyhow::Result<Forgotten> {
    let (pseudonym, asked_ms) = (site.key.pseudonym(vin), service::now_ms());
    let asked = asked_ms.to_string();
    let mut text = format!("pseudonym of the car: {pseudonym}\n");
    let mut requests = Vec::new();
    for stream in site.contract.streams() {
        // From here on the preprocessor will pass it on.
        let clean = end_of(site.log, &stream.output_topic, &pseudonym)?;
        if end_of(site.log, &stream.input.topic, vin)?.is_some() {
            append(site.log, &stream.input.topic, vin, &[(contract::FORGET, asked.as_bytes())], asked_ms)?;
            requests.push((stream, clean));
        }
    }
    for former in former {
        // No preprocessor makes these any more: behind the last readings of a former key is the end of the topic.
        let _ = writeln!(text, "former pseudonym of the car: {former}");
        for stream in site.contract.streams() {
            if end_of(site.log, &stream.output_topic, former)?.is_some() {
                append(site.log, &stream.output_topic, former, &[(contract::FORGET, asked.as_bytes())], asked_ms)?;
            }
        }
    }
    for topic in remains::tables(site.contract) {
        if end_of(site.log, &topic.name, vin)?.is_some() {
            append(site.log, &topic.name, vin, &[], asked_ms)?;
            let _ = writeln!(text, "removed from {}: its row, once the log has compacted the topic", topic.name);
        }
    }
    let deadline = Instant::now() + wait;
    let mut awaited = Vec::new();
    for (stream, clean) in requests {
        for (group, has_forgotten) in stages(site, stream, clean, &pseudonym, asked.as_bytes(), deadline, stop)? {
            let _ = writeln!(text, "{}: {group}", if has_forgotten { "forgotten by" } else { "not yet by" });
            awaited.extend((!has_forgotten).then_some(group));
        }
    }
    text.push_str(&remains::described(site, asked_ms)?);
    Ok(Forgotten { text, awaited })
}

/// The groups that are to forget a car of this stream, and whether each has.
fn stages(
    site: &Site<'_>,
    stream: &StreamDefinition,
    clean: Option<(u32, u64)>,
    pseudonym: &str,
    asked: &[u8],
    deadline: Instant,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<(String, bool)>> {
    let topic = &stream.output_topic;
    let found = match clean {
        Some((partition, from)) => {
            let is_it = |key: &[u8], header: Option<&[u8]>| key == pseudonym.as_bytes() && header == Some(asked);
            let offset = find(site.log, topic, (partition, from), is_it, deadline, stop)?;
            offset.map(|offset| (partition, offset))
        }
        None => None,
    };
    let mut stages = vec![(stream.group(), found.is_some())];
    if site.contract.models().any(|model| model.readings.name == *topic) {
        let group = site.scorer_group;
        let has_forgotten = match found {
            Some(at) => is_past(site.log, group, topic, at, deadline, stop)?,
            None => false,
        };
        stages.push((group.to_owned(), has_forgotten));
    }
    Ok(stages)
}

/// The partition of a key, and where it ends now; `None`: there is no such topic, and so nothing of the car in it.
fn end_of(log: &Arc<dyn Log>, topic: &str, key: &str) -> Result<Option<(u32, u64)>, Error> {
    let partitions = match log.describe(topic) {
        Ok(described) => described.partitions,
        Err(Error::UnknownTopic { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let partition = partition_for_key(key.as_bytes(), partitions.len() as u32);
    Ok(Some((partition, partitions[partition as usize].next)))
}

/// Appends a record without a value for this key.
fn append(
    log: &Arc<dyn Log>,
    topic: &Arc<str>,
    key: &str,
    headers: &[(&str, &[u8])],
    timestamp_ms: i64,
) -> anyhow::Result<()> {
    let record = Record { key: key.as_bytes(), value: None, headers, timestamp_ms };
    if !append_and_wait(log, topic, &record, APPEND_TIMEOUT)? {
        bail!("{} did not confirm a record of {topic}: run this command again", log.url());
    }
    Ok(())
}

/// The offset of the request in a partition of a clean topic, from `from` on.
fn find(
    log: &Arc<dyn Log>,
    topic: &Arc<str>,
    (partition, mut from): (u32, u64),
    is_it: impl Fn(&[u8], Option<&[u8]>) -> bool,
    deadline: Instant,
    stop: &CancellationToken,
) -> anyhow::Result<Option<u64>> {
    let stopped = || stop.is_cancelled();
    loop {
        let next = log.bounds(topic, partition)?.next;
        if from < next {
            let range = Range { topic: topic.clone(), partition, start: from, end: Some(next) };
            for batch in batches(log, vec![range], READ_RECORDS)?.until(&stopped) {
                let batch = batch?;
                let found = batch.iter().find(|record| is_it(record.key, record.headers.get(contract::FORGET)));
                if let Some(record) = found {
                    return Ok(Some(record.offset));
                }
            }
            from = next;
        }
        if !pause(deadline, stop)? {
            return Ok(None);
        }
    }
}

/// Whether a group has committed the record at an offset.
fn is_past(
    log: &Arc<dyn Log>,
    group: &str,
    topic: &str,
    (partition, offset): (u32, u64),
    deadline: Instant,
    stop: &CancellationToken,
) -> anyhow::Result<bool> {
    let mut ends = vec![0; partition as usize];
    ends.push(offset + 1);
    loop {
        if progress::left(log.as_ref(), log.as_ref(), group, topic, &ends)?.is_empty() {
            return Ok(true);
        }
        if !pause(deadline, stop)? {
            return Ok(false);
        }
    }
}

/// Waits a little, unless the deadline has passed.
fn pause(deadline: Instant, stop: &CancellationToken) -> anyhow::Result<bool> {
    anyhow::ensure!(!stop.is_cancelled(), "stopped before the stages have confirmed; the request is in the log");
    let left = deadline.saturating_duration_since(Instant::now());
    std::thread::sleep(POLL.min(left));
    Ok(!left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vin_is_letters_and_digits() {
        assert_eq!(vin("WVWZZZ1JZXW000001").as_deref(), Ok("WVWZZZ1JZXW000001"));
        assert!(["", "a/b", "a b", &"x".repeat(33)].iter().all(|text| vin(text).is_err()));
    }
}
