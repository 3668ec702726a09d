//! The audit: compares the cars' record of what they sent with every hop, per car and sequence number.
//!
//! ```text
//!  ledgers ──────────────────────────────┐
//!  positions, then ends (extent) ─► every hop, once (tally) ─► judgement (settle) ─┬─► clean
//!                                                                               └─► discrepancies ─► every hop again,
//!                                                                                   for their places (locate)
//! ```
//!
//! Every hop is read from its beginning, from the log or the store itself: a stage's own counters are ignored; only its
//! committed position is used, to distinguish lag from loss. The pipeline may keep running meanwhile.
//!
//! Memory is a few bytes per reading ([`readings`]) and does not depend on how large the readings are. One audit is of
//! one stream of the contract.
//!
//! No VIN is printed: discrepancies name the pseudonym and positions, which is enough for who may read the edge's log.

mod args;
mod cars;
mod discrepancies;
mod erased;
mod extent;
mod flow;
pub(crate) mod ledger;
mod locate;
mod numbers;
pub(crate) mod read;
mod readings;
mod refusals;
mod report;
mod settle;
mod tally;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use contract::{Contract, ModelDefinition};
use event_log::Log;
use lake::Lake;
use schema_registry::{SchemaRegistryArgs, SchemaSource};
use service::{ConfigError, Readiness};
use telemetry::pseudonym::PseudonymKey;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

pub use args::{Args, Scores};
pub use discrepancies::{Discrepancy, Kind};
pub use flow::Flow;
pub use report::{HopReport, Ledger, Report};

pub(crate) use cars::Cars;
pub(crate) use extent::TopicExtent;
pub(crate) use readings::Identity;
pub(crate) use report::thousands;

use extent::{Extents, Unread};
use tally::Tally;

use crate::live;

/// How long to retry a log that does not answer.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_secs(1);

/// What the dead letters are called as a hop.
const DEAD_LETTERS_HOP: &str = "dead-letters";

/// The places where each reading should be, in the order of the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Hop {
    Raw,
    Clean,
    Cloud,
    Lake,
    Scores,
}

impl Hop {
    pub(crate) const ALL: [Hop; 5] = [Hop::Raw, Hop::Clean, Hop::Cloud, Hop::Lake, Hop::Scores];

    /// What tells its positions from those of the same topic elsewhere.
    pub(crate) fn side(self) -> &'static str {
        [" at the edge", " at the edge", " in the cloud", "", " at the edge"][self as usize]
    }

    /// For machines.
    pub(crate) fn key(self) -> &'static str {
        ["raw", "clean", "cloud", "parquet", "scores"][self as usize]
    }
}

/// Where to look. What is not given is left out.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The edge's log: raw, dead letters, clean, scores.
    pub edge: Option<Arc<dyn Log>>,
    /// The cloud's log.
    pub cloud: Option<Arc<dyn Log>>,
    /// The lake.
    pub lake: Option<Lake>,
    /// The stream under audit.
    pub flow: Flow,
    /// Where the schema ids in the logs come from.
    pub schemas: SchemaSource,
    /// Whether scores are a hop.
    pub scores: Scores,
    /// What the edge site is called in the cloud.
    pub site: String,
    /// The scorer's consumer group.
    pub scorer_group: String,
}

impl Sources {
    /// These three, with the platform's contract and the names that the stages have unless told otherwise.
    pub fn new(edge: Option<Arc<dyn Log>>, cloud: Option<Arc<dyn Log>>, lake: Option<Lake>) -> Self {
        let contract = Contract::builtin();
        let flow = Flow::of(contract, contract::READINGS).expect("the platform has the stream of readings");
        Self::of(contract, flow, edge, cloud, lake)
    }

    /// The same for a stream of a contract.
    pub fn of(
        contract: &Contract,
        flow: Flow,
        edge: Option<Arc<dyn Log>>,
        cloud: Option<Arc<dyn Log>>,
        lake: Option<Lake>,
    ) -> Self {
        let (site, scorer_group) = (replicator::DEFAULT_SITE.to_owned(), scorer::DEFAULT_GROUP.to_owned());
        let schemas = SchemaSource::of(contract.schemas().clone());
        Self { flow, edge, cloud, lake, schemas, scores: Scores::Auto, site, scorer_group }
    }

    /// Takes schemas from the site's registry, if it has one.
    pub(crate) async fn open_schemas(
        &mut self,
        registry: &SchemaRegistryArgs,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut uses = vec![(&**self.flow.clean(), self.flow.clean_schema.as_str())];
        let scores = self.flow.model.as_ref().map(|model| &model.scores);
        uses.extend(scores.map(|scores| (&*scores.name, ModelDefinition::schema(scores))));
        let own = self.schemas.schemas().clone();
        let schemas = registry.open(&own, &uses, &Readiness::default(), stop).await?;
        self.schemas = schemas.context("stopped while waiting for the schema registry")?;
        Ok(())
    }
}

/// What an audit holds against the hops.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// The simulators' ledgers.
    pub ledgers: Vec<PathBuf>,
    /// The site's key, without which no VIN finds its pseudonym. Needed with an edge's log or a ledger.
    pub key: Option<PseudonymKey>,
}

/// Runs `carstream audit`: prints the result. Discrepancies are an error.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    if let Some((log, request)) = args.of_a_running_box()? {
        let stop = shutdown.clone();
        let ask = tokio::task::spawn_blocking(move || live::ask(&log, &request, &stop));
        if let Some(answer) = ask.await.context("the audit did not finish")?? {
            return answer.print();
        }
    }
    let (mut sources, key) = args.open()?;
    sources.open_schemas(&args.schema_registry, &shutdown).await?;
    let evidence = Evidence { ledgers: args.ledgers().to_vec(), key };
    let report = match audit(sources, evidence, args.wait, shutdown).await {
        Err(error) => {
            let Some(ConfigError(problems)) = error.downcast_ref() else { return Err(error) };
            // Only the key can turn out to be a bad setting so late.
            let file = args.pseudonym_key_file.as_deref().unwrap_or(Path::new(""));
            let named = problems.iter().map(|problem| format!("--pseudonym-key-file {}: {problem}", file.display()));
            return Err(ConfigError(named.collect()).into());
        }
        Ok(report) => report,
    };
    print!("{}", report.shown(args.json));
    report.verdict()
}

/// Audits, in a blocking thread of the current runtime. With `wait` it first waits until the records at the edge have
/// reached every hop; if that takes too long, it fails.
pub async fn audit(
    sources: Sources,
    evidence: Evidence,
    wait: Option<Duration>,
    shutdown: CancellationToken,
) -> anyhow::Result<Report> {
    let runtime = Handle::current();
    let blocking = tokio::task::spawn_blocking(move || {
        if let Some(patience) = wait {
            extent::wait(&sources, patience, &runtime, &shutdown)?;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match audit_on(&sources, &evidence, &runtime, &shutdown) {
                Err(error) if may_pass(&error) && Instant::now() < deadline && !shutdown.is_cancelled() => {
                    tracing::warn!("starting the audit over: {error:#}");
                    std::thread::sleep(PAUSE);
                }
                result => return result,
            }
        }
    });
    blocking.await.context("the audit did not finish")?
}

/// Whether a log that is busy or away may answer the next time.
fn may_pass(error: &anyhow::Error) -> bool {
    let is_retriable = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref().is_some_and(event_log::Error::is_retriable)
            || cause.downcast_ref().is_some_and(schema_registry::Error::is_retriable)
    };
    error.chain().any(is_retriable)
}

/// Audits. Blocking; the lake is read on `runtime`. [`ConfigError`]: the key is not the site's.
pub fn audit_on(
    sources: &Sources,
    evidence: &Evidence,
    runtime: &Handle,
    shutdown: &CancellationToken,
) -> anyhow::Result<Report> {
    let mut tally = Tally::of_ledgers(&sources.flow, &evidence.ledgers, evidence.key.clone())?;
    let extents = Extents::take(sources, runtime)?;
    tally.begin(&extents, &evidence.ledgers)?;
    tally.count(sources, &extents, runtime, shutdown)?;
    if tally.is_other_key() {
        // Every reading would be reported as lost, and another one as unknown.
        let problem = format!(
            "no car in {} has a pseudonym made with this key; use the key of the site's preprocessor",
            sources.flow.clean()
        );
        return Err(ConfigError(vec![problem]).into());
    }
    let sums = settle::settle(&mut tally);
    let (counts, mut discrepancies) = std::mem::take(&mut tally.discrepancies).into_parts();
    locate::locate(&mut discrepancies, &tally, sources, &extents, runtime, shutdown)?;

    let mut dead_letters_by_reason: Vec<_> = tally.dead_letters.clone().into_iter().collect();
    dead_letters_by_reason.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let mut report = Report {
        stream: sources.flow.stream.name.clone(),
        topics: [sources.flow.raw(), sources.flow.clean()].map(ToString::to_string),
        ledger: sums.ledger,
        hops: hops(sources, &extents, &tally, &sums),
        caught_up: tally.lag.iter().all(|lag| *lag == 0),
        dead_letters_by_reason,
        ledger_complete: tally.ledgers.as_ref().map(|ledgers| ledgers.complete),
        unknown: sums.unknown,
        gaps: sums.gaps,
        excused: sums.excused,
        erased: tally.erased.rows,
        dropped: sums.dropped + tally.ledgers.as_ref().map_or(0, |ledgers| ledgers.never_sent),
        unacknowledged: sums.unacknowledged,
        objects: extents.lake.as_ref().map_or(0, |lake| lake.objects.len() as u64),
        counts,
        discrepancies,
        notes: Vec::new(),
    };
    report.notes = notes(&report, &tally);
    Ok(report)
}

fn hops(sources: &Sources, extents: &Extents, tally: &Tally, sums: &settle::Sums) -> Vec<HopReport> {
    let topic = |hop: &'static str, log: &Option<Arc<dyn Log>>, extent: &Option<TopicExtent>, records, lag| {
        let (log, extent) = (log.as_ref()?, extent.as_ref()?);
        let truncated = (0..).zip(&extent.partitions).filter(|(_, bounds)| bounds.first > 0);
        let missing = if extent.partitions.is_empty() { " (the topic does not exist)" } else { "" };
        Some(HopReport {
            hop,
            place: format!("{} in {}{missing}", extent.topic, log.url()),
            records,
            begins_at: truncated.map(|(partition, bounds)| (partition, bounds.first)).collect(),
            lag,
        })
    };
    let of = |hop: Hop| (tally.records[hop as usize], tally.lag[hop as usize]);
    let of_topic = |hop: Hop, log, extent| topic(hop.key(), log, extent, of(hop).0, of(hop).1);
    let lake = sources.lake.as_ref().zip(extents.lake.as_ref()).map(|(lake, extent)| HopReport {
        hop: Hop::Lake.key(),
        place: format!("{} in {}", sources.flow.clean(), lake.url()),
        records: of(Hop::Lake).0,
        begins_at: extent.covered.iter().filter(|(_, c)| c.0 > 0).map(|(partition, c)| (*partition, c.0)).collect(),
        lag: of(Hop::Lake).1,
    });
    let all = [
        of_topic(Hop::Raw, &sources.edge, &extents.raw),
        topic(DEAD_LETTERS_HOP, &sources.edge, &extents.dead_letters, sums.ledger.dead_letters, 0),
        of_topic(Hop::Clean, &sources.edge, &extents.clean),
        of_topic(Hop::Cloud, &sources.cloud, &extents.cloud),
        lake,
        of_topic(Hop::Scores, &sources.edge, &extents.scores),
    ];
    all.into_iter().flatten().collect()
}

/// What a person should know.
fn notes(report: &Report, tally: &Tally) -> Vec<String> {
    let mut notes = Vec::new();
    let unread = |hop: &str| tally.unread.iter().any(|unread| unread.hop.key() == hop && !unread.may_be_markers);
    for hop in report.hops.iter().filter(|hop| !hop.begins_at.is_empty()) {
        let begins: Vec<_> =
            hop.begins_at.iter().map(|(partition, offset)| format!("/{partition} at {offset}")).collect();
        let (place, begins) = (&hop.place, begins.join(", "));
        let proof = match hop.hop {
            "raw" | "clean" | "cloud" if !unread(hop.hop) => {
                "the committed positions say that it had been read by then"
            }
            "raw" | "clean" | "cloud" => "not all of it had been read by then, see below",
            _ => "it is not expected there",
        };
        notes.push(format!("{place} starts at an offset above 0 ({begins}); what was before was removed: {proof}"));
    }
    let erased = &tally.erased;
    if report.erased > 0 {
        notes.push(format!(
            "{} rows were erased from the lake, as the footers of its objects say, because cars asked to be forgotten: \
             {} requests under _forget/ in the lake",
            thousands(report.erased),
            thousands(erased.requests()),
        ));
    }
    if erased.to_go > 0 {
        notes.push(format!(
            "{} rows of cars that asked to be forgotten are still in the lake: carstream compact erases those of a day \
             once it is closed",
            thousands(erased.to_go)
        ));
    }
    for unread in tally.unread.iter().filter(|unread| unread.may_be_markers) {
        let Unread { hop, partition, offsets, reader, .. } = unread;
        notes.push(format!(
            "{}, partition {partition}: offsets {} to {} were removed, and the {}'s position is before them; they may \
             be markers of Kafka's transactions, which hold no reading",
            tally.flow.name(*hop),
            offsets.start,
            offsets.end - 1,
            reader.unwrap_or("next stage"),
        ));
    }
    let stages = ["", "preprocessor", "replicator", "sink", "scorer"];
    for (stage, lag) in stages.iter().zip(tally.lag).filter(|(_, lag)| *lag > 0) {
        notes
            .push(format!("the {stage} has {} records left to process: they are in transit, not lost", thousands(lag)));
    }
    if let Some(ledgers) = &tally.ledgers {
        if !ledgers.complete {
            let known = "a ledger is not complete (its simulator is running, or was killed and not resumed)";
            notes.push(format!(
                "{known}: {} readings that are not in it do not count as discrepancies",
                thousands(report.unknown)
            ));
        }
        if ledgers.repeated > 0 {
            notes.push(format!("{} rows repeat readings that are acknowledged in another row", ledgers.repeated));
        }
        for torn in &ledgers.torn {
            notes.push(format!("the last line of {} is incomplete and was ignored", torn.display()));
        }
    }
    let l = &report.ledger;
    let comparable = report.hops.iter().any(|hop| hop.hop == "raw")
        && report.caught_up
        && report.hops.iter().all(|hop| hop.begins_at.is_empty());
    if comparable && l.raw != l.clean + l.duplicates_removed + l.dead_letters {
        notes.push(format!(
            "the totals do not match: {} raw, but {} clean, {} duplicates and {} dead letters",
            l.raw, l.clean, l.duplicates_removed, l.dead_letters
        ));
    }
    notes
}
