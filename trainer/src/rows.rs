//! Exact ranges, from the lake or from the log: the same rows in the same order, and their hash.
//!
//! ```text
//!  --range or everything ──► ranges, by topic, partition, offset ──┬── lake: Parquet ──┐
//!                                                                  └── log:  Avro ─────┴──► rows ──► hash, fleet
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use chrono::{DateTime, NaiveDate};
use contract::{ModelDefinition, Topic};
use event_log::{Log, Read, RecordRef, batches};
use lake::{Coverage, Days, Lake, OffsetRange, RangeReader, RowHash};
use schema_registry::SchemaSource;
use service::Readiness;
use tokio_util::sync::CancellationToken;

use crate::Args;
use crate::args::Source;
use crate::fleet::Fleet;

/// Records per read of the log.
const BATCH_RECORDS: usize = 8_192;

/// How long a look at one record may take: on Kafka a reader connects first.
const READ_PATIENCE: Duration = Duration::from_secs(30);

/// How long a read of the log blocks: a shutdown is noticed that soon.
const READ_TIMEOUT_MS: u64 = 100;

/// Where rows are read from, and which.
#[derive(Debug)]
pub struct RowSource {
    store: Store,
    /// The topics with readings and findings, and the files of their schemas.
    readings: (Arc<str>, String),
    findings: (Arc<str>, String),
    /// Where the model is announced.
    pub(crate) announcements: Topic,
    schemas: SchemaSource,
    /// The days in whose folders the rows should lie; `None`: in any.
    days: Option<Days>,
}

#[derive(Debug)]
enum Store {
    Lake(Lake),
    Log(Arc<dyn Log>),
}

/// The rows of a training set.
#[derive(Debug, Clone)]
pub struct TrainingSet {
    /// By car.
    pub fleet: Fleet,
    /// Which rows they are.
    pub ranges: Vec<OffsetRange>,
    /// SHA-256 over the readings ([`lake::RowHash`]), in the order of the ranges.
    pub row_hash: String,
}

impl RowSource {
    /// As the settings say. `None`: shut down while waiting for a schema registry.
    pub async fn open(
        args: &Args,
        readiness: &Readiness,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let contract = args.contract.load()?;
        let place = contract.model(contract::MODEL).context("Args::check() has found the model")?;
        let topic = |topic: &Topic| (topic.name.clone(), ModelDefinition::schema(topic).to_owned());
        let (readings, findings) = (topic(&place.readings), topic(&place.findings));
        let announcements = place.announcements.clone();
        let days = window(args).filter(|_| args.ranges.is_empty()).map(|days| *days.start()..=NaiveDate::MAX);
        if args.from == Source::Lake {
            let (store, schemas) = (Store::Lake(args.lake.open()?), SchemaSource::of(contract.schemas().clone()));
            return Ok(Some(Self { store, readings, findings, announcements, schemas, days }));
        }
        let store = Store::Log(args.log.open()?);
        let uses = [&readings, &findings].map(|(topic, schema)| (&**topic, schema.as_str()));
        let schemas = args.schema_registry.open(contract.schemas(), &uses, readiness, shutdown).await?;
        Ok(schemas.map(|schemas| Self { store, readings, findings, announcements, schemas, days }))
    }

    /// What it is called in messages.
    pub fn name(&self) -> String {
        match &self.store {
            Store::Lake(lake) => format!("the lake {}", lake.url()),
            Store::Log(log) => format!("the log {}", log.url()),
        }
    }

    /// The requested ranges, or all available ones, in the order in which rows are read; and one line for whatever is
    /// missing among them.
    pub async fn ranges(&self, args: &Args) -> anyhow::Result<(Vec<OffsetRange>, Vec<String>)> {
        let mut ranges: Vec<_> = args.ranges.iter().map(|range| range.0.clone()).collect();
        let mut missing = Vec::new();
        if ranges.is_empty() {
            for (topic, _) in [&self.readings, &self.findings] {
                let covered = self.all_of(topic, args).await?;
                missing.extend(covered.remarks());
                ranges.extend(covered.ranges);
            }
        }
        ranges.retain(|range| range.start < range.end);
        ranges.sort();
        Ok((ranges, missing))
    }

    /// All that was received within the window.
    async fn all_of(&self, topic: &Arc<str>, args: &Args) -> anyhow::Result<Coverage> {
        let log = match &self.store {
            Store::Lake(lake) => {
                return Ok(match window(args) {
                    Some(days) => lake.coverage_of(topic, &days).await?,
                    None => lake.coverage(topic).await?,
                });
            }
            Store::Log(log) => log.clone(),
        };
        let (topic, since_ms) = (topic.clone(), args.window.start_ms(service::now_ms()));
        let ranges = tokio::task::spawn_blocking(move || {
            let partitions = match log.describe(&topic) {
                Ok(description) => description.partitions,
                // Nothing was written yet: not an error, but nothing to read either.
                Err(event_log::Error::UnknownTopic { .. }) => Vec::new(),
                Err(error) => return Err(error),
            };
            let mut ranges = Vec::new();
            for (partition, bounds) in (0..).zip(partitions) {
                let start = match since_ms {
                    Some(since_ms) => first_since(&log, &topic, partition, bounds, since_ms)?,
                    None => bounds.first,
                };
                ranges.push(OffsetRange { topic: topic.to_string(), partition, start, end: bounds.next });
            }
            Ok(ranges)
        });
        Ok(Coverage { ranges: ranges.await??, ..Coverage::default() })
    }

    /// Reads the ranges. `None`: shut down meanwhile.
    pub async fn read(
        &self,
        ranges: Vec<OffsetRange>,
        seed: u64,
        max_readings: u64,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<TrainingSet>> {
        let mut hash = RowHash::new(self.schema(&self.readings.1)?.as_ref())?;
        let mut fleet = Fleet::new(seed, max_readings);
        // Readings first: findings belong to cars that are known by then.
        for (topic, schema) in [&self.readings, &self.findings] {
            for range in ranges.iter().filter(|range| *range.topic == **topic) {
                let mut take = |batch: &RecordBatch| {
                    if *topic == self.findings.0 {
                        return fleet.add_findings(batch);
                    }
                    hash.update(batch);
                    fleet.add_readings(batch)
                };
                let whole = match &self.store {
                    Store::Lake(lake) => {
                        let schema = self.schema(schema)?;
                        let reader = match &self.days {
                            Some(days) => lake.read_of(range.clone(), days, schema).await?,
                            None => lake.read(range.clone(), schema).await?,
                        };
                        read_lake(reader, shutdown, &mut take).await?
                    }
                    Store::Log(log) => read_log(log.clone(), &self.schemas, schema, range, shutdown, &mut take)?,
                };
                if !whole {
                    return Ok(None);
                }
            }
        }
        Ok(Some(TrainingSet { fleet, ranges, row_hash: hash.finish() }))
    }

    /// How many readings ranges hold at most: offsets may be missing where transactions ended.
    pub(crate) fn count_readings(&self, ranges: &[OffsetRange]) -> u64 {
        let of_readings = ranges.iter().filter(|range| *range.topic == *self.readings.0);
        of_readings.map(|range| range.end - range.start).sum()
    }

    fn schema(&self, file: &str) -> anyhow::Result<SchemaRef> {
        let schema = self.schemas.schemas().file(file).with_context(|| format!("the contract has no {file}"))?;
        Ok(schema.arrow.clone())
    }
}

/// The first offset of a partition whose record came at that time or later. By bisection: time stamps grow with the
/// offsets but for a little, and what is off by that is as good.
fn first_since(
    log: &Arc<dyn Log>,
    topic: &Arc<str>,
    partition: u32,
    bounds: event_log::PartitionDescription,
    since_ms: i64,
) -> Result<u64, event_log::Error> {
    let (mut low, mut high) = (bounds.first, bounds.next);
    while low < high {
        let middle = low + (high - low) / 2;
        let range = event_log::Range { topic: topic.clone(), partition, start: middle, end: Some(high) };
        let first = batches(log, vec![range], 1)?.patience(READ_PATIENCE).next().transpose()?;
        match first.and_then(|batch| batch.iter().next().map(|record| (record.offset, record.timestamp_ms))) {
            Some((offset, timestamp_ms)) if timestamp_ms < since_ms => low = offset + 1,
            // Or there is no record behind it.
            _ => high = middle,
        }
    }
    Ok(low)
}

/// The days of the window that ends now; `None`: all.
fn window(args: &Args) -> Option<Days> {
    let day = |ms| DateTime::from_timestamp_millis(ms).map(|time| time.date_naive());
    let now_ms = service::now_ms();
    let first = day(args.window.start_ms(now_ms)?)?;
    // Clocks differ. But a folder of the year 2099 does not make its objects the newest.
    Some(first..=day(now_ms)?.succ_opt()?)
}

async fn read_lake(
    mut reader: RangeReader,
    shutdown: &CancellationToken,
    take: &mut impl FnMut(&RecordBatch) -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    while let Some(rows) = reader.next().await? {
        if shutdown.is_cancelled() {
            return Ok(false);
        }
        take(&rows.batch)?;
    }
    Ok(true)
}

fn read_log(
    log: Arc<dyn Log>,
    schemas: &SchemaSource,
    schema: &str,
    range: &OffsetRange,
    shutdown: &CancellationToken,
    take: &mut impl FnMut(&RecordBatch) -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    let mut decoder = schemas.decoder(schema)?;
    let wanted = event_log::Range {
        topic: range.topic.as_str().into(),
        partition: range.partition,
        start: range.start,
        end: Some(range.end),
    };
    let what = range.to_string();
    let bounds = log.describe(&range.topic).with_context(|| format!("cannot read {what}"))?;
    let next = bounds.partitions.get(range.partition as usize).map_or(0, |partition| partition.next);
    if range.end > next {
        // A reader would wait for the rest to be written.
        bail!("the log {} does not hold {what}: it ends at offset {next}", log.url());
    }
    let mut reader = log.reader(vec![wanted]).with_context(|| format!("cannot read {what}"))?;
    let mut refused: BTreeMap<&'static str, u64> = BTreeMap::new();
    loop {
        if shutdown.is_cancelled() {
            return Ok(false);
        }
        match reader.next(BATCH_RECORDS, Duration::from_millis(READ_TIMEOUT_MS)) {
            Ok(Read::Batch(batch)) => {
                // The wait for an unreachable schema registry is over by then, and was logged.
                while let Err(error) = schemas.resolve(&mut decoder, batch.iter().filter_map(|record| record.value)) {
                    if !error.is_retriable() {
                        return Err(error.into());
                    }
                    if shutdown.is_cancelled() {
                        return Ok(false);
                    }
                }
                let is_row = |r: &RecordRef<'_>| !contract::is_forget(r.value, r.headers.get(contract::FORGET));
                for record in batch.iter().filter(is_row) {
                    // What cannot be decoded is not a row: the sink keeps it aside as well.
                    if let Err(reject) = decoder.decode(record.value.unwrap_or_default()) {
                        *refused.entry(reject.reason).or_default() += 1;
                    }
                }
                take(&decoder.finish())?;
            }
            Ok(Read::Idle) => {}
            Ok(Read::End) => break,
            Err(error) if error.is_retriable() => {
                tracing::debug!("reading {what}: {error}");
                std::thread::sleep(Duration::from_millis(READ_TIMEOUT_MS));
            }
            Err(error) => bail!(anyhow::Error::new(error).context(format!("cannot read {what}"))),
        }
    }
    if !refused.is_empty() {
        tracing::warn!("{what}: skipped records that cannot be decoded: {refused:?}");
    }
    Ok(true)
}
