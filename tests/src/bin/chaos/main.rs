//! chaos: the whole pipeline as separate processes on two real Kafka brokers, one bad thing after another, and an
//! account of every reading at the end.
//!
//! ```text
//! plan     what goes wrong, and when, from the seed        site   ports, proxies, how each process is called
//! crew     processes under a supervisor (process)          proxy  a TCP proxy that breaks connections
//! run      from the first process to the audit: faults, drain, audit ─► report
//! outlived what retention removed unread, counted beside the audit
//! ```
//!
//! `scripts/chaos` builds everything and runs this; see there, or --help. It needs Java for the brokers, like
//! `scripts/kafka`. It looks at processes from outside only: what happens inside a stage is the business of the
//! in-process schedules.

mod audit;
mod clock;
mod crew;
mod drain;
mod faults;
mod hanging;
mod kafka;
mod outlived;
mod plan;
mod process;
mod proxy;
mod report;
mod run;
mod site;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use event_log::KafkaOption;
use service::values::duration;

use crew::{Crew, Teller};
use plan::{Kind, Plan};
use report::Report;
use run::{Sabotage, Scenario};
use site::{Settings, Site};

/// Kills, freezes, cuts off and overloads the whole pipeline on two real Kafka brokers, and then counts readings.
///
/// Exit code 0: every kind of fault was had, every process was back by itself and stopped well, and not one
/// acknowledged reading is lost or doubled anywhere. With --sabotage, 0 means that the audit has noticed it.
#[derive(Debug, Parser)]
#[command(name = "scripts/chaos", version)]
struct Args {
    /// How long things go wrong, as 90s or 20m; start, drain and audit come on top.
    #[arg(long, value_parser = duration, default_value = "90s")]
    duration: Duration,
    /// Which faults when, and which fleet.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many cars.
    #[arg(long, default_value_t = 200)]
    cars: u32,
    /// How many seconds of a car's life pass in a second of the clock.
    #[arg(long, default_value_t = 300.0)]
    speedup: f64,
    /// An instance that is silent for this long loses its partitions. Shorter than in production, so that this happens.
    #[arg(long, value_parser = duration, default_value = "6s")]
    session_timeout: Duration,
    /// A librdkafka property for all stages; may be repeated.
    #[arg(long = "kafka-option", value_name = "KEY=VALUE")]
    kafka_options: Vec<KafkaOption>,
    /// The lake is a directory instead of an S3 server; its own faults are left out.
    #[arg(long)]
    directory_lake: bool,
    /// Print what will go wrong and when, and exit.
    #[arg(long)]
    plan: bool,
    /// Run with something that breaks its promise, and only the faults that reveal it: the audit must notice.
    #[arg(long, value_enum, conflicts_with_all = ["duration", "plan"])]
    sabotage: Option<Sabotage>,
    /// Stop the preprocessor for longer than its topic keeps records, and resume it: the audit must name exactly what
    /// retention has removed unread, and nothing else may be lost or doubled.
    #[arg(long, conflicts_with_all = ["duration", "plan", "sabotage"])]
    outlived: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Where the release binaries are, if not where this one was built.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Keep everything in this directory, new or empty. Without it, a temporary one is kept only if the run fails.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

/// Exit code for settings that cannot work, as of the stages.
const EXIT_CONFIG: u8 = 64;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_CONFIG } else { 0 });
        }
    };
    let kinds = Kind::all(!args.directory_lake, site::can_mount_store_disk().unwrap_or_default());
    if args.sabotage.is_none() && !args.outlived && args.duration < plan::SHORTEST {
        let (kinds, s) = (kinds.len(), plan::SHORTEST.as_secs());
        eprintln!("error: --duration is too short for {kinds} kinds of faults: at least {s} s");
        return ExitCode::from(EXIT_CONFIG);
    }
    let plan = Plan::draw(args.seed, args.duration, args.session_timeout, kinds);
    if args.plan {
        print!("{plan}");
        return ExitCode::SUCCESS;
    }
    match chaos(&args, plan) {
        Ok(report) => {
            match args.json {
                true => println!("{}", serde_json::to_string(&report).expect("numbers and strings become JSON")),
                false => print!("{report}"),
            }
            ExitCode::from(u8::from(!report.passed))
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One run in a directory of its own.
fn chaos(args: &Args, plan: Plan) -> anyhow::Result<Report> {
    let directory = match &args.run_dir {
        Some(named) => site::empty_directory(named)?,
        None => site::new_directory()?,
    };
    let teller = Teller::new();
    teller.say(&format!("seed {}, everything is in {}", args.seed, directory.display()));
    let mut report = chaos_in(args, plan, directory.clone(), teller)
        .with_context(|| format!("the run in {} did not get to its end", directory.display()))?;
    report.passed = match args.sabotage {
        None if let Some(removed) = report.removed_unread => {
            let kinds = ["removed-unread at raw", "missing at clean"];
            let named = |discrepancy: &String| kinds.iter().any(|kind| discrepancy.starts_with(kind));
            removed > 0
                && (report.lost, report.doubled) == (removed, 0)
                && report.discrepancies.iter().all(named)
                && report.problems.is_empty()
        }
        None => report.lost + report.doubled == 0 && report.discrepancies.is_empty() && report.problems.is_empty(),
        Some(_) => report.lost + report.doubled > 0 && !report.discrepancies.is_empty(),
    };
    if report.passed && args.run_dir.is_none() {
        std::fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    } else {
        report.directory = Some(directory);
    }
    Ok(report)
}

fn chaos_in(args: &Args, plan: Plan, directory: PathBuf, teller: Teller) -> anyhow::Result<Report> {
    let own = std::env::current_exe().context("this program has no path")?;
    let built = own.parent().context("this program is in no folder")?;
    let settings = Settings {
        seed: args.seed,
        cars: args.cars,
        speedup: args.speedup,
        binaries: args.bin_dir.clone().unwrap_or_else(|| built.to_owned()),
        scripts: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts")),
        session_timeout: args.session_timeout,
        kafka_options: args.kafka_options.clone(),
    };
    for binary in ["carstream", "simulator", "mqtt-bridge", "preprocessor", "replicator", "scorer", "sink", "trainer"] {
        let path = settings.binaries.join(binary);
        ensure!(path.exists(), "{} is missing: scripts/chaos builds it, --bin-dir says where it is", path.display());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    runtime.spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            flag.store(true, Ordering::Relaxed);
        }
    });
    let mut site = Site::new(settings, directory, runtime.handle())?;
    let scenario = match args.sabotage {
        None if args.outlived => {
            site.one_broker = true;
            run::outlived()
        }
        None => {
            if !args.directory_lake {
                site.start_object_store()?;
            }
            Scenario::whole(plan)
        }
        Some(sabotage) => {
            let stand_in = (built.join("sabotaged"), sabotage.name().to_owned());
            site.stand_ins.extend(sabotage.stage().map(|stage| (stage, stand_in)));
            site.one_broker = true;
            sabotage.scenario()
        }
    };
    site.drive = scenario.drive();
    let mut crew = Crew::new(site.logs(), teller, interrupted);
    let mut report = run::run(&scenario, &site, &mut crew, teller, runtime.handle())?;
    site.keep_store()?;
    report.sabotage = args.sabotage.map(|sabotage| sabotage.name().to_owned());
    Ok(report)
}
