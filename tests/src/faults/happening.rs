//! What happens between two steps: input comes, an instance starts, stops, is killed, paused, replaced, resumed; a
//! session expires, a transaction times out, a late commit arrives.

use std::sync::Arc;

use super::plan::{Consequence, Fault};
use super::turn::Shared;
use super::world::{State, World};

/// What can happen between two steps.
#[derive(Debug, Clone)]
pub(super) enum Happening {
    Input,
    Start(usize),
    Resume(usize),
    /// A supervisor gives a silent instance up and starts another one under its name.
    Replace(usize),
    Expire {
        cluster: usize,
        group: String,
        name: String,
    },
    TimeOut {
        cluster: usize,
        id: String,
    },
    EndArrives {
        cluster: usize,
        id: String,
    },
    Kill(usize),
    Pause(usize),
    Stop(usize),
}

impl World {
    /// Draws what happens before the next step, which is nothing most of the time.
    pub(super) fn choose(&mut self, ready: &[usize]) -> Option<Happening> {
        // Nothing happens most of the time, unless nobody is left to do anything.
        let mut choices: Vec<(u64, Happening)> = Vec::new();
        let calm = if ready.is_empty() { 0 } else { 24 };
        if self.input.len() > 0 {
            choices.push((8, Happening::Input));
        }
        for (i, slot) in self.slots.iter().enumerate() {
            if slot.wanted && slot.current.is_none() {
                choices.push((5, Happening::Start(i)));
            }
        }
        let is_running = |task: Option<usize>| task.is_some_and(|task| self.tasks[task].state == State::Running);
        for (i, task) in self.tasks.iter().enumerate() {
            let is_current = self.slots[task.slot].current == Some(i);
            match task.state {
                State::Paused => {
                    choices.push((2, Happening::Resume(i)));
                    if is_current {
                        choices.push((2, Happening::Replace(i)));
                    }
                    self.plan.add(&mut choices, Fault::Kill, Happening::Kill(i));
                }
                State::Running => {
                    self.plan.add(&mut choices, Fault::Kill, Happening::Kill(i));
                    self.plan.add(&mut choices, Fault::Pause, Happening::Pause(i));
                    // A drain looks at the clock, and may be asked for at the end of a run only.
                    if task.stop.is_some() && !task.asked_to_stop && !self.roles[self.slots[task.slot].role].drains {
                        self.plan.add(&mut choices, Fault::Stop, Happening::Stop(i));
                    }
                }
                State::Killed | State::Ended => {}
            }
        }
        for (cluster, known) in self.clusters.iter().enumerate() {
            for (group, state) in &known.groups {
                for (name, member) in &state.members {
                    let expire = Happening::Expire { cluster, group: group.clone(), name: name.clone() };
                    if is_running(member.task) {
                        self.plan.add(&mut choices, Fault::Session, expire);
                    } else {
                        choices.push((3, expire));
                    }
                }
            }
            for (id, producer) in &known.producers {
                let Some(open) = &producer.open else { continue };
                let id = id.clone();
                if open.end_on_its_way {
                    choices.push((3, Happening::EndArrives { cluster, id }));
                } else if is_running(open.task) {
                    self.plan.add(&mut choices, Fault::TimeOut, Happening::TimeOut { cluster, id });
                } else {
                    choices.push((3, Happening::TimeOut { cluster, id }));
                }
            }
        }
        let total = calm + choices.iter().map(|(weight, _)| weight).sum::<u64>();
        if total == 0 {
            return None;
        }
        let mut drawn = self.random.below(total);
        for (weight, happening) in choices {
            if drawn < weight {
                return Some(happening);
            }
            drawn -= weight;
        }
        None
    }

    /// Lets it happen.
    pub(super) fn happen(&mut self, happening: Happening, shared: &Arc<Shared>) {
        match happening {
            Happening::Input => {
                let Some((cluster, outputs)) = self.input.next() else { return };
                self.trace.note(format_args!("{} records come in", outputs.len()));
                self.write(cluster, &outputs);
            }
            Happening::Start(slot) => self.start(slot, shared),
            Happening::Resume(task) => {
                self.note(task, format_args!("goes on"));
                let is_current = self.slots[self.tasks[task].slot].current == Some(task);
                let mut members = self.clusters.iter().flat_map(|c| c.groups.values().flat_map(|g| g.members.values()));
                if !is_current || !members.any(|member| member.task == Some(task)) {
                    self.count(Consequence::Zombie);
                }
                self.tasks[task].state = State::Running;
            }
            Happening::Replace(task) => {
                self.note(task, format_args!("is given up"));
                self.start(self.tasks[task].slot, shared);
            }
            Happening::Expire { cluster, group, name } => {
                let member = self.clusters[cluster].groups.get(&group).and_then(|g| g.members.get(&name));
                if member.and_then(|m| m.task).is_some_and(|task| self.tasks[task].state == State::Running) {
                    self.plan.spend(Fault::Session, &mut self.faults);
                }
                self.trace.note(format_args!("the session of {name} in {group} expires"));
                if let Some(known) = self.clusters[cluster].groups.get_mut(&group) {
                    known.expire(&name);
                }
                // Nothing to tell: the topic is known, or its consumers say that it is not.
                let _ = self.clusters[cluster].complete(&group);
            }
            Happening::TimeOut { cluster, id } => {
                let open = self.clusters[cluster].producers.get_mut(&id).and_then(|p| p.open.take());
                if open.and_then(|o| o.task).is_some_and(|task| self.tasks[task].state == State::Running) {
                    self.plan.spend(Fault::TimeOut, &mut self.faults);
                }
                self.trace.note(format_args!("the transaction of {id} times out"));
            }
            Happening::EndArrives { cluster, id } => {
                let open = self.clusters[cluster].producers.get_mut(&id).and_then(|p| p.open.take());
                self.trace.note(format_args!("the end of {id}'s transaction arrives"));
                self.count(Consequence::LateCommit);
                if let Some(open) = open
                    && let Err(error) = self.clusters[cluster].write(&open)
                {
                    self.fail(format!("a late commit did not succeed: {error:?}"));
                }
            }
            Happening::Kill(task) => self.kill(task),
            Happening::Pause(task) => {
                self.plan.spend(Fault::Pause, &mut self.faults);
                self.note(task, format_args!("is paused"));
                self.tasks[task].state = State::Paused;
            }
            Happening::Stop(task) => {
                self.plan.spend(Fault::Stop, &mut self.faults);
                self.note(task, format_args!("is asked to stop"));
                self.tasks[task].asked_to_stop = true;
                self.maybe_retire(self.tasks[task].slot);
                if let Some(stop) = &self.tasks[task].stop {
                    stop();
                }
            }
        }
    }

    fn kill(&mut self, task: usize) {
        self.plan.spend(Fault::Kill, &mut self.faults);
        self.note(task, format_args!("is killed"));
        self.tasks[task].state = State::Killed;
        let slot = self.tasks[task].slot;
        if self.slots[slot].current == Some(task) {
            self.slots[slot].current = None;
            self.maybe_retire(slot);
        }
        self.tasks[task].wake.notify_all();
    }

    /// Sometimes an instance that is gone stays away, if there is another one.
    fn maybe_retire(&mut self, slot: usize) {
        let role = self.slots[slot].role;
        let others = self.slots.iter().enumerate().filter(|(i, s)| *i != slot && s.role == role && s.wanted).count();
        if others > 0 && self.random.chance(1, 4) {
            self.slots[slot].wanted = false;
        }
    }
}
