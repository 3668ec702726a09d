//! A run from its first process to its audit: of the whole pipeline, or of the part that a sabotage is about.
//!
//! ```text
//! brokers ─► stages, cars ─► a model ─► faults ─► heal ─► cars finish ─► hops drain ─► SIGTERM to all ─► audit
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use contract::Contract;
use event_log::{Error, Log};
use lake::{Lake, LakeUrl};
use tokio::runtime::Handle;

use crate::audit::{self, Audit, Scope};
use crate::crew::{Crew, Teller};
use crate::drain::{self, Hop, Positions};
use crate::faults;
use crate::hanging;
use crate::plan::{Kind, Plan, Role, Step};
use crate::report::Report;
use crate::site::Site;

/// A JVM on a busy two-core machine.
const BROKER_PATIENCE: Duration = Duration::from_secs(120);

/// Time until cars have driven, or until their readings are in the lake and a model is trained.
const WORK_PATIENCE: Duration = Duration::from_secs(300);

/// Until the cars have sent everything and have it acknowledged. Their own time-out is longer: this one names the
/// culprit.
const CARS_PATIENCE: Duration = Duration::from_secs(300);

/// The cars drive a little longer than things go wrong: faults may take longer than planned.
const DRIVE_ON: f64 = 1.1;
const DRIVE_ON_AT_LEAST: Duration = Duration::from_secs(10);

/// Between two questions to a broker that is starting.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// A part of the pipeline, and what is to happen to it.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// Brokers and stages, with the number of instances.
    pub(crate) crew: Vec<(Role, u32)>,
    /// Whether there is a model to wait for before the faults begin.
    pub(crate) model: bool,
    pub(crate) plan: Plan,
    /// Hops to wait for at the end.
    pub(crate) drained: Vec<Role>,
    pub(crate) audited: Scope,
}

impl Scenario {
    /// How long the cars have to send.
    pub(crate) fn drive(&self) -> Duration {
        let faults = self.plan.length();
        faults.mul_f64(DRIVE_ON).max(faults + DRIVE_ON_AT_LEAST)
    }

    /// The whole pipeline.
    pub(crate) fn whole(plan: Plan) -> Self {
        use Role::{Bridge, CloudBroker, EdgeBroker, Preprocessor, Replicator, Scorer, Sink};
        let roles = [EdgeBroker, CloudBroker, Bridge, Preprocessor, Replicator, Scorer, Sink];
        Self {
            crew: roles.map(|role| (role, role.instances())).into(),
            model: true,
            plan,
            drained: vec![Preprocessor, Replicator, Scorer, Sink],
            audited: Scope { cloud: true, lake: true },
        }
    }
}

/// A preprocessor that is stopped for longer than its topic keeps records, twice, with repeats and a kill in between.
pub(crate) fn outlived() -> Scenario {
    use Role::{Bridge, EdgeBroker, Preprocessor};
    let crew = [EdgeBroker, Bridge, Preprocessor].map(|role| (role, role.instances())).into();
    let outlive = Step::fixed(5_000, Kind::Outlive(Preprocessor), 1, 2_000);
    let kills = [(Bridge, 1), (Preprocessor, 2)].map(|(role, choice)| Step::fixed(3_000, Kind::Kill(role), choice, 0));
    let plan = Plan([&[outlive][..], &kills, &[outlive]].concat());
    Scenario { crew, model: false, plan, drained: vec![Preprocessor], audited: Scope::default() }
}

/// Runs a scenario. What goes wrong in a way that still allows an audit is among the report's problems.
pub(crate) fn run(
    scenario: &Scenario,
    site: &Site,
    crew: &mut Crew,
    teller: Teller,
    runtime: &Handle,
) -> anyhow::Result<Report> {
    let has = |role| scenario.crew.iter().any(|(other, _)| *other == role);
    let edge = event_log::open(&site.edge_log().parse().map_err(anyhow::Error::msg)?, &[])?;
    let cloud = event_log::open(&site.cloud_log().parse().map_err(anyhow::Error::msg)?, &[])?;
    teller.say("starting what does not run yet");
    for (role, instances) in &scenario.crew {
        for instance in 1..=*instances {
            crew.start(*role, instance, site.program(*role, instance))?;
        }
    }
    answers(&edge, "the edge's broker", crew)?;
    if has(Role::CloudBroker) {
        answers(&cloud, "the cloud's broker", crew)?;
    }
    if scenario.model {
        teller.say("brokers answer; some cars drive, to learn from");
        work(Role::LearningCars, site, crew)?;
        teller.say("a model is trained");
        work(Role::Trainer, site, crew)?;
    }
    teller.say("the cars drive, and things go wrong");
    crew.start(Role::Cars, 1, site.program(Role::Cars, 1))?;
    for step in &scenario.plan.0 {
        faults::make(step, site, crew, teller)?;
    }
    teller.say("all is well again; the cars finish");
    let mut problems = Vec::new();
    crew.wait("those that were replaced to end", WORK_PATIENCE, |crew| Ok(!crew.has_replaced()))?;
    crew.wait("the cars to finish", CARS_PATIENCE, |crew| Ok(crew.is_ended(Role::Cars, 1)))?;
    let hops = hops(scenario, site, &edge, &cloud)?;
    let mut ended_by_hand = Vec::new();
    let mut drained = drain::wait(hops.clone(), crew, teller, runtime);
    if drained.is_err() {
        for url in BTreeSet::from([site.edge_log(), site.cloud_log()]) {
            ended_by_hand.extend(hanging::end_all(&site.settings.scripts, &url, teller)?);
        }
        if !ended_by_hand.is_empty() {
            drained = drain::wait(hops, crew, teller, runtime);
        }
    }
    // What is missing then, the audit tells by name.
    if let Err(error) = drained {
        crew.pass(Duration::ZERO)?;
        problems.push(format!("{error:#}"));
    }
    let has_outlived = |step: &Step| matches!(step.kind, Kind::Outlive(_));
    let removed_unread = match scenario.plan.0.iter().any(has_outlived) {
        true => Some(site.copies.lock().lost(&edge)?),
        false => None,
    };
    teller.say("everything stops");
    let stages = [Role::Bridge, Role::Preprocessor, Role::Replicator, Role::Scorer, Role::Sink];
    crew.stop(&stages, Duration::from_secs(60))?;
    teller.say("counting");
    let audit = audit::run(site, scenario.audited)?;
    problems.extend(crew.unexplained.iter().map(|end| format!("ended unasked: {end}")));
    problems.extend(crew.bad_ends.iter().map(|end| format!("stopped badly: {end}")));
    let report = report(scenario, site, audit, problems, crew, teller)?;
    Ok(Report { hanging_transactions: ended_by_hand, removed_unread, ..report })
}

/// Starts what ends by itself, and waits for that.
fn work(role: Role, site: &Site, crew: &mut Crew) -> anyhow::Result<()> {
    crew.start(role, 1, site.program(role, 1))?;
    crew.wait(&format!("the {} to end", role.name()), WORK_PATIENCE, |crew| Ok(crew.is_ended(role, 1)))
}

fn report(
    scenario: &Scenario,
    site: &Site,
    audit: Audit,
    problems: Vec<String>,
    crew: &Crew,
    teller: Teller,
) -> anyhow::Result<Report> {
    Ok(Report {
        seed: site.settings.seed,
        duration_s: teller.elapsed().as_secs(),
        faults: scenario.plan.kinds(),
        restarts: crew.restarts(),
        fenced: crew.fenced,
        readings: audit.figure("sent")?,
        lost: audit.figure("lost")?,
        doubled: audit.figure("doubled")?,
        ledger: audit.ledger,
        discrepancies: audit.discrepancies,
        problems,
        ..Report::default()
    })
}

/// Waits until a broker answers.
pub(crate) fn answers(log: &Arc<dyn Log>, what: &str, crew: &mut Crew) -> anyhow::Result<()> {
    crew.wait(&format!("{what} to answer"), BROKER_PATIENCE, |crew| match log.describe("telemetry.raw") {
        Ok(_) | Err(Error::UnknownTopic { .. }) => Ok(true),
        Err(error) if error.is_retriable() => crew.pass(ASK_EVERY).map(|()| false),
        Err(error) => Err(error.into()),
    })
}

/// The hops that are to be drained, in the order of the flow.
fn hops(scenario: &Scenario, site: &Site, edge: &Arc<dyn Log>, cloud: &Arc<dyn Log>) -> anyhow::Result<Vec<Hop>> {
    let mut hops = Vec::new();
    for role in &scenario.drained {
        let mut push = |source: &Arc<dyn Log>, topic, positions| {
            hops.push(Hop { stage: role.name(), source: source.clone(), topic, positions });
        };
        let group = |log: &Arc<dyn Log>, name: &str| Positions::Group(log.clone(), name.to_owned());
        match role {
            Role::Preprocessor => {
                push(edge, "telemetry.raw", group(edge, "preprocessor-telemetry"));
                push(edge, "faults.raw", group(edge, "preprocessor-faults"));
            }
            Role::Scorer => push(edge, "telemetry", group(edge, "scorer")),
            Role::Replicator => {
                for topic in Contract::builtin().leaving_the_edge().map(|topic| &*topic.name) {
                    push(edge, topic, group(cloud, &replicator::group(topic)));
                }
            }
            Role::Sink => {
                let lake = Lake::open(&LakeUrl::Directory(site.lake_directory()))?;
                for topic in Contract::builtin().lake_topics().map(|topic| &*topic.name) {
                    push(cloud, topic, Positions::Lake(lake.clone()));
                }
            }
            _ => {}
        }
    }
    Ok(hops)
}

/// A broken promise, the part of the pipeline that is needed, and the faults that reveal it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sabotage {
    /// The bridge acknowledges before the log has committed.
    PubackFirst,
    /// The preprocessor commits positions before outputs.
    PositionsFirst,
    /// The sinks overwrite objects instead of creating them.
    PlainPut,
    /// Retention removes records that the preprocessor has not read.
    RetentionFirst,
}

impl Sabotage {
    /// As the stand-in's subcommand is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PubackFirst => "puback-first",
            Self::PositionsFirst => "positions-first",
            Self::PlainPut => "plain-put",
            Self::RetentionFirst => "retention-first",
        }
    }

    /// Whose place the stand-in takes. A broker needs none: its retention waits for nobody.
    pub(crate) fn stage(self) -> Option<Role> {
        match self {
            Self::PubackFirst => Some(Role::Bridge),
            Self::PositionsFirst => Some(Role::Preprocessor),
            Self::PlainPut => Some(Role::Sink),
            Self::RetentionFirst => None,
        }
    }

    pub(crate) fn scenario(self) -> Scenario {
        use Role::{Bridge, EdgeBroker, Preprocessor, Sink};
        let mut crew = vec![(EdgeBroker, 1), (Bridge, 1), (Preprocessor, 1)];
        let (mut audited, mut drained) = (Scope::default(), vec![Preprocessor]);
        let plan = match self {
            Self::PubackFirst => [2_000; 3].map(|hold_ms| Step::fixed(3_000, Kind::Strand(Bridge), 1, hold_ms)).into(),
            Self::PositionsFirst => {
                crew[2] = (Preprocessor, 2);
                // A kill must fall between the two transactions of an instance that has something to do.
                [1, 2, 1, 2, 1, 2, 1, 2]
                    .map(|instance| Step::fixed(2_500, Kind::Kill(Preprocessor), instance, 0))
                    .into()
            }
            Self::PlainPut => {
                crew.push((Sink, 2));
                audited = Scope { cloud: true, lake: true };
                [1, 2, 1].map(|instance| Step::fixed(3_000, Kind::Freeze(Sink), instance, 3_000)).into()
            }
            Self::RetentionFirst => {
                // It does not skip what it has not read.
                drained.clear();
                vec![Step::fixed(5_000, Kind::Expire(Preprocessor), 1, 2_000)]
            }
        };
        Scenario { crew, model: false, plan: Plan(plan), drained, audited }
    }
}
