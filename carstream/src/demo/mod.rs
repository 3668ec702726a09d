//! The demo: the whole pipeline in one process, from a car to a verdict.
//!
//! ```text
//!  cars ─MQTT─► bridge ─► edge log ─► preprocessor ─► edge log ─► replicator ─► cloud log ─► sink ─► lake
//!   ▲                                                    │                                            │
//!   └───────────── alerts ◄─────────────────────────── scorer ◄── model, hot-loaded ◄── trainer ◄─────┘
//! ```
//!
//! Every stage is the one that its binary runs, over real sockets, real logs and real files. When the cars have
//! finished, the stages drain in the order of the flow, and the audit holds the cars' ledger against every hop.

mod account;
mod args;
mod detection;
mod directory;
mod live;
mod report;
mod stages;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::Context;
use contract::{Contract, StreamDefinition};
use lake::Lake;
use model::Manifest;
use prometheus_client::registry::Registry;
use service::ServiceArgs;
use tokio_util::sync::CancellationToken;

pub use crate::audit::Ledger;
pub use args::Args;
pub use report::{Alerts, Detection, Latency, Notes, Report};

use crate::audit::{self, Evidence, Flow, Scores, Sources, thousands};
use account::Account;
use directory::RunDirectory;
use live::Live;
use stages::{Metrics, Stages};

/// Between two looks at the stages.
const TICK: Duration = Duration::from_millis(250);

/// A drain takes seconds; a stage that makes no progress for this long is stuck.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// The report of a run that is finished.
#[derive(Debug, Clone)]
pub struct Finished {
    /// For people, as it was printed.
    pub text: String,
    /// For machines: one line.
    pub json: String,
    /// Whether every reading was accounted for.
    pub clean: bool,
}

/// What the run in the directory of `--keep` came to, if it is this one, and finished.
pub fn finished(args: &Args) -> anyhow::Result<Option<Finished>> {
    directory::finished(args)
}

/// Runs the demo to its report, with the metrics of all stages at the admin port if there is one.
///
/// Shutdown ends the cars' sending early; everything else still drains. Such a run, or a killed one, resumes when its
/// directory is given again; a [`finished`] one does not run again.
pub async fn run(args: Args, service: &ServiceArgs, shutdown: CancellationToken) -> anyhow::Result<Report> {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    service::with_admin(service, registry, &[], run_with(args, metrics, shutdown)).await
}

async fn run_with(args: Args, metrics: Metrics, shutdown: CancellationToken) -> anyhow::Result<Report> {
    let directory = RunDirectory::prepare(&args)?;
    let mut live = Live::new();
    live.say(&format!(
        "{} cars for {:?}, {} {}",
        thousands(args.cars.into()),
        args.duration,
        if directory.resumed { "resuming in" } else { "files in" },
        directory.path.display()
    ));
    let mut stages = Stages::start(&args, &directory, metrics).await?;
    let mut remarks = Vec::new();
    if directory.resumed {
        remarks.push("resumed after an interruption: latency and delivered alerts count from then on".into());
    }

    stages.cars_send(&mut live, &shutdown).await?;
    if shutdown.is_cancelled() {
        remarks.push("stopped early: everything sent until then is drained and accounted for".to_owned());
    }
    live.say("the cars have finished; draining stage by stage");
    let trained = stages.drain(&mut live, &mut remarks).await?;
    live.say("comparing the cars' ledger with every hop");
    let alerts_delivered = stages.alerts_delivered();
    drop(stages);

    let blocking = {
        let (args, directory, trained) = (args.clone(), directory.clone(), trained.clone());
        let handle = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || settle(&args, &directory, trained.as_ref(), &handle))
    };
    let mut report = blocking.await.context("the account did not finish")??;
    report.notes.remarks.splice(0..0, remarks);
    report.notes.alerts.delivered = alerts_delivered;
    directory.keep_report(&report, !shutdown.is_cancelled())?;
    live.finish();
    Ok(report)
}

/// What the demo needs to know of a training.
#[derive(Debug, Clone)]
pub(crate) struct Trained {
    pub(crate) version: String,
    pub(crate) rows: u64,
    /// False alarms per car and day that the threshold was set for, and the car-days that it was set with.
    pub(crate) wanted_alarms: (f64, f64),
    /// Wall clock when the scorer had it in force and had caught up, if it has.
    pub(crate) in_force_ms: Option<i64>,
    /// Where the training range ended, by partition of the cloud's telemetry topic.
    pub(crate) until: HashMap<u32, u64>,
}

impl Trained {
    /// From a model that learnt from the topic `readings`.
    fn of(manifest: &Manifest, readings: &str) -> Self {
        let (training, metrics) = (&manifest.training, &manifest.metrics);
        let ranges = training.ranges.iter().filter(|range| range.topic == readings);
        Self {
            version: manifest.version.clone(),
            rows: training.rows,
            wanted_alarms: (metrics.wanted_alarms_per_car_day, metrics.validation.car_days),
            in_force_ms: None,
            until: ranges.map(|range| (range.partition, range.end)).collect(),
        }
    }
}

/// Reads every hop from its beginning and makes the report.
fn settle(
    args: &Args,
    directory: &RunDirectory,
    trained: Option<&Trained>,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<Report> {
    let (edge, cloud, lake) = (directory.edge().open()?, directory.cloud().open()?, Lake::open(&directory.lake())?);
    let contract = &directory.contract;
    let sources_of = |stream: &str| -> anyhow::Result<Sources> {
        let flow = Flow::of(contract, stream)?;
        Ok(Sources::of(contract, flow, Some(edge.clone()), Some(cloud.clone()), Some(lake.clone())))
    };
    let mut sources = sources_of(contract::READINGS)?;
    sources.scores = if trained.is_some() { Scores::Yes } else { Scores::No };
    let evidence = Evidence { ledgers: vec![directory.ledger()], key: Some(directory.key()?) };
    let audit = audit::audit_on(&sources, &evidence, runtime, &CancellationToken::new())?;

    // Further streams of the site are in no ledger; the cars' own numbering shows gaps and repeats.
    let mut streams = BTreeMap::new();
    let is_further = |stream: &&StreamDefinition| Contract::builtin().stream(&stream.name).is_none();
    for stream in contract.streams().filter(is_further) {
        let evidence = Evidence { ledgers: Vec::new(), ..evidence.clone() };
        let audit = audit::audit_on(&sources_of(&stream.name)?, &evidence, runtime, &CancellationToken::new())?;
        streams.insert(stream.name.clone(), audit);
    }

    let mut account = Account::open(contract, &directory.ledger(), &directory.key()?)?;
    account.note_training(&cloud, trained.map_or(&HashMap::new(), |trained| &trained.until))?;
    account.note_scores(&edge)?;
    let judged = detection::judge(&account, &cloud, trained)?;
    let hours = args.duration.as_secs_f64() * f64::from(args.speedup) / 3600.0;
    let headline = format!(
        "{} cars, seed {}, {:?} at {} times the speed of life: {hours:.0} hours of driving and parking",
        thousands(args.cars.into()),
        args.seed,
        args.duration,
        thousands(args.speedup.into())
    );
    Ok(Report {
        seed: args.seed,
        cars: args.cars,
        ledger: audit.ledger,
        streams: streams.iter().map(|(name, audit)| (name.clone(), audit.ledger)).collect(),
        detection: judged.detection,
        latency_ms: judged.latency,
        directory: directory.path.clone(),
        notes: Notes {
            headline,
            model: trained.map(|t| t.version.clone()),
            trained_rows: trained.map_or(0, |t| t.rows),
            wanted_alarms: trained.map_or((0.0, 0.0), |t| t.wanted_alarms),
            alerts: judged.alerts,
            remarks: audit.notes.clone(),
            audit,
            streams,
        },
    })
}
