//! `replicator offsets`: how far each partition is copied, and where one offset is in the other log.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Context, bail};
use contract::{Contract, Topic};
use event_log::Log;
use serde_json::json;

use crate::Args;
use crate::args::OffsetsArgs;
use crate::check::View;
use crate::copies::Copies;
use crate::topic::Replication;

/// What was asked for, as text or JSON. Blocking.
pub(crate) fn run(
    args: &Args,
    contract: &Contract,
    topics: &[Topic],
    offsets: &OffsetsArgs,
    source: &Arc<dyn Log>,
    target: &Arc<dyn Log>,
) -> anyhow::Result<String> {
    let replication = |topic: &str| Replication::new(args, contract, topic, source.clone(), target.clone());
    let mut out = String::new();
    match (&offsets.topic, offsets.partition) {
        (Some(topic), Some(partition)) if offsets.source_offset.or(offsets.target_offset).is_some() => {
            Place::of(args, replication(topic), partition)?.translate(offsets, &mut out)?;
        }
        (Some(topic), partition) => {
            head(offsets, &mut out);
            list(args, offsets, &replication(topic), partition, &mut out)?;
        }
        (None, _) => {
            head(offsets, &mut out);
            for topic in topics.iter().map(|topic| &*topic.name) {
                if let Err(error) = list(args, offsets, &replication(topic), None, &mut out) {
                    match offsets.json {
                        true => writeln!(out, "{}", json!({"topic": topic, "error": format!("{error:#}")}))?,
                        false => writeln!(out, "{topic:<20} {error:#}")?,
                    }
                }
            }
        }
    }
    Ok(out)
}

fn head(offsets: &OffsetsArgs, out: &mut String) {
    if !offsets.json {
        *out += &format!(
            "{:<20} {:>9} {:>16} {:>16} {:>12} {:>16}\n",
            "topic", "partition", "source position", "source end", "lag", "target position"
        );
    }
}

fn list(
    args: &Args,
    offsets: &OffsetsArgs,
    replication: &Replication,
    only: Option<u32>,
    out: &mut String,
) -> anyhow::Result<()> {
    let Replication { topic, group, source, target, .. } = replication;
    let view = View::look(args, group, topic, source, target)?;
    if let Some(problem) = view.problem() {
        tracing::warn!(%topic, "cannot continue copying {topic}: {}", problem.explain(args, topic));
    }
    let ends = view.source.with_context(|| format!("topic {topic} does not exist in {}", source.url()))?.partitions;
    let partitions = (0..).zip(view.positions.iter().zip(&ends).zip(&view.target.partitions));
    let mut found = false;
    for (partition, ((position, end), target)) in partitions.filter(|(p, _)| only.is_none_or(|only| only == *p)) {
        found = true;
        let (end, target_position) = (end.next, target.next);
        let lag = position.map(|position| end.saturating_sub(position));
        if offsets.json {
            let line = json!({
                "topic": **topic, "partition": partition, "source_position": position, "source_end": end, "lag": lag,
                "target_position": target_position,
            });
            writeln!(out, "{line}")?;
        } else {
            let number = |number: Option<u64>| number.map_or("none".to_owned(), |number| number.to_string());
            let (position, lag) = (number(*position), number(lag));
            writeln!(out, "{topic:<20} {partition:>9} {position:>16} {end:>16} {lag:>12} {target_position:>16}")?;
        }
    }
    if !found && let Some(only) = only {
        bail!("topic {topic} has no partition {only}");
    }
    Ok(())
}

/// One partition in both logs.
struct Place {
    replication: Replication,
    partition: u32,
    /// The next source offset to be copied.
    position: Option<u64>,
    /// Where the copies are in the target.
    from: u64,
    end: u64,
}

impl Place {
    fn of(args: &Args, replication: Replication, partition: u32) -> anyhow::Result<Self> {
        let Replication { topic, group, source, target, .. } = &replication;
        let view = View::look(args, group, topic, source, target)?;
        let Some(bounds) = view.target.partitions.get(partition as usize) else {
            bail!("topic {topic} in {} has no partition {partition}", target.url());
        };
        let target_from = view.copies.origin.and_then(|origin| origin.target_from.get(partition as usize).copied());
        let (from, end) = (target_from.unwrap_or_default().max(bounds.first), bounds.next);
        let position = view.positions.get(partition as usize).copied().flatten();
        Ok(Self { partition, position, from, end, replication })
    }

    fn translate(&self, offsets: &OffsetsArgs, out: &mut String) -> anyhow::Result<()> {
        let (topic, partition, position) = (&self.replication.topic, self.partition, self.position);
        let target = &self.replication.target;
        let source_name = &*self.replication.source_name;
        let copies = Copies { target, source_name, topic, partition, from: self.from, end: self.end };
        let (source_offset, target_offset, remark) = match (offsets.source_offset, offsets.target_offset) {
            (Some(wanted), _) => match copies.of_source(wanted)? {
                Some(copy) => (Some(wanted), Some(copy.target_offset), format!("the copy of {}", copy.source_offset)),
                // No record from there up to the position, or none that the target still has.
                None if position.is_some_and(|position| wanted < position) => {
                    (Some(wanted), Some(self.end), "the target's end".to_owned())
                }
                None => (Some(wanted), None, format!("not copied yet: the next to be copied is {}", shown(position))),
            },
            (None, wanted) => {
                let wanted = wanted.unwrap_or_default();
                match copies.at_target(wanted)? {
                    Some(copy) => (Some(copy.source_offset), Some(wanted), format!("copied to {}", copy.target_offset)),
                    // The position was read before the target's end: everything before the position is copied below
                    // that end.
                    None => (position, Some(wanted), "the next to be copied".to_owned()),
                }
            }
        };
        if offsets.json {
            let line = json!({
                "topic": **topic, "partition": partition,
                "source_offset": source_offset, "target_offset": target_offset,
            });
            writeln!(out, "{line}")?;
        } else {
            let (source_offset, target_offset) = (shown(source_offset), shown(target_offset));
            writeln!(
                out,
                "{topic}/{partition} source offset {source_offset} target offset {target_offset} ({remark})"
            )?;
        }
        Ok(())
    }
}

fn shown(offset: Option<u64>) -> String {
    offset.map_or("none".to_owned(), |offset| offset.to_string())
}
