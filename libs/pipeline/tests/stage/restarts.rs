//! Restarts, tables, dead letters, errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use event_log::{Error, Log, TopicDescription};
use pipeline::DeadLetterHeader;

use crate::support::{append, check_numbers, contents, is_done, open, run_until};

#[test]
fn restarts_lose_nothing_double_nothing_and_keep_state() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    const KEYS: usize = 7;
    const RECORDS: usize = 5_000;
    append(&log, "in", (0..RECORDS).map(|i| (format!("key{}", i % KEYS), i.to_string())));
    // Small transactions, and a stop after every few of them.
    let mut runs = 0;
    while !is_done(&log) {
        run_until(&log, 64, |applied| applied >= 700 || is_done(&log)).unwrap();
        runs += 1;
    }
    assert!(runs > 2, "one run did it all: nothing was tested");
    assert_eq!(check_numbers(&log), RECORDS);
}

#[test]
fn a_table_is_read_to_its_end_before_the_records_that_follow() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    for round in 0..3 {
        append(&log, "table", (0..5).map(|i| (format!("key{i}"), format!("row{round}"))));
        append(&log, "in", (0..5).map(|i| (format!("key{i}"), "x".into())));
        run_until(&log, 64, |_| is_done(&log)).unwrap();
        let rows: Vec<_> = contents(&log, "out").into_iter().map(|(_, value, _)| value).collect();
        let expected = format!("{} row{round}", round + 1);
        assert_eq!(rows.iter().filter(|row| **row == expected).count(), 5, "{rows:?}");
    }
}

#[test]
fn a_dead_letter_says_where_it_came_from_and_why() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    append(&log, "in", [("k".into(), "good".into()), ("k".into(), "bad".into()), ("k".into(), "good".into())]);
    run_until(&log, 64, |_| is_done(&log)).unwrap();
    assert_eq!(contents(&log, "out").len(), 2);
    let dead = contents(&log, "dead");
    let [(key, value, headers)] = &dead[..] else { panic!("{dead:?}") };
    assert_eq!((key.as_str(), value.as_str()), ("k", "bad"));
    for (name, expected) in [
        ("origin", "test"),
        (DeadLetterHeader::REASON, "bad"),
        (DeadLetterHeader::DETAIL, "says so itself"),
        (DeadLetterHeader::TOPIC, "in"),
        (DeadLetterHeader::OFFSET, "1"),
    ] {
        assert_eq!(headers[name], expected, "{name}");
    }
    assert!(headers.contains_key(DeadLetterHeader::TIME_MS) && headers.contains_key(DeadLetterHeader::PARTITION));
}

#[test]
fn an_error_of_the_transform_stops_the_stage_and_names_the_place() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    append(&log, "in", [("k".into(), "good".into()), ("k".into(), "fatal".into())]);
    let error = run_until(&log, 64, |_| false).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("in/") && text.contains("cannot go on"), "{text}");
    assert!(contents(&log, "out").is_empty(), "what was not committed must not be visible");
}

/// A log that hears late of a partition that was added to `in`: after it was given to the stage.
#[derive(Debug)]
struct HearsLate {
    log: Arc<dyn Log>,
    asked: AtomicUsize,
}

/// So often it does not know of it.
const LATE: usize = 20;

impl Log for HearsLate {
    test_support::passes_on!(log: url ensure_topic committed appender reader consumer transactor);

    fn describe(&self, topic: &str) -> Result<TopicDescription, Error> {
        let mut described = self.log.describe(topic)?;
        if topic == "in" && self.asked.fetch_add(1, Ordering::Relaxed) < LATE {
            described.partitions.pop();
        }
        Ok(described)
    }
}

#[test]
fn a_partition_that_the_log_has_not_heard_of_yet_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    append(&log, "in", (0..30).map(|i| (format!("key{}", i % 7), i.to_string())));
    let late: Arc<dyn Log> = Arc::new(HearsLate { log: log.clone(), asked: AtomicUsize::new(0) });
    let metrics = run_until(&late, 64, |_| is_done(&log)).unwrap();
    assert!(metrics.restarts.get() > 0, "it was never late");
    assert_eq!(check_numbers(&log), 30);
}
