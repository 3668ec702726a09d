//! What is particular to the embedded log: its directory, its one instance per group, damage.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_log::*;
use support::crash::Writer;
use support::*;
use test_support::clock::now_ms;
use test_support::random::Random;

const HOUR: Duration = Duration::from_secs(3600);

/// Not a check: where the process that holds a log begins.
#[test]
fn crash_writer() {
    support::crash::write_if_asked();
}

fn directory(path: impl AsRef<Path>) -> Result<Arc<dyn Log>, Error> {
    event_log::open(&LogUrl::Directory(path.as_ref().to_owned()), &[])
}

/// An error with its causes, as a program prints it.
fn chain(e: &dyn std::error::Error) -> String {
    match e.source() {
        Some(cause) => format!("{e}: {}", chain(cause)),
        None => e.to_string(),
    }
}

#[test]
fn a_directory_is_one_log_in_a_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/log");
    let one = directory(&path).unwrap();
    let again = directory(folder.path().join("a/../a/log/")).unwrap();
    assert!(Arc::ptr_eq(&one, &again));
    let name = topic(&*one, "shared", 1);
    append_all(&one, &name, [record("k", "v")]);
    assert_eq!(read_partition(&again, &name, 0).len(), 1);
    // A reader keeps it open, and the last one who lets go closes it.
    let reader = again.clone().reader(vec![]).unwrap();
    drop((one, again));
    let while_held = directory(&path).unwrap();
    drop((reader, while_held));
    // Many at once: each finds it either open or closed.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    assert_eq!(read_partition(&directory(&path).unwrap(), &name, 0).len(), 1);
                }
            });
        }
    });
}

#[test]
fn a_directory_is_one_process_s() {
    let backend = embedded();
    let (input, output, log) = (unique("input"), unique("output"), backend.open());
    for name in [&input, &output] {
        log.ensure_topic(&plain(name, 1)).unwrap();
    }
    drop(log);
    let table = unique("table");
    backend.open().ensure_topic(&plain(&table, 1)).unwrap();
    let mut holder = Writer::start("crash_writer", &backend.url, [&input, &output, &table], "group", 0);
    holder.next();
    let refused = event_log::open(&backend.url, &[]).unwrap_err();
    assert!(matches!(&refused, Error::InUse { path } if backend.url == LogUrl::Directory(path.clone())), "{refused}");
    holder.kill();
    assert!(backend.open().describe(&input).unwrap().partitions[0].next > 0);
}

#[test]
fn what_is_no_log_directory_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("thesis.txt"), "draft").unwrap();
    let refused = chain(&directory(folder.path()).unwrap_err());
    assert!(refused.contains("thesis.txt") && refused.contains("choose an empty or a new directory"), "{refused}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let refused = chain(&directory(folder.path().join("thesis.txt")).unwrap_err());
    assert!(refused.contains("choose a directory, not a file"), "{refused}");
    let refused = chain(&directory("/proc/none").unwrap_err());
    assert!(refused.contains("/proc/none") && refused.contains("choose"), "{refused}");
}

#[test]
fn a_store_that_was_never_finished_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("store.new/keyspaces")).unwrap();
    std::fs::write(folder.path().join("store.new/0.jnl"), "half").unwrap();
    let log = directory(folder.path()).unwrap();
    append_all(&log, &topic(&*log, "fresh", 1), [record("k", "v")]);
}

#[test]
fn a_group_has_one_instance() {
    let backend = embedded();
    let log = backend.open();
    let input = topic(&*log, "input", 1);
    let options =
        |group: &str| ProcessorOptions { group: group.into(), instance: "two".into(), topics: vec![input.clone()] };
    let (first, _) = processor(&log, &log, "group", &[&input]);
    match Processor::new(log.clone(), log.clone(), &options("group")).err() {
        Some(Error::GroupInUse { group, .. }) => assert_eq!(group, "group"),
        other => panic!("{other:?}"),
    }
    assert!(Processor::new(log.clone(), log.clone(), &options("another")).is_ok());
    drop(first);
    assert!(Processor::new(log.clone(), log.clone(), &options("group")).is_ok());
}

#[test]
fn partitions_take_turns() {
    let backend = embedded();
    let log = backend.open();
    let input = topic(&*log, "input", 4);
    let keys: Vec<String> = (0..8000).map(|i| i.to_string()).collect();
    append_all(&log, &input, keys.iter().map(|k| record(k, "v")));
    let (mut processor, _) = processor(&log, &log, "group", &[&input]);
    let mut partitions: Vec<u32> = (0..4).map(|_| next_batch(&mut processor, 100).partition()).collect();
    partitions.sort_unstable();
    assert_eq!(partitions, [0, 1, 2, 3]);
}

#[test]
fn what_is_too_large_is_refused_and_what_is_too_much_waits() {
    let backend = embedded();
    let log = backend.open();
    let name = topic(&*log, "bounds", 1);
    let (completions, gate) = (Completions::default(), Arc::new(Mutex::new(())));
    let (complete, entered) = (completions.callback(), gate.clone());
    let on_completion = move |new: &[Completion]| {
        let _entered = entered.lock();
        complete(new);
    };
    let appender = log.clone().appender(Box::new(on_completion)).unwrap();
    let large = vec![0; 9 << 20];
    let record = |value| Record { key: b"k", value: Some(value), headers: &[], timestamp_ms: 0 };
    let refused = appender.append(&name, &record(&large), 0).unwrap_err();
    assert!(chain(&refused).contains("takes records of up to 8388608 bytes"), "{refused}");
    // The queue is not emptied meanwhile, however fast the disk is: the first completion waits.
    let held = gate.lock().unwrap();
    let mut full = false;
    for token in 0..128 {
        full |= matches!(appender.append(&name, &record(&large[..4 << 20]), token), Err(AppendError::Full));
    }
    assert!(full);
    drop(held);
    assert!(appender.flush(PATIENCE));
    assert!(completions.all().iter().all(|c| c.durable));
}

#[test]
fn a_reader_that_retention_overtakes_is_told() {
    let backend = embedded();
    let log = backend.open();
    let name = unique("overtaken");
    log.ensure_topic(&TopicSpec { retention: Some(Duration::from_secs(3600)), ..plain(&name, 1) }).unwrap();
    append_all(&log, &name, (0..100).map(|_| record("k", "old")));
    let range = Range { topic: name.clone(), partition: 0, start: 0, end: None };
    let mut reader = log.clone().reader(vec![range]).unwrap();
    assert!(matches!(reader.next(10, PATIENCE).unwrap(), Read::Batch(b) if b.len() == 10));
    backend.clock.pass(2 * HOUR);
    log.maintain().unwrap();
    match reader.next(10, PATIENCE) {
        Err(Error::OutOfRange { offset: 10, first: 100, next: 100, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tail_that_retention_overtakes_catches_up_or_is_told() {
    let backend = embedded();
    let log = backend.open();
    let name = unique("overtaken");
    log.ensure_topic(&TopicSpec { retention: Some(Duration::from_secs(3600)), ..plain(&name, 1) }).unwrap();
    let old = record("k", "old");
    let (mut tail, mut news) = (Tail::new(log.clone(), name.clone()), Tail::new(log.clone(), name.clone()));
    append_all(&log, &name, (0..10).map(|_| old));
    assert!(news.next(5, PATIENCE).unwrap().is_some_and(|batch| batch.len() == 5));
    let caught_up = |tail: &mut Tail| {
        let mut offsets = Vec::new();
        tail.catch_up(100, |batch| {
            offsets.extend(batch.iter().map(|r| r.offset));
            Ok::<_, Error>(())
        })
        .unwrap();
        offsets
    };
    assert_eq!(caught_up(&mut tail), (0..10).collect::<Vec<_>>());
    append_all(&log, &name, (0..10).map(|_| old));
    backend.clock.pass(2 * HOUR);
    log.maintain().unwrap();
    append_all(&log, &name, [record("k", "new")]);
    assert_eq!(caught_up(&mut tail), [20], "it goes on with what is left");
    match news.next(5, PATIENCE) {
        Err(Error::OutOfRange { offset: 5, first: 20, next: 21, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(matches!(news.next(5, PATIENCE), Err(Error::OutOfRange { .. })), "until it is told to go on elsewhere");
    news.skip_to_end().unwrap();
    append_all(&log, &name, [record("k", "newer")]);
    assert!(news.next(5, PATIENCE).unwrap().is_some_and(|batch| batch.get(0).offset == 21));
}

/// Appends values that do not compress, so that they fill tables.
fn append_noise(log: &Arc<dyn Log>, name: &Arc<str>, records: u64, timestamp_ms: i64) {
    let values: Vec<_> = (0..records).map(|i| Random::new(i).bytes(100_000)).collect();
    append_all(log, name, values.iter().map(|v| Record { key: b"k", value: Some(v), headers: &[], timestamp_ms }));
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if extension.is_empty() || path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found
}

#[test]
fn retention_gives_the_disk_back() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::default();
    let log = event_log::open_with_clock(folder.path(), clock.clone()).unwrap();
    let name = unique("old");
    log.ensure_topic(&TopicSpec { retention: Some(Duration::from_secs(3600)), ..plain(&name, 1) }).unwrap();
    append_noise(&log, &name, 300, 0);
    clock.pass(2 * HOUR);
    let tables = || {
        let tables = files(&folder.path().join("store/keyspaces"), "");
        tables.iter().map(|f| f.metadata().map_or(0, |m| m.len())).sum::<u64>()
    };
    wait_until("tables are written", || tables() > 20 << 20);
    // What is still in memory stays; all tables go.
    wait_until("tables are dropped", || {
        log.maintain().unwrap();
        tables() < 5 << 20
    });
    assert_eq!(log.describe(&name).unwrap().partitions[0], PartitionDescription { first: 300, next: 300 });
}

#[test]
fn damaged_tables_are_named_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let log = directory(folder.path()).unwrap();
    let name = topic(&*log, "damaged", 1);
    append_noise(&log, &name, 200, now_ms());
    let big = || {
        files(&folder.path().join("store/keyspaces"), "")
            .into_iter()
            .filter(|f| f.metadata().is_ok_and(|m| m.len() > 1 << 20))
    };
    wait_until("tables are written", || big().count() > 0);
    drop(log);
    for table in big() {
        let file = std::fs::File::options().write(true).open(table).unwrap();
        let middle = file.metadata().unwrap().len() / 2;
        file.write_all_at(&[0xff; 16], middle).unwrap();
    }
    let log = directory(folder.path()).unwrap();
    match read(&log, &name, 0, 0, 200) {
        Err(Error::Corrupt { place, .. }) => assert!(place.starts_with(&format!("{name}/0 offset ")), "{place}"),
        other => panic!("{:?}", other.map(|records| records.len())),
    }
}

#[test]
fn a_damaged_journal_does_not_open() {
    let folder = tempfile::tempdir().unwrap();
    let log = directory(folder.path()).unwrap();
    let name = topic(&*log, "damaged", 1);
    append_noise(&log, &name, 10, now_ms());
    drop(log);
    let journal = files(folder.path(), "jnl").pop().unwrap();
    let file = std::fs::File::options().write(true).open(journal).unwrap();
    file.write_all_at(&[0xff; 16], 500_000).unwrap();
    match directory(folder.path()) {
        Err(Error::Corrupt { place, .. }) => assert_eq!(place, "its store"),
        other => panic!("{other:?}"),
    }
}
