//! What a training takes in memory and CPU time, by the number of readings in the lake.
//!
//!     cargo run --release -- demo --keep carstream-demo
//!     cargo bench -p trainer --bench training_memory -- carstream-demo/lake 1000000 10000000 100000000
//!
//! The cars of the given lake are repeated under other pseudonyms, until the lake of the measurement has that many
//! readings, received over the last six days; its 60 bytes a reading go to the directory for temporary files. Reads
//! /proc, so Linux only.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::SchemaRef;
use contract::{Contract, Topic};
use lake::{Encodings, Lake, LakeUrl, ObjectName, ObjectWriter};
use test_support::measurement;

/// About as many as the sink puts into an object.
const OBJECT_ROWS: usize = 200_000;

/// Over how long the readings were received: less than the trainer's window.
const RECEIVED_OVER: Duration = Duration::from_secs(6 * 86_400);

/// How often the trainer's memory is read. The kernel keeps the peak, so that only the last of it can be missed.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = measurement::arguments().skip(1).collect();
    let [fleet, counts @ ..] = arguments.as_slice() else { anyhow::bail!("arguments: LAKE READINGS…") };
    let contract = Contract::builtin();
    let model = contract.model(contract::MODEL).context("the model of the platform")?;
    let fleet = Lake::open(&LakeUrl::Directory(fleet.into()))?;
    let readings = Rows::read(&fleet, contract, &model.readings).await?;
    let findings = Rows::read(&fleet, contract, &model.findings).await?;
    ensure!(readings.count > 0, "{} has no readings", fleet.url());
    for count in counts {
        let count: usize = count.parse().with_context(|| format!("{count}: not a number of readings"))?;
        let folder = tempfile::tempdir()?;
        let lake = Lake::open(&LakeUrl::Directory(folder.path().to_owned()))?;
        let copies = count.div_ceil(readings.count);
        let began = Instant::now();
        readings.write(&lake, copies).await?;
        findings.write(&lake, copies).await?;
        let made = began.elapsed();
        train(folder.path(), copies * readings.count, made)?;
    }
    Ok(())
}

/// Trains once, in a process of its own, and prints what that took.
fn train(lake: &Path, count: usize, made: Duration) -> anyhow::Result<()> {
    let mut trainer = Command::new(env!("CARGO_BIN_EXE_trainer"));
    trainer.arg("--lake").arg(lake).args(["--no-announce", "--log-level", "warn"]).stdout(Stdio::null());
    let began = Instant::now();
    let mut trainer = trainer.spawn()?;
    let process = trainer.id();
    let of_trainer = |file: &str| std::fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default();
    let (mut peak_mib, mut cpu_s) = (0, 0.0);
    let status = loop {
        let peak = of_trainer("status").lines().find_map(|line| line.strip_prefix("VmHWM:")).and_then(first_number);
        peak_mib = peak.map_or(peak_mib, |kib| kib / 1024).max(peak_mib);
        let stat = of_trainer("stat");
        let times = stat.rsplit_once(')').map(|(_, times)| times.split_whitespace().skip(11).take(2));
        // In hundredths of a second on every Linux in use.
        cpu_s = times.map_or(0.0, |times| times.flat_map(str::parse::<f64>).sum::<f64>() / 100.0).max(cpu_s);
        if let Some(status) = trainer.try_wait()? {
            break status;
        }
        std::thread::sleep(LOOK_EVERY);
    };
    ensure!(status.success(), "the trainer ended with {status}");
    println!(
        "{count} readings: {peak_mib} MiB at most, {cpu_s:.0} CPU s, {:.0} s (the lake was made in {:.0} s)",
        began.elapsed().as_secs_f64(),
        made.as_secs_f64(),
    );
    Ok(())
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// All rows of one topic of the given lake.
struct Rows<'c> {
    topic: &'c Topic,
    schema: SchemaRef,
    schema_id: u32,
    batches: Vec<RecordBatch>,
    count: usize,
}

impl<'c> Rows<'c> {
    async fn read(lake: &Lake, contract: &Contract, topic: &'c Topic) -> anyhow::Result<Self> {
        let file = topic.schema().context("the topic has a schema")?;
        let schema = contract.schemas().file(file).context("the contract has its schemas")?;
        let (schema, schema_id) = (schema.arrow.clone(), schema.id.unwrap_or_default());
        let mut batches = Vec::new();
        for range in lake.coverage(&topic.name).await?.ranges {
            let mut rows = lake.read(range, schema.clone()).await?;
            while let Some(rows) = rows.next().await? {
                batches.push(rows.batch);
            }
        }
        let count = batches.iter().map(RecordBatch::num_rows).sum();
        Ok(Self { topic, schema, schema_id, batches, count })
    }

    /// Writes the rows `copies` times, each time as other cars'.
    async fn write(&self, lake: &Lake, copies: usize) -> anyhow::Result<()> {
        let all = (copies * self.count).max(1) as u64;
        let begin_ms = service::now_ms() - RECEIVED_OVER.as_millis() as i64;
        let received_ms = |offset: u64| begin_ms + (RECEIVED_OVER.as_millis() as u64 * offset / all) as i64;
        let mut next = 0;
        let mut open: Option<ObjectWriter> = None;
        for copy in 0..copies {
            for batch in &self.batches {
                let rows = other_cars(batch, copy)?;
                let offsets: Vec<u64> = (next..).take(rows.num_rows()).collect();
                let times: Vec<_> = offsets.iter().map(|offset| received_ms(*offset)).collect();
                let mut writer = match open.take() {
                    Some(writer) => writer,
                    None => {
                        let name = ObjectName::new(&self.topic.name, 0, next, received_ms(next));
                        ObjectWriter::new(name, &self.schema, self.schema_id, Encodings::default())?
                    }
                };
                writer.write(&rows, &offsets, &times)?;
                next += offsets.len() as u64;
                if writer.rows() < OBJECT_ROWS as u64 {
                    open = Some(writer);
                } else {
                    lake.put_object(&writer.finish(next)?).await?;
                }
            }
        }
        if let Some(writer) = open {
            lake.put_object(&writer.finish(next)?).await?;
        }
        Ok(())
    }
}

/// The same rows, as those of cars with other pseudonyms.
fn other_cars(batch: &RecordBatch, copy: usize) -> anyhow::Result<RecordBatch> {
    let index = batch.schema_ref().index_of("car")?;
    let cars = batch.column(index).as_string::<i32>();
    let renamed: StringArray = cars.iter().map(|car| Some(format!("{copy:08x}{}", car?.get(8..)?))).collect();
    let mut columns = batch.columns().to_vec();
    columns[index] = Arc::new(renamed) as ArrayRef;
    Ok(RecordBatch::try_new(batch.schema(), columns)?)
}
