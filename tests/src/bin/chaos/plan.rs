//! What will go wrong, and when: drawn from the seed before anything starts.
//!
//! ```text
//! first round   every kind once, in random order, made to fit into the duration
//! then          kinds by weight, until the duration is over
//! ```
//!
//! One fault at a time; what it leaves behind (a process that restarts, a group that shares out its partitions, a queue
//! that empties) overlaps with the next.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::clock;
use crate::kafka::CODECS;

/// Shorter than this, and the faults of the first round are over before anyone has noticed them.
pub(crate) const SHORTEST: Duration = Duration::from_secs(75);

/// A pause before each fault, in seconds: short enough that some faults meet what the one before has left.
const PAUSE_S: (f64, f64) = (0.5, 8.0);

/// What one of Kafka's tools takes, about: a JVM on a busy two-core machine.
const TOOL: Duration = Duration::from_secs(2);

/// What remains of pauses and faults that are made to fit, at the least.
const LEAST: Duration = Duration::from_millis(300);

/// A process of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Role {
    Cars,
    /// Other cars, long enough on the road for a model to learn from, before anything goes wrong.
    LearningCars,
    Bridge,
    Preprocessor,
    Replicator,
    Scorer,
    Sink,
    Trainer,
    EdgeBroker,
    CloudBroker,
}

impl Role {
    /// As its binary is called.
    pub(crate) fn binary(self) -> &'static str {
        match self {
            Self::LearningCars => Self::Cars.name(),
            role => role.name(),
        }
    }

    /// What it is called in a run.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cars => "simulator",
            Self::LearningCars => "learning-simulator",
            Self::Bridge => "mqtt-bridge",
            Self::Preprocessor => "preprocessor",
            Self::Replicator => "replicator",
            Self::Scorer => "scorer",
            Self::Sink => "sink",
            Self::Trainer => "trainer",
            Self::EdgeBroker => "edge-broker",
            Self::CloudBroker => "cloud-broker",
        }
    }

    /// How many run all the time.
    pub(crate) fn instances(self) -> u32 {
        match self {
            Self::Preprocessor | Self::Scorer => 2,
            _ => 1,
        }
    }
}

/// A topic of one of the brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Topic {
    pub(crate) broker: Role,
    pub(crate) name: &'static str,
}

impl Topic {
    /// What the bridge has written.
    const RAW: Self = Self { broker: Role::EdgeBroker, name: "telemetry.raw" };
    /// What the preprocessor has.
    const CLEAN: Self = Self { broker: Role::EdgeBroker, name: "telemetry" };
    /// And the replicator.
    const COPY: Self = Self { broker: Role::CloudBroker, name: "telemetry" };
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.broker == Role::CloudBroker { "cloud's " } else { "" };
        write!(f, "{side}{}", self.name)
    }
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// kill -9, and a restart.
    Kill(Role),
    /// The edge's broker is frozen, the stage is killed, the broker is resumed: records not yet confirmed as durable
    /// were only in the stage's memory.
    Strand(Role),
    /// SIGSTOP, and SIGCONT later.
    Freeze(Role),
    /// SIGSTOP, and another process gets the same name; SIGCONT later: the first one must find out, and end.
    Replace(Role),
    /// One instance more joins, and leaves.
    Add(Role),
    /// SIGSTOP; retention removes all that the topic of the readings holds, read or not; SIGCONT. Not part of a whole
    /// run: readings are lost.
    Expire(Role),
    /// All instances are stopped, by SIGTERM; retention removes what they have not read; they are started again, and an
    /// operator resumes them. Not part of a whole run either.
    Outlive(Role),
    /// The wall clock of a stage's or a broker's host jumps ahead, then back behind, and is right again.
    Clock(Role),
    /// A topic gets another codec: its broker packs all that it is given anew. It keeps that codec until the next one.
    Codec(Topic),
    /// A topic takes smaller batches only, and then as large ones as before.
    Narrow(Topic),
    /// A partition is added to a topic in both logs, and an operator resumes the replicator.
    Grow(&'static str),
    /// Nothing gets through between edge and cloud.
    LinkCut,
    /// Connections between edge and cloud are reset and refused.
    LinkRefused,
    /// The link between edge and cloud is slow.
    LinkSlow,
    /// The object store's disk is full, and has room again.
    StoreFull,
    /// The object store's connections are reset and refused.
    StoreRefuses,
    /// The object store takes connections, and does not answer.
    StoreHangs,
    /// The cars' connections are reset.
    CarsReset,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(role) => write!(f, "kill {}", role.name()),
            Self::Strand(role) => write!(f, "strand {}", role.name()),
            Self::Freeze(role) => write!(f, "freeze {}", role.name()),
            Self::Replace(role) => write!(f, "replace {}", role.name()),
            Self::Add(role) => write!(f, "add {}", role.name()),
            Self::Expire(role) => write!(f, "expire {}", role.name()),
            Self::Outlive(role) => write!(f, "outlive {}", role.name()),
            Self::Clock(role) => write!(f, "clock {}", role.name()),
            Self::Codec(topic) => write!(f, "codec {topic}"),
            Self::Narrow(topic) => write!(f, "narrow {topic}"),
            Self::Grow(topic) => write!(f, "grow {topic}"),
            Self::LinkCut => f.write_str("link cut"),
            Self::LinkRefused => f.write_str("link refused"),
            Self::LinkSlow => f.write_str("link slow"),
            Self::StoreFull => f.write_str("store full"),
            Self::StoreRefuses => f.write_str("store refuses"),
            Self::StoreHangs => f.write_str("store hangs"),
            Self::CarsReset => f.write_str("cars reset"),
        }
    }
}

impl Kind {
    /// Everything that can go wrong in a whole run; without an object store, or a small disk for it, less.
    pub(crate) fn all(object_store: bool, small_disk: bool) -> Vec<Self> {
        use Role::{Bridge, Cars, CloudBroker, EdgeBroker, Preprocessor, Replicator, Scorer, Sink};
        let mut all = Vec::new();
        for role in [Cars, Bridge, Preprocessor, Replicator, Scorer, Sink, EdgeBroker, CloudBroker] {
            all.extend([Self::Kill(role), Self::Freeze(role)]);
        }
        all.extend([Preprocessor, Scorer, Replicator].map(Self::Replace));
        all.extend([Preprocessor, Scorer, Sink].map(Self::Add));
        all.extend(clock::OWNERS.map(Self::Clock));
        all.extend([Topic::RAW, Topic::CLEAN].map(Self::Codec));
        all.extend([Topic::RAW, Topic::COPY].map(Self::Narrow));
        all.push(Self::Grow(Topic::CLEAN.name));
        all.extend([Self::Strand(Bridge), Self::LinkCut, Self::LinkRefused, Self::LinkSlow, Self::CarsReset]);
        if object_store {
            all.extend([Self::StoreRefuses, Self::StoreHangs]);
            all.extend(small_disk.then_some(Self::StoreFull));
        }
        all
    }

    /// From when to when, in seconds, it may last.
    fn hold_s(self) -> (f64, f64) {
        match self {
            Self::Kill(_) | Self::Codec(_) | Self::Grow(_) | Self::CarsReset => (0.0, 0.0),
            Self::Strand(_) | Self::Expire(_) | Self::Outlive(_) => (1.0, 4.0),
            Self::Freeze(_) => (1.0, 30.0),
            Self::Replace(_) | Self::Clock(_) => (3.0, 20.0),
            Self::Add(_) | Self::LinkSlow => (5.0, 25.0),
            Self::LinkCut | Self::StoreHangs => (2.0, 25.0),
            Self::LinkRefused | Self::StoreRefuses | Self::StoreFull | Self::Narrow(_) => (2.0, 15.0),
        }
    }

    /// What the work of an administrator takes on top.
    fn work(self) -> Duration {
        let tools = match self {
            Self::Codec(_) => 1,
            Self::Narrow(_) => 2,
            // And the session of a replicator that was killed.
            Self::Grow(_) => 7,
            _ => 0,
        };
        TOOL * tools
    }

    /// Among how many one is drawn: instances, or codecs.
    fn choices(self) -> u32 {
        match self {
            Self::Kill(role) | Self::Freeze(role) | Self::Replace(role) => role.instances(),
            Self::Codec(_) => CODECS.len() as u32,
            _ => 1,
        }
    }

    /// How often it comes after the first round, against the others.
    fn weight(self) -> u32 {
        match self {
            Self::Kill(_) => 3,
            _ => 2,
        }
    }
}

/// One thing that will go wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    /// Nothing happens for this long.
    pub(crate) pause: Duration,
    pub(crate) kind: Kind,
    /// Which of several instances, or of the codecs, from 1.
    pub(crate) choice: u32,
    /// Then it lasts this long.
    pub(crate) hold: Duration,
}

impl Step {
    /// A step that is not drawn.
    pub(crate) fn fixed(pause_ms: u64, kind: Kind, choice: u32, hold_ms: u64) -> Self {
        Self { pause: Duration::from_millis(pause_ms), kind, choice, hold: Duration::from_millis(hold_ms) }
    }

    fn length(&self) -> Duration {
        self.pause + self.hold + self.kind.work()
    }

    fn shrink(&mut self, factor: f64) {
        let shorter = |length: Duration| length.mul_f64(factor).max(LEAST.min(length));
        (self.pause, self.hold) = (shorter(self.pause), shorter(self.hold));
    }
}

/// All that will go wrong in a run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan(pub(crate) Vec<Step>);

impl Plan {
    /// Draws a plan of these kinds. One freeze lasts longer than `session_timeout`, so that partitions move meanwhile.
    pub(crate) fn draw(seed: u64, duration: Duration, session_timeout: Duration, mut kinds: Vec<Kind>) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for i in (1..kinds.len()).rev() {
            kinds.swap(i, rng.random_range(0..=i));
        }
        let mut steps: Vec<_> = kinds.iter().map(|kind| step(*kind, &mut rng)).collect();
        let long = long_freeze(&steps);
        let beyond = session_timeout.mul_f64(1.5);
        steps[long].hold = Duration::ZERO;
        fit(&mut steps, duration.saturating_sub(beyond));
        steps[long].hold = beyond;
        let weights: u32 = kinds.iter().map(|kind| kind.weight()).sum();
        let mut length: Duration = steps.iter().map(Step::length).sum();
        loop {
            let mut lot = rng.random_range(0..weights);
            let drawn = kinds.iter().find(|kind| {
                let hit = lot < kind.weight();
                lot = lot.saturating_sub(kind.weight());
                hit
            });
            let step = step(*drawn.expect("the lot is below the sum of the weights"), &mut rng);
            length += step.length();
            if length > duration {
                return Self(steps);
            }
            steps.push(step);
        }
    }

    /// How long it takes.
    pub(crate) fn length(&self) -> Duration {
        self.0.iter().map(Step::length).sum()
    }

    /// How often each kind comes.
    pub(crate) fn kinds(&self) -> BTreeMap<String, u32> {
        let mut kinds = BTreeMap::new();
        for step in &self.0 {
            *kinds.entry(step.kind.to_string()).or_default() += 1;
        }
        kinds
    }
}

/// Shortens steps until all fit into `room`. What is as short as it may be stays so, and the others make up for it.
fn fit(steps: &mut [Step], room: Duration) {
    const ROUNDS: usize = 20;
    for _ in 0..ROUNDS {
        let length: Duration = steps.iter().map(Step::length).sum();
        if length <= room {
            return;
        }
        // A little more than needed: otherwise the sum only comes ever closer to the room.
        let factor = 0.95 * room.as_secs_f64() / length.as_secs_f64();
        steps.iter_mut().for_each(|step| step.shrink(factor));
    }
}

fn step(kind: Kind, rng: &mut ChaCha8Rng) -> Step {
    let (least, most) = kind.hold_s();
    Step {
        pause: Duration::from_secs_f64(rng.random_range(PAUSE_S.0..PAUSE_S.1)),
        kind,
        choice: rng.random_range(1..=kind.choices()),
        hold: Duration::from_secs_f64(if least < most { rng.random_range(least..most) } else { least }),
    }
}

/// The first freeze of a stage whose partitions another instance can take.
fn long_freeze(steps: &[Step]) -> usize {
    let movable = |step: &Step| matches!(step.kind, Kind::Freeze(role) if role.instances() > 1);
    steps.iter().position(movable).expect("each kind is there once")
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut at = Duration::ZERO;
        for step in &self.0 {
            at += step.pause;
            let (at_s, what) = (at.as_secs(), target(step));
            write!(f, "{:02}:{:02}  {what:<28}", at_s / 60, at_s % 60)?;
            if step.hold.is_zero() {
                writeln!(f)?;
            } else {
                writeln!(f, "for {:.1} s", step.hold.as_secs_f64())?;
            }
            at += step.hold + step.kind.work();
        }
        Ok(())
    }
}

/// What a step does, with the instance or the codec where there are several.
pub(crate) fn target(step: &Step) -> String {
    match step.kind {
        Kind::Kill(role) | Kind::Freeze(role) | Kind::Replace(role) if role.instances() > 1 => {
            format!("{}-{}", step.kind, step.choice)
        }
        Kind::Codec(_) => format!("{}: {}", step.kind, CODECS[step.choice as usize - 1]),
        kind => kind.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: Duration = Duration::from_secs(6);

    fn draw(seed: u64, s: u64) -> Plan {
        Plan::draw(seed, Duration::from_secs(s), SESSION, Kind::all(true, true))
    }

    #[test]
    fn every_kind_comes_and_one_freeze_outlasts_the_session_in_any_time() {
        for seed in 0..50 {
            for s in [75, 90, 1_200] {
                let plan = draw(seed, s);
                assert_eq!(plan.kinds().len(), Kind::all(true, true).len(), "seed {seed}, {s} s");
                assert!(plan.length() <= Duration::from_secs(s), "seed {seed}, {s} s: {:?}", plan.length());
                let long = |step: &Step| match step.kind {
                    Kind::Freeze(role) => role.instances() > 1 && step.hold > SESSION,
                    _ => false,
                };
                assert!(plan.0.iter().any(long), "seed {seed}, {s} s");
            }
        }
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(draw(7, 90), draw(7, 90));
        assert_ne!(draw(7, 90), draw(8, 90));
    }
}
