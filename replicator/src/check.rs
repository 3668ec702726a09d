//! What must hold before a topic is copied on, and what can be done where it does not.
//!
//! Offsets say where a record is only as long as the topic is the same one, with the same partitions, and still holds
//! what is to be copied. Where that is in doubt the topic stops: which records may be missing, doubled or moved is an
//! operator's decision, and is made with `replicator resume`.

use std::collections::BTreeMap;
use std::sync::Arc;

use event_log::{Error, Log, TopicDescription};

use crate::Args;
use crate::copies::Copies;
use crate::state::{self, CopyState, Gap};

/// A topic as both logs have it.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) copies: CopyState,
    /// The next offset to be copied, by partition of the target.
    pub(crate) positions: Vec<Option<u64>>,
    /// None: there is no such topic.
    pub(crate) source: Option<TopicDescription>,
    pub(crate) target: TopicDescription,
}

/// Why a topic cannot be copied on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The source topic is gone.
    Deleted { positions: Vec<Option<u64>> },
    /// The source topic has the name of the one that was copied, and another identity.
    Recreated { old: String, new: String, positions: Vec<Option<u64>>, source: usize, target: usize },
    /// It had another number of partitions.
    Partitions { before: usize, source: usize, target: usize },
    /// The two logs never had the same number of partitions.
    Unlike { source: usize, target: usize },
    /// Retention was faster.
    Gap(Vec<Gap>),
    /// The source ends before what was copied of it: partition, position, end.
    Behind(Vec<(u32, u64, u64)>),
    /// There are copies, and no positions: partition, and the position that follows from the last copy.
    Forgotten(Vec<(u32, u64)>),
}

impl View {
    pub(crate) fn look(
        args: &Args,
        group: &str,
        topic: &str,
        source: &Arc<dyn Log>,
        target: &Arc<dyn Log>,
    ) -> Result<Self, Error> {
        // In this order: positions only grow, so they are never beyond the source's end, which is read later. And they
        // are committed with the copies: all copies before the target's end, which was read earlier, are covered by
        // these positions, even while other instances start to copy. Later copies are not part of this check.
        let copies = state::load(target, &args.site, topic)?;
        let described = target.describe(topic)?;
        let positions = target.committed(group, topic)?;
        let source = match source.describe(topic) {
            Err(Error::UnknownTopic { .. }) => None,
            described => Some(described?),
        };
        Ok(Self { copies, positions, source, target: described })
    }

    /// Whether every partition has a position to resume from.
    pub(crate) fn has_begun(&self) -> bool {
        self.copies.origin.is_some() && self.passed().is_empty() && self.positions.iter().all(Option::is_some)
    }

    /// Positions that retention has passed without taking a record: the source's first offset, by partition.
    pub(crate) fn passed(&self) -> BTreeMap<u32, u64> {
        let Some(source) = &self.source else { return BTreeMap::new() };
        let partitions = (0..).zip(self.positions.iter().zip(&source.partitions));
        let passed = partitions.filter_map(|(partition, (position, bounds))| {
            let empty = self.copies.empty.get(&partition).filter(|empty| empty.topic_id == source.id)?;
            let position = position.filter(|position| *position < bounds.first)?;
            (empty.from <= position && bounds.first <= empty.to).then_some((partition, bounds.first))
        });
        passed.collect()
    }

    /// What is wrong, except for positions that were forgotten.
    pub(crate) fn problem(&self) -> Option<Problem> {
        let positions = self.positions.clone();
        let Some(source) = &self.source else { return Some(Problem::Deleted { positions }) };
        let (source_count, target_count) = (source.partitions.len(), self.target.partitions.len());
        if let Some(origin) = &self.copies.origin {
            if origin.topic_id != source.id {
                let (old, new) = (origin.topic_id.clone(), source.id.clone());
                return Some(Problem::Recreated { old, new, positions, source: source_count, target: target_count });
            }
            let before = origin.target_from.len();
            if (source_count, target_count) != (before, before) {
                return Some(Problem::Partitions { before, source: source_count, target: target_count });
            }
        }
        if source_count != target_count {
            return Some(Problem::Unlike { source: source_count, target: target_count });
        }
        let positioned = (0..).zip(&source.partitions).zip(&positions);
        let positioned: Vec<_> =
            positioned.filter_map(|((p, bounds), position)| Some((p, bounds, (*position)?))).collect();
        let passed = self.passed();
        let gaps =
            positioned.iter().filter(|(p, bounds, position)| *position < bounds.first && !passed.contains_key(p));
        let gaps: Vec<_> = gaps
            .map(|(partition, bounds, from)| Gap { partition: *partition, from: *from, to: bounds.first })
            .collect();
        if !gaps.is_empty() {
            return Some(Problem::Gap(gaps));
        }
        let behind = positioned.iter().filter(|(_, bounds, position)| *position > bounds.next);
        let behind: Vec<_> = behind.map(|(partition, bounds, position)| (*partition, *position, bounds.next)).collect();
        (!behind.is_empty()).then_some(Problem::Behind(behind))
    }

    /// Partitions of which there are copies and no position. Reads the target where a position is missing.
    pub(crate) fn forgotten(
        &self,
        args: &Args,
        topic: &Arc<str>,
        target: &Arc<dyn Log>,
    ) -> Result<Option<Problem>, Error> {
        let Some(origin) = &self.copies.origin else { return Ok(None) };
        let mut forgotten = Vec::new();
        for (partition, (position, bounds)) in (0..).zip(self.positions.iter().zip(&self.target.partitions)) {
            let from = origin.target_from.get(partition as usize).copied().unwrap_or_default().max(bounds.first);
            let (source_name, end) = (&*args.site, bounds.next);
            let copies = Copies { target, source_name, topic, partition, from, end };
            if position.is_none()
                && let Some(last) = copies.last()?
            {
                forgotten.push((partition, last.source_offset + 1));
            }
        }
        Ok((!forgotten.is_empty()).then_some(Problem::Forgotten(forgotten)))
    }
}

impl Problem {
    /// What is wrong, where, and what can be done: for the operator.
    pub(crate) fn explain(&self, args: &Args, topic: &str) -> String {
        let choices = (1..).zip(self.choices(args, topic)).map(|(number, choice)| format!("({number}) {choice}"));
        format!("{}. Choose: {}", self.what(args), choices.collect::<Vec<_>>().join("; "))
    }

    /// What is wrong, and where.
    fn what(&self, args: &Args) -> String {
        let (source, target) = args.logs();
        match self {
            Self::Deleted { positions } => {
                format!("it no longer exists in {source}; it was copied up to {}", listed(positions))
            }
            Self::Recreated { old, new, positions, .. } => format!(
                "it was deleted in {source} and created again: its id is {new}, and the positions {} belong to the \
                 topic {old}",
                listed(positions)
            ),
            Self::Partitions { before, source: in_source, target: in_target } => format!(
                "it had {before} partitions when copying began, and has {in_source} in {source} and {in_target} in \
                 {target}, so keys move: new records of a car would be in another partition than its older ones, and a \
                 consumer that keeps state by partition would see only half of them"
            ),
            Self::Unlike { source: in_source, target: in_target } => {
                format!("it has {in_source} partitions in {source} and {in_target} in {target}, so keys would move")
            }
            Self::Gap(gaps) => {
                format!("retention in {source} has removed records before they were copied: {}", gaps_listed(gaps))
            }
            Self::Behind(partitions) => {
                let each = partitions.iter().map(|(partition, position, end)| {
                    format!("partition {partition} ends at offset {end}, and was copied up to offset {position}")
                });
                format!("{source} has lost records that were copied: {}", each.collect::<Vec<_>>().join("; "))
            }
            Self::Forgotten(partitions) => {
                let each = partitions.iter().map(|(p, position)| format!("partition {p} resumes at offset {position}"));
                format!(
                    "{target} has copies but no positions of it (Kafka forgets the positions of a group that had no \
                     members for offsets.retention.minutes); according to the last copies, {}",
                    each.collect::<Vec<_>>().join(", ")
                )
            }
        }
    }

    /// What can be done, each a whole way out.
    fn choices(&self, args: &Args, topic: &str) -> Vec<String> {
        let resume = |how: &str| args.command_line(&format!("resume --topic {topic} {how}"));
        match self {
            Self::Deleted { .. } => vec![
                "leave it out of --topic".to_owned(),
                format!("create it again and copy the new one: {}", resume("--accept-recreated")),
            ],
            Self::Recreated { source, target, .. } => {
                let resume = resume("--accept-recreated");
                let from_its_beginning = match source == target {
                    true => format!("copy the new topic from its beginning, after the copies of the old one: {resume}"),
                    false => format!(
                        "create it again with {target} partitions, as it has in {}, instead of {source}, and then copy \
                         it from its beginning, after the copies of the old one: {resume}",
                        args.logs().1
                    ),
                };
                vec![from_its_beginning, other_target("copy it into")]
            }
            Self::Partitions { source, target, .. } => {
                let resume = resume("--accept-partitions");
                let accept = match source == target {
                    true => format!("if the consumers of the target can tolerate that: {resume}"),
                    false => format!(
                        "if the consumers of the target can tolerate that, give it {} partitions in both, and then: \
                         {resume}",
                        source.max(target)
                    ),
                };
                vec![accept, other_target("copy it from its beginning into")]
            }
            Self::Unlike { source, target } => {
                vec![format!("give it {} partitions in both", source.max(target)), other_target("copy it into")]
            }
            Self::Gap(_) => vec![
                format!(
                    "continue without them, which is recorded in {}; first give the topic more retention if the \
                     replicator cannot keep up: {}",
                    state::STATE_TOPIC,
                    resume("--accept-gap")
                ),
                other_target("copy the rest into"),
            ],
            Self::Behind(_) => vec![
                "restore the source to its previous state".to_owned(),
                format!("create the topic there again, and copy the new one: {}", resume("--accept-recreated")),
                other_target("copy it into"),
            ],
            Self::Forgotten(_) => {
                vec![format!("continue there: {}", resume("--find-positions")), other_target("copy it again, into")]
            }
        }
    }
}

fn other_target(copy_into: &str) -> String {
    format!("{copy_into} another target: --cloud-log with a log that does not have it yet")
}

fn listed(positions: &[Option<u64>]) -> String {
    let each = (0..).zip(positions).map(|(partition, position): (u32, _)| match position {
        Some(position) => format!("{partition}: {position}"),
        None => format!("{partition}: none"),
    });
    format!("({})", each.collect::<Vec<_>>().join(", "))
}

pub(crate) fn gaps_listed(gaps: &[Gap]) -> String {
    let each = gaps.iter().map(|Gap { partition, from, to }| {
        format!(
            "partition {partition} was copied up to offset {from} and begins at {to}: {} offsets are gone",
            to - from
        )
    });
    each.collect::<Vec<_>>().join("; ")
}
