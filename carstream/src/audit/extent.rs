//! How far each hop is read, so that a pipeline that keeps running meanwhile is judged fairly.
//!
//! ```text
//! 1. positions of the stages    what lies before them must have come out behind the stage
//! 2. ends, against the flow     objects ─► scores ─► cloud ─► clean ─► dead letters ─► raw
//!                               so what is behind a stage is certainly before it too
//! ```
//!
//! Records that a stage has not reached are its lag. Retention removes records at a hop's beginning: readings older
//! than the oldest remaining record may have been there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use contract::own;
use event_log::{Error, Log, LogUrl, PartitionDescription, Range, batches, progress};
use lake::{ErasureRequests, Footer, Lake, ObjectName};
use pipeline::gaps;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::flow::Flow;
use super::{Hop, Scores, Sources};

/// How long a reader may take to come up with the first record of a partition.
const FIRST_RECORD: Duration = Duration::from_secs(10);

/// Time between two checks of the stages that the audit waits for.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A topic, as far as it is looked at.
#[derive(Debug, Clone)]
pub(crate) struct TopicExtent {
    pub(crate) topic: Arc<str>,
    pub(crate) partitions: Vec<PartitionDescription>,
    /// If retention has removed records: what was written later than this is still there.
    pub(crate) kept_since_ms: Option<i64>,
}

impl TopicExtent {
    /// The topic as it is now; without partitions if there is no such topic.
    pub(crate) fn of(log: &Arc<dyn Log>, topic: &Arc<str>) -> anyhow::Result<Self> {
        let partitions = of_topic(log.describe(topic).map(|described| described.partitions))?;
        let mut kept_since_ms = None;
        for (partition, bounds) in (0..).zip(&partitions) {
            if bounds.first > 0 {
                kept_since_ms = kept_since_ms.max(Some(oldest_ms(log, topic, partition, *bounds)?));
            }
        }
        Ok(Self { topic: topic.clone(), partitions, kept_since_ms })
    }

    /// Ranges to read all of it.
    pub(crate) fn ranges(&self) -> Vec<Range> {
        progress::held(&self.topic, &self.partitions)
    }
}

/// The time of the oldest record that is left in a partition; now if there is none.
fn oldest_ms(log: &Arc<dyn Log>, topic: &str, partition: u32, bounds: PartitionDescription) -> anyhow::Result<i64> {
    let range = Range { topic: topic.into(), partition, start: bounds.first, end: Some(bounds.next) };
    let first = batches(log, vec![range], 1)?.patience(FIRST_RECORD).next().transpose();
    let first = first.with_context(|| format!("cannot read the first record of {topic}/{partition}"))?;
    Ok(first.map_or_else(service::now_ms, |batch| batch.get(0).timestamp_ms))
}

/// An object of the lake.
#[derive(Debug, Clone)]
pub(crate) struct LakeObject {
    pub(crate) name: ObjectName,
    pub(crate) footer: Footer,
}

/// The objects of the lake.
#[derive(Debug, Clone, Default)]
pub(crate) struct LakeExtent {
    /// Sorted by partition and start offset.
    pub(crate) objects: Vec<LakeObject>,
    /// From where to where each partition goes; gaps are not looked for here.
    pub(crate) covered: BTreeMap<u32, (u64, u64)>,
    /// If a partition does not begin at offset 0: records written later than this still exist.
    pub(crate) kept_since_ms: Option<i64>,
    /// Objects that cannot be used, and why.
    pub(crate) unusable: Vec<(String, String)>,
    /// Requests to erase the rows of cars.
    pub(crate) requests: ErasureRequests,
}

impl LakeExtent {
    fn of(flow: &Flow, lake: &Lake, runtime: &Handle) -> anyhow::Result<Self> {
        loop {
            match Self::now(flow, lake, runtime) {
                // Compaction has put another object in its place.
                Err(error) if matches!(error.downcast_ref(), Some(lake::Error::NotFound { .. })) => {}
                extent => return extent,
            }
        }
    }

    fn now(flow: &Flow, lake: &Lake, runtime: &Handle) -> anyhow::Result<Self> {
        let mut extent = Self::default();
        for name in runtime.block_on(lake.objects(flow.clean()))? {
            match runtime.block_on(lake.footer(&name)) {
                Ok(footer) => {
                    let covered = extent.covered.entry(name.partition).or_insert((footer.start, footer.end));
                    covered.1 = covered.1.max(footer.end);
                    extent.objects.push(LakeObject { name, footer });
                }
                Err(lake::Error::Unusable { object, what, .. }) => extent.unusable.push((object, what)),
                Err(error) => return Err(error.into()),
            }
        }
        // They are older than the objects that carry them out.
        extent.requests = runtime.block_on(lake.erasure_requests(flow.clean()))?;
        let from_zero = |object: &&LakeObject| extent.covered.get(&object.name.partition).is_some_and(|c| c.0 == 0);
        let mut first = BTreeMap::new();
        for object in extent.objects.iter().filter(|object| object.footer.rows > 0 && !from_zero(object)) {
            first.entry(object.name.partition).or_insert(object);
        }
        for object in first.into_values() {
            let mut reader = lake.read_object(object.name.clone(), &object.footer, flow.identity_schema());
            let oldest = match runtime.block_on(reader.next()) {
                Ok(rows) => rows.and_then(|rows| rows.timestamps_ms.values().first().copied()),
                // It is found to be unusable when it is read.
                Err(lake::Error::Unusable { .. }) => None,
                Err(error) => return Err(error.into()),
            };
            let oldest = oldest.unwrap_or_else(service::now_ms);
            extent.kept_since_ms = extent.kept_since_ms.max(Some(oldest));
        }
        Ok(extent)
    }
}

/// Offsets that retention has removed from a partition and that a stage had not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unread {
    pub(crate) hop: Hop,
    pub(crate) partition: u32,
    /// Its position, and the first offset that is left.
    pub(crate) offsets: std::ops::Range<u64>,
    /// The stage that had not read them; `None` if no reader of this hop is known.
    pub(crate) reader: Option<&'static str>,
    /// The hop that lacks them for good, if an operator has accepted that: the stage has resumed after them.
    pub(crate) accepted: Option<Hop>,
    /// Some of them may be the markers of Kafka's transactions, and no records.
    pub(crate) may_be_markers: bool,
}

/// Everything that is looked at.
#[derive(Debug)]
pub(crate) struct Extents {
    pub(crate) raw: Option<TopicExtent>,
    pub(crate) dead_letters: Option<TopicExtent>,
    pub(crate) clean: Option<TopicExtent>,
    pub(crate) cloud: Option<TopicExtent>,
    pub(crate) lake: Option<LakeExtent>,
    pub(crate) scores: Option<TopicExtent>,
    /// What the preprocessor has committed of the raw topic, by partition.
    pub(crate) preprocessor: Vec<u64>,
    /// What the replicator has committed of the clean topic.
    pub(crate) replicator: Vec<u64>,
    /// What the scorer has committed of the clean topic.
    pub(crate) scorer: Vec<u64>,
    /// Offsets that were removed before the next stage had read them, by the committed positions.
    pub(crate) unread: Vec<Unread>,
}

impl Extents {
    /// Positions first, then ends against the flow.
    pub(crate) fn take(sources: &Sources, runtime: &Handle) -> anyhow::Result<Self> {
        let (edge, cloud) = (sources.edge.as_ref(), sources.cloud.as_ref());
        let of = |log: Option<&Arc<dyn Log>>, group: &str, topic: &str| match log {
            Some(log) => positions(log, group, topic),
            None => Ok(Vec::new()),
        };
        let flow = &sources.flow;
        let clean = flow.clean();
        let preprocessor = of(edge, &flow.stream.group(), flow.raw())?;
        let replicator = of(cloud, &replicator::group_of(&sources.site, clean), clean)?;
        let scorer = if flow.model.is_some() { of(edge, &sources.scorer_group, clean)? } else { Vec::new() };
        let extent = |log: Option<&Arc<dyn Log>>, topic| log.map(|log| TopicExtent::of(log, topic)).transpose();
        let lake = sources.lake.as_ref().map(|lake| LakeExtent::of(flow, lake, runtime)).transpose()?;
        let scores = match &flow.model {
            Some(model) if has_scores(sources)? => extent(edge, &model.scores.name)?,
            _ => None,
        };
        let (cloud, clean) = (extent(cloud, clean)?, extent(edge, clean)?);
        let dead_letters = extent(edge, flow.dead_letters())?;
        let raw = extent(edge, flow.raw())?;
        let mut extents = Self {
            raw,
            dead_letters,
            clean,
            cloud,
            lake,
            scores,
            preprocessor,
            replicator,
            scorer,
            unread: Vec::new(),
        };
        extents.unread = extents.unread(sources)?;
        Ok(extents)
    }

    /// Compares what retention has left of each topic with the positions of the stages that read it.
    fn unread(&self, sources: &Sources) -> anyhow::Result<Vec<Unread>> {
        let mut unread = Vec::new();
        let mut compare =
            |hop, extent: &Option<TopicExtent>, log: &Option<Arc<dyn Log>>, readers: &[(&'static str, Vec<u64>)]| {
                let (Some(extent), Some(log)) = (extent, log) else { return };
                // Nothing but the bridge writes raw topics, and it writes without transactions.
                let may_be_markers = hop != Hop::Raw && matches!(log.url(), LogUrl::Kafka { .. });
                for (partition, bounds) in (0..).zip(&extent.partitions) {
                    let mut note = |reader, position: u64| {
                        if position < bounds.first {
                            let offsets = position..bounds.first;
                            unread.push(Unread { hop, partition, offsets, reader, accepted: None, may_be_markers });
                        }
                    };
                    for (reader, positions) in readers {
                        note(Some(*reader), positions.get(partition as usize).copied().unwrap_or(0));
                    }
                    if readers.is_empty() {
                        note(None, 0);
                    }
                }
            };
        compare(Hop::Raw, &self.raw, &sources.edge, &[("preprocessor", self.preprocessor.clone())]);
        let mut of_clean = Vec::new();
        if self.scores.is_some() {
            of_clean.push(("scorer", self.scorer.clone()));
        }
        if self.cloud.is_some() {
            of_clean.push(("replicator", self.replicator.clone()));
        } else if let Some(positions) = noted_at_the_edge(sources)? {
            of_clean.push(("replicator", positions));
        }
        // With the lake and without the log between, offsets do not tell: each reading is looked for in the lake.
        if self.cloud.is_some() || self.lake.is_none() || !of_clean.is_empty() {
            compare(Hop::Clean, &self.clean, &sources.edge, &of_clean);
        }
        let reached = |lake: &LakeExtent| {
            let partitions = self.cloud.as_ref().map_or(0, |extent| extent.partitions.len() as u32);
            (0..partitions).map(|partition| lake.covered.get(&partition).map_or(0, |covered| covered.1)).collect()
        };
        let of_cloud: Vec<_> = self.lake.iter().map(|lake| ("sink", reached(lake))).collect();
        compare(Hop::Cloud, &self.cloud, &sources.cloud, &of_cloud);
        unread.extend(accepted(sources, self.scores.is_some())?);
        let objects = self.lake.iter().flat_map(|lake| &lake.objects);
        unread.extend(objects.filter(|object| object.footer.skipped).map(|LakeObject { footer, .. }| Unread {
            hop: Hop::Cloud,
            partition: footer.partition,
            offsets: footer.start..footer.end,
            reader: Some("sink"),
            accepted: Some(Hop::Lake),
            may_be_markers: false,
        }));
        Ok(unread)
    }
}

/// Offsets that stages have skipped, since an operator accepted that retention had removed them.
fn accepted(sources: &Sources, has_scores: bool) -> anyhow::Result<Vec<Unread>> {
    let flow = &sources.flow;
    let mut accepted = Vec::new();
    let mut add = |hop, lacking, reader, partition, offsets: std::ops::Range<u64>| {
        if !offsets.is_empty() {
            let (reader, accepted_at, may_be_markers) = (Some(reader), Some(lacking), false);
            accepted.push(Unread { hop, partition, offsets, reader, accepted: accepted_at, may_be_markers });
        }
    };
    if let Some(edge) = &sources.edge {
        let preprocessor = (Hop::Raw, Hop::Clean, "preprocessor", flow.stream.group(), flow.raw());
        let scorer = (Hop::Clean, Hop::Scores, "scorer", sources.scorer_group.clone(), flow.clean());
        for (hop, lacking, reader, group, topic) in [preprocessor].into_iter().chain(has_scores.then_some(scorer)) {
            let decisions = gaps::load(edge, own::GAPS, &group, topic)?;
            if decisions.is_empty() {
                continue;
            }
            let topic_id = edge.describe(topic)?.id;
            for (place, decision) in decisions.iter().filter(|(_, decision)| decision.topic_id == topic_id) {
                let skipped = decision.skipped(place.from).unwrap_or_default();
                add(hop, lacking, reader, place.partition, skipped);
            }
        }
    }
    if let Some(cloud) = &sources.cloud {
        for gap in of_topic(replicator::accepted_gaps(cloud, &sources.site, flow.clean()))? {
            add(Hop::Clean, Hop::Cloud, "replicator", gap.partition, gap.from..gap.to);
        }
    }
    Ok(accepted)
}

/// How far the replicator has come, as the edge's own log knows it; `None` if it knows no replicator.
fn noted_at_the_edge(sources: &Sources) -> anyhow::Result<Option<Vec<u64>>> {
    let Some(edge) = &sources.edge else { return Ok(None) };
    let (clean, group) = (sources.flow.clean(), replicator::group_of(&sources.site, sources.flow.clean()));
    let known = edge.groups()?.into_iter().find(|known| *known.name == *group && known.topic == *clean);
    Ok(known.map(|known| known.positions.into_iter().map(Option::unwrap_or_default).collect()))
}

/// The committed positions of a group on a topic, by partition; they are in the log that has the group's outputs.
fn positions(log: &Arc<dyn Log>, group: &str, topic: &str) -> anyhow::Result<Vec<u64>> {
    let committed = of_topic(log.committed(group, topic))?;
    Ok(committed.into_iter().map(Option::unwrap_or_default).collect())
}

/// Nothing of a topic that does not exist.
fn of_topic<T>(asked: Result<Vec<T>, Error>) -> Result<Vec<T>, Error> {
    match asked {
        Err(Error::UnknownTopic { .. }) => Ok(Vec::new()),
        asked => asked,
    }
}

/// Whether each clean reading must have a score.
fn has_scores(sources: &Sources) -> anyhow::Result<bool> {
    let (Some(edge), Some(model)) = (&sources.edge, &sources.flow.model) else { return Ok(false) };
    let records = |log: &Arc<dyn Log>, topic: &str| match log.describe(topic) {
        Ok(described) => Ok(Some(described.partitions.iter().any(|bounds| bounds.next > 0))),
        Err(Error::UnknownTopic { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    match sources.scores {
        Scores::Yes => Ok(true),
        Scores::No => Ok(false),
        Scores::Auto => match records(edge, &model.scores.name)? {
            None => Ok(false),
            Some(true) => Ok(true),
            Some(false) => {
                let mut announced = false;
                for log in [Some(edge), sources.cloud.as_ref()].into_iter().flatten() {
                    announced |= records(log, &model.announcements.name)? == Some(true);
                }
                Ok(announced)
            }
        },
    }
}

/// Waits until the records now at the edge have reached every checked hop. Otherwise names the stages that lag.
///
/// Waits for each stage up to the end that its source had when the stage before it was done; so this ends even if more
/// records keep arriving.
pub(crate) fn wait(
    sources: &Sources,
    patience: Duration,
    runtime: &Handle,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    let waited = |what: &str, lag: &mut dyn FnMut() -> anyhow::Result<u64>| loop {
        let left = lag()?;
        if left == 0 {
            return Ok(());
        }
        if shutdown.is_cancelled() {
            bail!("stopped while waiting for {what}");
        }
        if Instant::now() >= deadline {
            bail!("{what} has not caught up within {} s: {left} records to go", patience.as_secs());
        }
        std::thread::sleep(LOOK_AGAIN);
    };
    let flow = &sources.flow;
    let (raw_topic, clean_topic) = (flow.raw(), flow.clean());
    if let Some(edge) = &sources.edge {
        let raw = ends(edge, raw_topic)?;
        waited("the preprocessor", &mut || lag(edge, edge, &flow.stream.group(), raw_topic, &raw))?;
        let clean = ends(edge, clean_topic)?;
        if has_scores(sources)? {
            waited("the scorer", &mut || lag(edge, edge, &sources.scorer_group, clean_topic, &clean))?;
        }
        if let Some(cloud) = &sources.cloud {
            let group = replicator::group_of(&sources.site, clean_topic);
            waited("the replicator", &mut || lag(edge, cloud, &group, clean_topic, &clean))?;
        }
    }
    if let (Some(cloud), Some(lake)) = (&sources.cloud, &sources.lake) {
        let copied = ends(cloud, clean_topic)?;
        waited("the sink", &mut || {
            let covered = LakeExtent::of(flow, lake, runtime)?.covered;
            let reached: Vec<_> = (0..copied.len() as u32).map(|p| covered.get(&p).map(|c| c.1)).collect();
            records_between(cloud, clean_topic, &reached, &copied)
        })?;
    }
    Ok(())
}

fn ends(log: &Arc<dyn Log>, topic: &str) -> anyhow::Result<Vec<u64>> {
    Ok(of_topic(progress::ends(log.as_ref(), topic))?)
}

fn lag(source: &Arc<dyn Log>, target: &Arc<dyn Log>, group: &str, topic: &str, until: &[u64]) -> anyhow::Result<u64> {
    let positions = of_topic(target.committed(group, topic))?;
    records_between(source, topic, &positions, until)
}

/// About how many records there are between positions and ends: 0 only if there are none.
fn records_between(log: &Arc<dyn Log>, topic: &str, from: &[Option<u64>], until: &[u64]) -> anyhow::Result<u64> {
    let mut left = of_topic(progress::between(log.as_ref(), topic, from, until))?;
    let mut unknown = Ok(());
    left.retain(|range| match progress::is_drained(log, std::slice::from_ref(range)) {
        Ok(drained) => !drained,
        Err(error) => {
            unknown = Err(error);
            true
        }
    });
    unknown.context("cannot check for remaining records")?;
    Ok(progress::offsets(&left))
}
