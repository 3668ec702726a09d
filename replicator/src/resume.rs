//! `replicator resume`: an operator's decision about a topic that stopped, carried out and recorded.
//!
//! ```text
//! look ─► is that the problem? ─► hold all partitions ─► look again ─► new positions + record in replicator.state, one
//!          │ no: refused           │ others hold some: refused             transaction
//! ```
//!
//! A process that holds all partitions has fenced all others: an instance that was paused cannot come back and
//! overwrite the new positions with the old ones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use contract::Contract;
use event_log::{Event, Log, Outcome, Outputs, Position, Processor};

use crate::Args;
use crate::args::{Accept, ResumeArgs};
use crate::check::{Problem, View, gaps_listed};
use crate::state::{self, Accepted, Origin};
use crate::topic::Replication;

/// Longer than it takes until a group has noticed that a member is gone.
const HOLD_TIMEOUT: Duration = Duration::from_secs(45);
const HOLD_POLL: Duration = Duration::from_millis(100);

/// What is to be written.
struct Decision {
    outputs: Outputs,
    positions: Vec<u64>,
    /// For the operator.
    summary: String,
}

/// Resumes a topic. Blocking. Returns a sentence that says what was done.
pub(crate) fn run(
    args: &Args,
    contract: &Contract,
    resume: &ResumeArgs,
    source: Arc<dyn Log>,
    target: Arc<dyn Log>,
) -> anyhow::Result<String> {
    let replication = Replication::new(args, contract, &resume.topic, source, target);
    decide(args, &resume.accept, &replication)?;
    let mut processor = hold(args, &resume.accept, &replication)?;
    let decision = decide(args, &resume.accept, &replication)?;
    let positions: Vec<_> = (0..)
        .zip(&decision.positions)
        .map(|(partition, &offset)| Position { topic: replication.topic.clone(), partition, offset })
        .collect();
    match processor.commit(&decision.outputs, &positions)? {
        Outcome::Committed => Ok(decision.summary),
        Outcome::RolledBack => bail!("nothing was changed: the transaction was rolled back; try again"),
    }
}

/// Joins the group until it holds every partition.
fn hold(args: &Args, accept: &Accept, replication: &Replication) -> anyhow::Result<Processor> {
    let Replication { topic, source, target, .. } = replication;
    let partitions = target.describe(topic)?.partitions.len();
    let mut options = replication.processor_options(args);
    if accept.accept_partitions {
        // A member that returns to Kafka under a known name gets the partitions that this name had. A new name makes
        // the group assign all of them again.
        options.instance += "-resume";
    }
    let mut processor = Processor::new(source.clone(), target.clone(), &options)?;
    let deadline = Instant::now() + HOLD_TIMEOUT;
    let mut held = 0;
    while held < partitions {
        match processor.next(1, HOLD_POLL)? {
            Event::Assigned(positions) => held = positions.len(),
            Event::Revoked(_) => held = 0,
            Event::Batch(_) | Event::Idle if Instant::now() >= deadline => bail!(
                "{topic}: other instances hold {} of its {partitions} partitions: stop them first (one that was killed \
                 is forgotten after session.timeout.ms, 30 s)",
                partitions - held
            ),
            Event::Batch(_) | Event::Idle => {}
        }
    }
    Ok(processor)
}

fn decide(args: &Args, accept: &Accept, replication: &Replication) -> anyhow::Result<Decision> {
    let Replication { topic, group, source, target, source_name, .. } = replication;
    let view = View::look(args, group, topic, source, target)?;
    let problem = match view.problem() {
        Some(problem) => Some(problem),
        None => view.forgotten(args, topic, target)?,
    };
    let Some(problem) = problem else {
        bail!("{topic}: it is not stopped; {} shows its progress", args.command_line("offsets"));
    };
    let (Some(origin), Some(found)) = (&view.copies.origin, &view.source) else {
        bail!("{topic}: {}", problem.explain(args, topic));
    };
    let firsts: Vec<u64> = found.partitions.iter().map(|bounds| bounds.first).collect();
    let ends_of_target = view.target.partitions.iter().map(|bounds| bounds.next);
    // Where nothing was copied yet copying begins at the first offset.
    let mut positions: Vec<u64> = firsts
        .iter()
        .enumerate()
        .map(|(p, first)| view.positions.get(p).copied().flatten().unwrap_or(*first))
        .collect();
    let mut outputs = Outputs::default();
    let (accepted, summary) = match problem {
        Problem::Gap(gaps) if accept.accept_gap => {
            gaps.iter().for_each(|gap| positions[gap.partition as usize] = gap.to);
            let summary = format!("{topic} resumes after the gap: {}", gaps_listed(&gaps));
            (Accepted::Gap { partitions: gaps }, summary)
        }
        Problem::Recreated { old, new, positions: old_positions, source, target }
            if accept.accept_recreated && source == target =>
        {
            positions.clone_from(&firsts);
            let target_from: Vec<u64> = ends_of_target.collect();
            let origin = Origin { topic_id: new.clone(), target_from: target_from.clone() };
            state::put_origin(&mut outputs, source_name, topic, &origin);
            let summary = format!(
                "{topic} is copied from the beginning of the new topic (offsets {firsts:?}), to the target's offsets \
                 {target_from:?} and on"
            );
            let accepted = Accepted::Recreated {
                old_topic_id: old,
                old_positions,
                topic_id: new,
                source_from: firsts,
                target_from,
            };
            (accepted, summary)
        }
        Problem::Partitions { before, source: to, target }
            if accept.accept_partitions && to == target && to > before =>
        {
            let target_from = origin.target_from.iter().copied().chain(ends_of_target.skip(before)).collect();
            let origin = Origin { target_from, ..origin.clone() };
            state::put_origin(&mut outputs, source_name, topic, &origin);
            (Accepted::Partitions { from: before, to }, format!("{topic} is copied with its {to} partitions"))
        }
        Problem::Forgotten(found) if accept.find_positions => {
            found.iter().for_each(|(partition, position)| positions[*partition as usize] = *position);
            let summary = format!("{topic} resumes after its last copies, at the source's offsets {positions:?}");
            (Accepted::Positions { positions: positions.clone() }, summary)
        }
        other => bail!("{topic}: it is stopped for another reason: {}", other.explain(args, topic)),
    };
    state::put_accepted(&mut outputs, source_name, topic, &accepted);
    Ok(Decision { outputs, positions, summary })
}
