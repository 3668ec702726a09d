//! A small log in memory, to read from: a few partitions with a few dozen records each.
//!
//! As in a real one, offsets have holes (Kafka's transaction markers take some), records arrive during reading, a read
//! returns any number of them, and sometimes it fails.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use event_log::{
    Appender, Batch, Consumer, Error, Log, LogUrl, OnCompletion, PartitionDescription, ProcessorOptions, Range, Read,
    Reader, TopicDescription, TopicSpec, Transactor,
};
use telemetry::avro::AvroEncoder;
use telemetry::json::JsonDecoder;
use test_support::random::Random;

use crate::{SCHEMA, TOPIC};

/// Shortly before midnight, so that a partition's objects lie in two folders. 2026-11-21 23:59 UTC.
const TIME_MS: u64 = 1_795_305_540_000;
const MOST_PARTITIONS: u64 = 3;
const MOST_RECORDS: u64 = 60;

/// Avro messages; a schedule takes some of them.
static MESSAGES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let schemas = contract::Contract::builtin().schemas();
    let schema = schemas.file(SCHEMA).unwrap();
    let mut decoder = JsonDecoder::new(schema);
    for i in 0..MOST_PARTITIONS * MOST_RECORDS {
        let began_ms = TIME_MS + 2_000 * (i % MOST_RECORDS);
        let json = format!(
            r#"{{"car":"{:032x}","boot_id":{},"seq":{i},"kind":"bearing_wear","component":"bearing_{}",
            "began_ms":{began_ms},"repaired_ms":{}}}"#,
            i % 7,
            i % 3,
            i % 4,
            began_ms + 60_000,
        );
        decoder.decode(json.as_bytes()).unwrap();
    }
    let mut encoder = AvroEncoder::new(schemas, schema.id.unwrap()).unwrap();
    encoder.encode(&decoder.finish()).unwrap().iter().map(<[u8]>::to_vec).collect()
});

/// A record of the log.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) offset: u64,
    pub(crate) value: Vec<u8>,
    /// Whether it is what the topic should hold.
    pub(crate) sound: bool,
}

/// What a log holds, and how much of it has come so far.
#[derive(Debug)]
pub(crate) struct Records {
    pub(crate) partitions: Vec<Vec<Record>>,
    /// The first offset of each partition: retention has removed what was before.
    pub(crate) first: Vec<u64>,
    come: Vec<AtomicU64>,
}

impl Records {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::named(seed, "records");
        let unsound_one_in = *random.one_of(&[0, 0, 0, 9]);
        let count = random.between(1, MOST_PARTITIONS);
        let mut first = Vec::new();
        let partitions: Vec<Vec<_>> = (0..count)
            .map(|partition| {
                let mut offset = *random.one_of(&[0, 0, 17]);
                first.push(offset);
                let records = (0..random.between(0, MOST_RECORDS)).map(|i| {
                    if random.chance(1, 20) {
                        offset += random.between(1, 3);
                    }
                    let sound = unsound_one_in == 0 || !random.chance(1, unsound_one_in);
                    let value = if sound {
                        MESSAGES[(partition * MOST_RECORDS + i) as usize].clone()
                    } else {
                        format!("no Avro {partition} {i}").into_bytes()
                    };
                    offset += 1;
                    Record { offset: offset - 1, value, sound }
                });
                records.collect()
            })
            .collect();
        let come = partitions.iter().map(|records| {
            AtomicU64::new(if random.chance(1, 2) {
                records.len() as u64
            } else {
                random.between(0, records.len() as u64)
            })
        });
        Self { come: come.collect(), partitions, first }
    }

    /// All of it has come.
    pub(crate) fn reveal(&self) {
        for (come, records) in self.come.iter().zip(&self.partitions) {
            come.store(records.len() as u64, Ordering::Relaxed);
        }
    }

    /// The log as `reader` sees it.
    pub(crate) fn log(self: &Arc<Self>, seed: u64, reader: &str) -> Arc<dyn Log> {
        let random = Random::named(seed, &format!("reads of {reader}"));
        let url = LogUrl::Directory("log".into());
        Arc::new(LightLog { records: self.clone(), url, random: Arc::new(Mutex::new(random)) })
    }

    fn come(&self, partition: usize) -> &[Record] {
        &self.partitions[partition][..self.come[partition].load(Ordering::Relaxed) as usize]
    }

    fn next_offset(&self, partition: usize) -> u64 {
        self.come(partition).last().map_or(self.first[partition], |last| last.offset + 1)
    }
}

struct LightLog {
    records: Arc<Records>,
    url: LogUrl,
    random: Arc<Mutex<Random>>,
}

impl std::fmt::Debug for LightLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a log in memory")
    }
}

fn unavailable(operation: &'static str) -> Error {
    Error::Unavailable { operation, log: "log".to_owned(), source: "the broker is away".into() }
}

impl Log for LightLog {
    fn url(&self) -> &LogUrl {
        &self.url
    }

    fn ensure_topic(&self, _: &TopicSpec) -> Result<(), Error> {
        Ok(())
    }

    fn describe(&self, topic: &str) -> Result<TopicDescription, Error> {
        assert_eq!(topic, TOPIC);
        let bounds = |partition| PartitionDescription {
            first: self.records.first[partition],
            next: self.records.next_offset(partition),
        };
        let partitions = (0..self.records.partitions.len()).map(bounds).collect();
        let (settings_known, max_record_bytes) = (true, usize::MAX);
        Ok(TopicDescription {
            settings_known,
            max_record_bytes,
            id: "1".to_owned(),
            partitions,
            compacted: false,
            retention: None,
            replicas: None,
        })
    }

    fn committed(&self, _: &str, _: &str) -> Result<Vec<Option<u64>>, Error> {
        Err(unavailable("committed"))
    }

    fn appender(self: Arc<Self>, _: OnCompletion) -> Result<Arc<dyn Appender>, Error> {
        Err(unavailable("appender"))
    }

    fn reader(self: Arc<Self>, ranges: Vec<Range>) -> Result<Box<dyn Reader>, Error> {
        let positions = ranges.into_iter().map(|range| (range.partition as usize, (range.start, range.end))).collect();
        Ok(Box::new(LightReader { log: self, positions }))
    }

    fn consumer(self: Arc<Self>, _: &ProcessorOptions) -> Result<Box<dyn Consumer>, Error> {
        Err(unavailable("consumer"))
    }

    fn transactor(self: Arc<Self>, _: &ProcessorOptions) -> Result<Box<dyn Transactor>, Error> {
        Err(unavailable("transactor"))
    }
}

struct LightReader {
    log: Arc<LightLog>,
    positions: BTreeMap<usize, (u64, Option<u64>)>,
}

impl Reader for LightReader {
    fn next(&mut self, _: usize, _: Duration) -> Result<Read, Error> {
        let mut random = self.log.random.lock().unwrap();
        if random.chance(1, 200) {
            return Err(unavailable("read"));
        }
        let records = &self.log.records;
        let ended = |(partition, (position, end)): (&usize, &(u64, Option<u64>))| {
            end.is_some_and(|end| {
                *position >= end
                    || records.next_offset(*partition) >= end && {
                        // What is left before the end are holes.
                        !records.come(*partition).iter().any(|record| (*position..end).contains(&record.offset))
                    }
            })
        };
        if self.positions.iter().all(ended) {
            return Ok(Read::End);
        }
        let partitions: Vec<_> = self.positions.keys().copied().collect();
        let partition = *random.one_of(&partitions);
        let (position, end) = self.positions[&partition];
        let at_most = random.between(1, 12) as usize;
        let wanted =
            records.come(partition).iter().filter(|r| r.offset >= position && end.is_none_or(|e| r.offset < e));
        let mut batch = Batch::new(TOPIC.into(), partition as u32);
        for record in wanted.take(at_most) {
            batch.push(record.offset, 5, b"key", Some(&record.value), []);
        }
        let (come, all) = (&records.come[partition], records.partitions[partition].len() as u64);
        let more = random.between(0, 3);
        let _ = come.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |come| Some((come + more).min(all)));
        drop(random);
        let Some(next) = batch.next_offset() else {
            std::thread::sleep(Duration::from_millis(2));
            return Ok(Read::Idle);
        };
        self.positions.insert(partition, (next, end));
        Ok(Read::Batch(batch))
    }
}
