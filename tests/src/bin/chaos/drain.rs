//! Waits until nothing is left to do, hop by hop in the order of the flow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use event_log::{Error, Log, Range, Read};
use lake::Lake;
use tokio::runtime::Handle;

use crate::crew::{Crew, Teller};

/// A hop without progress for this long is stuck. Longer than an open transaction of a dead process can block its
/// readers, and than a session timeout.
const STALLED_AFTER: Duration = Duration::from_secs(120);

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long one look at what is left may take: a reader connects first.
const LOOK: Duration = Duration::from_secs(2);

/// With more offsets than these left, nobody needs to look whether they are records.
const A_LOT: u64 = 5_000;

/// Where the positions of a hop are.
#[derive(Debug, Clone)]
pub(crate) enum Positions {
    /// Of a group, in this log.
    Group(Arc<dyn Log>, String),
    /// The lake itself says how far it is.
    Lake(Lake),
}

/// One stage's way from one topic.
#[derive(Debug, Clone)]
pub(crate) struct Hop {
    pub(crate) stage: &'static str,
    pub(crate) source: Arc<dyn Log>,
    pub(crate) topic: &'static str,
    pub(crate) positions: Positions,
}

impl Hop {
    /// What is left.
    fn lag(&self, runtime: &Handle) -> anyhow::Result<u64> {
        let bounds = match self.source.describe(self.topic) {
            Err(Error::UnknownTopic { .. }) => return Ok(0),
            described => described?.partitions,
        };
        let positions = match &self.positions {
            Positions::Group(log, group) => log.committed(group, self.topic)?,
            Positions::Lake(lake) => {
                let mut positions = vec![None; bounds.len()];
                for (partition, next) in runtime.block_on(lake.next_offsets(self.topic))?.offsets {
                    *positions.get_mut(partition as usize).context("a partition that the log does not have")? =
                        Some(next);
                }
                positions
            }
        };
        let left = (0..).zip(bounds).zip(positions).map(|((partition, bounds), position)| Range {
            topic: self.topic.into(),
            partition,
            start: position.unwrap_or(bounds.first).max(bounds.first),
            end: Some(bounds.next),
        });
        let left: Vec<_> = left.filter(|range| range.end > Some(range.start)).collect();
        let lag: u64 = left.iter().map(|range| range.end.unwrap_or(range.start) - range.start).sum();
        if lag == 0 || lag > A_LOT {
            return Ok(lag);
        }
        // Offsets do not tell: Kafka's transaction markers take some, too.
        match self.source.clone().reader(left)?.next(1, LOOK)? {
            Read::End => Ok(0),
            Read::Batch(_) | Read::Idle => Ok(lag),
        }
    }
}

/// Waits until no hop has anything left. The looking is done beside: a broker may take its time to answer, and
/// meanwhile processes are to be watched.
pub(crate) fn wait(hops: Vec<Hop>, crew: &mut Crew, teller: Teller, runtime: &Handle) -> anyhow::Result<()> {
    let handle = runtime.clone();
    let looking = std::thread::spawn(move || {
        hops.iter().try_for_each(|hop| {
            wait_for(hop, &handle)?;
            teller.say(&format!("    {} has nothing left of {}", hop.stage, hop.topic));
            Ok(())
        })
    });
    while !looking.is_finished() {
        crew.pass(LOOK_EVERY)?;
    }
    looking.join().unwrap_or_else(|_| bail!("the look at what is left panicked"))
}

fn wait_for(hop: &Hop, runtime: &Handle) -> anyhow::Result<()> {
    let (mut least, mut since) = (u64::MAX, Instant::now());
    loop {
        let lag = hop.lag(runtime);
        match &lag {
            Ok(0) => return Ok(()),
            Ok(lag) if *lag < least => (least, since) = (*lag, Instant::now()),
            // A broker that has just been restarted may not answer at once.
            Ok(_) | Err(_) => {}
        }
        if since.elapsed() > STALLED_AFTER {
            let (stage, topic, s) = (hop.stage, hop.topic, STALLED_AFTER.as_secs());
            match lag {
                Ok(lag) => bail!("the {stage} stands still for {s} s, with {lag} offsets of {topic} left"),
                Err(error) => {
                    return Err(error.context(format!("cannot tell for {s} s what the {stage} has left of {topic}")));
                }
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
