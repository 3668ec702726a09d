//! Model to scores and alerts.
//!
//! ```text
//!                     topic models, lake; or --model DIR
//!                                  │
//!                               models    a newer one is loaded and checked beside the scoring; what it makes of the
//!                                  │      readings is prepared, and takes over partition by partition
//!                                  ▼
//!  telemetry ──► pipeline::run( Scoring ) ──► scores, alerts      outputs and positions in one transaction
//!                                  └────────► scorer.dead-letter
//! ```
//!
//! A car's state (running means, windows, smoothed residuals) is a function of the model and of its readings. It is put
//! into snapshots on topic `scorer.state`; whenever a partition is assigned or a commit is rolled back, the loop
//! restores the newest one and replays the partition from there up to the committed position. So a score never depends
//! on when a process was started or stopped.
//!
//! The state of a newer model comes from all readings that are still held. It is prepared beside the one in force,
//! which scores on; the transaction that completes its first snapshot is the switch. A snapshot contains its model: so
//! the newest one says which model a partition is scored with, over restarts and on any instance.
//!
//! The scorer needs its log and a model, and nothing else: no cloud, no lake with `--model`.

pub mod alerts;
mod args;
pub mod cars;
mod metrics;
mod models;
mod state;
mod transform;

use std::sync::Arc;

use anyhow::Context;
use contract::{Contract, ModelDefinition, Problem, Topic};
use event_log::Log;
use lake::Lake;
use model::Model;
use schema_registry::SchemaSource;
use service::{ConfigError, Waiting};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

pub use args::{Args, DEFAULT_GROUP};
pub use metrics::{Metrics, ModelInForce};
use models::{ModelFollower, Models};
use transform::Scoring;

/// The model that this program scores with: the key of its announcements.
pub const MODEL_NAME: &str = "telemetry-anomaly";

/// What was decided about partitions that had stopped.
const GAPS: &str = contract::own::GAPS;

/// What a scorer without one waits for.
const A_MODEL: &str = "a model";

/// Runs the stage as a process does: with its admin port.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    service::stage(args, shutdown, Metrics::new, |metrics| &metrics.pipeline.readiness, run_with).await
}

/// Runs the stage until shutdown, then scores what the log holds by then, within [`Args::drain`].
///
/// [`service::ConfigError`]: settings that cannot work, a fixed model that cannot be used among them.
pub async fn run_with(args: Args, metrics: Metrics, shutdown: CancellationToken) -> anyhow::Result<()> {
    args.check()?;
    let fixed = args.model.as_deref().map(models::load_directory).transpose()?;
    // No other process can fill it: an embedded log serves one.
    ConfigError::check(args.log.log.directory().and_then(|path| service::missing_directory("--log", path)))?;
    let log = args.log.open()?;
    let models = match (fixed, &args.cloud.log) {
        (Some(model), _) => ModelSource::Fixed(Box::new(model)),
        (None, Some(url)) if url != log.url() => {
            let log = event_log::open(url, &args.cloud.kafka_options)?;
            ModelSource::Announced { log, lake: args.lake.open()? }
        }
        (None, _) => ModelSource::Announced { log: log.clone(), lake: args.lake.open()? },
    };
    run_on(&args, log, models, metrics, shutdown).await
}

/// Where the scorer has its model from.
#[derive(Debug)]
pub enum ModelSource {
    /// This one, whatever is announced.
    Fixed(Box<Model>),
    /// The one that topic `models` of this log announces last, from this lake.
    Announced {
        /// The log.
        log: Arc<dyn Log>,
        /// The lake.
        lake: Lake,
    },
}

/// Like [`run_with`], on a log and with models that are open already: for tests and to inject faults.
pub async fn run_on(
    args: &Args,
    log: Arc<dyn Log>,
    models: ModelSource,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    args.check()?;
    let contract = args.contract.load()?;
    let place = place_of_model(&contract)?;
    // Before it waits for a model or a registry: retention is to keep what will be scored.
    log.keep_for(&args.scorer_group, &place.readings.name, &[])?;
    let uses = [&place.readings, &place.scores].map(|topic| (&*topic.name, ModelDefinition::schema(topic)));
    let Some(schemas) =
        args.schema_registry.open(contract.schemas(), &uses, &metrics.pipeline.readiness, &shutdown).await?
    else {
        return Ok(());
    };
    let gaps = contract.expect_topic(GAPS).clone();
    let flow = Flow { place, gaps, schemas };
    match models {
        ModelSource::Fixed(model) => {
            if !ensure_topics(log.clone(), own_topics(&flow), &metrics, &shutdown).await? {
                return Ok(());
            }
            score(args, log, flow, Models::fixed(Arc::new(*model)), metrics, shutdown).await
        }
        ModelSource::Announced { log: announcing, lake } => {
            let topic = flow.place.announcements.name.clone();
            let follower = ModelFollower::new(announcing, topic, lake, metrics.clone(), Handle::current());
            follow_and_score(args, log, flow, follower, metrics, shutdown).await
        }
    }
}

/// Scores with announced models: one task follows the announcements, beside the scoring.
async fn follow_and_score(
    args: &Args,
    log: Arc<dyn Log>,
    flow: Flow,
    follower: ModelFollower,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut topics = own_topics(&flow);
    // In another log it is not the scorer's to make: the follower waits for it.
    if Arc::ptr_eq(&log, follower.log()) {
        topics.push(flow.place.announcements.clone());
    }
    if !ensure_topics(log.clone(), topics, &metrics, &shutdown).await? {
        return Ok(());
    }
    let (stop, models) = (shutdown.child_token(), follower.models());
    let following = {
        let stop = stop.clone();
        spawn_blocking(move || follower.run(&stop))
    };
    let scored = score(args, log, flow, models, metrics, shutdown).await;
    stop.cancel();
    following.await.context("the follower of models panicked")?;
    scored
}

/// Scores until shutdown and the drain after it, from the first model on.
async fn score(
    args: &Args,
    log: Arc<dyn Log>,
    flow: Flow,
    mut models: Models,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let options = loop_options(args, &flow.place, log);
    let readiness = metrics.pipeline.readiness.clone();
    readiness
        .waits_for(pipeline::awaited(&options.topics), format!("scoring in {} has not started", options.source.url()));
    readiness.waits_for(A_MODEL, "none is announced, or none can be loaded yet");
    readiness.started();
    let (log, group, topic) = (&options.source, &options.group, &options.topics[0]);
    metrics.pipeline.begin(topic);
    let _lag = metrics.lag.watch(log, group, topic, &readiness).context("cannot start a thread")?;
    let first = tokio::select! {
        () = shutdown.cancelled() => None,
        first = models.first() => first,
    };
    if first.is_none() {
        return Ok(());
    }
    readiness.available(A_MODEL);
    let stop = CancellationToken::new();
    let mut scoring = {
        let (options, stop, forget_after) = (options.clone(), stop.clone(), args.forget.forget_after);
        spawn_blocking(move || {
            // The wait for the end of the log must not wait for a failed scorer.
            let _ended = stop.clone().drop_guard();
            let mut transform = Scoring::new(models, forget_after, &flow.place, flow.schemas, metrics.clone())?;
            pipeline::run(options, &mut transform, &metrics.pipeline, &stop)
        })
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        scored = &mut scoring => return scored.context("the scoring panicked")?,
    }
    // What the log holds now is scored first, unless the loop ends before.
    let (timeout, ended) = (args.drain.timeout, stop.clone());
    spawn_blocking(move || pipeline::drain(&options, timeout, &ended)).await.context("the drain panicked")?;
    stop.cancel();
    scoring.await.context("the scoring panicked")?
}

fn loop_options(args: &Args, place: &ModelDefinition, log: Arc<dyn Log>) -> pipeline::Options {
    let name = |topic: &Topic| topic.name.clone();
    pipeline::Options {
        source: log.clone(),
        target: log,
        group: args.scorer_group.clone(),
        instance: args.pipeline.instance.clone(),
        topics: vec![name(&place.readings)],
        // Which alerts are open: see `alerts`.
        tables: vec![name(&place.alerts)],
        outputs: vec![name(&place.scores), name(&place.alerts)],
        dead_letter: Some(name(&place.dead_letter)),
        state: Some(name(&place.state)),
        gaps: Some(GAPS.into()),
        accept_gap: args.accept_gap,
        snapshot_records: args.snapshots.snapshot_records,
        max_records: args.pipeline.batch_records,
        max_wait: args.pipeline.batch_wait,
    }
}

/// Which topics are read and written, and with which schemas.
#[derive(Debug, Clone)]
struct Flow {
    place: ModelDefinition,
    /// Decisions about partitions that had stopped.
    gaps: Topic,
    schemas: SchemaSource,
}

/// What of the settings, the contract and a fixed model cannot work.
pub fn problems(args: &Args) -> Vec<String> {
    let checked =
        args.check().and_then(|()| args.model.as_deref().map_or(Ok(()), |m| models::load_directory(m).map(drop)));
    let placed = args.contract.load().and_then(|contract| place_of_model(&contract));
    checked.err().into_iter().chain(placed.err()).flat_map(|error| error.0).collect()
}

/// What keeps the scorer from scoring the topics that the contract names for its model.
pub fn check_contract(contract: &Contract) -> Vec<Problem> {
    let Ok(place) = place_of_model(contract) else { return Vec::new() };
    let schema = |topic: &Topic| contract.schemas().file(ModelDefinition::schema(topic)).expect("parse() has found it");
    let (readings, scores) = (schema(&place.readings), schema(&place.scores));
    let problem = |topic: &Topic, error: anyhow::Error| {
        Problem::of_file(&topic.file, format!("the model {} does not fit topic {}: {error:#}", place.name, topic.name))
    };
    match transform::check_schemas(&readings.arrow, &scores.arrow) {
        Ok(()) => Vec::new(),
        Err(transform::Misfit::Readings(error)) => vec![problem(&place.readings, error)],
        Err(transform::Misfit::Scores(error)) => vec![problem(&place.scores, error)],
    }
}

/// Where the model of this program lives in the flow of the site.
fn place_of_model(contract: &Contract) -> Result<ModelDefinition, ConfigError> {
    let problem =
        || ConfigError(vec![format!("--contract: has no model {0} (models/{0}/model.json)", contract::MODEL)]);
    contract.model(contract::MODEL).cloned().ok_or_else(problem)
}

/// The topics of the log with the readings.
fn own_topics(Flow { place, gaps, .. }: &Flow) -> Vec<Topic> {
    [&place.readings, &place.scores, &place.alerts, &place.dead_letter, &place.state, gaps].map(Topic::clone).into()
}

/// Waits for the log, and ensures that the topics exist. `false`: shut down meanwhile.
async fn ensure_topics(
    log: Arc<dyn Log>,
    topics: Vec<Topic>,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> anyhow::Result<bool> {
    let (shutdown, readiness) = (shutdown.clone(), metrics.pipeline.readiness.clone());
    let ensured = spawn_blocking(move || {
        service::retry_until(
            &shutdown,
            Waiting::new(format!("the log {}", log.url())).with_readiness(&readiness),
            event_log::Error::is_retriable,
            || topics.iter().try_for_each(|topic| ::topics::ensure(log.as_ref(), topic)),
        )
    });
    Ok(ensured.await.context("waiting for the log panicked")??.is_some())
}
