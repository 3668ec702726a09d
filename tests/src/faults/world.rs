//! Whose turn it is, and everything else: logs, instances, pending events.
//!
//! Every decision is drawn from the seed, and nothing asks a clock: the same seed is the same run.

use std::collections::BTreeMap;
use std::fmt::Arguments;
use std::sync::{Arc, Condvar};
use std::thread::{JoinHandle, ThreadId};

use event_log::Outputs;
use test_support::random::Random;

use super::cluster::{Cluster, Transaction};
use super::plan::{Consequence, Fault, Plan};
use super::trace::Trace;
use super::turn::Shared;
use super::{Drained, Process, Role};

/// A run that takes more steps never ends: something waits forever.
const MAX_STEPS: u64 = 40_000;

/// Steps between two looks at whether all is done.
const LOOK_EVERY: u64 = 8;

/// How often all must have been found done, one after the other: what would be doubled now shows.
const LOOKS: u32 = 5;

pub(super) struct World {
    pub(super) random: Random,
    pub(super) trace: Trace,
    pub(super) clusters: Vec<Cluster>,
    pub(super) faults: BTreeMap<&'static str, u64>,
    pub(super) failure: Option<String>,
    pub(super) steps: u64,
    pub(super) plan: Plan,
    /// Whether tasks take turns; if not they run freely, and no faults happen.
    pub(super) stepped: bool,
    pub(super) turn: Option<usize>,
    pub(super) roles: Vec<Role>,
    pub(super) slots: Vec<Slot>,
    pub(super) tasks: Vec<Task>,
    pub(super) input: std::vec::IntoIter<(usize, Outputs)>,
    pub(super) drained: Vec<Drained>,
    pub(super) looks: u32,
    /// Whether those who have lost their place are refused.
    pub(super) fences: bool,
    /// The run has ended.
    pub(super) over: Arc<Condvar>,
}

/// A place for an instance: one name, one task at a time that goes by it, and zombies.
pub(super) struct Slot {
    pub(super) role: usize,
    pub(super) name: String,
    pub(super) wanted: bool,
    pub(super) current: Option<usize>,
    pub(super) incarnations: u32,
}

/// One incarnation of an instance: what a process would be.
pub(super) struct Task {
    pub(super) name: String,
    pub(super) slot: usize,
    pub(super) state: State,
    /// The thread whose calls are steps. Others of the same process (a watcher of lag) only look, and are let through.
    pub(super) thread: Option<ThreadId>,
    pub(super) wake: Arc<Condvar>,
    pub(super) stop: Option<Box<dyn Fn() + Send>>,
    pub(super) asked_to_stop: bool,
    pub(super) handle: Option<JoinHandle<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Paused,
    Killed,
    Ended,
}

impl World {
    pub(super) fn new(seed: u64, plan: Plan, keep_trace: bool, over: Arc<Condvar>) -> Self {
        Self {
            random: Random::new(seed),
            trace: Trace::new(keep_trace),
            clusters: Vec::new(),
            faults: BTreeMap::new(),
            failure: None,
            steps: 0,
            plan,
            stepped: false,
            turn: None,
            roles: Vec::new(),
            slots: Vec::new(),
            tasks: Vec::new(),
            input: Vec::new().into_iter(),
            drained: Vec::new(),
            looks: 0,
            fences: true,
            over,
        }
    }

    pub(super) fn note(&mut self, task: usize, what: Arguments<'_>) {
        self.trace.note(format_args!("{} {what}", self.tasks[task].name));
    }

    /// The same, for a call that may come from outside of the run.
    pub(super) fn note_of(&mut self, task: Option<usize>, what: Arguments<'_>) {
        if let Some(task) = task.filter(|_| self.stepped) {
            self.note(task, what);
        }
    }

    /// The run has shown that something is wrong.
    pub(super) fn fail(&mut self, what: String) {
        self.trace.note(format_args!("FAILED: {what}"));
        self.failure.get_or_insert(what);
        self.end();
    }

    pub(super) fn end(&mut self) {
        self.stepped = false;
        self.turn = None;
        for task in &self.tasks {
            task.wake.notify_all();
        }
        self.over.notify_all();
    }

    pub(super) fn strikes(&mut self, fault: Fault) -> bool {
        if !self.plan.allows(fault, &mut self.random) {
            return false;
        }
        *self.faults.entry(fault.name()).or_default() += 1;
        self.trace.note(format_args!("  fault: {}", fault.name()));
        true
    }

    pub(super) fn count(&mut self, consequence: Consequence) {
        if self.stepped {
            *self.faults.entry(consequence.name()).or_default() += 1;
        }
    }

    /// Lets happen what happens between two steps, and gives the turn to a task.
    pub(super) fn move_on(&mut self, shared: &Arc<Shared>) {
        while self.stepped {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                let left = self.what_is_left();
                self.fail(format!("it does not come to its end: {left}"));
                break;
            }
            if self.steps.is_multiple_of(LOOK_EVERY) {
                self.looks = if self.is_done() { self.looks + 1 } else { 0 };
                if self.looks == LOOKS {
                    self.end();
                    break;
                }
            }
            let ready: Vec<usize> =
                (0..self.tasks.len()).filter(|task| self.tasks[*task].state == State::Running).collect();
            if (ready.is_empty() || self.random.chance(1, 8))
                && let Some(happening) = self.choose(&ready)
            {
                self.happen(happening, shared);
                continue;
            }
            if ready.is_empty() {
                continue;
            }
            // Often the same one again: a run of its steps is what it does alone.
            let next = match self.turn.filter(|task| ready.contains(task)) {
                Some(same) if self.random.chance(3, 4) => same,
                _ => *self.random.one_of(&ready),
            };
            self.turn = Some(next);
            self.tasks[next].wake.notify_all();
            return;
        }
    }

    pub(super) fn start(&mut self, slot: usize, shared: &Arc<Shared>) {
        let task = self.tasks.len();
        let of_slot = &mut self.slots[slot];
        of_slot.incarnations += 1;
        of_slot.current = Some(task);
        let (instance, role) = (of_slot.name.clone(), &self.roles[of_slot.role]);
        let name = format!("{instance}/{}", of_slot.incarnations);
        let (run, drains) = (role.run.clone(), role.drains);
        self.trace.note(format_args!("{name} starts"));
        let of_thread = shared.clone();
        let body = move || {
            if !drains {
                of_thread.drive(task);
            }
            let began = of_thread.wait_for_turn(of_thread.lock(), task).map(drop);
            if began.is_err() {
                return; // killed before it began
            }
            let process = Process { shared: of_thread.clone(), task, instance };
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&process)));
            let result = ran.unwrap_or_else(|panic| Err(panic_text(&*panic)));
            of_thread.task_ended(task, result);
        };
        let handle = std::thread::Builder::new().name(name.clone()).spawn(body);
        self.tasks.push(Task {
            name,
            slot,
            state: State::Running,
            thread: None,
            wake: Arc::new(Condvar::new()),
            stop: None,
            asked_to_stop: false,
            handle: Some(handle.expect("a thread can be started")),
        });
    }

    pub(super) fn write(&mut self, cluster: usize, outputs: &Outputs) {
        let (known, group) = (&mut self.clusters[cluster], "input".to_owned());
        let outputs = known.names.outputs_inside(outputs);
        let transaction = Transaction { group, outputs, positions: Vec::new(), end_on_its_way: false, task: None };
        if let Err(error) = known.write(&transaction) {
            self.fail(format!("the input cannot be written: {error:?}"));
        }
    }
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a panic: {}", text.unwrap_or("without words"))
}
