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
use event_log::{Log, Read};
use lake::{Lake, OffsetRange, RowHash};
use schema_registry::SchemaSource;
use service::Readiness;
use telemetry::schema::Schemas;
use tokio_util::sync::CancellationToken;

use crate::args::Source;
use crate::fleet::Fleet;
use crate::{Args, FINDINGS, READINGS};

/// Schema that readings are read as, whatever they were written as.
const READINGS_SCHEMA: &str = "telemetry.v2.avsc";
const FINDINGS_SCHEMA: &str = "fault.avsc";

/// Records per read of the log.
const BATCH_RECORDS: usize = 8_192;

/// How long a read of the log blocks: a shutdown is noticed that soon.
const READ_TIMEOUT_MS: u64 = 100;

/// Where rows are read from.
#[derive(Debug)]
pub enum From {
    /// The lake.
    Lake(Lake),
    /// The log, with the schemas of its values.
    Log(Arc<dyn Log>, SchemaSource),
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

impl From {
    /// As the settings say. `None`: shut down while a schema registry was waited for.
    pub async fn open(
        args: &Args,
        readiness: &Readiness,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        if args.from == Source::Lake {
            return Ok(Some(Self::Lake(args.lake.open()?)));
        }
        let log = args.log.open()?;
        let uses = [READINGS, FINDINGS].map(|topic| (topic, schema_of(topic)));
        let schemas = args.schema_registry.open(Schemas::builtin(), &uses, readiness, shutdown).await?;
        Ok(schemas.map(|schemas| Self::Log(log, schemas)))
    }

    /// What it is called in messages.
    pub fn name(&self) -> String {
        match self {
            Self::Lake(lake) => format!("the lake {}", lake.url()),
            Self::Log(log, _) => format!("the log {}", log.url()),
        }
    }

    /// The ranges that were asked for, or all that is there, in the order in which rows are read.
    pub async fn ranges(&self, args: &Args) -> anyhow::Result<Vec<OffsetRange>> {
        let mut ranges: Vec<_> = args.ranges.iter().map(|range| range.0.clone()).collect();
        if ranges.is_empty() {
            for topic in [READINGS, FINDINGS] {
                ranges.extend(self.all_of(topic).await?);
            }
        }
        ranges.retain(|range| range.start < range.end);
        ranges.sort();
        Ok(ranges)
    }

    async fn all_of(&self, topic: &'static str) -> anyhow::Result<Vec<OffsetRange>> {
        let log = match self {
            Self::Lake(lake) => return Ok(lake.coverage(topic).await?),
            Self::Log(log, _) => log.clone(),
        };
        let described = tokio::task::spawn_blocking(move || log.describe(topic)).await?;
        let partitions = match described {
            Ok(description) => description.partitions,
            // Nothing was written yet: not an error, but nothing to read either.
            Err(event_log::Error::UnknownTopic { .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let range = |(partition, bounds): (usize, &event_log::PartitionDescription)| OffsetRange {
            topic: topic.to_owned(),
            partition: partition as u32,
            start: bounds.first,
            end: bounds.next,
        };
        Ok(partitions.iter().enumerate().map(range).collect())
    }

    /// Reads the ranges. `None`: shut down meanwhile.
    pub async fn read(
        &self,
        ranges: Vec<OffsetRange>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<TrainingSet>> {
        let schema = Schemas::builtin().file(READINGS_SCHEMA).context("telemetry.v2.avsc is built in")?;
        let mut hash = RowHash::new(&schema.arrow)?;
        let mut fleet = Fleet::default();
        // Readings first: findings belong to cars that are known by then.
        for topic in [READINGS, FINDINGS] {
            for range in ranges.iter().filter(|range| range.topic == topic) {
                let mut take = |batch: &RecordBatch| {
                    if topic == FINDINGS {
                        return fleet.add_findings(batch);
                    }
                    hash.update(batch);
                    fleet.add_readings(batch)
                };
                let whole = match self {
                    Self::Lake(lake) => read_lake(lake, range, shutdown, &mut take).await?,
                    Self::Log(log, schemas) => read_log(log.clone(), schemas, range, shutdown, &mut take)?,
                };
                if !whole {
                    return Ok(None);
                }
            }
        }
        Ok(Some(TrainingSet { fleet, ranges, row_hash: hash.finish() }))
    }
}

/// How many readings ranges hold at most: offsets may be missing where transactions ended.
pub(crate) fn readings(ranges: &[OffsetRange]) -> u64 {
    ranges.iter().filter(|range| range.topic == READINGS).map(|range| range.end - range.start).sum()
}

fn schema_of(topic: &str) -> &'static str {
    if topic == FINDINGS { FINDINGS_SCHEMA } else { READINGS_SCHEMA }
}

async fn read_lake(
    lake: &Lake,
    range: &OffsetRange,
    shutdown: &CancellationToken,
    take: &mut impl FnMut(&RecordBatch) -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    let schema = Schemas::builtin().file(schema_of(&range.topic)).context("the schema is built in")?.arrow.clone();
    let mut reader = lake.read(range.clone(), schema).await?;
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
    range: &OffsetRange,
    shutdown: &CancellationToken,
    take: &mut impl FnMut(&RecordBatch) -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    let mut decoder = schemas.decoder(schema_of(&range.topic))?;
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
                // A schema registry that is away has been waited for by then, and that was said.
                while let Err(error) = schemas.resolve(&mut decoder, batch.iter().filter_map(|record| record.value)) {
                    if !error.is_retriable() {
                        return Err(error.into());
                    }
                    if shutdown.is_cancelled() {
                        return Ok(false);
                    }
                }
                for record in batch.iter() {
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
        tracing::warn!("{what}: records that cannot be decoded were left out: {refused:?}");
    }
    Ok(true)
}
