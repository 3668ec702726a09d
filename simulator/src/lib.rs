//! A fleet of cars that behave like cars: seeded, physical, with networks that come and go.
//!
//! ```text
//! seed, index ─► Car ─► readings ─┬─► queue ─► MQTT 3.1.1, QoS 1 ─► bridge        (run)
//!                  │              │              │
//!                  └─► findings ──┘              └─► ledger: what became of each reading
//!                                 └─► NDJSON or Parquet                           (generate)
//! ```
//!
//! [`car`] is pure: the same seed and index give the same readings in any process. The network decides when and how
//! often a reading is sent, never which readings exist. So a killed run can be resumed: readings with an unknown
//! outcome are measured and sent again, with the same bytes.
//!
//! What it deliberately does not do: QoS 0 and 2, MQTT 5.

pub mod args;
pub mod car;
mod client;
mod fleet;
mod generate;
mod ledger;
mod metrics;
mod output;
mod parquet_file;
mod payload;
mod random;
mod samples;
mod start;

use std::sync::Arc;

use anyhow::ensure;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use args::{Args, Command, FleetArgs, Format, GenerateArgs, MAX_SPEEDUP, RunArgs};
pub use car::{Car, Fault, FaultKind, Reading};
pub use fleet::{Breaker, fleet};
pub use generate::generate;
pub use metrics::Metrics;
pub use payload::{Breakage, write_broken, write_driver, write_finding, write_reading};

use client::{Link, Shared, Tls, Totals};
use ledger::{Earlier, End, Ledger, Rows};

/// What a fleet did. Every reading is acknowledged, unacknowledged or dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Readings taken.
    pub readings: u64,
    /// Readings that were sent at least once.
    pub sent: u64,
    /// Readings that the server acknowledged.
    pub acknowledged: u64,
    /// Readings that the server had not acknowledged at the end, sent or not.
    pub unacknowledged: u64,
    /// Readings dropped because a car's buffer was full.
    pub dropped: u64,
    /// Readings among all whose payload was broken on purpose.
    pub broken: u64,
    /// Publishes that were repeated because their acknowledgement was lost.
    pub duplicates_sent: u64,
    /// Alerts that cars received.
    pub alerts_received: u64,
    /// What the workshops found, by time; in the run's event time.
    pub faults: Vec<Fault>,
    /// Findings that the server did not acknowledge.
    pub faults_unacknowledged: u64,
    /// Whether all readings of the span were taken, rather than the run being stopped before its end.
    pub covered: bool,
}

/// What the binary does: drive the fleet, or write its readings.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let run = match args.command {
        Some(Command::Generate(args)) => {
            return tokio::task::spawn_blocking(move || generate(&args, &shutdown)).await?;
        }
        Some(Command::Run(run)) => run,
        None => args.run,
    };
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let (service, readiness) = (run.service.clone(), [metrics.readiness.clone()]);
    let drive = async { tell(&run_with(run, metrics, shutdown).await?) };
    service::with_admin(&service, registry, &readiness, drive).await
}

/// Drives the fleet until its span is covered or `shutdown` is cancelled, then waits for the acknowledgements that are
/// still to come, as long as the settings allow. With `--resume` the summary counts what earlier runs did, too, as far
/// as the ledger tells.
///
/// # Errors
/// [`service::ConfigError`] for settings that cannot work, a ledger of another fleet among them; a ledger that cannot
/// be read or written. Waits for a missing server.
pub async fn run_with(mut args: RunArgs, metrics: Metrics, shutdown: CancellationToken) -> anyhow::Result<Summary> {
    let mut problems = args.problems();
    let contract = args.contract.load().map_err(|error| problems.extend(error.0));
    service::ConfigError::check(problems)?;
    args.decide_start();
    let samples = contract.map(|contract| samples::of_contract(&contract)).unwrap_or_default();
    let tls = Tls::new(&args).map_err(|problem| service::ConfigError(vec![problem]))?;
    let stop = shutdown.child_token();
    let (rows, mut ledger, mut earlier) = match open_ledger(&args, stop.clone()).await? {
        Some((rows, ledger, earlier)) => (Some(rows), Some(ledger), earlier),
        None => (None, None, None),
    };
    let fleet_args = args.fleet.clone();
    let cars = args.fleet.cars;
    tracing::info!("{cars} cars send to {}", args.mqtt);
    let shared = Arc::new(Shared::new(args, samples, tls, metrics, rows, earlier.as_ref(), stop));
    if let Some(warning) = start::warning(&fleet_args, shared.start_ms, service::now_ms()).filter(|_| !shared.finished)
    {
        tracing::warn!("{warning}");
    }
    let tasks = TaskTracker::new();
    for (car, number) in fleet(&fleet_args).zip(0..) {
        let rows = earlier.as_mut().map(|earlier| earlier.cars.remove(&car.vin_bytes()).unwrap_or_default());
        tasks.spawn(Link::new(Arc::clone(&shared), car, number, rows.map(Box::new)).run());
    }
    let other_cars = earlier.map_or(0, |earlier| earlier.cars.len());
    tasks.close();
    tasks.wait().await;
    let totals = shared.totals();
    // The last sender of rows goes with it, and the writer ends.
    drop(shared);
    if let Some(ledger) = &mut ledger {
        ledger.written().await?;
    }
    ensure!(totals.cars == cars, "{} of {cars} cars ended by a panic", cars - totals.cars);
    ensure!(
        totals.foreign_rows == 0 && other_cars == 0,
        "the ledger has {} rows of readings, and {other_cars} cars, that this fleet never had: was it written by \
         another version of the simulator?",
        totals.foreign_rows
    );
    let complete = totals.caught_up == cars;
    let summary = summary(totals, cars);
    if let Some(ledger) = ledger {
        let unacknowledged = summary.unacknowledged + summary.faults_unacknowledged;
        ledger.ended(End { complete, covered: summary.covered, unacknowledged })?;
    }
    Ok(summary)
}

async fn open_ledger(
    args: &RunArgs,
    failed: CancellationToken,
) -> anyhow::Result<Option<(Rows, Ledger, Option<Earlier>)>> {
    let Some(path) = args.ledger.clone() else { return Ok(None) };
    let (fleet, resume) = (args.fleet.clone(), args.resume);
    let (rows, ledger, earlier) =
        tokio::task::spawn_blocking(move || Ledger::open(&path, &fleet, resume, failed)).await??;
    if let Some(earlier) = &earlier {
        let Totals { acknowledged, dropped, .. } = earlier.totals;
        tracing::info!("resuming after {acknowledged} acknowledged and {dropped} dropped readings");
    }
    Ok(Some((rows, ledger, earlier)))
}

fn summary(totals: Totals, cars: u32) -> Summary {
    let mut faults = totals.faults;
    faults.sort_by(|a, b| (a.began_ms, &a.vin).cmp(&(b.began_ms, &b.vin)));
    Summary {
        readings: totals.readings,
        sent: totals.sent,
        acknowledged: totals.acknowledged,
        unacknowledged: totals.unacknowledged,
        dropped: totals.dropped,
        broken: totals.broken,
        duplicates_sent: totals.repeated,
        alerts_received: totals.alerts,
        faults,
        faults_unacknowledged: totals.unreported_faults,
        covered: totals.covered == cars,
    }
}

/// Says what a run did. The error: it was not stopped, and yet not everything is acknowledged.
fn tell(summary: &Summary) -> anyhow::Result<()> {
    let Summary { readings, acknowledged, unacknowledged, dropped, duplicates_sent, alerts_received, .. } = summary;
    let faults = summary.faults.len();
    tracing::info!(
        "{readings} readings: {acknowledged} acknowledged, {unacknowledged} not, {dropped} dropped; \
         {duplicates_sent} publishes repeated, {alerts_received} alerts, {faults} faults"
    );
    let findings = summary.faults_unacknowledged;
    if *unacknowledged > 0 || findings > 0 {
        let left = format!("{unacknowledged} readings and {findings} workshop findings were not acknowledged");
        ensure!(!summary.covered, "{left} within --drain-timeout; --ledger with --resume sends them again");
        tracing::warn!("{left} before the run was stopped");
    }
    Ok(())
}
