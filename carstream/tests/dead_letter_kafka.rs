//! Two who replay at the same time on a real Apache Kafka: one fences the other, and no dead letter is replayed twice.
//!
//! Needs a broker at `CARSTREAM_TEST_KAFKA=HOST:PORT`; `scripts/test` starts one.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use carstream::dead_letter::{Filter, REPLAYED_FROM, list, replay};
use contract::Contract;
use event_log::{Error, Log, Outputs, Record, TopicSpec};
use support::{commit, records};
use test_support::clock::now_ms;
use tokio_util::sync::CancellationToken;

const LETTERS: u32 = 5000;

const PATIENCE: Duration = Duration::from_secs(60);

fn broker() -> Option<String> {
    match std::env::var("CARSTREAM_TEST_KAFKA") {
        Ok(bootstrap) if !bootstrap.is_empty() => Some(bootstrap),
        _ if std::env::var("CI").is_ok_and(|ci| ci == "true") => {
            panic!("in CI, CARSTREAM_TEST_KAFKA must be HOST:PORT of a Kafka broker")
        }
        _ => {
            eprintln!("skipped: CARSTREAM_TEST_KAFKA=HOST:PORT names no Kafka broker; scripts/test starts one");
            None
        }
    }
}

fn times_replayed(log: &Arc<dyn Log>, raw: &str) -> BTreeMap<Vec<u8>, u32> {
    let mut times = BTreeMap::new();
    for record in records(log, raw) {
        let (_, from) = record.4.iter().find(|(name, _)| name == REPLAYED_FROM).unwrap();
        *times.entry(from.clone()).or_default() += 1;
    }
    times
}

/// A contract with a stream that reads `raw`, so that its dead letters may be replayed.
fn contract_with(raw: &str, letters: &str) -> Contract {
    let charging = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/charging");
    let files = service::read_contract(charging.as_ref()).unwrap();
    let named = |text: String| text.replace("charging.raw", raw).replace("charging.dead-letter", letters);
    Contract::parse(files.into_iter().map(|(path, text)| (path, named(text))).collect()).unwrap()
}

#[test]
fn two_who_replay_at_once_replay_each_dead_letter_once() {
    let Some(bootstrap) = broker() else { return };
    let open = || event_log::open(&format!("kafka://{bootstrap}").parse().unwrap(), &[]).unwrap();
    let log = open();
    let name = format!("replay-{}-{}", std::process::id(), now_ms());
    let (raw, letters) = (format!("{name}.raw"), format!("{name}.dead-letter"));
    let contract = contract_with(&raw, &letters);
    for topic in [&raw, &letters] {
        let spec = TopicSpec { name: topic.as_str().into(), partitions: 2, retention: None, compacted: false };
        log.ensure_topic(&spec).unwrap();
    }
    let mut outputs = Outputs::default();
    for number in 0..LETTERS {
        let offset = number.to_string();
        let headers: [(&str, &[u8]); 4] = [
            ("dead-letter.reason", b"out-of-range"),
            ("dead-letter.source.topic", raw.as_bytes()),
            ("dead-letter.source.partition", b"0"),
            ("dead-letter.source.offset", offset.as_bytes()),
        ];
        let record = Record { key: b"car", value: Some(b"{}"), headers: &headers, timestamp_ms: now_ms() };
        outputs.push(&letters.as_str().into(), number % 2, &record);
    }
    commit(&log, &name, &outputs, &[]);
    // A commit is answered before its markers are written everywhere; until then readers see nothing of it.
    let deadline = Instant::now() + PATIENCE;
    while records(&log, &letters).len() < LETTERS as usize {
        assert!(Instant::now() < deadline, "the dead letters do not come");
        std::thread::sleep(Duration::from_millis(20));
    }

    let filter = Filter { topic: vec![letters], ..Filter::default() };
    let ended: Vec<_> = std::thread::scope(|scope| {
        let one = || replay(&open(), &contract, &filter, false, &CancellationToken::new());
        let both = [scope.spawn(one), scope.spawn(one)];
        both.into_iter().map(|replay| replay.join().unwrap()).collect()
    });
    for ended in &ended {
        if let Err(error) = ended {
            let fenced = error.downcast_ref::<Error>().is_some_and(|error| matches!(error, Error::Fenced { .. }));
            assert!(fenced, "{error:#}");
        }
    }
    assert!(ended.iter().any(Result::is_ok), "who began last goes on");
    let times = times_replayed(&log, &raw);
    assert!(times.len() == LETTERS as usize && times.values().all(|times| *times == 1), "{} {ended:?}", times.len());
    assert_eq!(replay(&log, &contract, &filter, false, &CancellationToken::new()).unwrap().replayed, 0);
    let counts = list(&log, &contract, &filter, 1, false).unwrap().counts;
    assert_eq!((counts[0].letters, counts[0].replayed), (LETTERS.into(), LETTERS.into()));
}
