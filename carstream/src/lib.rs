//! The front door: one binary with every stage, and what belongs to none of them.
//!
//! ```text
//!  carstream STAGE    simulator, mqtt-bridge, preprocessor, replicator, sink, trainer, scorer; or a link of that name
//!  carstream demo     cars ─► bridge ─► preprocessor ─► replicator ─► sink ─► trainer ─► scorer ─► alerts
//!                     every stage the real one, on two embedded logs and a directory; ends with an account
//!  carstream edge     cars ─► bridge ─► preprocessor ─► scorer ─► alerts, on one embedded log; ─► the cloud's log
//!  carstream audit    ledgers of the cars against every hop, reading by reading
//!  carstream compact  the small objects of closed days in the lake, merged into large ones
//!  carstream contract what a site has: check, list, explain; the folder of a new stream
//!  carstream deploy   the topics of both logs and the schemas of the registry, made or compared
//!  carstream dead-letter   what could not be used: list, show, replay
//!  carstream forget   a car that asks for it, by its VIN
//!  carstream groups   whom retention of an embedded log waits for; forgets a group that is gone
//!  carstream health   one stage's admin port: is it ready?
//!  carstream resume   what a stage has stopped: an operator's decision, carried out and recorded
//!  carstream secrets  keys and certificates of a site, made where they are missing
//!  carstream settings docs/settings.md: the settings of all of these
//! ```
//!
//! This crate starts stages and compares their results. It processes no reading itself.

pub mod audit;
pub mod compact;
pub mod contracts;
pub mod dead_letter;
pub mod demo;
pub mod deploy;
pub mod edge;
pub mod forget;
pub mod groups;
pub mod health;
mod live;
pub mod resume;
pub mod secrets;
pub mod settings;
mod stage;

use std::path::Path;

use clap::{CommandFactory, Parser, Subcommand};
use event_log::LogUrl;
use service::ServiceArgs;
use telemetry::pseudonym::PseudonymKey;
use tokio_util::sync::CancellationToken;

/// The stages that this binary runs, in the order of the flow, as `carstream STAGE` or by a link of that name.
pub const STAGES: [&str; 7] = ["simulator", "mqtt-bridge", "preprocessor", "replicator", "sink", "trainer", "scorer"];

/// carstream: the open reference platform for connected cars.
///
/// Without a command it runs the demo: a fleet, the edge, the cloud, a training and live scoring, in one process,
/// and ends with a report that accounts for every reading.
#[derive(Debug, Parser)]
#[command(name = "carstream", version, propagate_version = true, args_conflicts_with_subcommands = true)]
// The report is what a person wants to see; a warning still comes through.
#[command(mut_arg("log_level", |arg| arg.default_value("warn")))]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    demo: demo::Args,
    #[command(flatten)]
    service: ServiceArgs,
}

// The purpose of each command, with examples, is documented at its `Args`.
#[derive(Debug, Subcommand)]
enum Command {
    Simulator(Box<simulator::Args>),
    MqttBridge(Box<mqtt_bridge::Args>),
    Preprocessor(Box<preprocessor::Args>),
    Replicator(Box<replicator::Args>),
    Sink(Box<sink::Args>),
    Trainer(Box<trainer::Args>),
    Scorer(Box<scorer::Args>),
    /// Run the whole pipeline on this machine, from a car to a verdict, in about a minute (the default).
    Demo(demo::Args),
    Audit(Box<audit::Args>),
    Compact(Box<compact::Args>),
    Contract(contracts::Args),
    Deploy(Box<deploy::Args>),
    DeadLetter(dead_letter::Args),
    Edge(Box<edge::Args>),
    Forget(Box<forget::Args>),
    Groups(groups::Args),
    Health(health::Args),
    Resume(resume::Args),
    Secrets(secrets::Args),
    /// Print docs/settings.md: the settings of all stages and commands.
    Settings,
}

impl AsRef<ServiceArgs> for Cli {
    fn as_ref(&self) -> &ServiceArgs {
        match &self.command {
            Some(Command::Simulator(args)) => (**args).as_ref(),
            Some(Command::MqttBridge(args)) => &args.service,
            Some(Command::Preprocessor(args)) => &args.service,
            Some(Command::Replicator(args)) => &args.service,
            Some(Command::Sink(args)) => &args.service,
            Some(Command::Trainer(args)) => &args.service,
            Some(Command::Scorer(args)) => &args.service,
            Some(Command::Edge(args)) => &args.service,
            Some(Command::Compact(args)) => &args.service,
            Some(Command::Deploy(args)) => &args.service,
            Some(
                Command::Demo(_)
                | Command::Audit(_)
                | Command::Contract(_)
                | Command::DeadLetter(_)
                | Command::Forget(_)
                | Command::Groups(_)
                | Command::Health(_)
                | Command::Resume(_)
                | Command::Secrets(_)
                | Command::Settings,
            )
            | None => &self.service,
        }
    }
}

/// Warns of variables of this process that look like settings and are none: a typing error would go unnoticed.
pub fn warn_of_unknown_variables() {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for line in settings::unknown_variables(names, &Cli::command()) {
        tracing::warn!("{line}");
    }
}

/// Runs a command.
pub async fn run(cli: Cli, shutdown: CancellationToken) -> anyhow::Result<()> {
    let args = match cli.command {
        Some(Command::Simulator(args)) => return simulator::run(*args, shutdown).await,
        Some(Command::MqttBridge(args)) => return mqtt_bridge::run(*args, shutdown).await,
        Some(Command::Preprocessor(args)) => return preprocessor::run(*args, shutdown).await,
        Some(Command::Replicator(args)) => return replicator::run(*args, shutdown).await,
        Some(Command::Sink(args)) => return sink::run(*args, shutdown).await,
        Some(Command::Trainer(args)) => return trainer::run(*args, shutdown).await,
        Some(Command::Scorer(args)) => return scorer::run(*args, shutdown).await,
        Some(Command::Edge(args)) => return edge::run(*args, shutdown).await,
        Some(Command::Demo(args)) => args,
        Some(Command::Audit(args)) => return audit::run(*args, shutdown).await,
        Some(Command::Compact(args)) => return compact::run(*args, shutdown).await,
        Some(Command::Deploy(args)) => return deploy::run(*args, shutdown).await,
        Some(Command::Contract(args)) => return contracts::run(&args),
        Some(Command::DeadLetter(args)) => return dead_letter::run(args, shutdown).await,
        Some(Command::Forget(args)) => return forget::run(*args, shutdown).await,
        Some(Command::Groups(args)) => return printed(move || groups::run(&args)).await,
        Some(Command::Health(args)) => return health::run(&args),
        Some(Command::Resume(args)) => return printed(move || resume::run(&args)).await,
        Some(Command::Secrets(args)) => return secrets::run(args).await,
        Some(Command::Settings) => {
            print!("{}", settings::page(&Cli::command()));
            return Ok(());
        }
        None => cli.demo,
    };
    if let Some(finished) = demo::finished(&args)? {
        print!("{}", if args.json { &finished.json } else { &finished.text });
        return sound(finished.clean);
    }
    let report = demo::run(args.clone(), &cli.service, shutdown).await?;
    if args.json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    sound(report.is_clean())
}

/// Runs a blocking command, and prints what it has to say.
async fn printed(command: impl FnOnce() -> anyhow::Result<String> + Send + 'static) -> anyhow::Result<()> {
    print!("{}", tokio::task::spawn_blocking(command).await??);
    Ok(())
}

fn read_key(path: &Path) -> Result<PseudonymKey, String> {
    PseudonymKey::from_file(path).map_err(|error| format!("--pseudonym-key-file {}: {error}", path.display()))
}

/// What is wrong with a log that a command only reads or repairs: a directory that does not exist is a typo.
fn missing_log(setting: &str, log: &LogUrl) -> Option<String> {
    log.directory().and_then(|path| service::missing_directory(setting, path))
}

fn sound(clean: bool) -> anyhow::Result<()> {
    anyhow::ensure!(clean, "readings were lost or doubled, or are not accounted for: the report names what was found");
    Ok(())
}
