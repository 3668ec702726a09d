//! Snapshots on a real Kafka, which `CARSTREAM_TEST_KAFKA=HOST:PORT` names.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use event_log::{Log, LogUrl, TopicSpec};
use pipeline::{Metrics, Options};
use prometheus_client::registry::Registry;
use test_support::clock::now_ms;
use tokio_util::sync::CancellationToken;

use crate::support::{Number, PATIENCE, append, check_numbers_in, options, run_with};

/// The cluster; without it the test is skipped, but not in CI.
fn kafka() -> Option<Arc<dyn Log>> {
    match std::env::var("CARSTREAM_TEST_KAFKA") {
        Ok(bootstrap) if !bootstrap.is_empty() => {
            let url = format!("kafka://{bootstrap}").parse().expect("CARSTREAM_TEST_KAFKA is HOST:PORT");
            Some(event_log::open(&url, &[]).unwrap())
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

/// Gives a topic a limit as an administrator would. `None`, and a word why, if nobody says where scripts/kafka is.
fn limit(log: &Arc<dyn Log>, topic: &str, max_message_bytes: usize) -> Option<()> {
    let Ok(script) = std::env::var("CARSTREAM_TEST_KAFKA_SCRIPT") else {
        eprintln!("skipped: CARSTREAM_TEST_KAFKA_SCRIPT does not name scripts/kafka");
        return None;
    };
    let LogUrl::Kafka { bootstrap } = log.url() else { panic!("{} is not Kafka", log.url()) };
    let set = Command::new(script)
        .args(["run", "kafka.admin.ConfigCommand", "--bootstrap-server", bootstrap, "--alter"])
        .args(["--entity-type", "topics", "--entity-name", topic])
        .args(["--add-config", &format!("max.message.bytes={max_message_bytes}")])
        .output()
        .unwrap();
    assert!(set.status.success(), "{set:?}");
    Some(())
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
    let (applied, options) = (transform.applied.clone(), names.options(&log, 100));
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
        until("it continues", &|| metrics.readiness.is_ready() && applied.load(Ordering::Relaxed) >= 100);
        assert_eq!(metrics.restarts.get(), restarts, "waiting for an operator is no restart");
        shutdown.cancel();
        stage.join().unwrap().unwrap();
    });
    assert_eq!(check_numbers_in(&log, &names.of("out")), 1100);
}
