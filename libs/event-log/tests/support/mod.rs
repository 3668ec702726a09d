//! Backends under test, and what the checks need to write and read. What is checked is in `conformance.rs`.

#![allow(dead_code, unreachable_pub)] // every test file uses a part

pub mod broker;
pub mod crash;
pub mod kafka_admin;
pub mod worker;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_log::*;
use tempfile::TempDir;
use test_support::clock::now_ms;

/// How long anything may take: for slow machines, not a promise.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A log that checks can open as often as they like.
pub struct Backend {
    pub url: LogUrl,
    pub kafka_options: Vec<KafkaOption>,
    /// What an embedded log goes by.
    pub clock: Clock,
    /// Whether `Log::maintain` has removed what is to be removed when it returns. If not, the log does it in its own
    /// time, and checks can only tell that nothing else is removed.
    pub maintains_at_once: bool,
    /// The directory of an embedded log; removed with the backend.
    directory: Option<TempDir>,
}

/// An embedded log in a directory of its own.
pub fn embedded() -> Backend {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let url = LogUrl::Directory(directory.path().join("log"));
    let clock = Clock::default();
    Backend { url, kafka_options: Vec::new(), clock, maintains_at_once: true, directory: Some(directory) }
}

/// The Kafka cluster that `CARSTREAM_TEST_KAFKA` names. Without it the check is skipped, but not in CI.
pub fn kafka() -> Option<Backend> {
    let bootstrap = match std::env::var("CARSTREAM_TEST_KAFKA") {
        Ok(bootstrap) if !bootstrap.is_empty() => bootstrap,
        _ if std::env::var("CI").is_ok_and(|ci| ci == "true") => {
            panic!("in CI, CARSTREAM_TEST_KAFKA must be HOST:PORT of a Kafka broker")
        }
        _ => {
            eprintln!("skipped: CARSTREAM_TEST_KAFKA=HOST:PORT names no Kafka broker");
            return None;
        }
    };
    let url = format!("kafka://{bootstrap}").parse().expect("CARSTREAM_TEST_KAFKA is HOST:PORT");
    let clock = Clock::default();
    Some(Backend { url, kafka_options: Vec::new(), clock, maintains_at_once: false, directory: None })
}

impl Backend {
    /// Opens the log; after everyone dropped it, again from what is stored.
    pub fn open(&self) -> Arc<dyn Log> {
        let opened = match &self.url {
            LogUrl::Directory(path) => event_log::open_with_clock(path, self.clock.clone()),
            LogUrl::Kafka { .. } => event_log::open(&self.url, &self.kafka_options),
        };
        opened.expect("the log opens")
    }

    /// Another log of the same kind: another directory, or other topics of the same cluster.
    pub fn another(&self) -> Backend {
        match self.directory {
            Some(_) => embedded(),
            None => Backend {
                url: self.url.clone(),
                kafka_options: self.kafka_options.clone(),
                clock: Clock::default(),
                maintains_at_once: false,
                directory: None,
            },
        }
    }
}

/// A name that nothing else uses, not even an earlier run on the same cluster.
pub fn unique(what: &str) -> Arc<str> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("test-{what}-{}-{}-{count}", std::process::id(), now_ms()).into()
}

/// Creates a topic that keeps everything, and returns its name.
pub fn topic(log: &dyn Log, what: &str, partitions: u32) -> Arc<str> {
    let name = unique(what);
    log.ensure_topic(&plain(&name, partitions)).expect("the topic is created");
    name
}

pub fn plain(name: &Arc<str>, partitions: u32) -> TopicSpec {
    TopicSpec { name: name.clone(), partitions, retention: None, compacted: false }
}

/// Completions as they come.
#[derive(Clone, Default)]
pub struct Completions(Arc<Mutex<Vec<Completion>>>);

impl Completions {
    pub fn callback(&self) -> OnCompletion {
        let completions = self.0.clone();
        Box::new(move |new| completions.lock().expect("no panic").extend_from_slice(new))
    }

    pub fn all(&self) -> Vec<Completion> {
        self.0.lock().expect("no panic").clone()
    }
}

/// Queues a record, waiting while the queue is full.
pub fn append(appender: &dyn Appender, topic: &Arc<str>, record: &Record<'_>, token: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match appender.append(topic, record, token) {
            Ok(()) => return,
            Err(AppendError::Full) => assert!(Instant::now() < deadline, "the queue stays full"),
            Err(e) => panic!("append: {e:?}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Appends records and waits until they are durable.
pub fn append_all<'a>(log: &Arc<dyn Log>, topic: &Arc<str>, records: impl IntoIterator<Item = Record<'a>>) {
    let completions = Completions::default();
    let appender = log.clone().appender(completions.callback()).expect("an appender");
    let mut count = 0;
    for record in records {
        append(&*appender, topic, &record, count);
        count += 1;
    }
    assert!(appender.flush(PATIENCE), "everything is flushed");
    let durable = completions.all().iter().filter(|c| c.durable).count();
    assert_eq!(durable as u64, count, "every record is durable");
}

/// A record without headers, written now.
pub fn record<'a>(key: &'a str, value: &'a str) -> Record<'a> {
    Record { key: key.as_bytes(), value: Some(value.as_bytes()), headers: &[], timestamp_ms: now_ms() }
}

/// A record that was read, for comparing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub offset: u64,
    pub timestamp_ms: i64,
    pub key: String,
    pub value: Option<String>,
    pub headers: Vec<(String, Vec<u8>)>,
}

pub fn seen(batch: &Batch) -> impl Iterator<Item = Seen> + '_ {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    batch.iter().map(move |r| Seen {
        offset: r.offset,
        timestamp_ms: r.timestamp_ms,
        key: text(r.key),
        value: r.value.map(text),
        headers: r.headers.map(|(name, value)| (name.to_owned(), value.to_vec())).collect(),
    })
}

/// The records of a range that ends.
pub fn read(log: &Arc<dyn Log>, topic: &Arc<str>, partition: u32, start: u64, end: u64) -> Result<Vec<Seen>, Error> {
    let range = Range { topic: topic.clone(), partition, start, end: Some(end) };
    let mut reader = log.clone().reader(vec![range])?;
    let (mut all, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    loop {
        match reader.next(1000, Duration::from_millis(200))? {
            Read::Batch(batch) => {
                assert_eq!((batch.topic(), batch.partition()), (topic, partition));
                assert!((1..=1000).contains(&batch.len()), "a batch of {} records", batch.len());
                all.extend(seen(&batch));
            }
            Read::Idle => assert!(Instant::now() < deadline, "{topic}/{partition} does not reach {end}"),
            Read::End => return Ok(all),
        }
    }
}

/// All records of a partition.
pub fn read_partition(log: &Arc<dyn Log>, topic: &Arc<str>, partition: u32) -> Vec<Seen> {
    let bounds = log.describe(topic).expect("the topic exists").partitions[partition as usize];
    read(log, topic, partition, bounds.first, bounds.next).expect("the partition can be read")
}

/// All records of a topic, by partition.
pub fn read_topic(log: &Arc<dyn Log>, topic: &Arc<str>) -> Vec<Vec<Seen>> {
    let partitions = log.describe(topic).expect("the topic exists").partitions.len();
    (0..partitions as u32).map(|p| read_partition(log, topic, p)).collect()
}

/// A processor that has its partitions.
pub fn processor(
    source: &Arc<dyn Log>,
    target: &Arc<dyn Log>,
    group: &str,
    topics: &[&Arc<str>],
) -> (Processor, Vec<Position>) {
    let topics = topics.iter().map(|t| (*t).clone()).collect();
    let options = ProcessorOptions { group: group.to_owned(), instance: "one".to_owned(), topics };
    let mut processor = Processor::new(source.clone(), target.clone(), &options).expect("a processor");
    let deadline = Instant::now() + PATIENCE;
    loop {
        match processor.next(1000, Duration::from_millis(100)).expect("partitions are assigned") {
            Event::Assigned(positions) => return (processor, positions),
            Event::Idle => assert!(Instant::now() < deadline, "no partitions are assigned"),
            event => panic!("before Assigned: {event:?}"),
        }
    }
}

/// The next batch.
pub fn next_batch(processor: &mut Processor, max_records: usize) -> Batch {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match processor.next(max_records, Duration::from_millis(100)).expect("the processor goes on") {
            Event::Batch(batch) => return batch,
            Event::Idle => assert!(Instant::now() < deadline, "no records come"),
            event => panic!("while processing: {event:?}"),
        }
    }
}

/// The outputs of a transform that copies a batch to the same partition of `target`.
pub fn copied(batch: &Batch, target: &Arc<str>, outputs: &mut Outputs) {
    for r in batch.iter() {
        let headers: Vec<_> = r.headers.collect();
        let record = Record { key: r.key, value: r.value, headers: &headers, timestamp_ms: r.timestamp_ms };
        outputs.push(target, batch.partition(), &record);
    }
}

/// The position behind a batch.
pub fn behind(batch: &Batch) -> Position {
    let offset = batch.next_offset().expect("a batch is not empty");
    Position { topic: batch.topic().clone(), partition: batch.partition(), offset }
}

/// Lets the log say what it has to say, for whoever looks for the cause of a failure.
pub fn narrate() {
    let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stderr).try_init();
}

/// Waits until `done`.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
