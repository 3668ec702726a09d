//! Data to model.
//!
//! ```text
//!  lake or log ──► rows ──► train ──► model: manifest, weights ──┬──► lake: models/NAME/VERSION
//!  (exact ranges)   │       (pure)      └──► plots ──────────────┘         │
//!                   └ hash                                                 └──► announced on topic `models`
//! ```
//!
//! Features, forward pass and score are [`model`]'s, which the scorer uses as well; this crate has what only training
//! needs: exact ranges, splits, the network in Burn and its optimiser, thresholds, metrics, plots.

mod args;
mod evaluate;
mod fit;
mod fleet;
mod metrics;
mod network;
mod plots;
mod report;
mod rows;
mod split;
mod train;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use arrow::array::RecordBatch;
use bytes::Bytes;
use contract::{Contract, ModelDefinition, Problem, Topic};
use event_log::Log;
use model::artefact::TrainingRange;
use model_registry::{Announcement, ModelFiles};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

pub use args::{Args, Command, DEFAULT_NAME, Range, Source};
pub use evaluate::Curves;
pub use fleet::{Car, Fault, Fleet};
pub use metrics::Metrics;
pub use plots::plots;
pub use report::TrainedModel;
pub use rows::{RowSource, TrainingSet};
pub use train::{TooLittle, Trained, train};

/// How often the trainer looks whether there are enough readings.
const POLL_MS: u64 = 1_000;

/// An announcement that is not durable by then has failed.
const ANNOUNCE_TIMEOUT_S: u64 = 30;

/// What keeps the trainer from learning from the topics that the contract names for its model.
pub fn check_contract(contract: &Contract) -> Vec<Problem> {
    let Some(place) = contract.model(contract::MODEL) else { return Vec::new() };
    let empty = |topic: &Topic| {
        let schema = contract.schemas().file(ModelDefinition::schema(topic));
        RecordBatch::new_empty(schema.expect("a contract has the schemas of its topics").arrow.clone())
    };
    let mut fleet = Fleet::default();
    let taken = [
        (&place.readings, fleet.add_readings(&empty(&place.readings))),
        (&place.findings, fleet.add_findings(&empty(&place.findings))),
    ];
    let problem = |(topic, taken): (&Topic, anyhow::Result<()>)| {
        let what = format!("the model {} cannot learn from topic {}: {:#}", place.name, topic.name, taken.err()?);
        Some(Problem::of_file(&topic.file, what))
    };
    taken.into_iter().filter_map(problem).collect()
}

/// Whether a training with this seed learns from that car.
pub fn is_training_car(seed: u64, pseudonym: &str) -> bool {
    split::part(seed, pseudonym) == split::Part::Training
}

/// How good a model's verdicts are on all cars of a fleet.
pub fn detection(model: &model::Model, fleet: &Fleet) -> model::artefact::Detection {
    let cars: Vec<_> = fleet.cars.values().map(|car| evaluate::score(model, car, i64::MIN)).collect();
    evaluate::detection(&cars, &model.manifest().alert, model.manifest().threshold)
}

/// Runs the stage as a process does: with its admin port.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    service::stage(args, shutdown, Metrics::new, |metrics| &metrics.readiness, run_with).await
}

/// Trains once, or repeatedly with `--every`, and prints the results. Ends early at shutdown.
pub async fn run_with(args: Args, metrics: Metrics, shutdown: CancellationToken) -> anyhow::Result<()> {
    let problems = args.check().err().into_iter().flat_map(|error| error.0);
    let missing = args.every.is_none().then(|| args.missing_directories());
    service::ConfigError::check(problems.chain(missing.into_iter().flatten()))?;
    loop {
        let Some(trained) = train_once(&args, &metrics, &shutdown).await? else { return Ok(()) };
        if args.json {
            println!("{}", serde_json::to_string(&trained)?);
        } else {
            print!("{}", trained.report());
        }
        let Some(every) = args.every else { return Ok(()) };
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

/// Waits for enough readings, trains, stores the model and announces it. `None`: shut down meanwhile.
///
/// [`service::ConfigError`]: settings that cannot work.
pub async fn train_once(
    args: &Args,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<TrainedModel>> {
    args.check()?;
    let Some(rows) = RowSource::open(args, &metrics.readiness, shutdown).await? else { return Ok(None) };
    // Read before the training: a contract that is changed meanwhile must not cost the model its announcement.
    let announcements = rows.announcements.clone();
    let lake = args.lake.open()?;
    // Before the wait for readings: a log that another process has open shows now, and not after a training.
    let announcing = (!args.no_announce).then(|| args.log.open()).transpose()?;
    let Some(ranges) = wait_for_ranges(args, &rows, metrics, shutdown).await? else { return Ok(None) };
    let started = Instant::now();
    let Some(trained) = read_and_train(args, rows, ranges, shutdown).await? else { return Ok(None) };
    let manifest = trained.0.model.manifest().clone();
    let files = ModelFiles {
        manifest: Bytes::from(trained.0.manifest),
        weights: Bytes::from(trained.0.weights),
        plots: trained.1.into_iter().map(|(name, png)| (name, Bytes::from(png))).collect(),
    };
    let path = model_registry::put(&lake, &args.name, &manifest.version, &files).await?;
    if let Some(log) = announcing {
        let announcement = Announcement::new(&args.name, &manifest.version, &path, &files.manifest);
        let shutdown = shutdown.clone();
        spawn_blocking(move || announce(log, &announcements, &announcement, &shutdown))
            .await
            .context("announcing panicked")??;
    }
    let seconds = started.elapsed().as_secs_f64();
    metrics.models.inc();
    metrics.rows.inc_by(manifest.training.rows);
    metrics.duration_seconds.set(seconds);
    metrics.auc.set(manifest.metrics.test.auc.unwrap_or_default());
    let name = args.name.clone();
    Ok(Some(TrainedModel { name, version: manifest.version.clone(), path, seconds, manifest }))
}

/// Not enough readings yet.
#[derive(Debug, thiserror::Error)]
#[error("found {found} so far")]
struct TooFew {
    found: u64,
}

/// The ranges to train on, once they hold enough.
async fn wait_for_ranges(
    args: &Args,
    rows: &RowSource,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Vec<lake::OffsetRange>>> {
    let mut waiting = service::Waiting::new(format!("{} readings in {}", args.min_rows.max(1), rows.name()));
    let mut source = service::Waiting::new(rows.name()).with_readiness(&metrics.readiness);
    loop {
        match rows.ranges(args).await {
            Ok((ranges, missing)) => {
                source.resolved();
                metrics.readiness.started();
                let found = rows.count_readings(&ranges);
                metrics.rows_available.set(found as i64);
                // Named ranges are what they are: waiting would not make them longer.
                if found >= args.min_rows.max(1) || !args.ranges.is_empty() {
                    waiting.resolved();
                    for missing in missing {
                        tracing::warn!("training without what is missing in {}: {missing}", rows.name());
                    }
                    return Ok(Some(ranges));
                }
                waiting.note(&TooFew { found });
            }
            Err(error) => match error.downcast_ref::<event_log::Error>() {
                Some(cause) if cause.is_retriable() => source.note(cause),
                _ => return Err(error),
            },
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(POLL_MS)) => {}
            () = shutdown.cancelled() => return Ok(None),
        }
    }
}

/// File names and PNGs.
type Plots = Vec<(String, Vec<u8>)>;

async fn read_and_train(
    args: &Args,
    rows: RowSource,
    ranges: Vec<lake::OffsetRange>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<(Trained, Plots)>> {
    let (args, shutdown) = (args.clone(), shutdown.clone());
    let runtime = tokio::runtime::Handle::current();
    let work = move || {
        let Some(mut set) = runtime.block_on(rows.read(ranges, args.seed, args.max_readings, &shutdown))? else {
            return Ok(None);
        };
        if let Some(strays) = set.fleet.leave_out_strays() {
            tracing::warn!("{strays}");
        }
        let (held, rows, cars) = (set.fleet.held, set.fleet.rows, set.fleet.cars.len());
        if held < rows {
            tracing::info!("--max-readings: {held} of {rows} readings are held, those of {cars} cars");
        }
        tracing::info!("training on {held} readings of {cars} cars");
        let ranges = set.ranges.iter().map(|range| TrainingRange {
            topic: range.topic.clone(),
            partition: range.partition,
            start: range.start,
            end: range.end,
        });
        let Some(trained) = train(&args, &set.fleet, ranges.collect(), set.row_hash, &shutdown)? else {
            return Ok(None);
        };
        let plots = plots::plots(&trained, &set.fleet).context("cannot draw the plots")?;
        Ok(Some((trained, plots)))
    };
    spawn_blocking(work).await.context("the training panicked")?
}

fn announce(
    log: Arc<dyn Log>,
    topic: &Topic,
    announcement: &Announcement,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let ensured =
        service::retry_until(shutdown, format!("the log {}", log.url()), event_log::Error::is_retriable, || {
            topics::ensure(log.as_ref(), topic)
        })?;
    if ensured.is_none() {
        bail!("stopped before model {} was announced; it is in the lake", announcement.version);
    }
    let timestamp_ms = service::now_ms();
    if !announcement.append(&log, &topic.name, timestamp_ms, Duration::from_secs(ANNOUNCE_TIMEOUT_S))? {
        bail!(
            "model {} is in the lake, but the log did not confirm its announcement: train again",
            announcement.version
        );
    }
    Ok(())
}
