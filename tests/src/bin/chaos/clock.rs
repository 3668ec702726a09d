//! Wall clocks that jump. Each stage and each broker has a host of its own, as it were, whose clock is right unless a
//! fault changes it.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::plan::Role;

/// Those that have a clock of their own.
pub(crate) const OWNERS: [Role; 7] =
    [Role::Bridge, Role::Preprocessor, Role::Replicator, Role::Scorer, Role::Sink, Role::EdgeBroker, Role::CloudBroker];

/// How far a clock jumps, in seconds. A stage's: further than any window or limit but the day for which raw records are
/// kept. Kafka goes by the times in records, so a host that is behind by more loses what it writes (docs/limits.md). A
/// broker's: further than the hour by which a record may be ahead of it, but not so far that what a stage wrote with a
/// clock that was behind is older than that day.
pub(crate) fn jump_s(owner: Role) -> i64 {
    match owner {
        Role::EdgeBroker | Role::CloudBroker => 3 * 3600,
        _ => 20 * 3600,
    }
}

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bin/chaos/wall_clock.c");

/// A library that processes preload, and for each of them a file that says how far ahead its clock is.
#[derive(Debug)]
pub(crate) struct Clocks(PathBuf);

impl Clocks {
    /// Compiles the library into `directory`. All clocks are right.
    pub(crate) fn new(directory: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let clocks = Self(directory);
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O2", "-o"]).arg(clocks.library()).arg(SOURCE);
        let compiled = command.status().context("cannot run cc, the C compiler, which the build needs as well")?;
        ensure!(compiled.success(), "cc cannot compile {SOURCE}");
        OWNERS.iter().try_for_each(|owner| clocks.set(*owner, 0))?;
        Ok(clocks)
    }

    /// What gives a process of this role its clock.
    pub(crate) fn env(&self, owner: Role) -> [(String, String); 2] {
        let shown = |path: PathBuf| path.display().to_string();
        [("LD_PRELOAD".into(), shown(self.library())), ("CHAOS_CLOCK".into(), shown(self.file(owner)))]
    }

    /// Sets a clock: ahead by this, or behind.
    pub(crate) fn set(&self, owner: Role, ahead_s: i64) -> anyhow::Result<()> {
        let file = self.file(owner);
        // In place: processes have mapped it.
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&file);
        let written = opened.and_then(|mut file| file.write_all(&ahead_s.to_ne_bytes()));
        written.with_context(|| format!("cannot write {}", file.display()))
    }

    fn library(&self) -> PathBuf {
        self.0.join("wall_clock.so")
    }

    fn file(&self, owner: Role) -> PathBuf {
        self.0.join(owner.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_has_the_time_that_its_clock_says() {
        let directory = tempfile::tempdir().unwrap();
        let clocks = Clocks::new(directory.path().join("clocks")).unwrap();
        let now_s = test_support::clock::now_ms() / 1000;
        let jump_s = jump_s(Role::Sink);
        for ahead_s in [0, jump_s, -jump_s] {
            clocks.set(Role::Sink, ahead_s).unwrap();
            let date = |stage| {
                let output = Command::new("date").arg("+%s").envs(clocks.env(stage)).output().unwrap();
                String::from_utf8(output.stdout).unwrap().trim().parse::<i64>().unwrap()
            };
            assert!((now_s..now_s + 3600).contains(&(date(Role::Sink) - ahead_s)), "{ahead_s}");
            assert!((now_s..now_s + 3600).contains(&date(Role::Scorer)), "another stage has another clock");
        }
    }
}
