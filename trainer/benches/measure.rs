//! Trains on files of `simulator generate`, without a pipeline, and says how good the model is: for tuning the model.
//!
//!     simulator generate --cars 500 --duration 20h --output train.ndjson --faults train-faults.ndjson
//!     simulator generate --cars 500 --duration 20h --seed 2 --fault-share 0.04 --output test.ndjson \
//!         --faults test-faults.ndjson
//!     cargo bench -p trainer --bench measure -- \
//!         OUT train.ndjson train-faults.ndjson test.ndjson test-faults.ndjson
//!
//! Manifest, weights and plots go to the directory OUT. With a second pair of files the model is measured on those
//! cars as well, all of them: more faults than are usual say more about each kind.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema};
use clap::Parser;
use telemetry::json::JsonDecoder;
use test_support::measurement;
use tokio_util::sync::CancellationToken;
use trainer::{Args, Fleet, detection, plots, train};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = measurement::arguments().skip(1).collect();
    let [out, files @ ..] = arguments.as_slice() else { bail!("OUT READINGS FAULTS [READINGS FAULTS]") };
    let (training, test) = match files {
        [readings, faults] => ((readings, faults), None),
        [readings, faults, test_readings, test_faults] => ((readings, faults), Some((test_readings, test_faults))),
        _ => bail!("OUT READINGS FAULTS [READINGS FAULTS]"),
    };
    let fleet = read(training.0, training.1)?;
    let started = Instant::now();
    let args = Args::try_parse_from(["trainer"])?;
    let trained = train(&args, &fleet, Vec::new(), String::new(), &CancellationToken::new())?;
    let trained = trained.context("nothing shuts it down")?;
    println!("{} readings trained in {:.1} s", fleet.rows, started.elapsed().as_secs_f64());
    let metrics = &trained.model.manifest().metrics;
    println!("loss {:?} {:?}", metrics.training_loss, metrics.validation_loss);
    println!("validation {:#?}", metrics.validation);
    println!("test {:#?}", metrics.test);
    let out = Path::new(out);
    std::fs::create_dir_all(out)?;
    std::fs::write(out.join("manifest.json"), &trained.manifest)?;
    std::fs::write(out.join("weights.safetensors"), &trained.weights)?;
    for (name, png) in plots(&trained, &fleet)? {
        std::fs::write(out.join(name), png)?;
    }
    if let Some((readings, faults)) = test {
        println!("other cars {:#?}", detection(&trained.model, &read(readings, faults)?));
    }
    Ok(())
}

fn read(readings: &str, faults: &str) -> anyhow::Result<Fleet> {
    let mut fleet = Fleet::default();
    decode(readings, "telemetry_raw.avsc", |batch| fleet.add_readings(&batch))?;
    decode(faults, "fault_raw.avsc", |batch| fleet.add_findings(&batch))?;
    Ok(fleet)
}

/// Rows of an NDJSON file, with the VIN in the place of the pseudonym.
fn decode(path: &str, schema: &str, mut take: impl FnMut(RecordBatch) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let schema = contract::Contract::builtin().schemas().file(schema).context("the schema is built in")?;
    let mut decoder = JsonDecoder::new(schema);
    let file = BufReader::new(File::open(path).with_context(|| path.to_owned())?);
    for line in file.split(b'\n') {
        if let Err(reject) = decoder.decode(&line?) {
            bail!("{path}: {reject}");
        }
    }
    let batch = decoder.finish();
    let rename = |field: &Arc<Field>| match field.name().as_str() {
        "vin" => Arc::new(field.as_ref().clone().with_name("car")),
        _ => field.clone(),
    };
    let renamed = Schema::new(batch.schema_ref().fields().iter().map(rename).collect::<Vec<_>>());
    take(RecordBatch::try_new(Arc::new(renamed), batch.columns().to_vec())?)
}
