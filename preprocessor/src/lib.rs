//! SQL over the stream: from what cars send to what may leave the edge.
//!
//! ```text
//!               ┌────────────── one loop and one thread per stream ──────────────┐
//!  raw topic ──►│ decode ─► origin ─► event time ─► duplicates ─► SQL ─► Avro    │──► clean topic
//!  table ──────►│  (JSON,   (topic =  (near its     (exactly,     (filter, look  │
//!               │  schema)  key = VIN) receipt)      bounded)      up, coarsen…)  │──► dead letters
//!               └────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A stream is a folder of the contract, not code: input schema, `CREATE STREAM … AS SELECT …`, output schema.
//! A statement that would let out a field tagged as personal, or that could fail on a record, does not start
//! ([`sql`]). Each reading is let through once ([`duplicates`]).
//!
//! What it deliberately does not do: aggregates, windows, joins of two streams; anything that needs more than the one
//! record and a table.

mod args;
mod check;
pub mod duplicates;
mod event_time;
mod metrics;
pub mod reason;
pub mod sql;
mod transform;
pub mod trial;

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context;
use contract::{Contract, Problem, StreamDefinition};
use event_log::{Error, Log};
use prometheus_client::registry::Registry;
use schema_registry::SchemaSource;
use service::{ConfigError, Waiting};
use telemetry::pseudonym::PseudonymKey;
use tokio_util::sync::CancellationToken;

pub use args::{Args, CarsArgs, Command, TableFile, TryArgs};
pub use event_time::{EventTimeArgs, Reach};
pub use metrics::{Metrics, Stream, Table};
pub use transform::Preprocess;

/// What each stream has let through, in snapshots.
const STATE: &str = contract::own::PREPROCESSOR_STATE;

/// What was decided about partitions that had stopped.
const GAPS: &str = contract::own::GAPS;

/// What the binary runs: the streams, and the admin port if one is asked for; or its command.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    if let Some(Command::Try(trial)) = &args.command {
        return trial::run(&args, trial, std::io::stdin().lock(), &mut std::io::stdout().lock());
    }
    service::stage(args, shutdown, Metrics::new, |metrics| &metrics.pipeline.readiness, run_with).await
}

/// Runs all streams until `shutdown`, and then processes what the log holds by then, within [`Args::drain`].
pub async fn run_with(args: Args, metrics: Metrics, shutdown: CancellationToken) -> anyhow::Result<()> {
    let prepared = prepare(&args, &metrics)?;
    // No other process can fill it: an embedded log serves one.
    ConfigError::check(args.log.log.directory().and_then(|path| service::missing_directory("--log", path)))?;
    let log = args.log.open()?;
    run_prepared(args, prepared, log, metrics, shutdown).await
}

/// Like [`run_with`], on a log that is open already: for tests and to inject faults.
pub async fn run_on(
    args: &Args,
    log: Arc<dyn Log>,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let prepared = prepare(args, &metrics)?;
    run_prepared(args.clone(), prepared, log, metrics, shutdown).await
}

async fn run_prepared(
    args: Args,
    prepared: Prepared,
    log: Arc<dyn Log>,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Prepared { contract, mut streams } = prepared;
    // Before it waits for a registry: retention is to keep what will be processed.
    for (definition, _) in &streams {
        log.keep_for(&definition.group(), &definition.input.topic, &[])?;
    }
    let uses: Vec<_> = streams.iter().map(|(d, _)| (&*d.output_topic, &*d.output.file)).collect();
    let Some(schemas) =
        args.schema_registry.open(contract.schemas(), &uses, &metrics.pipeline.readiness, &shutdown).await?
    else {
        return Ok(());
    };
    for (_, transform) in &mut streams {
        transform.use_ids_of(&schemas)?;
    }
    tokio::task::spawn_blocking(move || run_streams(&args, &contract, streams, &log, &metrics, &shutdown))
        .await
        .context("the preprocessor's thread panicked")?
}

/// One stream as text: what it lets out, where that comes from, what stays at the edge. Needs no key.
pub fn explain(stream: &StreamDefinition) -> Result<String, Vec<Problem>> {
    let key = PseudonymKey::from_bytes(&[0; 32]).expect("32 bytes are enough");
    let trial = trial::Trial::new(stream, &key).map_err(|found| trial::located(stream, found))?;
    Ok(check::describe(stream, trial.query()))
}

/// What of the settings, the key, the contract and its statements cannot work.
pub fn problems(args: &Args) -> Vec<String> {
    prepare(args, &Metrics::new(&mut Registry::default())).map_or_else(|error| error.0, |_| Vec::new())
}

/// What is run: it needs a log and, perhaps, the ids of a schema registry.
struct Prepared {
    contract: Contract,
    /// With the ids of the contract.
    streams: Vec<(StreamDefinition, Preprocess)>,
}

/// Everything that can be wrong before a log is opened, told together.
fn prepare(args: &Args, metrics: &Metrics) -> Result<Prepared, ConfigError> {
    let mut problems = args.problems();
    let key = args.pseudonym_key().map_err(|problem| problems.push(problem));
    // Definitions are checked even if there is no key.
    let placeholder = || PseudonymKey::from_bytes(&[0; 32]).expect("32 bytes are enough");
    let planned = plan(args, &key.unwrap_or_else(|()| placeholder()), metrics).map_err(|more| problems.extend(more));
    match planned {
        Ok(prepared) if problems.is_empty() => Ok(prepared),
        _ => Err(ConfigError(problems)),
    }
}

fn plan(args: &Args, key: &PseudonymKey, metrics: &Metrics) -> Result<Prepared, Vec<String>> {
    let contract = args.contract.load().map_err(|error| error.0)?;
    let mut problems = Vec::new();
    if contract.streams().len() == 0 {
        problems.push("--contract: defines no stream".to_owned());
    }
    let mut streams = Vec::new();
    let schemas = SchemaSource::of(contract.schemas().clone());
    for definition in contract.streams() {
        match Preprocess::new(definition, &schemas, key, (args.event_time, args.cars), metrics) {
            Ok(transform) => streams.push((definition.clone(), transform)),
            Err(more) => {
                let more = trial::located(definition, more);
                problems.extend(more.into_iter().map(|problem| args.contract.describe(problem)));
            }
        }
    }
    if problems.is_empty() { Ok(Prepared { contract, streams }) } else { Err(problems) }
}

/// One thread per stream. If one fails the others are stopped, and the first failure is returned.
fn run_streams(
    args: &Args,
    contract: &Contract,
    streams: Vec<(StreamDefinition, Preprocess)>,
    log: &Arc<dyn Log>,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let readiness = &metrics.pipeline.readiness;
    let waiting = Waiting::new(log.url().to_string()).with_readiness(readiness);
    let ensure = || ensure_topics(log.as_ref(), contract, &streams);
    let ensured = service::retry_until(shutdown, waiting, Error::is_retriable, ensure)?;
    if ensured.is_none() {
        return Ok(());
    }
    for (definition, _) in &streams {
        let topics = [definition.input.topic.clone()];
        readiness.waits_for(pipeline::awaited(&topics), format!("its stream in {} has not started", log.url()));
    }
    readiness.started();
    let stop = shutdown.child_token();
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (definition, transform) in streams {
            let (log, stopped) = (log.clone(), stop.clone());
            let name = definition.name.clone();
            let body = move || {
                // Also when it panics.
                let _stop = stopped.clone().drop_guard();
                run_stream(args, &definition, transform, log, metrics, &stopped)
            };
            let thread = std::thread::Builder::new().name(format!("preprocessor-{name}")).spawn_scoped(scope, body);
            match thread {
                Ok(thread) => running.push((name, thread)),
                Err(error) => {
                    stop.cancel();
                    return Err(error).context("cannot start a thread");
                }
            }
        }
        let mut result = Ok(());
        for (name, thread) in running {
            let ended = thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("its thread panicked")));
            if let Err(error) = ended.with_context(|| format!("stream {name}")) {
                result = result.and(Err(error));
            }
        }
        result
    })
}

fn run_stream(
    args: &Args,
    definition: &StreamDefinition,
    mut transform: Preprocess,
    log: Arc<dyn Log>,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let (input, output) = (&definition.input.topic, &definition.output_topic);
    tracing::info!("stream {}: {input} to {output} in {}", definition.name, log.url());
    let group = definition.group();
    let _lag = metrics.lag.watch(&log, &group, input, &metrics.pipeline.readiness).context("cannot start a thread")?;
    let options = pipeline::Options {
        source: log.clone(),
        target: log,
        group,
        instance: args.pipeline.instance.clone(),
        topics: vec![input.clone()],
        tables: transform.table_topics(),
        outputs: vec![output.clone()],
        dead_letter: Some(definition.dead_letter.clone()),
        state: Some(STATE.into()),
        gaps: Some(GAPS.into()),
        accept_gap: args.accept_gap,
        snapshot_records: args.snapshots.snapshot_records,
        max_records: args.pipeline.batch_records,
        max_wait: args.pipeline.batch_wait,
    };
    pipeline::run_and_drain(options, &mut transform, &metrics.pipeline, stop, args.drain.timeout)
}

/// Creates the topics that are missing.
fn ensure_topics(log: &dyn Log, contract: &Contract, streams: &[(StreamDefinition, Preprocess)]) -> Result<(), Error> {
    let mut names: BTreeSet<Arc<str>> = BTreeSet::from([STATE, GAPS].map(Arc::from));
    for (definition, transform) in streams {
        names.extend([&definition.input.topic, &definition.output_topic, &definition.dead_letter].map(Arc::clone));
        names.extend(transform.table_topics());
    }
    names.iter().try_for_each(|name| topics::ensure(log, contract.expect_topic(name)))
}
