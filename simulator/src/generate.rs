//! `simulator generate`: the readings of a fleet as a file, without any network.
//!
//! ```text
//! car ─► car's readings to the end of the span ─► NDJSON: the payloads, a line each, car by car
//!                                              └► Parquet: the payloads, decoded as the preprocessor would
//! ```
//!
//! Car by car, in order of time within each: a fleet of any size takes the memory of one car.

use std::io::{self, Write};

use anyhow::{Context, bail};
use tokio_util::sync::CancellationToken;

use crate::args::{FleetArgs, Format, GenerateArgs};
use crate::car::Fault;
use crate::fleet::{Breaker, fleet};
use crate::output::{Ndjson, Output, buffered, create};
use crate::parquet_file::ParquetFile;
use crate::payload::write_finding;

/// Writes what `args` ask for. Blocking; stops early, with a whole last car, once `shutdown` is cancelled.
pub fn generate(args: &GenerateArgs, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let mut problems = args.fleet.problems();
    if args.fleet.duration.is_none() {
        problems.push("generate needs --duration".to_owned());
    }
    if args.format == Format::Parquet && args.output.is_none() {
        problems.push("--format parquet needs --output FILE".to_owned());
    }
    service::ConfigError::check(problems)?;
    let mut findings = args.faults.as_deref().map(|path| create(path).map(buffered)).transpose()?;
    let mut output: Box<dyn Output> = match (args.format, args.output.as_deref()) {
        (Format::Ndjson, None) => Box::new(Ndjson::new(io::stdout().lock())),
        (Format::Ndjson, Some(path)) => Box::new(Ndjson::new(create(path)?)),
        (Format::Parquet, Some(path)) => Box::new(ParquetFile::create(path)?),
        (Format::Parquet, None) => bail!("--format parquet needs --output FILE"),
    };
    let mut line = Vec::new();
    let written = readings(
        &args.fleet,
        shutdown,
        |payload| output.reading(payload),
        |car, fault| {
            let Some(findings) = &mut findings else { return Ok(()) };
            line.clear();
            write_finding(car, fault, &mut line);
            line.push(b'\n');
            findings.write_all(&line).context("cannot write the findings")
        },
    )
    .and_then(|()| output.finish());
    match written {
        // `simulator generate | head` is no failure.
        Err(error) if error.downcast_ref().is_some_and(|e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe) => {}
        result => result?,
    }
    if let Some(mut findings) = findings {
        findings.flush().context("cannot write the findings")?;
    }
    Ok(())
}

/// All payloads and findings of a fleet, car by car.
fn readings(
    args: &FleetArgs,
    shutdown: &CancellationToken,
    mut reading: impl FnMut(&[u8]) -> anyhow::Result<()>,
    mut finding: impl FnMut(&crate::car::Car, &Fault) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let end_ms = args.end_ms().context("generate needs --duration")?;
    let breaker = Breaker::new(args);
    let mut payload = Vec::new();
    for mut car in fleet(args).take_while(|_| !shutdown.is_cancelled()) {
        while car.next_time_ms() < end_ms {
            let taken = car.next_reading();
            payload.clear();
            breaker.write(&car, &taken, &mut payload);
            reading(&payload)?;
            if let Some(fault) = car.take_finding() {
                finding(&car, &fault)?;
            }
        }
        if let Some(fault) = car.inspect(end_ms) {
            finding(&car, &fault)?;
        }
    }
    Ok(())
}
