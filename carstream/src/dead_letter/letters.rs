//! Reads dead letters and picks those that a filter lets through.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, bail};

use event_log::{Error, Log, Range, RecordRef, TopicDescription, batches};
use pipeline::DeadLetterHeader;
use tokio_util::sync::CancellationToken;

use service::ConfigError;

use super::args::{Filter, Position};

/// Records a read.
pub(super) const READ_RECORDS: usize = 8192;

/// A dead-letter topic, as far as it goes when the command begins.
#[derive(Debug, Clone)]
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    pub(super) described: TopicDescription,
}

/// One dead letter.
#[derive(Debug)]
pub(super) struct Letter<'a> {
    pub(super) topic: &'a Topic,
    pub(super) partition: u32,
    pub(super) record: RecordRef<'a>,
}

impl<'a> Letter<'a> {
    pub(super) fn position(&self) -> Position {
        Position { topic: self.topic.name.to_string(), partition: self.partition, offset: self.record.offset }
    }

    pub(super) fn header(&self, name: &str) -> Option<&'a str> {
        self.record.headers.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    pub(super) fn reason(&self) -> &'a str {
        self.header(DeadLetterHeader::REASON).unwrap_or("no reason")
    }

    /// When it was set aside.
    pub(super) fn time_ms(&self) -> i64 {
        let time = self.header(DeadLetterHeader::TIME_MS).and_then(|text| text.parse().ok());
        time.unwrap_or(self.record.timestamp_ms)
    }

    /// Where it was read from.
    pub(super) fn source(&self) -> Option<Position> {
        Some(Position {
            topic: self.header(DeadLetterHeader::TOPIC)?.to_owned(),
            partition: self.header(DeadLetterHeader::PARTITION)?.parse().ok()?,
            offset: self.header(DeadLetterHeader::OFFSET)?.parse().ok()?,
        })
    }

    pub(super) fn passes(&self, filter: &Filter) -> bool {
        let time_ms = self.time_ms();
        let reasons = &filter.reason;
        (reasons.is_empty() || reasons.iter().any(|reason| reason == self.reason()))
            && filter.since.is_none_or(|since| time_ms >= since)
            && filter.until.is_none_or(|until| time_ms < until)
    }
}

/// The topics of a filter. Those that it names must be among `known`, and exist; without any, those of `known` that do.
pub(super) fn topics(log: &Arc<dyn Log>, known: &[Arc<str>], filter: &Filter) -> anyhow::Result<Vec<Topic>> {
    let other = |topic: &&String| !known.iter().any(|known| **known == ***topic);
    let refuse =
        |topic: &String| format!("--topic {topic}: is no dead-letter topic; the contract has {}", known.join(", "));
    ConfigError::check(filter.topic.iter().filter(other).map(refuse))?;
    let named = !filter.topic.is_empty();
    let names: Vec<&str> = match named {
        true => filter.topic.iter().map(String::as_str).collect(),
        false => known.iter().map(|topic| &**topic).collect(),
    };
    let mut topics = Vec::new();
    for name in names {
        match log.describe(name) {
            Ok(described) => topics.push(Topic { name: name.into(), described }),
            Err(Error::UnknownTopic { .. }) if !named => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(topics)
}

/// A note for the user if a `--reason` is on no dead letter of these topics: it may be a typing error.
pub(super) fn unknown_reasons(
    log: &Arc<dyn Log>,
    topics: &[Topic],
    filter: &Filter,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<String>> {
    let mut known = BTreeSet::new();
    let any_reason = Filter { reason: Vec::new(), ..filter.clone() };
    for topic in topics.iter().filter(|_| !filter.reason.is_empty()) {
        each(log, topic, &any_reason, READ_RECORDS, shutdown, |letters| {
            known.extend(letters.iter().map(|letter| letter.reason().to_owned()));
            Ok(())
        })?;
    }
    let unknown: Vec<_> = filter.reason.iter().filter(|reason| !known.contains(*reason)).map(String::as_str).collect();
    let text = || {
        let known = known.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        format!("no dead letter has the reason {}; there are {known}", unknown.join(" or "))
    };
    Ok((!unknown.is_empty() && !known.is_empty()).then(text))
}

/// Reads what of a topic may pass the filter, some records at a time; each time `then` gets those that do.
pub(super) fn each(
    log: &Arc<dyn Log>,
    topic: &Topic,
    filter: &Filter,
    records: usize,
    shutdown: &CancellationToken,
    mut then: impl FnMut(&[Letter<'_>]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let bounds = (0..).zip(&topic.described.partitions);
    let ranges = bounds.filter(|(partition, _)| filter.partition.is_none_or(|wanted| wanted == *partition));
    let ranges = ranges.map(|(partition, bounds)| Range {
        topic: topic.name.clone(),
        partition,
        start: filter.from_offset.map_or(bounds.first, |from| from.clamp(bounds.first, bounds.next)),
        end: Some(filter.to_offset.map_or(bounds.next, |to| to.min(bounds.next))),
    });
    let ranges = ranges.filter(|range| Some(range.start) < range.end).collect();
    let stop = || shutdown.is_cancelled();
    for batch in batches(log, ranges, records)?.until(&stop) {
        let batch = batch.with_context(|| format!("cannot read {} in {}", topic.name, log.url()))?;
        let letters = batch.iter().map(|record| Letter { topic, partition: batch.partition(), record });
        then(&letters.filter(|letter| letter.passes(filter)).collect::<Vec<_>>())?;
    }
    if stop() {
        bail!("stopped while reading {}", topic.name);
    }
    Ok(())
}
