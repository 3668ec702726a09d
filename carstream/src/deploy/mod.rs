//! The deployment: everything that the stages expect to find, made once, before they start.
//!
//! ```text
//!  contract: topics ─────► topics of the edge's log, topics of the cloud's log
//!  contract: schemas ────► subjects of the schema registry, FULL_TRANSITIVE
//!                             │
//!                             └─► what is there with other settings: all of it, each with what to do; exit code 1
//! ```
//!
//! It changes nothing that exists: a retention may be an administrator's wish, and partitions cannot be changed without
//! moving cars away from their state. Stages create missing topics themselves, as the demo and the embedded log need;
//! they never register a schema.

mod args;
mod topics;

use std::sync::Arc;

use anyhow::Context;
use contract::{Contract, Site};
use event_log::Log;
use schema_registry::Registry;
use tokio_util::sync::CancellationToken;

pub use args::Args;

/// What a deployment came to.
#[derive(Debug, Default)]
struct Outcome {
    /// The present state.
    lines: Vec<String>,
    /// The differences.
    problems: Vec<String>,
}

/// Runs `carstream deploy`: prints the present state, and fails if anything differs from the contract.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let contract = args.check()?;
    let registry = args.schema_registry.connect()?;
    let deployed = tokio::task::spawn_blocking(move || deploy(&args, &contract, registry, &shutdown));
    let outcome = deployed.await.context("the deployment panicked")??;
    for line in &outcome.lines {
        println!("{line}");
    }
    for problem in &outcome.problems {
        eprintln!("error: {problem}");
    }
    let count = outcome.problems.len();
    anyhow::ensure!(
        count == 0,
        "the deployment differs in the {count} point{} above",
        if count == 1 { "" } else { "s" }
    );
    Ok(())
}

fn deploy(
    args: &Args,
    contract: &Contract,
    registry: Option<Registry>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let edge = if args.cloud.log.is_some() { Site::Edge } else { Site::All };
    let sides = [(edge, args.edge.open()?), (Site::Cloud, args.cloud.open()?)];
    for (site, log) in sides {
        let Some(log) = log else { continue };
        outcome.add(topics(args, contract, site, &log, shutdown)?);
    }
    if let Some(registry) = registry {
        outcome.add(schemas(args, contract, &registry, shutdown)?);
    }
    Ok(outcome)
}

fn topics(
    args: &Args,
    contract: &Contract,
    site: Site,
    log: &Arc<dyn Log>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let (mut made, mut missing, mut differ, specs) =
        (0, 0, 0, contract.topics_of(site).map(::topics::spec).collect::<Vec<_>>());
    for mut spec in specs.iter().cloned() {
        if let Some(partitions) = args.partitions.filter(|_| spec.partitions > 1) {
            spec.partitions = partitions;
        }
        let deployed =
            service::retry_until(shutdown, format!("the log {}", log.url()), event_log::Error::is_retriable, || {
                topics::deploy(log.as_ref(), &spec, args.replication_factor, args.check)
            })?;
        match deployed.context("stopped before all was deployed")? {
            topics::Deployed::Made => made += 1,
            topics::Deployed::Exists => {}
            topics::Deployed::Missing => {
                missing += 1;
                let create = args.command_line();
                outcome.problems.push(format!("topic {} in {} is missing: {create} creates it", spec.name, log.url()));
            }
            topics::Deployed::Differs(problems) => {
                differ += 1;
                outcome.problems.extend(problems);
            }
        }
    }
    let of = match site {
        Site::Edge => "of the edge",
        Site::Cloud => "of the cloud",
        Site::All => "of edge and cloud",
    };
    let as_declared = specs.len() - made - missing - differ;
    let counts = [(as_declared, "as declared"), (made, "created"), (missing, "missing"), (differ, "different")];
    let counts: Vec<_> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    outcome.lines.push(format!("{}: {} topics {of}, {}", log.url(), specs.len(), counts.join(", ")));
    Ok(outcome)
}

fn schemas(
    args: &Args,
    contract: &Contract,
    registry: &Registry,
    shutdown: &CancellationToken,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let uses: Vec<_> = contract.avro_topics().collect();
    let deployed = service::retry_until(
        shutdown,
        format!("the schema registry {}", registry.url()),
        schema_registry::Error::is_retriable,
        || schema_registry::deploy(registry, contract.schemas(), &uses, args.check),
    )?;
    let deployed = deployed.context("stopped before all was deployed")?;
    outcome.add(Outcome { lines: deployed.lines, problems: deployed.problems });
    let at = format!("{}: ", registry.url());
    for text in outcome.lines.iter_mut().chain(&mut outcome.problems) {
        text.insert_str(0, &at);
    }
    Ok(outcome)
}

impl Outcome {
    fn add(&mut self, other: Outcome) {
        self.lines.extend(other.lines);
        self.problems.extend(other.problems);
    }
}
