//! Snapshots on a real Kafka, which `CARSTREAM_TEST_KAFKA=HOST:PORT` names.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use event_log::{Batch, Log, LogUrl, TopicSpec};
use pipeline::gaps::{self, Accept, Decision, Decisions, Place};
use pipeline::{Metrics, Options, Topic};
use prometheus_client::registry::Registry;
use test_support::clock::now_ms;
use tokio_util::sync::CancellationToken;

use crate::prepare::{Rules, Running, check_counts};
use crate::rebuild::Looking;
use crate::support::{Number, PATIENCE, append, check_numbers_in, contents, options, run_with};

/// The cluster; without it the test is skipped, but not in CI.
fn kafka() -> Option<Arc<dyn Log>> {
    kafka_with(&[])
}

/// The same, with options of its client.
fn kafka_with(options: &[&str]) -> Option<Arc<dyn Log>> {
    let options: Vec<_> = options.iter().map(|option| option.parse().expect("KEY=VALUE")).collect();
    match std::env::var("CARSTREAM_TEST_KAFKA") {
        Ok(bootstrap) if !bootstrap.is_empty() => {
            let url = format!("kafka://{bootstrap}").parse().expect("CARSTREAM_TEST_KAFKA is HOST:PORT");
            Some(event_log::open(&url, &options).unwrap())
        }
        _ if std::env::var("CI").is_ok_and(|ci| ci == "true") => {
            panic!("in CI, CARSTREAM_TEST_KAFKA must be HOST:PORT of a Kafka broker")
        }
        _ => {
            eprintln!("skipped: CARSTREAM_TEST_KAFKA=HOST:PORT names no Kafka broker");
            None
        }
    }
}

/// Runs one of Kafka's tools. `None`, and a word why, if nobody says where scripts/kafka is.
fn tool(log: &Arc<dyn Log>, class: &str, arguments: &[&str]) -> Option<()> {
    let Ok(script) = std::env::var("CARSTREAM_TEST_KAFKA_SCRIPT") else {
        eprintln!("skipped: CARSTREAM_TEST_KAFKA_SCRIPT does not name scripts/kafka");
        return None;
    };
    let LogUrl::Kafka { bootstrap } = log.url() else { panic!("{} is not Kafka", log.url()) };
    let mut command = Command::new(script);
    let ran = command.args(["run", class, "--bootstrap-server", bootstrap]).args(arguments).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    Some(())
}

/// Gives a topic a limit as an administrator would. `None` as above.
fn limit(log: &Arc<dyn Log>, topic: &str, max_message_bytes: usize) -> Option<()> {
    let limit = format!("max.message.bytes={max_message_bytes}");
    let of_topic = ["--alter", "--entity-type", "topics", "--entity-name", topic, "--add-config", &limit];
    tool(log, "kafka.admin.ConfigCommand", &of_topic)
}

/// Removes the records of a partition before `offset`, as retention does. `None` as above.
fn remove_before(log: &Arc<dyn Log>, topic: &str, partition: u32, offset: u64) -> Option<()> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("remove.json");
    let one = format!(r#"{{"topic": "{topic}", "partition": {partition}, "offset": {offset}}}"#);
    std::fs::write(&file, format!(r#"{{"version": 1, "partitions": [{one}]}}"#)).unwrap();
    tool(log, "org.apache.kafka.tools.DeleteRecordsCommand", &["--offset-json-file", &file.display().to_string()])
}

/// Topics and a group of this test's own.
struct Names(String);

impl Names {
    fn new(log: &Arc<dyn Log>, what: &str) -> Self {
        let names = Self(format!("test-{}-{}-{what}", std::process::id(), now_ms()));
        for (name, partitions, compacted) in [("in", 3, false), ("out", 3, false), ("state", 2, true)] {
            log.ensure_topic(&TopicSpec { name: names.of(name), partitions, retention: None, compacted }).unwrap();
        }
        names
    }

    fn of(&self, name: &str) -> Arc<str> {
        format!("{}-{name}", self.0).into()
    }

    fn options(&self, log: &Arc<dyn Log>, snapshot_records: u64) -> Options {
        Options {
            group: self.0.clone(),
            topics: vec![self.of("in")],
            tables: Vec::new(),
            outputs: vec![self.of("out")],
            dead_letter: None,
            state: Some(self.of("state")),
            snapshot_records,
            ..options(log, 50)
        }
    }

    /// Runs until `records` more have been committed.
    fn run(&self, log: &Arc<dyn Log>, records: usize) -> Metrics {
        let transform = Number { out: Some(self.of("out")), ..Number::default() };
        run_with(self.options(log, 100), transform, |applied| applied >= records).unwrap()
    }
}

/// Two instances, partitions that move between them, and rules that change: before, while, and after they do.
#[test]
fn a_successor_takes_over_on_kafka() {
    let Some(log) = kafka_with(&["session.timeout.ms=6000"]) else { return };
    let names = Names::new(&log, "successors");
    let (input, out) = (names.of("in"), names.of("out"));
    let rules = Rules::new(&out);
    let mut fed = 0;
    let mut feed = |records: usize| {
        append(&log, &input, (fed..fed + records).map(|i| (format!("key{}", i % 7), i.to_string())));
        fed += records;
        fed
    };
    let is_counted = |all: usize| contents(&log, &out).len() == all;
    let instance = |name: &str| Options { instance: name.into(), ..names.options(&log, 20) };
    std::thread::scope(|scope| {
        let first = Running::start(scope, instance("a"), &rules);
        let all = feed(350);
        first.until("the first", || is_counted(all));
        rules.want(2);
        let all = feed(70);
        let second = Running::start(scope, instance("b"), &rules);
        second.until("a switch beside a second instance", || is_counted(all) && rules.are_in_force());
        rules.want(3);
        let all = feed(70);
        let of_first = first.stop();
        second.until("a switch after the first has left", || is_counted(all) && rules.are_in_force());
        let all = feed(70);
        second.until("the last", || is_counted(all));
        assert!(of_first.states_replaced.get() + second.stop().states_replaced.get() >= 3);
    });
    let versions = check_counts(&log, &out);
    assert!(versions.len() == 7 && versions.values().all(|of_key| of_key.is_sorted()), "{versions:?}");
    assert!(versions.values().all(|of_key| of_key[70..] == [3; 10]), "{versions:?}");
}

#[test]
fn state_goes_on_from_a_snapshot_on_kafka() {
    let Some(log) = kafka() else { return };
    let names = Names::new(&log, "snapshots");
    let key = |i: usize| format!("{}{}", "key".repeat(2000), i % 300);
    let feed =
        |records: std::ops::Range<usize>| append(&log, &names.of("in"), records.map(|i| (key(i), i.to_string())));
    feed(0..900);
    let first = names.run(&log, 900);
    assert!(first.snapshots.get() >= 6, "{}", first.snapshots.get());
    assert!(first.snapshot_bytes.get() / first.snapshots.get() > 300_000, "more than one record each");
    feed(900..1000);
    let second = names.run(&log, 100);
    assert_eq!((second.restored.get(), second.replayed.get(), second.state_gaps.get()), (3, 0, 0));
    // A stop that is not clean: what was committed after the last snapshot is not in one.
    feed(1000..1100);
    let transform = Number { out: Some(names.of("out")), ..Number::default() };
    run_with(Options { state: None, ..names.options(&log, 100) }, transform, |applied| applied >= 100).unwrap();
    feed(1100..1200);
    let last = names.run(&log, 100);
    assert_eq!((last.restored.get(), last.replayed.get(), last.state_gaps.get()), (3, 100, 0));
    assert_eq!(check_numbers_in(&log, &names.of("out")), 1200);
}

#[test]
fn snapshots_are_as_small_as_their_topic_wants_and_what_fits_nowhere_waits_for_its_operator() {
    let Some(log) = kafka() else { return };
    let names = Names::new(&log, "limits");
    let Some(()) = limit(&log, &names.of("state"), 40_000) else { return };
    let key = |i: usize| format!("{}{}", "key".repeat(2000), i % 300);
    let feed =
        |records: std::ops::Range<usize>| append(&log, &names.of("in"), records.map(|i| (key(i), i.to_string())));
    feed(0..900);
    let first = names.run(&log, 900);
    assert!(first.snapshot_bytes.get() / first.snapshots.get() > 300_000, "many records each");
    feed(900..1000);
    let second = names.run(&log, 100);
    assert_eq!((second.restored.get(), second.replayed.get(), second.state_gaps.get()), (3, 0, 0));

    // Nothing that the transform writes is as small as this.
    limit(&log, &names.of("out"), 5_000);
    feed(1000..1100);
    let metrics = Metrics::new(&mut Registry::default(), "test");
    metrics.readiness.started();
    let (shutdown, mut transform) =
        (CancellationToken::new(), Number { out: Some(names.of("out")), ..Number::default() });
    let options = names.options(&log, 100);
    std::thread::scope(|scope| {
        let stage = scope.spawn(|| pipeline::run(options, &mut transform, &metrics, &shutdown));
        let _stop = shutdown.clone().drop_guard();
        let until = |what: &str, done: &dyn Fn() -> bool| {
            let began = Instant::now();
            while !done() {
                assert!(
                    began.elapsed() < PATIENCE && !stage.is_finished(),
                    "{what}: {:?}",
                    metrics.readiness.reasons()
                );
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        let words = [&*names.of("out"), "up to 5000 bytes", "max.message.bytes"];
        until("it says why it waits", &|| {
            metrics.readiness.reasons().iter().any(|reason| words.iter().all(|word| reason.contains(word)))
        });
        let restarts = metrics.restarts.get();
        limit(&log, &names.of("out"), 50_000);
        let all: Vec<_> = log.describe(&names.of("in")).unwrap().partitions.iter().map(|p| Some(p.next)).collect();
        let is_done = || log.committed(&names.0, &names.of("in")).unwrap() == all;
        until("it continues", &|| metrics.readiness.is_ready() && is_done());
        assert_eq!(metrics.restarts.get(), restarts, "waiting for an operator is no restart");
        shutdown.cancel();
        stage.join().unwrap().unwrap();
    });
    assert_eq!(check_numbers_in(&log, &names.of("out")), 1100);
}

/// A consumer that asks the broker for nothing during this time loses its partitions.
#[test]
fn a_replay_may_take_longer_than_a_consumer_may_be_silent() {
    let Some(log) = kafka_with(&["session.timeout.ms=6000", "max.poll.interval.ms=6000"]) else { return };
    let names = Names::new(&log, "slow");
    append(&log, &names.of("in"), (0..60).map(|i| (format!("key{i}"), i.to_string())));
    let number = || Number { out: Some(names.of("out")), ..Number::default() };
    let no_snapshots = Options { state: None, ..names.options(&log, 100) };
    run_with(no_snapshots, number(), |applied| applied >= 60).unwrap();
    append(&log, &names.of("in"), (0..60).map(|i| (format!("key{i}"), i.to_string())));
    let slowly = |_: &Batch| {
        std::thread::sleep(Duration::from_millis(2500));
        Ok(())
    };
    let (mut transform, metrics) =
        (Looking { inner: number(), look: slowly }, Metrics::new(&mut Registry::default(), "test"));
    let (applied, shutdown) = (transform.inner.applied.clone(), CancellationToken::new());
    std::thread::scope(|scope| {
        let _stop = shutdown.clone().drop_guard();
        let stage = scope.spawn(|| pipeline::run(names.options(&log, 100), &mut transform, &metrics, &shutdown));
        let began = Instant::now();
        while applied.load(Ordering::Relaxed) < 60 {
            assert!(began.elapsed() < PATIENCE && !stage.is_finished(), "{}", metrics.replayed.get());
            std::thread::sleep(Duration::from_millis(20));
        }
        shutdown.cancel();
        stage.join().unwrap().unwrap();
    });
    assert_eq!((metrics.replayed.get(), metrics.rollbacks.get(), metrics.restarts.get()), (60, 0, 0));
    assert_eq!(check_numbers_in(&log, &names.of("out")), 120);
}

/// The instance with the partition stops it, hands it over when it ends, and the next one carries the decision out.
#[test]
fn of_several_instances_the_one_that_holds_a_stopped_partition_resumes_it() {
    let Some(log) = kafka_with(&["session.timeout.ms=6000"]) else { return };
    let names = Names::new(&log, "shared");
    let gaps: Arc<str> = names.of("gaps");
    log.ensure_topic(&TopicSpec { name: gaps.clone(), partitions: 1, retention: None, compacted: true }).unwrap();
    let feed = |records: std::ops::Range<usize>| {
        append(&log, &names.of("in"), records.map(|i| (format!("key{i}"), "v".into())))
    };
    feed(0..60);
    names.run(&log, 60);
    let bounds = || -> Vec<_> {
        let positions = log.committed(&names.0, &names.of("in")).unwrap();
        let bounds = log.describe(&names.of("in")).unwrap().partitions;
        positions.into_iter().zip(bounds).map(|(position, bounds)| (position.unwrap(), bounds.next)).collect()
    };
    let from = bounds()[0].0;
    feed(0..60);
    let Some(()) = remove_before(&log, &names.of("in"), 0, from + 5) else { return };

    let instance = |name: &str| Options { instance: name.into(), gaps: Some(gaps.clone()), ..names.options(&log, 100) };
    let metrics = [(); 2].map(|()| Metrics::new(&mut Registry::default(), "test"));
    let shutdown = [(); 2].map(|()| CancellationToken::new());
    let stopped = |i: usize| metrics[i].stopped_partitions.get_or_create(&Topic::new(&names.of("in"))).get();
    std::thread::scope(|scope| {
        let _stop = shutdown.clone().map(CancellationToken::drop_guard);
        let stages = [0, 1].map(|i| {
            let (options, metrics, shutdown) = (instance(&i.to_string()), &metrics[i], &shutdown[i]);
            let mut transform = Number { out: Some(names.of("out")), ..Number::default() };
            scope.spawn(move || pipeline::run(options, &mut transform, metrics, shutdown))
        });
        let until = |what: &str, done: &dyn Fn() -> bool| {
            let began = Instant::now();
            while !done() {
                let reasons = metrics.each_ref().map(|metrics| metrics.readiness.reasons());
                assert!(began.elapsed() < PATIENCE, "{what}: {:?} {reasons:?}", bounds());
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        until("one of two stops it, and the other partitions are read", &|| {
            bounds()[1..].iter().all(|(position, next)| position == next) && stopped(0) + stopped(1) == 1
        });
        assert_eq!(bounds()[0].0, from);
        let holder = usize::from(stopped(1) == 1);
        shutdown[holder].cancel();
        until("the other one has it now, and stops it as well", &|| stopped(1 - holder) == 1);
        let topic_id = log.describe(&names.of("in")).unwrap().id;
        let place = Place { group: (&*names.0).into(), topic: names.of("in"), partition: 0, from };
        let decision = Decision { topic_id, accepted: Accept::Gap, accepted_ms: 7, to: None };
        gaps::decide(&log, &gaps, &place, &decision).unwrap();
        until("it carries out what was decided", &|| bounds().iter().all(|(position, next)| position == next));
        assert_eq!(stopped(1 - holder), 0);
        shutdown[1 - holder].cancel();
        stages.into_iter().for_each(|stage| stage.join().unwrap().unwrap());
        let decisions = gaps::load(&log, &gaps, &names.0, &names.of("in")).unwrap();
        assert_eq!(decisions, Decisions::from([(place, Decision { to: Some(from + 5), ..decision })]));
    });
    assert_eq!(check_numbers_in(&log, &names.of("out")), 120 - 5, "each of the others exactly once, with its state");
}

/// Kafka's transactions take an offset behind their records. Retention removes it, too: a position before it would look
/// like one whose records were never processed.
#[test]
fn a_clean_stop_leaves_no_position_before_the_marker_of_a_transaction() {
    let Some(log) = kafka() else { return };
    let (first, second) = (Names::new(&log, "first"), Names::new(&log, "second"));
    append(&log, &first.of("in"), (0..60).map(|i| (format!("key{i}"), i.to_string())));
    first.run(&log, 60);
    let gaps: Arc<str> = second.of("gaps");
    log.ensure_topic(&TopicSpec { name: gaps.clone(), partitions: 1, retention: None, compacted: true }).unwrap();
    let options = Options {
        topics: vec![first.of("out")],
        gaps: Some(gaps),
        group: second.0.clone(),
        ..second.options(&log, 10)
    };
    let transform = Number { out: Some(second.of("out")), ..Number::default() };
    run_with(options, transform, |applied| applied >= 60).unwrap();
    let ends: Vec<_> = log.describe(&first.of("out")).unwrap().partitions.iter().map(|p| Some(p.next)).collect();
    assert!(ends.iter().map(|end| end.unwrap()).sum::<u64>() > 60, "there are markers: {ends:?}");
    assert_eq!(log.committed(&second.0, &first.of("out")).unwrap(), ends);
}
