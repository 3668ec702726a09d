//! Which faults one run has, and how many.
//!
//! Each seed draws its own mixture: some faults not at all, some seldom, some often. Runs with all faults at once are
//! mostly about restarts; what two faults do to each other shows where the others leave them room.

use std::collections::BTreeMap;

use test_support::random::Random;

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// An instance is gone, between any two of its steps. Its session and its transaction remain.
    Kill,
    /// It takes no steps for a while; meanwhile its partitions may move, or another may be started under its name.
    Pause,
    /// It is asked to end.
    Stop,
    /// The group takes it for dead although it keeps running.
    Session,
    /// Its transaction takes too long, and is aborted.
    TimeOut,
    /// A call fails in a way that passes.
    Error,
    /// Nobody tells what became of a commit.
    Unknown,
}

impl Fault {
    /// All there are.
    const ALL: [Self; 7] =
        [Self::Kill, Self::Pause, Self::Stop, Self::Session, Self::TimeOut, Self::Error, Self::Unknown];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Stop => "stop",
            Self::Session => "session lost",
            Self::TimeOut => "transaction timed out",
            Self::Error => "error",
            Self::Unknown => "unknown outcome",
        }
    }
}

/// What follows from faults, and is counted as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consequence {
    /// An instance resumes after its partitions have moved, or after another one was started under its name.
    Zombie,
    /// The positions of an instance that has lost its place are refused.
    Refused,
    /// An instance finds its transactional id taken over.
    Fenced,
    /// A commit whose outcome was unknown comes late.
    LateCommit,
}

impl Consequence {
    const ALL: [Self; 4] = [Self::Zombie, Self::Refused, Self::Fenced, Self::LateCommit];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Zombie => "zombie",
            Self::Refused => "refused",
            Self::Fenced => "fenced",
            Self::LateCommit => "late commit",
        }
    }
}

/// The names of all faults, and of what follows from them.
pub fn fault_names() -> impl Iterator<Item = &'static str> {
    Fault::ALL.into_iter().map(Fault::name).chain(Consequence::ALL.into_iter().map(Consequence::name))
}

/// The mixture of one run.
#[derive(Debug)]
pub(super) struct Plan {
    /// Faults left to happen.
    budget: u32,
    /// By fault: how likely, in thousandths of an opportunity within a call; as a weight between two steps.
    rates: [u64; Fault::ALL.len()],
}

impl Plan {
    pub(super) fn draw(random: &mut Random) -> Self {
        let budget = random.between(1, 14) as u32;
        let rates = Fault::ALL.map(|_| if random.chance(1, 2) { 0 } else { *random.one_of(&[1, 2, 4, 8]) });
        Self { budget, rates }
    }

    fn rate(&self, fault: Fault) -> u64 {
        if self.budget == 0 { 0 } else { self.rates[fault as usize] }
    }

    /// Whether `fault` happens within a call, at this opportunity.
    pub(super) fn allows(&mut self, fault: Fault, random: &mut Random) -> bool {
        // Commits are fewer than calls.
        let scale = if fault == Fault::Unknown { 40 } else { 8 };
        let rate = self.rate(fault);
        let happens = rate > 0 && random.chance((rate * scale).min(1000), 1000);
        self.budget -= u32::from(happens);
        happens
    }

    /// Adds `choice` as something that may happen between two steps.
    pub(super) fn add<T>(&self, choices: &mut Vec<(u64, T)>, fault: Fault, choice: T) {
        let rate = self.rate(fault);
        if rate > 0 {
            choices.push((rate, choice));
        }
    }

    /// A fault between two steps has happened.
    pub(super) fn spend(&mut self, fault: Fault, counts: &mut BTreeMap<&'static str, u64>) {
        self.budget = self.budget.saturating_sub(1);
        *counts.entry(fault.name()).or_default() += 1;
    }
}
