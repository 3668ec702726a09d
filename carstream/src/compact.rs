//! `carstream compact`: the many small objects of closed days become few large ones, without the rows of cars that
//! asked to be forgotten.
//!
//! How, and why a crash or a second compaction is harmless: [`lake::Lake::compact`].

use std::time::Duration;

use chrono::{DateTime, NaiveDate};
use contract::Contract;
use lake::{Days, Lake, LakeArgs, LakeUrl};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use service::{ConfigError, ContractArgs, Readiness, Registrar, ServiceArgs, Waiting, values};
use tokio_util::sync::CancellationToken;

/// Merges the small objects of closed days in the lake into large ones, each row exactly once, and erases from closed
/// days the rows of cars that asked to be forgotten.
///
/// A large object is created, read back and compared; then the small ones are removed. Sinks and readers may run
/// meanwhile, and so may a second compaction; it may be killed at any moment. The trainer and the audit count each row
/// once at any time. Other programs may see rows twice between the creation and the removal, never a row less.
///
/// A request to forget a car (`carstream forget`) is noted in the lake by the sink. An object that holds rows of the
/// car is replaced by one of the same range without them; others stay as they are.
///
/// Needs the permission to delete objects.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  carstream compact --lake s3://lake
      once, all closed days of all topics
  carstream compact --lake s3://lake --every 1h
      as a service, beside the sink")]
pub struct Args {
    /// The lake.
    #[command(flatten)]
    pub lake: LakeArgs,
    /// What the site has.
    #[command(flatten)]
    pub contract: ContractArgs,
    /// Compact only this topic; may be repeated; without it, all that the contract has for the lake.
    #[arg(long = "topic", env = "CARSTREAM_COMPACT_TOPICS", value_name = "TOPIC")]
    pub topics: Vec<String>,
    /// Repeat it after this time; without it, compact once.
    #[arg(long, env = "CARSTREAM_COMPACT_EVERY", value_name = "DURATION", value_parser = values::positive_duration)]
    pub every: Option<Duration>,
    /// Leave a day alone until this long after its end, by UTC, so that sinks that are late have written it.
    #[arg(long, env = "CARSTREAM_COMPACT_AFTER", value_name = "DURATION", default_value = DEFAULT_AFTER,
        value_parser = values::duration)]
    pub after: Duration,
    /// What every process has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

const DEFAULT_AFTER: &str = "6h";

/// Bytes of small objects that become a large one: about two million readings. Bounds the memory.
const TARGET_BYTES: u64 = 128 << 20;

/// The pause after a failure of the lake, with `--every`.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// Handles of the metrics.
#[derive(Debug, Clone)]
struct Metrics {
    created: Counter,
    removed: Counter,
    erased: Counter,
    readiness: Readiness,
}

impl Metrics {
    fn new(registry: &mut Registry) -> Self {
        let mut m = Registrar::new(registry, "compact");
        Self {
            created: m.metric("objects_created", "Large objects created"),
            removed: m.metric("objects_removed", "Objects removed, since another one has taken their place"),
            erased: m.metric("rows_erased", "Rows erased, since their cars asked to be forgotten"),
            readiness: Readiness::default(),
        }
    }
}

impl Args {
    /// The topics to compact. All settings that cannot work are reported together.
    fn check(&self) -> Result<Vec<String>, ConfigError> {
        let mut problems = self.lake.problems();
        if let LakeUrl::Directory(path) = &self.lake.lake {
            problems.extend(service::missing_directory("--lake", path));
        }
        let contract = self.contract.load().map_err(|more| problems.extend(more.0));
        let contract = contract.unwrap_or_else(|()| Contract::builtin().clone());
        let known: Vec<_> = contract.lake_topics().map(|topic| topic.name.to_string()).collect();
        for unknown in self.topics.iter().filter(|topic| !known.contains(topic)) {
            let known = known.join(", ");
            problems.push(format!("--topic: {unknown:?} is not for the lake; the contract has: {known}"));
        }
        ConfigError::check(problems)?;
        Ok(if self.topics.is_empty() { known } else { self.topics.clone() })
    }
}

/// Runs `carstream compact`.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let topics = args.check()?;
    let lake = args.lake.open()?;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let readiness = [metrics.readiness.clone()];
    // Whatever it is at, it may end there.
    let work = async { shutdown.run_until_cancelled(repeat(&args, &lake, &topics, &metrics)).await.unwrap_or(Ok(())) };
    service::with_admin(&args.service, registry, &readiness, work).await
}

async fn repeat(args: &Args, lake: &Lake, topics: &[String], metrics: &Metrics) -> anyhow::Result<()> {
    let mut waiting = Waiting::new(format!("the lake {}", lake.url())).with_readiness(&metrics.readiness);
    metrics.readiness.started();
    loop {
        let compacted = once(lake, topics, &closed_days(args.after), metrics).await;
        let pause = match (compacted, args.every) {
            (Ok(()), None) => return Ok(()),
            (Ok(()), Some(every)) => {
                waiting.resolved();
                every
            }
            (Err(error), Some(every)) if error.is_retriable() => {
                waiting.note(&error);
                RETRY_PAUSE.min(every)
            }
            (Err(error), _) => return Err(error.into()),
        };
        tokio::time::sleep(pause).await;
    }
}

/// When the day of a time is closed, unless `--after` says otherwise.
pub(crate) fn closes_ms(time_ms: i64) -> i64 {
    const DAY_MS: i64 = 24 * 3600 * 1000;
    let after = values::duration(DEFAULT_AFTER).map_or(0, |after| after.as_millis() as i64);
    (time_ms - time_ms.rem_euclid(DAY_MS)).saturating_add(DAY_MS + after)
}

/// The days that ended that long ago or longer.
fn closed_days(after: Duration) -> Days {
    let closed_ms = service::now_ms().saturating_sub(i64::try_from(after.as_millis()).unwrap_or(i64::MAX));
    let open = DateTime::from_timestamp_millis(closed_ms).and_then(|time| time.date_naive().pred_opt());
    NaiveDate::MIN..=open.unwrap_or(NaiveDate::MIN)
}

async fn once(lake: &Lake, topics: &[String], days: &Days, metrics: &Metrics) -> Result<(), lake::Error> {
    for topic in topics {
        let done = lake.compact(topic, contract::CAR, days, TARGET_BYTES).await?;
        metrics.created.inc_by(done.created);
        metrics.removed.inc_by(done.removed);
        metrics.erased.inc_by(done.erased);
        for left in &done.left {
            tracing::warn!("left as it is in {}: {left}", lake.url());
        }
        if done.created + done.removed > 0 {
            println!(
                "{topic}: {} objects with {} rows created, {} objects removed, {} rows erased",
                done.created, done.rows, done.removed, done.erased
            );
        }
    }
    Ok(())
}
