//! Partitions whose committed position retention has passed: they stop alone, and resume as an operator decides.
//!
//! Source and target are two logs: the source is told that the group has read all, and so does not wait for it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{Batch, Clock, Log, TopicSpec};
use pipeline::gaps::{self, Accept, Decision, Place};
use pipeline::{Emit, Metrics, Options, Topic, Transform, run, stopped};
use prometheus_client::registry::Registry;
use test_support::clock::now_ms;
use tokio_util::sync::CancellationToken;

use crate::support::{Number, PATIENCE, append_at, check_numbers, contents, open, options, run_with};

const DAY: Duration = Duration::from_secs(24 * 3600);
const GAPS: &str = "gaps";
/// One key for each partition.
const KEYS: [&str; 3] = ["key4", "key0", "key1"];

struct Site {
    source: Arc<dyn Log>,
    target: Arc<dyn Log>,
    clock: Clock,
}

impl Site {
    fn new(directory: &Path) -> Self {
        Self::with_source(directory, "source")
    }

    fn with_source(directory: &Path, source: &str) -> Self {
        let clock = Clock::default();
        let source = event_log::open_with_clock(&directory.join(source), clock.clone()).unwrap();
        for (name, compacted) in [("in", false), ("table", true)] {
            let retention = (!compacted).then_some(DAY);
            source.ensure_topic(&TopicSpec { name: name.into(), partitions: 3, retention, compacted }).unwrap();
        }
        let target = open(&directory.join("target"));
        target.ensure_topic(&TopicSpec { name: GAPS.into(), partitions: 1, retention: None, compacted: true }).unwrap();
        let site = Self { source, target, clock };
        for (partition, key) in (0..).zip(KEYS) {
            assert_eq!(event_log::partition_for_key(key.as_bytes(), 3), partition);
        }
        site
    }

    fn feed(&self, key: &str, records: usize) {
        append_at(&self.source, "in", (0..records).map(|i| (key.to_owned(), i.to_string())), now_ms());
    }

    fn options(&self) -> Options {
        Options {
            source: self.source.clone(),
            gaps: Some(GAPS.into()),
            state: Some("state".into()),
            ..options(&self.target, 16)
        }
    }

    /// Where the group is, and what the source holds, by partition.
    fn bounds(&self) -> Vec<(Option<u64>, u64, u64)> {
        let positions = self.target.committed("g", "in").unwrap();
        let partitions = self.source.describe("in").unwrap().partitions;
        positions.into_iter().zip(partitions).map(|(position, p)| (position, p.first, p.next)).collect()
    }

    fn is_done(&self) -> bool {
        self.bounds().iter().all(|(position, _, next)| *position == Some(*next))
    }

    /// Runs until all is committed, and stops cleanly.
    fn run_to_end(&self, options: Options) -> Metrics {
        run_with(options, Number::default(), |_| self.is_done()).unwrap()
    }

    /// Removes all that the source holds, whoever has not read it.
    fn remove_all(&self) {
        let ends: Vec<_> = self.bounds().iter().map(|(_, _, next)| Some(*next)).collect();
        self.source.keep_for("g", "in", &ends).unwrap();
        self.clock.pass(DAY + Duration::from_secs(3600));
        self.source.maintain().unwrap();
        assert!(self.bounds().iter().all(|(_, first, next)| first == next), "{:?}", self.bounds());
    }

    /// Ten of each key, then a stage that is away while retention removes three more of the first.
    fn left_behind(directory: &Path) -> Self {
        let site = Self::new(directory);
        KEYS.iter().for_each(|key| site.feed(key, 10));
        site.run_to_end(site.options());
        site.feed(KEYS[0], 3);
        site.remove_all();
        KEYS.iter().for_each(|key| site.feed(key, 5));
        site
    }

    fn decision(&self, to: Option<u64>) -> Decision {
        Decision { topic_id: self.source.describe("in").unwrap().id, accepted: Accept::Gap, accepted_ms: 7, to }
    }

    fn decide(&self, place: &Place, accepted: Accept) {
        gaps::decide(&self.target, &GAPS.into(), place, &Decision { accepted, ..self.decision(None) }).unwrap();
    }

    fn decisions(&self) -> Vec<(Place, Decision)> {
        gaps::load(&self.target, GAPS, "g", "in").unwrap().into_iter().collect()
    }
}

fn place(from: u64) -> Place {
    place_in(0, from)
}

fn place_in(partition: u32, from: u64) -> Place {
    Place { group: "g".into(), topic: "in".into(), partition, from }
}

/// Runs the loop while `during` looks on; it gets a function that waits for something.
fn run_while(site: &Site, metrics: &Metrics, during: impl FnOnce(&dyn Fn(&dyn Fn() -> bool))) {
    let shutdown = CancellationToken::new();
    std::thread::scope(|scope| {
        let _stop = shutdown.clone().drop_guard();
        let stage = scope.spawn(|| run(site.options(), &mut Number::default(), metrics, &shutdown));
        during(&|done| {
            let began = Instant::now();
            while !done() {
                let reasons = metrics.readiness.reasons();
                assert!(began.elapsed() < PATIENCE && !stage.is_finished(), "{:?} {reasons:?}", site.bounds());
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        shutdown.cancel();
        stage.join().unwrap().unwrap();
    });
}

fn stopped_partitions(metrics: &Metrics) -> i64 {
    metrics.stopped_partitions.get_or_create(&Topic::new("in")).get()
}

#[test]
fn a_partition_behind_retention_stops_alone_until_its_gap_is_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::left_behind(directory.path());
    assert_eq!(stopped(&*site.source, &*site.target, "g", "in").unwrap(), [(place(10), Accept::Gap)]);
    // A decision about another position, or of another topic of this name, is none about this one.
    gaps::decide(&site.target, &GAPS.into(), &place(9), &site.decision(None)).unwrap();
    let other = Decision { topic_id: "another".to_owned(), ..site.decision(None) };
    gaps::decide(&site.target, &GAPS.into(), &place(10), &other).unwrap();

    let metrics = Metrics::new(&mut Registry::default(), "test");
    run_while(&site, &metrics, |until| {
        until(&|| site.bounds()[1..].iter().all(|(position, _, next)| *position == Some(*next)));
        assert_eq!(site.bounds()[0], (Some(10), 13, 18), "the others go on");
        assert_eq!(stopped_partitions(&metrics), 1);
        let reasons = metrics.readiness.reasons().join("; ");
        for part in
            ["partition in/0: retention removed offsets 10 to 12", "carstream resume test --log", "--accept-gap"]
        {
            assert!(reasons.contains(part), "{reasons}");
        }
        site.decide(&place(10), Accept::Gap);
        until(&|| site.is_done() && stopped_partitions(&metrics) == 0);
        let reasons = metrics.readiness.reasons();
        assert!(reasons.iter().all(|why| why.starts_with("the start")), "it waits for nothing more: {reasons:?}");
    });
    assert_eq!(site.decisions()[1], (place(10), site.decision(Some(13))), "whoever counts finds out why");
    assert_eq!(metrics.state_gaps.get(), 0, "what was never processed is missing in no state");
    assert_eq!(check_numbers(&site.target), 30 + 15);
    // Only what had been processed is missing where there is no snapshot: ten records of each partition.
    site.feed(KEYS[0], 1);
    let later = site.run_to_end(Options { state: None, ..site.options() });
    assert_eq!((contents(&site.target, "out").len(), later.state_gaps.get()), (46, 3));
}

#[test]
fn a_topic_that_was_created_again_is_read_from_its_beginning_once_that_is_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let before = Site::new(directory.path());
    KEYS.iter().for_each(|key| before.feed(key, 10));
    before.run_to_end(before.options());
    // Of the new one retention has removed the beginning of a partition, unread.
    let site = Site::with_source(directory.path(), "again");
    site.feed(KEYS[0], 2);
    site.remove_all();
    KEYS.iter().for_each(|key| site.feed(key, 3));
    let places = [0, 1, 2].map(|partition| place_in(partition, 10));
    let recreated = places.clone().map(|place| (place, Accept::Recreated));
    assert_eq!(stopped(&*site.source, &*site.target, "g", "in").unwrap(), recreated);

    let metrics = Metrics::new(&mut Registry::default(), "test");
    run_while(&site, &metrics, |until| {
        until(&|| stopped_partitions(&metrics) == 3);
        let reasons = metrics.readiness.reasons().join("; ");
        for part in ["at offset 10, and the partition ends at 5: the topic was created again", "--accept-recreated"] {
            assert!(reasons.contains(part), "{reasons}");
        }
        // There is no gap to accept in the first one; in the others there is what fits.
        site.decide(&places[0], Accept::Gap);
        places[1..].iter().for_each(|place| site.decide(place, Accept::Recreated));
        until(&|| site.bounds()[1..] == [(Some(3), 0, 3), (Some(3), 0, 3)]);
        assert_eq!((site.bounds()[0], stopped_partitions(&metrics)), ((Some(10), 2, 5), 1));
        site.decide(&places[0], Accept::Recreated);
        until(&|| site.is_done());
    });
    let skipped = |(place, decision): (Place, Decision)| decision.skipped(place.from);
    let skipped: Vec<_> = site.decisions().into_iter().map(skipped).collect();
    assert_eq!(skipped, [Some(0..2), Some(0..0), Some(0..0)]);
    assert_eq!(metrics.state_gaps.get(), 0, "of the new topic nothing is missing that was processed");
    // The keys are numbered anew: what the old topic had left is no state of this one. And a restart keeps that.
    KEYS.iter().for_each(|key| site.feed(key, 1));
    let later = site.run_to_end(site.options());
    assert_eq!((later.restored.get(), stopped_partitions(&later)), (3, 0));
    let out = contents(&site.target, "out");
    for key in KEYS {
        let numbers: Vec<_> = out.iter().filter(|(of, ..)| of == key).map(|(_, value, _)| &**value).collect();
        assert_eq!(numbers[10..], ["1 -", "2 -", "3 -", "4 -"], "{key}");
    }
}

#[test]
fn a_stage_that_is_stopped_with_a_partition_behind_does_not_wait_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::left_behind(directory.path());
    let stopped = CancellationToken::new();
    stopped.cancel();
    let metrics = Metrics::new(&mut Registry::default(), "test");
    let began = Instant::now();
    pipeline::run_and_drain(site.options(), &mut Number::default(), &metrics, &stopped, 2 * PATIENCE).unwrap();
    assert!(began.elapsed() < PATIENCE, "it waited for records that it cannot process");
    assert!(site.bounds()[1..].iter().all(|(position, _, next)| *position == Some(*next)), "{:?}", site.bounds());
}

#[test]
fn a_gap_is_accepted_at_the_start_where_the_settings_say_so() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::left_behind(directory.path());
    let metrics = site.run_to_end(Options { accept_gap: true, ..site.options() });
    assert_eq!((stopped_partitions(&metrics), metrics.state_gaps.get()), (0, 0));
    let decisions = site.decisions();
    assert_eq!((&decisions[0].0, decisions[0].1.to), (&place(10), Some(13)));
    assert_eq!(check_numbers(&site.target), 30 + 15);
}

/// Retention overtakes the stage while it processes the record `overtake`.
struct Overtaken<'s> {
    inner: Number,
    site: &'s Site,
}

impl Transform for Overtaken<'_> {
    fn reset(&mut self, topic: &Arc<str>, partition: u32) {
        self.inner.reset(topic, partition);
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn snapshot(&self, topic: &Arc<str>, partition: u32) -> Vec<u8> {
        self.inner.snapshot(topic, partition)
    }

    fn apply(&mut self, batch: &Batch, emit: &mut Emit) -> anyhow::Result<()> {
        self.inner.apply(batch, emit)?;
        if batch.iter().any(|record| record.value == Some(b"overtake")) {
            self.site.feed(KEYS[0], 3);
            self.site.remove_all();
            self.site.feed(KEYS[0], 4);
        }
        Ok(())
    }
}

#[test]
fn retention_that_overtakes_a_running_stage_stops_the_partition_and_keeps_its_state() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::new(directory.path());
    site.feed(KEYS[0], 10);
    append_at(&site.source, "in", [(KEYS[0].to_owned(), "overtake".to_owned())], now_ms());
    // The state can only come from memory: nothing can be replayed, and there is no snapshot before the stop.
    gaps::decide(&site.target, &GAPS.into(), &place(11), &site.decision(None)).unwrap();
    let metrics = Metrics::new(&mut Registry::default(), "test");
    let shutdown = CancellationToken::new();
    std::thread::scope(|scope| {
        let _stop = shutdown.clone().drop_guard();
        let mut transform = Overtaken { inner: Number::default(), site: &site };
        let (options, metrics, shutdown) = (site.options(), &metrics, &shutdown);
        let stage = scope.spawn(move || run(options, &mut transform, metrics, shutdown));
        let began = Instant::now();
        while site.bounds()[0].0 != Some(18) {
            assert!(began.elapsed() < PATIENCE && !stage.is_finished(), "{:?}", site.bounds());
            std::thread::sleep(Duration::from_millis(1));
        }
        shutdown.cancel();
        stage.join().unwrap().unwrap();
    });
    assert_eq!(site.decisions(), [(place(11), site.decision(Some(14)))]);
    assert_eq!((metrics.state_gaps.get(), check_numbers(&site.target)), (0, 11 + 4));
}
