//! Makes one thing go wrong, and ends it again.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use event_log::Log;

use crate::clock;
use crate::crew::{Crew, Teller};
use crate::kafka;
use crate::outlived;
use crate::plan::{Kind, Role, Step, target};
use crate::proxy::{Mode, Proxy};
use crate::run;
use crate::site::{STORE_SIZE, Site};

/// As over a satellite: noticeable, and still far more than the readings need.
const SLOW: Mode = Mode::Slow { delay: Duration::from_millis(150), bytes_per_s: 400_000 };

/// Time between the kill of a stage and the moment when its broker is resumed.
const STRANDED: Duration = Duration::from_millis(200);

/// An instance that was asked to leave has left by then.
const LEAVE_PATIENCE: Duration = Duration::from_secs(90);

/// How long an operator tries to resume a topic, and how often.
const RESUME_PATIENCE: Duration = Duration::from_secs(120);
const RESUME_AGAIN: Duration = Duration::from_secs(2);

/// Waits, does what `step` says, and ends it.
pub(crate) fn make(step: &Step, site: &Site, crew: &mut Crew, teller: Teller) -> anyhow::Result<()> {
    crew.pass(step.pause)?;
    let what = target(step);
    match step.hold.is_zero() {
        true => teller.say(&what),
        false => teller.say(&format!("{what} for {:.1} s", step.hold.as_secs_f64())),
    }
    match step.kind {
        Kind::Kill(role) => crew.running(role, step.choice)?.kill(),
        Kind::Freeze(role) => {
            crew.running(role, step.choice)?.freeze()?;
            crew.pass(step.hold)?;
            crew.thaw(role, step.choice)
        }
        Kind::Replace(role) => {
            crew.running(role, step.choice)?.freeze()?;
            crew.replace(role, step.choice, site.program(role, step.choice))?;
            crew.pass(step.hold)?;
            crew.thaw_replaced()
        }
        Kind::Strand(role) => {
            crew.running(role, step.choice)?;
            crew.running(Role::EdgeBroker, 1)?.freeze()?;
            crew.pass(step.hold)?;
            crew.running(role, step.choice)?.kill()?;
            crew.pass(STRANDED)?;
            crew.thaw(Role::EdgeBroker, 1)
        }
        Kind::Expire(role) => {
            crew.running(role, step.choice)?.freeze()?;
            crew.pass(step.hold)?;
            kafka::remove_records(site, "telemetry.raw", None)?;
            crew.thaw(role, step.choice)
        }
        Kind::Outlive(role) => outlive(role, step.hold, site, crew),
        Kind::Clock(role) => {
            if matches!(role, Role::EdgeBroker | Role::CloudBroker) {
                // A broker gives up its start if that takes too long by this clock.
                answering(role, site, crew)?;
            }
            let jump_s = clock::jump_s(role);
            let jumps = [jump_s, -jump_s].map(|ahead_s| {
                site.clocks.set(role, ahead_s)?;
                crew.pass(step.hold / 2)
            });
            site.clocks.set(role, 0)?;
            jumps.into_iter().collect()
        }
        Kind::Codec(topic) => kafka::set_codec(topic, kafka::CODECS[step.choice as usize - 1], site, crew),
        Kind::Narrow(topic) => {
            kafka::narrow(topic, site, crew)?;
            crew.pass(step.hold)?;
            kafka::widen(topic, site, crew)
        }
        Kind::Grow(topic) => grow(topic, site, crew),
        Kind::Add(role) => add(role, step.hold, site, crew),
        Kind::LinkCut => hold(&site.link, Mode::Hang, step.hold, crew),
        Kind::LinkRefused => hold(&site.link, Mode::Refuse, step.hold, crew),
        Kind::LinkSlow => hold(&site.link, SLOW, step.hold, crew),
        Kind::StoreFull => {
            let disk = site.store_disk()?;
            disk.fill();
            let passed = crew.pass(step.hold);
            disk.resize(STORE_SIZE);
            passed
        }
        Kind::StoreRefuses => hold(&site.store, Mode::Refuse, step.hold, crew),
        Kind::StoreHangs => hold(&site.store, Mode::Hang, step.hold, crew),
        Kind::CarsReset => {
            site.cars.reset_all();
            Ok(())
        }
    }
}

fn hold(proxy: &Proxy, mode: Mode, length: Duration, crew: &mut Crew) -> anyhow::Result<()> {
    proxy.set(mode);
    let passed = crew.pass(length);
    proxy.set(Mode::Pass);
    passed
}

/// One instance more than there are, for a while.
fn add(role: Role, length: Duration, site: &Site, crew: &mut Crew) -> anyhow::Result<()> {
    let instance = role.instances() + 1;
    let what = format!("the last additional {} to leave", role.name());
    crew.wait(&what, LEAVE_PATIENCE, |crew| Ok(crew.is_ended(role, instance)))?;
    crew.start(role, instance, site.program(role, instance))?;
    crew.pass(length)?;
    crew.terminate(role, instance)
}

/// Retention outlives a stage that is stopped.
fn outlive(role: Role, length: Duration, site: &Site, crew: &mut Crew) -> anyhow::Result<()> {
    let instances = 1..=role.instances();
    for instance in instances.clone() {
        crew.running(role, instance)?;
        crew.terminate(role, instance)?;
    }
    let all_ended = |crew: &mut Crew| Ok(instances.clone().all(|instance| crew.is_ended(role, instance)));
    crew.wait(&format!("the {} to stop", role.name()), LEAVE_PATIENCE, all_ended)?;
    crew.pass(length)?;
    let log = answering(Role::EdgeBroker, site, crew)?;
    kafka::beside(crew, || {
        let before = site.copies.lock().take(&log)?;
        kafka::remove_records(site, outlived::TOPIC, Some(&before))
    })?;
    for instance in instances {
        crew.start(role, instance, site.program(role, instance))?;
    }
    let began = Instant::now();
    while !accept_gap(role, site)? {
        ensure!(began.elapsed() < RESUME_PATIENCE, "partitions of the {} do not resume", role.name());
        crew.pass(RESUME_AGAIN)?;
    }
    Ok(())
}

/// `carstream resume STAGE --accept-gap`. Whether nothing is stopped any more.
fn accept_gap(role: Role, site: &Site) -> anyhow::Result<bool> {
    let mut command = Command::new(site.binary("carstream"));
    command.args(["resume", role.name(), "--log", &site.edge_log(), "--accept-gap"]);
    let output = command.stdin(Stdio::null()).output().context("cannot run carstream")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let nothing = said.contains("is stopped in");
    ensure!(output.status.success() || nothing, "carstream resume {} --accept-gap: {said}", role.name());
    Ok(nothing)
}

/// Adds a partition to a topic of both logs. The replicator stops the topic, now or when it starts again, and does what
/// an operator then decides.
fn grow(topic: &str, site: &Site, crew: &mut Crew) -> anyhow::Result<()> {
    let cloud = answering(Role::CloudBroker, site, crew)?;
    kafka::beside(crew, || kafka::add_partition(site, &*cloud, topic))?;
    crew.running(Role::Replicator, 1)?.kill()?;
    kafka::beside(crew, || resume_with_partitions(site, topic))?;
    crew.running(Role::Replicator, 1)?.kill()
}

/// The log of a broker, which answers.
fn answering(broker: Role, site: &Site, crew: &mut Crew) -> anyhow::Result<Arc<dyn Log>> {
    let log = event_log::open(&site.log_of(broker).parse().map_err(anyhow::Error::msg)?, &[])?;
    run::answers(&log, &format!("the {}", broker.name()), crew)?;
    Ok(log)
}

/// `replicator resume`. A broker may just be starting.
fn resume_with_partitions(site: &Site, topic: &str) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let mut command = Command::new(site.binary("replicator"));
        command.args(["--edge-log", &site.edge_log(), "--cloud-log", &site.cloud_log()]);
        command.args(["resume", "--topic", topic, "--accept-partitions"]);
        let output = command.stdin(Stdio::null()).output().context("cannot run replicator")?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(began.elapsed() < RESUME_PATIENCE, "replicator resume --topic {topic} --accept-partitions: {said}");
        std::thread::sleep(RESUME_AGAIN);
    }
}
