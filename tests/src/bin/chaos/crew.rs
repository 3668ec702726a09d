//! All processes of a run under one supervisor, which restarts what has died and writes down what should not have.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use crate::plan::Role;
use crate::process::{Change, Process, Program};

/// How often processes are looked at.
const TICK: Duration = Duration::from_millis(50);

/// Until a killed process runs again: it is started anew within a second.
const RESTART_PATIENCE: Duration = Duration::from_secs(30);

/// Until a process that was replaced has found out: it does with its next commit or its next heartbeat.
const FENCE_PATIENCE: Duration = Duration::from_secs(60);

/// Says what happens, with the time since the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Teller(Instant);

impl Teller {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }

    /// To standard error: standard output is for the result.
    pub(crate) fn say(&self, what: &str) {
        let s = self.0.elapsed().as_secs();
        eprintln!("{:02}:{:02}  {what}", s / 60, s % 60);
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// The processes, by role and instance.
#[derive(Debug)]
pub(crate) struct Crew {
    processes: BTreeMap<(Role, u32), Process>,
    logs: PathBuf,
    teller: Teller,
    interrupted: Arc<AtomicBool>,
    /// Replaced processes, and the time since when they keep running although they should end.
    replaced: Vec<(Process, Option<Instant>)>,
    replacements: u32,
    /// Restarts of processes that are no more.
    past_restarts: u32,
    /// Ends of processes that were told to be replaced, whether by one of ours or because their group's session was
    /// over.
    pub(crate) fenced: u32,
    /// Ends that nobody asked for, with the last words.
    pub(crate) unexplained: Vec<String>,
    /// Processes that were asked to stop and did not do so well.
    pub(crate) bad_ends: Vec<String>,
}

impl Crew {
    /// Nobody yet. Once `interrupted`, every wait is an error.
    pub(crate) fn new(logs: PathBuf, teller: Teller, interrupted: Arc<AtomicBool>) -> Self {
        Self {
            processes: BTreeMap::new(),
            logs,
            teller,
            interrupted,
            replaced: Vec::new(),
            replacements: 0,
            past_restarts: 0,
            fenced: 0,
            unexplained: Vec::new(),
            bad_ends: Vec::new(),
        }
    }

    /// Starts a process. One that had this place before must have ended.
    pub(crate) fn start(&mut self, role: Role, instance: u32, program: Program) -> anyhow::Result<()> {
        let mut process = Process::new(program, &self.logs);
        process.start()?;
        if let Some(before) = self.processes.insert((role, instance), process) {
            self.past_restarts += before.restarts();
        }
        Ok(())
    }

    /// How often a process was restarted.
    pub(crate) fn restarts(&self) -> u32 {
        self.past_restarts + self.processes.values().map(Process::restarts).sum::<u32>()
    }

    /// A running process; waits for one that is being restarted.
    pub(crate) fn running(&mut self, role: Role, instance: u32) -> anyhow::Result<&mut Process> {
        let place = (role, instance);
        self.wait(&format!("{}-{instance} to run", role.name()), RESTART_PATIENCE, |crew| {
            Ok(crew.processes.get(&place).is_some_and(Process::is_running))
        })?;
        Ok(self.processes.get_mut(&place).expect("it was there just now"))
    }

    /// SIGCONT.
    pub(crate) fn thaw(&mut self, role: Role, instance: u32) -> anyhow::Result<()> {
        self.processes.get_mut(&(role, instance)).map_or(Ok(()), Process::thaw)
    }

    /// Starts another process under the name of a frozen one.
    pub(crate) fn replace(&mut self, role: Role, instance: u32, mut program: Program) -> anyhow::Result<()> {
        self.replacements += 1;
        program.name = format!("{}.{}", program.name, self.replacements + 1);
        let mut successor = Process::new(program, &self.logs);
        successor.start()?;
        if let Some(mut process) = self.processes.insert((role, instance), successor) {
            process.give_up_place();
            self.replaced.push((process, None));
        }
        Ok(())
    }

    /// SIGCONT to those that were replaced: they must find out, and end.
    pub(crate) fn thaw_replaced(&mut self) -> anyhow::Result<()> {
        for (process, since) in self.replaced.iter_mut().filter(|(_, since)| since.is_none()) {
            process.thaw()?;
            *since = Some(Instant::now());
        }
        Ok(())
    }

    /// Whether some that were replaced have not ended yet.
    pub(crate) fn has_replaced(&self) -> bool {
        !self.replaced.is_empty()
    }

    /// Whether a process has ended by itself, or was asked to and has.
    pub(crate) fn is_ended(&self, role: Role, instance: u32) -> bool {
        self.processes.get(&(role, instance)).is_none_or(Process::is_ended)
    }

    /// Asks a process to stop.
    pub(crate) fn terminate(&mut self, role: Role, instance: u32) -> anyhow::Result<()> {
        self.processes.get_mut(&(role, instance)).map_or(Ok(()), Process::terminate)
    }

    /// Asks all processes of a role to stop, and waits until they have stopped, or their time is over.
    pub(crate) fn stop(&mut self, roles: &[Role], patience: Duration) -> anyhow::Result<()> {
        let places: Vec<_> = self.processes.keys().copied().filter(|(role, _)| roles.contains(role)).collect();
        for (role, instance) in &places {
            self.terminate(*role, *instance)?;
        }
        let began = Instant::now();
        while !places.iter().all(|(role, instance)| self.is_ended(*role, *instance)) {
            self.tick()?;
            if began.elapsed() > patience {
                for (_, process) in self.processes.iter_mut().filter(|(place, _)| places.contains(place)) {
                    if process.is_running() {
                        let s = patience.as_secs();
                        self.bad_ends.push(format!("{} did not end within {s} s of SIGTERM", process.name()));
                        process.kill()?;
                    }
                }
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, length: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + length;
        while Instant::now() < until {
            self.tick()?;
            std::thread::sleep(TICK.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// Lets time pass until `done`, at most `patience`.
    pub(crate) fn wait(
        &mut self,
        what: &str,
        patience: Duration,
        mut done: impl FnMut(&mut Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            self.tick()?;
            if done(self)? {
                return Ok(());
            }
            if began.elapsed() > patience {
                bail!("waited {} s in vain for {what}", patience.as_secs());
            }
            std::thread::sleep(TICK);
        }
    }

    /// Looks at every process, and says what has changed.
    fn tick(&mut self) -> anyhow::Result<()> {
        ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        self.tick_replaced()?;
        for process in self.processes.values_mut() {
            let Some(change) = process.tick()? else { continue };
            let name = process.name();
            match change {
                Change::Killed => {}
                Change::Restarted => self.teller.say(&format!("    {name} restarted")),
                Change::Ended => self.teller.say(&format!("    {name} ended")),
                // Frozen, or with a broker away, for longer than the group waits: Kafka may take it for replaced. It
                // has committed nothing since, and resumes when it is restarted.
                Change::Failed(words) if words.contains("was fenced") => {
                    self.teller.say(&format!("    {name} was fenced, and ended"));
                    self.fenced += 1;
                }
                Change::Failed(words) => {
                    self.teller.say(&format!("    {name} ended, unasked: {words}"));
                    self.unexplained.push(format!("{name}: {words}"));
                }
                Change::EndedBadly(words) => {
                    self.teller.say(&format!("    {name} stopped badly: {words}"));
                    self.bad_ends.push(format!("{name}: {words}"));
                }
            }
        }
        Ok(())
    }

    fn tick_replaced(&mut self) -> anyhow::Result<()> {
        for (process, since) in &mut self.replaced {
            match process.tick()? {
                None => {}
                Some(Change::Failed(words)) if words.contains("was fenced") => {
                    self.teller.say(&format!("    {} was fenced, and ended", process.name()));
                    self.fenced += 1;
                }
                Some(other) => self.unexplained.push(format!("{}, which was replaced: {other:?}", process.name())),
            }
            if since.is_some_and(|since| since.elapsed() > FENCE_PATIENCE) && process.is_running() {
                let s = FENCE_PATIENCE.as_secs();
                self.bad_ends.push(format!("{} goes on for {s} s although it was replaced", process.name()));
                process.kill()?;
                *since = None; // once is enough
            }
        }
        self.past_restarts +=
            self.replaced.iter().filter(|(p, _)| p.is_ended()).map(|(p, _)| p.restarts()).sum::<u32>();
        self.replaced.retain(|(process, _)| !process.is_ended());
        Ok(())
    }
}
