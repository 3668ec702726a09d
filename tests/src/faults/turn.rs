//! One thread at a time: a call of the log waits until it is its instance's turn.
//!
//! ```text
//!  task at a log call ─► the world moves on ─► one task has the turn, all others wait at theirs
//!                          └ whoever had the turn decides, under the lock: no thread but the task's own is needed
//! ```

use std::fmt::Arguments;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_log::{Error, Outputs};

use super::plan::{Fault, Plan};
use super::world::{Slot, State, World};
use super::{Drained, Role};

/// A step takes microseconds. A task that keeps the turn for this long hangs outside of the log.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) struct Shared {
    world: Mutex<World>,
    over: Arc<Condvar>,
}

/// The right to act: the world, locked.
pub(super) struct Turn<'a> {
    pub(super) world: MutexGuard<'a, World>,
    /// Whether faults may happen and nothing may wait.
    pub(super) stepped: bool,
}

impl Turn<'_> {
    /// Whether this fault happens here.
    pub(super) fn strikes(&mut self, fault: Fault) -> bool {
        self.stepped && self.world.strikes(fault)
    }

    /// The error of a log that does not answer, if that happens here.
    pub(super) fn trouble(&mut self, operation: &'static str) -> Result<(), Error> {
        if self.strikes(Fault::Error) { Err(unavailable(operation)) } else { Ok(()) }
    }

    /// `most`, or less.
    pub(super) fn some_of(&mut self, most: usize) -> usize {
        if !self.stepped || most <= 1 || self.world.random.chance(1, 2) {
            return most;
        }
        self.world.random.between(1, most as u64) as usize
    }
}

pub(super) fn unavailable(operation: &'static str) -> Error {
    Error::Unavailable { operation, log: "the simulation".to_owned(), source: "by the seed".into() }
}

fn killed() -> Error {
    Error::Refused {
        operation: "call as a killed instance",
        log: "the simulation".to_owned(),
        source: "it was killed".into(),
    }
}

impl Shared {
    pub(super) fn new(seed: u64, plan: Plan, keep_trace: bool) -> Arc<Self> {
        let over = Arc::new(Condvar::new());
        let world = World::new(seed, plan, keep_trace, over.clone());
        Arc::new(Self { world: Mutex::new(world), over })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, World> {
        // A panic in here is a failure of the run, reported to the thread that waits for its end.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A log call of a task: its turn comes, or it is killed meanwhile.
    pub(super) fn step(self: &Arc<Self>, task: Option<usize>, what: Arguments<'_>) -> Result<Turn<'_>, Error> {
        let mut world = self.lock();
        let Some(task) = task else { return Ok(Turn { world, stepped: false }) };
        if world.tasks[task].state == State::Killed {
            return Err(killed());
        }
        if !world.stepped || world.tasks[task].thread != Some(std::thread::current().id()) {
            return Ok(Turn { world, stepped: false });
        }
        world.note(task, what);
        world.move_on(self);
        world = self.wait_for_turn(world, task)?;
        let stepped = world.stepped;
        Ok(Turn { world, stepped })
    }

    pub(super) fn wait_for_turn<'a>(
        &self,
        mut world: MutexGuard<'a, World>,
        task: usize,
    ) -> Result<MutexGuard<'a, World>, Error> {
        let wake = world.tasks[task].wake.clone();
        loop {
            if world.tasks[task].state == State::Killed {
                return Err(killed());
            }
            if !world.stepped || world.turn == Some(task) {
                return Ok(world);
            }
            world = wake.wait(world).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// From here on the calls of this thread are the task's steps.
    pub(super) fn drive(&self, task: usize) {
        self.lock().tasks[task].thread = Some(std::thread::current().id());
    }

    /// The loop of a stage begins on this thread.
    pub(super) fn loop_begins(&self, task: Option<usize>) {
        let Some(task) = task else { return };
        let mut world = self.lock();
        let role = world.slots[world.tasks[task].slot].role;
        if world.roles[role].drains {
            world.tasks[task].thread = Some(std::thread::current().id());
        }
    }

    /// What stops the task gracefully.
    pub(super) fn on_stop(&self, task: usize, stop: Box<dyn Fn() + Send>) {
        let mut world = self.lock();
        if world.stepped {
            world.tasks[task].stop = Some(stop);
        } else {
            stop(); // the run came to its end while this one began
        }
    }

    /// Lets the roles run until everything is drained, then freely until all have stopped.
    pub(super) fn run(
        self: &Arc<Self>,
        roles: Vec<Role>,
        input: Vec<(usize, Outputs)>,
        drained: Vec<Drained>,
    ) -> MutexGuard<'_, World> {
        let mut world = self.lock();
        for (role, Role { name, instances, .. }) in roles.iter().enumerate() {
            for instance in 1..=*instances {
                let name = if roles.len() > 1 { format!("{name}-{instance}") } else { instance.to_string() };
                world.slots.push(Slot { role, name, wanted: true, current: None, incarnations: 0 });
            }
        }
        world.roles = roles;
        world.input = input.into_iter();
        world.drained = drained;
        world.stepped = true;
        world.move_on(self);
        while world.stepped {
            let before = world.steps;
            let (again, waited) = self.over.wait_timeout(world, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            world = again;
            if waited.timed_out() && world.stepped && world.steps == before {
                let holder = world.turn.map_or("nobody", |task| world.tasks[task].name.as_str());
                panic!("the schedule hangs: {holder} has the turn and does not come back to the log");
            }
        }
        let mut threads = Vec::new();
        for task in &mut world.tasks {
            if let Some(stop) = task.stop.take() {
                stop();
            }
            task.wake.notify_all();
            threads.extend(task.handle.take());
        }
        drop(world);
        for thread in threads {
            // A panic of a task was caught and is the run's failure.
            let _ = thread.join();
        }
        let mut world = self.lock();
        world.roles.clear(); // they hold handles of this simulation: it would never be dropped
        world
    }

    pub(super) fn task_ended(self: &Arc<Self>, task: usize, result: Result<(), String>) {
        let mut world = self.lock();
        let slot = world.tasks[task].slot;
        if world.slots[slot].current == Some(task) {
            world.slots[slot].current = None;
        }
        if world.tasks[task].state == State::Killed {
            return;
        }
        world.tasks[task].state = State::Ended;
        let asked = world.tasks[task].asked_to_stop || !world.stepped;
        let replaced = world.slots[slot].incarnations > 1;
        let name = world.tasks[task].name.clone();
        match result {
            Ok(()) if asked => {}
            Ok(()) => world.fail(format!("{name} has ended without being asked to")),
            Err(error) if replaced && error.contains("was fenced") => {}
            Err(error) => world.fail(format!("{name} has ended with an error: {error}")),
        }
        if world.stepped && world.turn == Some(task) {
            world.note(task, format_args!("ends"));
            world.move_on(self);
        }
    }
}
