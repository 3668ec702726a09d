//! A log that fails, by a seed.
//!
//! ```text
//!  instance 1 ─┐ every call is a step            ┌ cluster: groups, transactions ┐
//!  instance 2 ─┼──► world: whose turn is it? ────┤ as Kafka's coordinators keep  ├──► inner log: what was
//!  instance 3 ─┘    what happens instead?        └ them                          ┘    committed, for good
//! ```
//!
//! A [`Simulation`] runs the real loop of a stage, in one or several instances, over a log of which every call is a
//! step: exactly one thread runs at a time; which one, and what happens to it, is drawn from the seed. Between any two
//! steps an instance can be killed, stopped, paused until its partitions have moved and then resumed (a zombie), or
//! replaced by another one of its name; calls fail, sessions and transactions time out, and commits end unknown: done,
//! not done, or still on their way. The same seed is the same run, whatever the machine.
//!
//! The inner log is a real one, as a rule the embedded one, and holds what was committed. Since that has one instance
//! per group and no unknown outcomes, groups and transactions are kept here, by the rules that the Kafka backend lives
//! with: generations, ranges, static members, fenced epochs, positions refused to those who lost their place, positions
//! not told while a transaction may still move them. (That Kafka really has these rules is what the conformance suite
//! and the tests against a real broker are for.)
//!
//! What it deliberately does not do: lose or alter what the inner log has committed.

mod cluster;
mod consumer;
mod group;
mod happening;
mod log;
mod names;
mod plan;
mod progress;
mod reader;
mod trace;
mod transactor;
mod turn;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use event_log::{Log, LogUrl, Outputs};
pub use plan::fault_names;
use test_support::random::Random;

use log::FaultyLog;
use plan::Plan;
use turn::Shared;

/// One run of some instances under one seed.
pub struct Simulation {
    shared: Arc<Shared>,
}

/// A log of a simulation: what Kafka would call a cluster.
#[derive(Clone)]
pub struct ClusterHandle {
    shared: Arc<Shared>,
    index: usize,
    url: LogUrl,
}

/// What an instance does, until it is stopped. An error says why it ended.
pub type Run = Arc<dyn Fn(&Process) -> Result<(), String> + Send + Sync>;

/// A kind of process that runs in a simulation.
pub struct Role {
    /// The name of its instances, if there is more than one role.
    pub name: &'static str,
    /// How many instances there are at most at a time, zombies not counted.
    pub instances: usize,
    /// The work of an instance until it is stopped. An error ends the run, unless the instance was killed or fenced.
    pub run: Run,
    /// Whether this is a process of several threads, that drains before it ends. Then its steps are those of the thread
    /// that makes a transactor, the stage's loop; others may look at the log, and are no part of the run. It is stopped
    /// at the end of the run only, since a drain looks at the clock.
    pub drains: bool,
}

/// A running instance.
pub struct Process {
    shared: Arc<Shared>,
    task: usize,
    instance: String,
}

/// What must have been processed to its end before a run is over.
pub struct Drained {
    source: usize,
    target: usize,
    group: String,
    topics: Vec<Arc<str>>,
}

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// Stands for everything that happened: equal for equal runs.
    pub trace_hash: u64,
    /// What happened, if that was asked for.
    pub trace: Vec<String>,
    /// How many steps were taken.
    pub steps: u64,
    /// How often each fault struck.
    pub faults: BTreeMap<&'static str, u64>,
    /// What went wrong in the run itself: an instance that ended by an error, something that never ended.
    pub failure: Option<String>,
}

impl Simulation {
    /// The run of this seed.
    pub fn new(seed: u64, keep_trace: bool) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random);
        Self { shared: Shared::new(random.next(), plan, keep_trace) }
    }

    /// A lie: from here on no log of this simulation asks who still has a place in a group, or a transactional id.
    pub fn fence_nobody(&self) {
        self.shared.lock().fences = false;
    }

    /// A log of this simulation that keeps its records in `inner`, with `namespace` before each name of a topic and of
    /// a group, so that many simulations can share one inner log.
    pub fn cluster(&self, inner: Arc<dyn Log>, namespace: &str) -> ClusterHandle {
        let mut world = self.shared.lock();
        let (index, url) = (world.clusters.len(), inner.url().clone());
        world.clusters.push(cluster::Cluster::new(inner, namespace));
        ClusterHandle { shared: self.shared.clone(), index, url }
    }

    /// Runs the roles. `input` comes in bit by bit, each piece as a whole. The run is over when it is in, and
    /// everything is drained, and no instance is paused; then the instances are stopped.
    ///
    /// # Panics
    /// If an instance hangs outside of the log.
    pub fn run(self, roles: Vec<Role>, input: Vec<(ClusterHandle, Outputs)>, drained: Vec<Drained>) -> Report {
        let input = input.into_iter().map(|(cluster, outputs)| (cluster.index, outputs)).collect();
        let mut world = self.shared.run(roles, input, drained);
        Report {
            trace_hash: world.trace.hash(),
            trace: world.trace.take_lines(),
            steps: world.steps,
            faults: std::mem::take(&mut world.faults),
            failure: world.failure.take(),
        }
    }
}

impl ClusterHandle {
    /// The log for those who watch: their calls are no steps, and meet no faults.
    pub fn log(&self) -> Arc<dyn Log> {
        Arc::new(FaultyLog { shared: self.shared.clone(), cluster: self.index, task: None, url: self.url.clone() })
    }

    /// That `group`, whose positions are in `target`, has processed these topics of this log.
    pub fn drained(&self, target: &ClusterHandle, group: &str, topics: &[Arc<str>]) -> Drained {
        Drained { source: self.index, target: target.index, group: group.to_owned(), topics: topics.to_vec() }
    }
}

impl Process {
    /// The log for this instance.
    pub fn log(&self, cluster: &ClusterHandle) -> Arc<dyn Log> {
        let task = Some(self.task);
        Arc::new(FaultyLog { shared: self.shared.clone(), cluster: cluster.index, task, url: cluster.url.clone() })
    }

    /// What the instance is called within its group; the same after a restart.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Says how the instance is stopped gracefully. To be called before anything else, and it must not block.
    pub fn on_stop(&self, stop: impl Fn() + Send + 'static) {
        self.shared.on_stop(self.task, Box::new(stop));
    }
}
