//! An edge site in one process, for a small box without Docker or Java.
//!
//! ```text
//!  cars ─MQTT─► bridge ─► ┌─────────── one embedded log ───────────┐ ─► replicator ─► the cloud's log, if there is one
//!    ▲                    │ telemetry.raw ─► telemetry ─► scores   │
//!    └────── alerts ◄──── └──── preprocessor ───── scorer ─────────┘
//! ```
//!
//! The same stages as in the binaries, over one log. If the bridge, the preprocessor or the scorer fails, the process
//! ends with its error, after the others have drained; a supervisor starts it again, and everything resumes from the
//! log. There is no state outside the log, so kill -9 at any moment costs only the repeats of unacknowledged readings.
//!
//! What is wrong in the cloud does not stop the cars. Without an uplink only the replicator stalls. If the cloud
//! refuses what it sends, it is started again and again, and the site goes on without it. It resumes once that is put
//! right: the log keeps what is not copied, as long as its disk has room.

mod args;
mod log_metrics;

use std::time::Duration;

use mqtt_bridge::Bridge;
use prometheus_client::registry::Registry;
use service::ConfigError;
use tokio_util::sync::CancellationToken;

pub use args::Args;

use self::log_metrics::LogMetrics;
use crate::live;
use crate::stage::RunningStage;

/// Before the replicator is started again. Twice as long each time, so that the log output stays readable.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Runs the site until shutdown, with the metrics of all stages at one admin port; then drains stage by stage in the
/// order of the flow.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    args.check()?;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let ready =
        [&metrics.bridge.readiness, &metrics.preprocessor.pipeline.readiness, &metrics.scorer.pipeline.readiness]
            .into_iter()
            .chain(args.replicator().is_some().then_some(&metrics.replicator.pipeline.readiness));
    let ready: Vec<_> = ready.cloned().collect();
    service::with_admin(&args.service, registry, &ready, run_with(&args, metrics, shutdown)).await
}

/// Metrics of all stages, on one registry.
struct Metrics {
    log: LogMetrics,
    bridge: mqtt_bridge::Metrics,
    preprocessor: preprocessor::Metrics,
    scorer: scorer::Metrics,
    replicator: replicator::Metrics,
}

impl Metrics {
    fn new(registry: &mut Registry) -> Self {
        Self {
            log: LogMetrics::new(registry),
            bridge: mqtt_bridge::Metrics::new(registry),
            preprocessor: preprocessor::Metrics::new(registry),
            scorer: scorer::Metrics::new(registry),
            replicator: replicator::Metrics::new(registry),
        }
    }
}

async fn run_with(args: &Args, metrics: Metrics, shutdown: CancellationToken) -> anyhow::Result<()> {
    tracing::info!("{}", args.described());
    // Held to the end, so that no stage closes the log that the next one drains.
    let log = args.log().open()?;
    metrics.log.watch(&log);
    let commands = CancellationToken::new();
    let answering = tokio::spawn(live::serve(args.site(log.clone())?, commands.clone()));
    let ended = CancellationToken::new();
    let bridge = Bridge::bind(args.bridge(), metrics.bridge).await?;
    let (preprocessor, scorer) = (args.preprocessor(), args.scorer());
    // In the order of the flow.
    let mut stages = vec![
        RunningStage::start("mqtt-bridge", &ended, |stop| bridge.serve(stop)),
        RunningStage::start("preprocessor", &ended, |stop| {
            preprocessor::run_with(preprocessor, metrics.preprocessor, stop)
        }),
        RunningStage::start("scorer", &ended, |stop| scorer::run_with(scorer, metrics.scorer, stop)),
    ];
    if let Some(replicator) = args.replicator() {
        stages
            .push(RunningStage::start("replicator", &ended, |stop| keep_copying(replicator, metrics.replicator, stop)));
    }
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = ended.cancelled() => {}
    }
    let drained = drain(stages).await;
    commands.cancel();
    let _ = answering.await;
    drop(log);
    drained?;
    tracing::info!("stopped: everything accepted is in the log");
    Ok(())
}

/// Runs the replicator, and runs it again when it fails: what the cloud refuses is put right there, and not by a site
/// that takes no readings meanwhile.
async fn keep_copying(
    args: replicator::Args,
    metrics: replicator::Metrics,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut pause = FIRST_PAUSE;
    loop {
        let Err(error) = replicator::run_with(args.clone(), metrics.clone(), stop.clone()).await else { return Ok(()) };
        if stop.is_cancelled() || error.downcast_ref::<ConfigError>().is_some() {
            return Err(error);
        }
        tracing::error!(
            "the replicator failed, and the site goes on without it; starting it again in {pause:?}: {error:#}"
        );
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return Ok(());
        }
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Drains all stages, whatever becomes of each. The error: that of the stage that had failed before.
async fn drain(stages: Vec<RunningStage>) -> anyhow::Result<()> {
    let failed = stages.iter().find(|stage| stage.is_finished()).map(|stage| stage.name);
    let mut result = Ok(());
    for stage in stages {
        let name = stage.name;
        match stage.drain().await {
            Ok(()) => {}
            Err(error) if result.is_ok() || failed == Some(name) => result = Err(error),
            Err(error) => tracing::error!("{error:#}"),
        }
    }
    result
}
