//! Commits outputs and positions: what the Kafka backend's transactor does, in steps.
//!
//! ```text
//! begin ─► positions accepted ─ ─ step ─ ─ ► end ─► committed ─ ─ step ─ ─ ► Ok(true)
//!    │         │ stale: aborted                 │ unknown: done, not done, or on its way
//!    ▼         ▼                                ▼
//! Fenced   Ok(false) ◄───────────────────── new epoch; or an error, and the next call takes the new epoch
//! ```

use event_log::{Error, Membership, Outcome, Outputs, Position, ProcessorOptions, TopicPartition, Transactor};

use super::cluster::Transaction;
use super::log::FaultyLog;
use super::plan::{Consequence, Fault};
use super::turn::{Turn, unavailable};

/// How often unstable positions are asked for before that is given up.
const PATIENCE_STEPS: usize = 60;

pub(super) struct FaultyTransactor {
    log: FaultyLog,
    group: String,
    name: String,
    /// GROUP-INSTANCE: whoever takes it up last fences everyone before.
    id: String,
    epoch: u64,
    /// An outcome is unknown, and no new epoch has been taken since.
    broken: bool,
    fenced: bool,
}

impl FaultyTransactor {
    pub(super) fn new(log: FaultyLog, options: &ProcessorOptions) -> Result<Self, Error> {
        let (group, name) = (options.group.clone(), options.instance.clone());
        let id = format!("{group}-{name}");
        let mut transactor = Self { log, group, name, id, epoch: 0, broken: true, fenced: false };
        let log = transactor.log.clone();
        let mut turn = log.step(format_args!("takes up {}", transactor.id))?;
        transactor.recover(&mut turn)?;
        drop(turn);
        Ok(transactor)
    }

    /// Takes a new epoch: after this, nothing of an earlier one is open.
    fn recover(&mut self, turn: &mut Turn<'_>) -> Result<(), Error> {
        if self.fenced {
            return Err(self.fenced_error()); // to take the id back would fence the other one
        }
        self.broken = true;
        turn.trouble("acquire the transactional id")?;
        let world = &mut *turn.world;
        let (epoch, came_late) = world.clusters[self.log.cluster].init(&self.id, &mut world.random)?;
        self.epoch = epoch;
        if came_late {
            world.count(Consequence::LateCommit);
        }
        self.broken = false;
        world.note_of(self.log.task, format_args!("  has epoch {} of {}", self.epoch, self.id));
        Ok(())
    }

    fn fenced_error(&self) -> Error {
        Error::Fenced { group: self.group.clone(), instance: self.name.clone() }
    }

    /// Ends unless this is still the last one to have taken the id up.
    fn check_epoch(&mut self, turn: &mut Turn<'_>) -> Result<(), Error> {
        let known = turn.world.clusters[self.log.cluster].producers.get(&self.id);
        if turn.world.fences && known.is_none_or(|producer| producer.epoch != self.epoch) {
            self.fenced = true;
            turn.world.count(Consequence::Fenced);
            return Err(self.fenced_error());
        }
        Ok(())
    }

    /// Positions and outputs are with the brokers; nothing is decided. `false`: refused.
    fn begin(
        &mut self,
        turn: &mut Turn<'_>,
        outputs: &Outputs,
        positions: &[Position],
        membership: &Membership,
    ) -> Result<bool, Error> {
        self.check_epoch(turn)?;
        if turn.strikes(Fault::Error) {
            return Ok(false);
        }
        let fences = turn.world.fences;
        let known = &mut turn.world.clusters[self.log.cluster];
        if fences && !positions.is_empty() && !known.admits(self.log.cluster, membership) {
            turn.world.note_of(self.log.task, format_args!("  is refused: it has lost its place"));
            turn.world.count(Consequence::Refused);
            return Ok(false);
        }
        let open = Transaction {
            group: self.group.clone(),
            outputs: known.names.outputs_inside(outputs),
            positions: positions.to_vec(),
            end_on_its_way: false,
            task: self.log.task,
        };
        let producer = known.producers.get_mut(&self.id).expect("the epoch was checked");
        producer.open = Some(open);
        Ok(true)
    }

    /// Decides the open transaction.
    fn end(&mut self, turn: &mut Turn<'_>) -> Result<bool, Error> {
        self.check_epoch(turn)?;
        let unknown = turn.strikes(Fault::Unknown);
        let world = &mut *turn.world;
        let known = &mut world.clusters[self.log.cluster];
        let producer = known.producers.get_mut(&self.id).expect("the epoch was checked");
        let Some(mut open) = producer.open.take() else {
            world.note_of(self.log.task, format_args!("  finds its transaction aborted"));
            return self.recover(turn).map(|()| false);
        };
        if !unknown {
            return known.write(&open).map(|()| true);
        }
        match world.random.below(3) {
            0 => world.note_of(self.log.task, format_args!("  it has not committed")),
            1 => {
                known.write(&open)?;
                world.note_of(self.log.task, format_args!("  it has committed"));
            }
            _ => {
                open.end_on_its_way = true;
                producer.open = Some(open);
                world.note_of(self.log.task, format_args!("  it may yet commit"));
            }
        }
        self.broken = true;
        if world.random.chance(1, 2) {
            return Err(unavailable("acquire the transactional id"));
        }
        self.recover(turn).map(|()| false)
    }
}

impl Transactor for FaultyTransactor {
    fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, Error> {
        let log = self.log.clone();
        let mut turn = log.step(format_args!("asks for its positions"))?;
        if self.broken {
            self.recover(&mut turn)?; // what was left open might still commit
        }
        turn.trouble("read positions")?;
        for _ in 0..PATIENCE_STEPS {
            if !turn.stepped || !turn.world.clusters[log.cluster].is_unstable(&self.group, partitions) {
                return turn.world.clusters[log.cluster].committed(&self.group, partitions);
            }
            drop(turn);
            turn = log.step(format_args!("waits for stable positions"))?;
        }
        Err(unavailable("read positions"))
    }

    fn commit(&mut self, outputs: &Outputs, positions: &[Position], membership: &Membership) -> Result<Outcome, Error> {
        let log = self.log.clone();
        let mut turn = log.step(format_args!("commits {} records, {}", outputs.len(), Shown(positions)))?;
        if self.broken {
            // An earlier outcome is unknown. These outputs may have been committed with it.
            return self.recover(&mut turn).map(|()| Outcome::RolledBack);
        }
        if outputs.is_empty() && positions.is_empty() {
            return Ok(Outcome::Committed);
        }
        if !self.begin(&mut turn, outputs, positions, membership)? {
            return Ok(Outcome::RolledBack);
        }
        drop(turn);
        let mut turn = log.step(format_args!("ends its transaction"))?;
        if !self.end(&mut turn)? {
            return Ok(Outcome::RolledBack);
        }
        drop(turn);
        log.step(format_args!("hears that it has committed"))?;
        Ok(Outcome::Committed)
    }
}

/// Positions in a line of the trace.
struct Shown<'a>(&'a [Position]);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, p) in self.0.iter().enumerate() {
            write!(f, "{}{}/{} to {}", if i > 0 { ", " } else { "" }, p.topic, p.partition, p.offset)?;
        }
        Ok(())
    }
}
