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

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole pipeline on this machine, from a car to a verdict, in about a minute (the default).
    Demo(demo::Args),
    /// Where every reading went: what the cars say they sent against every hop. Exits with 1 if any is lost or doubled.
    Audit(Box<audit::Args>),
    /// Makes the topics and registers the schemas; says what is there with other settings. Can run again.
    #[command(after_help = "Examples:
  carstream deploy --log kafka://edge:9092 --cloud-log kafka://cloud:9092 --schema-registry http://registry:8081
      before the first start, and before each upgrade
  carstream deploy --check --log kafka://localhost:9092
      changes nothing: is all that this release needs there, and as it should be?")]
    Deploy(Box<deploy::Args>),
    /// Records that could not be used: list them, look at one, put them back.
    DeadLetter(dead_letter::Args),
    /// An edge site in one process, without Docker or Java: MQTT in, clean readings and scores in an embedded log, and to
    /// the cloud if there is an uplink.
    #[command(after_help = "Examples:
  carstream edge --log site-log --pseudonym-key-file site.key --model model
      a site without an uplink: a directory, a key, a model, no more
  carstream edge --log site-log --pseudonym-key-file site.key --lake s3://readings --cloud-log kafka://cloud:9092
      follows the models that the cloud announces, and copies what may leave the site")]
    Edge(Box<edge::Args>),
    /// Whether a stage is ready: asks its admin port. For the health check of a container.
    Health(health::Args),
    /// The keys and certificates of a site, as files: makes what is missing, keeps what is there.
    ///
    /// pseudonym.key, s3-secret-key, ca.crt, ca.key, mqtt-bridge.crt, mqtt-bridge.key. Run it as often as
    /// you like. Back up pseudonym.key and ca.key: without the one no car's past can be linked to it any more, without
    /// the other no certificate can be renewed.
    #[command(after_help = "Examples:
  carstream secrets --dir secrets --server-name bridge.example
      everything that a site needs
  carstream secrets --dir secrets --rotate mqtt-bridge.crt
      the bridge's certificate, again; the bridge takes it into use by itself
  carstream secrets --dir secrets --car WVWZZZ1JZXW000001
      a certificate to be a car with:
  mosquitto_pub -h localhost -p 8883 --cafile secrets/ca.crt --cert secrets/WVWZZZ1JZXW000001.crt \\
      --key secrets/WVWZZZ1JZXW000001.key -q 1 -t vehicles/WVWZZZ1JZXW000001/telemetry -m '{}'

A site that has a CA of its own: put its certificate here as ca.crt, and a server certificate that it signed for the names
that cars connect to as mqtt-bridge.crt, with mqtt-bridge.key. Then no certificate is made here; cars get theirs from your
CA, with the VIN as the one common name (CN) of the subject. If it may sign here, put its key (PKCS #8) here as ca.key.")]
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
