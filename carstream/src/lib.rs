//! The front door: the whole platform in one process.
//!
//! ```text
//!  carstream demo     cars ─► bridge ─► preprocessor ─► replicator ─► sink ─► trainer ─► scorer ─► alerts
//!                     every stage the real one, on two embedded logs and a directory; ends with an account
//!  carstream edge     cars ─► bridge ─► preprocessor ─► scorer ─► alerts, on one embedded log; ─► the cloud's log
//!  carstream audit    ledgers of the cars against every hop, reading by reading
//!  carstream deploy   the topics of both logs and the schemas of the registry, made or compared
//!  carstream dead-letter   what could not be used: list, show, replay
//!  carstream health   one stage's admin port: is it ready?
//!  carstream secrets  keys and certificates of a site, made where they are missing
//! ```
//!
//! This crate starts stages and holds their results against each other. It processes no reading itself.

pub mod audit;
pub mod dead_letter;
pub mod demo;
pub mod deploy;
pub mod edge;
pub mod health;
pub mod secrets;
mod stage;

use clap::{Parser, Subcommand};
use service::ServiceArgs;
use tokio_util::sync::CancellationToken;

/// carstream: the open reference platform for connected cars.
///
/// Without a command it runs the demo: a fleet, the edge, the cloud, a training and live scoring, in one process,
/// and ends with a report that accounts for every reading.
#[derive(Debug, Parser)]
#[command(name = "carstream", version, args_conflicts_with_subcommands = true)]
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

// What each command is for, with examples, is told by its `Args`.
#[derive(Debug, Subcommand)]
enum Command {
    /// The whole pipeline on this machine, from a car to a verdict, in about a minute (the default).
    Demo(demo::Args),
    Audit(Box<audit::Args>),
    Deploy(Box<deploy::Args>),
    DeadLetter(dead_letter::Args),
    Edge(Box<edge::Args>),
    Health(health::Args),
    Secrets(secrets::Args),
}

impl AsRef<ServiceArgs> for Cli {
    fn as_ref(&self) -> &ServiceArgs {
        match &self.command {
            Some(Command::Edge(args)) => &args.service,
            Some(Command::Deploy(args)) => &args.service,
            Some(
                Command::Demo(_)
                | Command::Audit(_)
                | Command::DeadLetter(_)
                | Command::Health(_)
                | Command::Secrets(_),
            )
            | None => &self.service,
        }
    }
}

/// Runs a command.
pub async fn run(cli: Cli, shutdown: CancellationToken) -> anyhow::Result<()> {
    let args = match cli.command {
        Some(Command::Edge(args)) => return edge::run(*args, shutdown).await,
        Some(Command::Demo(args)) => args,
        Some(Command::Audit(args)) => return audit::run(*args, shutdown).await,
        Some(Command::Deploy(args)) => return deploy::run(*args, shutdown).await,
        Some(Command::DeadLetter(args)) => return dead_letter::run(args, shutdown).await,
        Some(Command::Health(args)) => return health::run(&args),
        Some(Command::Secrets(args)) => return secrets::run(args).await,
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
    sound(report.notes.audit.is_clean())
}

fn sound(clean: bool) -> anyhow::Result<()> {
    anyhow::ensure!(clean, "readings were lost or doubled, or are not accounted for: the report names what was found");
    Ok(())
}
