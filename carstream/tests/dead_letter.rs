//! Dead letters are listed, shown and put back: each once, whatever happens meanwhile.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use carstream::dead_letter::{Filter, REPLAYED_FROM, list, replay};
use contract::Contract;
use event_log::{
    Error, Log, LogUrl, Membership, Outcome, Outputs, Position, ProcessorOptions, Record, TopicPartition, Transactor,
};
use prometheus_client::registry::Registry;
use support::{BOOT, Site, Whole, carstream, commit, ends, payload, records, vin};
use test_support::clock::now_ms;
use test_support::process::OwnedChild;
use tokio_util::sync::CancellationToken;

/// A site with one clean reading and `letters` dead letters of readings that are valid by now.
fn with_dead_letters(letters: i64) -> Site {
    with_dead_letters_from(letters, now_ms())
}

fn with_dead_letters_from(letters: i64, sent_ms: i64) -> Site {
    let site = Site::new();
    let bytes: Vec<_> = (0..letters).map(|seq| ((seq % 3) as u32, payload((seq % 3) as u32, BOOT, seq / 3))).collect();
    let places = site.raw_bytes(&bytes, sent_ms);
    for ((car, bytes), place) in bytes.iter().zip(places) {
        site.dead_letter(*car, bytes, place, if *car == 0 { "out-of-range" } else { "unknown-field" }, now_ms());
    }
    site.caught_up();
    site
}

fn replayed(log: &Arc<dyn Log>) -> BTreeMap<String, u32> {
    let mut times = BTreeMap::new();
    for record in records(log, "telemetry.raw") {
        if let Some((_, from)) = record.4.iter().find(|(name, _)| name == REPLAYED_FROM) {
            *times.entry(String::from_utf8(from.clone()).unwrap()).or_default() += 1;
        }
    }
    times
}

fn go(log: &Arc<dyn Log>, filter: &Filter) -> anyhow::Result<carstream::dead_letter::Replayed> {
    replay(log, Contract::builtin(), filter, false, &CancellationToken::new())
}

/// Runs the real preprocessor until it has reached the end of the raw topic.
async fn preprocess(site: &Site) {
    let stop = CancellationToken::new();
    let args = preprocessor::Args::new(site.edge.url().clone(), site.path("site.key"));
    let metrics = preprocessor::Metrics::new(&mut Registry::default());
    let running = tokio::spawn(preprocessor::run_with(args, metrics, stop.clone()));
    let deadline = Instant::now() + Duration::from_secs(60);
    let done = || {
        let committed = site.edge.committed("preprocessor-telemetry", "telemetry.raw").unwrap();
        ends(&site.edge, "telemetry.raw").iter().zip(committed).all(|(end, at)| at.unwrap_or(0) == *end)
    };
    while !done() {
        assert!(Instant::now() < deadline && !running.is_finished(), "the preprocessor does not get on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_reading_gets_its_chance_once_and_the_audit_stays_clean() {
    // Two days later, when the cause is fixed; the raw topic keeps one.
    let sent_ms = now_ms() - 48 * 3_600_000;
    let site = with_dead_letters_from(9, sent_ms);
    let rows: Vec<_> = (0..9).map(|i| ((i % 3) as u32, i / 3, "valid", "acknowledged")).collect();
    // One is broken for good.
    let broken = site.raw_bytes(&[(1, b"speed=fast".to_vec())], sent_ms);
    site.dead_letter(1, b"speed=fast", broken[0], "malformed-json", now_ms());
    site.caught_up();
    site.ledger_at(&[&rows[..], &[(1, 99, "broken", "acknowledged")]].concat(), true, sent_ms);
    let only_edge = || carstream::audit::Sources::new(Some(site.edge.clone()), None, None);
    let report = site.audit_with(only_edge(), true).await.unwrap();
    assert!(report.is_clean() && report.ledger.dead_letters == 10, "{report}");

    let before = records(&site.edge, "telemetry.raw");
    let done = replay(&site.edge, Contract::builtin(), &Filter::default(), true, &CancellationToken::new()).unwrap();
    assert_eq!((done.replayed, done.dry_run), (10, true));
    assert_eq!(records(&site.edge, "telemetry.raw"), before, "a dry run writes nothing");

    site.clock.pass(Duration::from_secs(48 * 3600));
    site.edge.maintain().unwrap();
    assert!(records(&site.edge, "telemetry.raw").is_empty(), "retention");
    let report = site.audit_with(only_edge(), true).await.unwrap();
    assert!(report.is_clean() && report.ledger.dead_letters == 10, "{report}");
    let done = go(&site.edge, &Filter::default()).unwrap();
    assert_eq!((done.replayed, done.replayed_before), (10, 0));
    let new: Vec<Whole> = records(&site.edge, "telemetry.raw");
    assert_eq!(new.len(), 10);
    for record in &new {
        let original = before.iter().find(|other| other.2 == record.2 && other.3 == record.3).unwrap();
        let (from, headers) = record.4.split_last().unwrap();
        assert_eq!((headers, from.0.as_str()), (&original.4[..], REPLAYED_FROM), "headers as the bridge wrote them");
    }
    preprocess(&site).await;
    assert_eq!(records(&site.edge, "telemetry").len(), 9);
    let letters = records(&site.edge, "telemetry.dead-letter");
    assert_eq!(letters.len(), 11, "what fails again is another dead letter");
    let report = site.audit_with(only_edge(), true).await.unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.ledger.clean, report.ledger.dead_letters, report.ledger.raw), (9, 11, 10), "{report}");

    // The new one can be replayed, the others can't any more.
    let listing = list(&site.edge, Contract::builtin(), &Filter::default(), 100, false).unwrap();
    assert_eq!(listing.lines.iter().filter(|line| line.replayed_ms.is_some()).count(), 10);
    let done = go(&site.edge, &Filter::default()).unwrap();
    assert_eq!((done.replayed, done.replayed_before), (1, 10));
    let times = replayed(&site.edge);
    assert!(times.len() == 11 && times.values().all(|times| *times == 1), "{times:?}");
}

#[test]
fn filters_and_order_are_obeyed() {
    let site = with_dead_letters(30);
    let old_ms = now_ms() - 3_600_000;
    let place = site.raw_bytes(&[(2, b"x".to_vec())], old_ms)[0];
    site.dead_letter(2, b"x", place, "malformed-json", old_ms);
    let count = |filter: &Filter| {
        let listing = list(&site.edge, Contract::builtin(), filter, 1000, false).unwrap();
        assert_eq!(listing.counts.iter().map(|count| count.letters).sum::<u64>(), listing.lines.len() as u64);
        listing.lines.len()
    };
    let filter = Filter::default;
    assert_eq!(count(&filter()), 31);
    assert_eq!(count(&Filter { reason: vec!["out-of-range".into()], ..filter() }), 10);
    assert_eq!(count(&Filter { reason: vec!["out-of-range".into(), "malformed-json".into()], ..filter() }), 11);
    assert_eq!(count(&Filter { reason: vec!["other".into()], ..filter() }), 0);
    assert_eq!(count(&Filter { until: Some(old_ms + 1), ..filter() }), 1);
    assert_eq!(count(&Filter { since: Some(old_ms + 1), ..filter() }), 30);
    let per_partition = ends(&site.edge, "telemetry.dead-letter");
    for (partition, records) in (0..).zip(&per_partition) {
        assert_eq!(count(&Filter { partition: Some(partition), ..filter() }), *records as usize);
        let some = Filter { partition: Some(partition), from_offset: Some(2), to_offset: Some(5), ..filter() };
        assert_eq!(count(&some), (*records).min(5).saturating_sub(2) as usize);
    }
    assert!(
        list(&site.edge, Contract::builtin(), &Filter { topic: vec!["no-such-topic".into()], ..filter() }, 1, false)
            .is_err()
    );

    let oldest = list(&site.edge, Contract::builtin(), &filter(), 3, true).unwrap().lines;
    let newest = list(&site.edge, Contract::builtin(), &filter(), 31, false).unwrap().lines;
    assert_eq!((oldest.len(), oldest[0].reason.as_str()), (3, "malformed-json"));
    assert!(newest.is_sorted_by(|a, b| a.time_ms >= b.time_ms) && newest.last() == oldest.first());

    // Only what passes is replayed.
    let done = go(&site.edge, &Filter { reason: vec!["unknown-field".into()], ..filter() }).unwrap();
    assert_eq!((done.replayed, replayed(&site.edge).len()), (20, 20));
}

#[test]
fn what_would_be_doubled_is_not_replayed() {
    let site = Site::new();
    site.edge.ensure_topic(&topics::builtin("scorer.dead-letter")).unwrap();
    let mut outputs = Outputs::default();
    let scorer: [(&str, &[u8]); 3] = [
        ("dead-letter.source.topic", b"telemetry"),
        ("dead-letter.source.partition", b"0"),
        ("dead-letter.source.offset", b"7"),
    ];
    for headers in [&scorer[..], &[]] {
        let record = Record { key: b"k", value: Some(b"v"), headers, timestamp_ms: now_ms() };
        outputs.push(&"scorer.dead-letter".into(), 0, &record);
    }
    commit(&site.edge, "test", &outputs, &[]);
    let done = go(&site.edge, &Filter::default()).unwrap();
    assert_eq!((done.replayed, done.not_replayable, done.without_source), (0, 1, 1));
    assert!(records(&site.edge, "telemetry").is_empty());
}

#[test]
fn an_unknown_outcome_replays_nothing_twice() {
    for commits in [true, false] {
        let site = with_dead_letters(1200);
        let attempts = Arc::new(AtomicU32::new(0));
        let moody: Arc<dyn Log> = Arc::new(Moody { log: site.edge.clone(), commits, attempts: attempts.clone() });
        let done = go(&moody, &Filter::default()).unwrap();
        let times = replayed(&site.edge);
        assert!(times.len() == 1200 && times.values().all(|times| *times == 1), "{} {done:?}", times.len());
        assert_eq!(done.replayed + done.replayed_before, 1200, "{done:?}");
        assert!(attempts.load(Ordering::Relaxed) > 2);
    }
}

#[test]
fn two_at_once_on_the_embedded_log_is_refused() {
    let site = with_dead_letters(3);
    let options = ProcessorOptions { group: "dead-letter-replay".into(), instance: "1".into(), topics: Vec::new() };
    let other = site.edge.clone().consumer(&options).unwrap();
    let error = go(&site.edge, &Filter::default()).unwrap_err();
    assert!(format!("{error:#}").contains("already has a consumer"), "{error:#}");
    drop(other);
    assert_eq!(go(&site.edge, &Filter::default()).unwrap().replayed, 3);
}

#[test]
fn marks_of_letters_that_are_gone_are_removed_and_mean_nothing_for_another_topic() {
    let site = Site::new();
    for number in 0..5 {
        let time_ms = now_ms();
        let place = site.raw_bytes(&[(0, payload(0, BOOT, number))], time_ms)[0];
        site.dead_letter(0, b"x", place, "malformed-json", time_ms);
        if number == 1 {
            // Retention removes the first two.
            site.clock.pass(Duration::from_secs(200 * 3600));
        }
    }
    let lines = list(&site.edge, Contract::builtin(), &Filter::default(), 9, true).unwrap().lines;
    let topic_id = site.edge.describe("telemetry.dead-letter").unwrap().id;
    site.edge.ensure_topic(&topics::builtin("dead-letter.replayed")).unwrap();
    let mut outputs = Outputs::default();
    for (line, topic_id) in
        lines.iter().zip([topic_id.as_str(), &topic_id, "another topic of this name", "and another"])
    {
        let mark = serde_json::json!({"topic_id": topic_id, "replayed_ms": 1}).to_string();
        let key = line.position.as_bytes();
        let record = Record { key, value: Some(mark.as_bytes()), headers: &[], timestamp_ms: now_ms() };
        outputs.push(&"dead-letter.replayed".into(), 0, &record);
    }
    commit(&site.edge, "test", &outputs, &[]);
    site.edge.maintain().unwrap();
    let done = go(&site.edge, &Filter::default()).unwrap();
    assert_eq!((done.replayed, done.replayed_before), (3, 0));
    assert_eq!(go(&site.edge, &Filter::default()).unwrap().replayed_before, 3);
    site.edge.maintain().unwrap();
    let marks = records(&site.edge, "dead-letter.replayed");
    let live: Vec<_> = marks.iter().filter(|mark| !mark.3.is_empty()).map(|mark| mark.2.clone()).collect();
    let wanted: Vec<_> = lines[2..].iter().map(|line| line.position.clone().into_bytes()).collect();
    assert_eq!(live, wanted);
}

/// Killed at any moment, and started again until it is through.
#[test]
fn a_replay_that_is_killed_goes_on_where_it_was() {
    const LETTERS: i64 = 6000;
    let site = with_dead_letters(LETTERS);
    let edge = site.path("edge").display().to_string();
    let kept = site.into_directory();
    let mut killed = 0;
    for after_ms in [20, 35, 50, 70, 90, 120, 160, 30_000] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_carstream"));
        command.args(["dead-letter", "replay", "--all", "--log", &edge]).stdout(std::process::Stdio::null());
        let mut replay = OwnedChild::spawn(&mut command).unwrap();
        let deadline = Instant::now() + Duration::from_millis(after_ms);
        while Instant::now() < deadline && replay.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        replay.kill().unwrap();
        killed += u32::from(!replay.wait().unwrap().success());
    }
    let log = event_log::open(&LogUrl::Directory(edge.into()), &[]).unwrap();
    let times = replayed(&log);
    assert!(times.len() == LETTERS as usize && times.values().all(|times| *times == 1), "{}", times.len());
    assert!(killed > 0, "it was never killed on its way");
    drop(kept);
}

#[test]
fn the_command_lists_and_shows_and_says_what_is_personal() {
    let site = with_dead_letters(3);
    let bytes = [&b"\xff\x00"[..], &[7; 40]].concat();
    let place = site.raw_bytes(&[(1, bytes.clone())], now_ms())[0];
    site.dead_letter(1, &bytes, place, "not-utf8", now_ms() + 1000);
    let edge = site.path("edge").display().to_string();
    let kept = site.into_directory();
    let (code, list, said) = carstream(&["dead-letter", "list", "--log", &edge]);
    assert_eq!(code, Some(0), "{said}");
    assert!(list.contains("out-of-range") && list.contains("not-utf8"), "{list}");
    assert!(!list.contains(&vin(0)) && !list.contains("Schmidt"), "personal data in a list:\n{list}");

    let (_, lines, _) = carstream(&["dead-letter", "list", "--log", &edge, "--json"]);
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[0]["reason"]), (5, &"not-utf8".into()));
    let position = |index: usize| lines[index]["position"].as_str().unwrap();

    let (code, shown, said) = carstream(&["dead-letter", "show", "--log", &edge, position(1)]);
    assert_eq!(code, Some(0), "{said}");
    for part in ["personal data", "mqtt_topic: vehicles/", "Anna Schmidt", "replayed  no"] {
        assert!(shown.contains(part), "{shown}");
    }
    let (_, shown, _) = carstream(&["dead-letter", "show", "--log", &edge, position(0)]);
    assert!(shown.contains("42 bytes, not text") && shown.contains("00000020  07"), "{shown}");
    let (code, _, said) = carstream(&["dead-letter", "show", "--log", &edge, "telemetry.dead-letter/0/999"]);
    assert!(code == Some(1) && said.contains("telemetry.dead-letter/0/999 is not in"), "{said}");

    let (code, _, said) = carstream(&["dead-letter", "replay", "--log", &edge]);
    assert!(code == Some(64) && said.contains("no filter: name one"), "{said}");
    let (_, table, _) = carstream(&["dead-letter", "replay", "--log", &edge, "--reason", "out-of-range", "--dry-run"]);
    assert!(table.contains("1  would be replayed"), "{table}");
    let (_, json, _) = carstream(&["dead-letter", "replay", "--log", &edge, "--reason", "out-of-range", "--json"]);
    assert!(json.contains("\"replayed\":1"), "{json}");
    let (_, list, _) = carstream(&["dead-letter", "list", "--log", &edge]);
    assert!(list.contains("1 replayed") && list.contains("(replayed 20"), "{list}");
    assert!(!list.contains("shown"), "all are shown: {list}");
    let (_, list, _) = carstream(&["dead-letter", "list", "--log", &edge, "--limit", "1"]);
    assert!(list.ends_with("\n1 of 4 shown; --limit N shows more\n"), "{list}");
    let typo = ["--log", &edge, "--reason", "out-of-rnge"];
    let wanted = "no dead letter has the reason out-of-rnge; there are not-utf8, out-of-range, unknown-field\n";
    for command in ["list", "replay"] {
        let (code, said, _) = carstream(&[&["dead-letter", command][..], &typo].concat());
        assert!(code == Some(0) && said.ends_with(wanted), "{said}");
    }
    let (code, _, said) = carstream(&["dead-letter", "list", "--log", &edge, "--topic", "telemetry"]);
    assert!(
        code == Some(64) && said.contains("--topic telemetry: is no dead-letter topic; the contract has"),
        "{said}"
    );
    let (code, _, said) = carstream(&["dead-letter", "list", "--log", "/nowhere"]);
    assert!(code == Some(64) && said.contains("the directory does not exist"), "{said}");
    drop(kept);
}

/// A log whose transactor does not know what became of every second commit.
#[derive(Debug)]
struct Moody {
    log: Arc<dyn Log>,
    /// What the unknown ones become.
    commits: bool,
    attempts: Arc<AtomicU32>,
}

struct MoodyTransactor {
    inner: Box<dyn Transactor>,
    commits: bool,
    attempts: Arc<AtomicU32>,
}

impl Transactor for MoodyTransactor {
    fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, Error> {
        self.inner.committed(partitions)
    }

    fn commit(&mut self, outputs: &Outputs, positions: &[Position], member: &Membership) -> Result<Outcome, Error> {
        let unknown = self.attempts.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        let commits = self.commits || !unknown;
        let committed = commits && self.inner.commit(outputs, positions, member)? == Outcome::Committed;
        Ok(if committed && !unknown { Outcome::Committed } else { Outcome::RolledBack })
    }
}

impl Log for Moody {
    test_support::passes_on!(log: url ensure_topic describe committed appender reader consumer);

    fn transactor(self: Arc<Self>, options: &ProcessorOptions) -> Result<Box<dyn Transactor>, Error> {
        let inner = self.log.clone().transactor(options)?;
        Ok(Box::new(MoodyTransactor { inner, commits: self.commits, attempts: self.attempts.clone() }))
    }
}
