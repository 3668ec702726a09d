//! Retention of the embedded log, under clocks that are wrong and groups that are away.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use event_log::*;
use support::*;
use test_support::clock::now_ms;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const DAY_MS: i64 = 24 * 3_600_000;

/// A topic with the retention of a week.
fn week(log: &dyn Log, what: &str) -> Arc<str> {
    let name = unique(what);
    log.ensure_topic(&TopicSpec { retention: Some(7 * DAY), ..plain(&name, 1) }).unwrap();
    name
}

/// The first offset after a run of retention.
fn first(log: &Arc<dyn Log>, topic: &str) -> u64 {
    log.maintain().unwrap();
    log.describe(topic).unwrap().partitions[0].first
}

fn append_ten(log: &Arc<dyn Log>, topic: &Arc<str>) {
    append_all(log, topic, (0..10).map(|_| record("k", "v")));
}

#[test]
fn a_wall_clock_that_is_set_removes_nothing() {
    for step_ms in [9 * DAY_MS, -9 * DAY_MS, 20_000 * DAY_MS] {
        let backend = embedded();
        let log = backend.open();
        // Nobody reads it: only its age counts.
        let name = week(&*log, "unread");
        append_ten(&log, &name);
        backend.clock.step_ms(step_ms);
        assert_eq!((first(&log, &name), log.health().clock_steps), (0, 1));
        append_ten(&log, &name);
        backend.clock.step_ms(-step_ms);
        assert_eq!((first(&log, &name), log.health().clock_steps), (0, 2));
        append_ten(&log, &name);
        backend.clock.pass(6 * DAY);
        assert_eq!(first(&log, &name), 0, "not a week old");
        backend.clock.step_ms(step_ms);
        backend.clock.pass(DAY + HOUR);
        assert_eq!(first(&log, &name), 30, "a week is a week, whatever the wall clock says");
    }
}

#[test]
fn a_wall_clock_that_is_wrong_at_a_start_removes_nothing() {
    let backend = embedded();
    let log = backend.open();
    let name = week(&*log, "unread");
    append_ten(&log, &name);
    drop(log);
    // A jump ahead while it is closed, and a clock without a battery that NTP sets later.
    for (closed_ms, then_ms) in [(9 * DAY_MS, -9 * DAY_MS), (-400 * DAY_MS, 400 * DAY_MS), (9 * DAY_MS, 0)] {
        backend.clock.step_ms(closed_ms);
        let log = backend.open();
        assert_eq!(first(&log, &name), 0);
        append_ten(&log, &name);
        backend.clock.step_ms(then_ms);
        assert_eq!(first(&log, &name), 0);
    }
    let log = backend.open();
    backend.clock.pass(7 * DAY + HOUR);
    assert_eq!(first(&log, &name), 40);
}

#[test]
fn time_that_passed_before_a_restart_counts() {
    let backend = embedded();
    let mut log = backend.open();
    let name = week(&*log, "unread");
    append_ten(&log, &name);
    for days in 1..=7 {
        append_ten(&log, &name);
        // Without a commit that could store the time.
        backend.clock.pass(DAY);
        drop(log);
        // As long as a restart takes.
        backend.clock.pass(Duration::from_secs(600));
        log = backend.open();
        assert_eq!(first(&log, &name), if days < 7 { 0 } else { 20 });
    }
}

#[test]
fn the_times_in_records_neither_hold_nor_remove_them() {
    let backend = embedded();
    let log = backend.open();
    let name = week(&*log, "stamped");
    let at = |timestamp_ms| Record { timestamp_ms, ..record("k", "v") };
    append_all(&log, &name, [at(now_ms() + 400 * DAY_MS), at(i64::MAX)]);
    append_all(&log, &name, [at(0), at(i64::MIN), at(now_ms() - 400 * DAY_MS)]);
    assert_eq!(first(&log, &name), 0);
    backend.clock.pass(8 * DAY);
    assert_eq!(first(&log, &name), 5);
}

#[test]
fn a_group_is_waited_for_from_the_moment_it_is_known() {
    let backend = embedded();
    let log = backend.open();
    let name = week(&*log, "unread");
    // Announced before the topic has anything, or before it exists; joined; and one with a position only.
    log.keep_for("announced", &name, &[]).unwrap();
    log.keep_for("announced", "a topic to come", &[None, None]).unwrap();
    drop(processor(&log, &log, "joined", &[&name]));
    append_ten(&log, &name);
    let options = ProcessorOptions { group: "positioned".into(), instance: "1".into(), topics: vec![] };
    let position = |offset| Position { topic: name.clone(), partition: 0, offset };
    let mut transactor = log.clone().transactor(&options).unwrap();
    let outcome = transactor.commit(&Outputs::default(), &[position(0)], &Membership::default()).unwrap();
    assert_eq!(outcome, Outcome::Committed);
    drop((transactor, log));

    let log = backend.open();
    backend.clock.pass(8 * DAY);
    let known: Vec<_> = log.groups().unwrap().into_iter().filter(|group| group.topic == name).collect();
    let names: Vec<_> = known.iter().map(|group| &*group.name).collect();
    assert_eq!(names, ["announced", "joined", "positioned"]);
    assert_eq!((first(&log, &name), log.health().records_held), (0, 10));
    log.keep_for("announced", &name, &[Some(10)]).unwrap();
    assert!(log.forget_group("joined").unwrap());
    assert_eq!(first(&log, &name), 0);
    assert!(log.forget_group("positioned").unwrap());
    assert_eq!((first(&log, &name), log.health().records_held), (10, 0));
    // A position beyond the end must not let go of what is still to come.
    log.keep_for("announced", &name, &[Some(1000)]).unwrap();
    append_ten(&log, &name);
    backend.clock.pass(8 * DAY);
    assert_eq!(first(&log, &name), 10);
    assert_eq!(log.committed("announced", &name).unwrap(), [Some(10)]);
    assert_eq!(log.health().records_given_up, 0);
}

#[test]
fn a_member_is_not_forgotten_and_a_forgotten_group_begins_anew() {
    let backend = embedded();
    let log = backend.open();
    let name = week(&*log, "read");
    append_ten(&log, &name);
    let (mut reader, _) = processor(&log, &log, "reader", &[&name]);
    let batch = next_batch(&mut reader, 10);
    assert_eq!(reader.commit(&Outputs::default(), &[behind(&batch)]).unwrap(), Outcome::Committed);
    assert!(matches!(log.forget_group("reader"), Err(Error::GroupInUse { .. })));
    drop(reader);
    assert!(log.forget_group("reader").unwrap());
    assert!(log.groups().unwrap().is_empty());
    drop(log);
    let log = backend.open();
    assert!(log.groups().unwrap().is_empty());
    let (_reader, positions) = processor(&log, &log, "reader", &[&name]);
    assert_eq!(positions[0].offset, 0);
}

/// A replicator's positions are in its target, and of its source: they hold the records of the source only.
#[test]
fn positions_of_another_log_hold_nothing_here() {
    let (edge, cloud) = (embedded(), embedded());
    let (source, target) = (edge.open(), cloud.open());
    let name = week(&*source, "copied");
    target.ensure_topic(&TopicSpec { retention: Some(7 * DAY), ..plain(&name, 1) }).unwrap();
    append_ten(&source, &name);
    append_ten(&target, &name);
    let (mut copier, _) = processor(&source, &target, "copier", &[&name]);
    let batch = next_batch(&mut copier, 5);
    assert_eq!(copier.commit(&Outputs::default(), &[behind(&batch)]).unwrap(), Outcome::Committed);
    edge.clock.pass(8 * DAY);
    cloud.clock.pass(8 * DAY);
    assert_eq!((first(&source, &name), first(&target, &name)), (0, 10));
    assert_eq!((source.groups().unwrap().len(), target.groups().unwrap().len()), (1, 0));
    source.keep_for("copier", &name, &target.committed("copier", &name).unwrap()).unwrap();
    assert!(first(&source, &name) <= 5, "blocks below the position go, and no other");
    assert_eq!(source.health().records_held, 5);
    drop((copier, target));
    assert!(cloud.open().groups().unwrap().is_empty(), "known after a restart, too");
}
