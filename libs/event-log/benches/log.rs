//! How fast a log is, and what it costs: run by hand, on a machine that does nothing else.
//!
//! ```text
//! cargo bench -p event-log --bench log -- [kafka://HOST:PORT | DIRECTORY] [RECORDS]
//! ```
//!
//! Appends records like readings (530 bytes of JSON, headers included), copies them to another topic in transactions
//! of 5,000, and reads them. CPU is that of this process; with Kafka the broker's comes on top.

mod load;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use event_log::*;
use load::{Reading, cpu_seconds, peak_mib};
use test_support::measurement;

const PARTITIONS: u32 = 4;
const BATCH: usize = 5000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = measurement::arguments().skip(1);
    let temporary = tempfile::tempdir()?;
    let url: LogUrl = match args.next() {
        Some(url) => url.parse()?,
        None => LogUrl::Directory(temporary.path().join("log")),
    };
    let count: u64 = args.next().map_or(Ok(1_000_000), |n| n.parse())?;
    let log = open(&url, &[])?;
    let run = std::process::id();
    let (input, output): (Arc<str>, Arc<str>) =
        (format!("bench-input-{run}").into(), format!("bench-output-{run}").into());
    for name in [&input, &output] {
        log.ensure_topic(&TopicSpec { name: name.clone(), partitions: PARTITIONS, retention: None, compacted: false })?;
    }
    println!("{url}, {count} records");
    println!("{:<28}{:>12}{:>16}{:>12}", "", "records/s", "CPU s/million", "RSS MiB");
    measured("append", count, || append(&log, &input, count))?;
    measured("append, 200 in flight", count / 20, || append_windowed(&log, &input, count / 20, 200))?;
    let all = count + count / 20;
    measured("transform, 5,000 a commit", all, || transform(&log, &input, &output, all, &format!("bench-{run}")))?;
    measured("read", all, || read(&log, &output, all))?;
    Ok(())
}

type Done = Result<(), Box<dyn std::error::Error>>;

fn measured(what: &str, count: u64, work: impl FnOnce() -> Done) -> Done {
    let (started, cpu) = (Instant::now(), cpu_seconds());
    work()?;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    println!("{what:<28}{:>12.0}{:>16.2}{:>12}", count as f64 / seconds, cpu * 1e6 / count as f64, peak_mib());
    Ok(())
}

fn append(log: &Arc<dyn Log>, topic: &Arc<str>, count: u64) -> Done {
    append_windowed(log, topic, count, u64::MAX)
}

/// At most `window` records wait for their completion, as with that many cars that send one reading at a time.
fn append_windowed(log: &Arc<dyn Log>, topic: &Arc<str>, count: u64, window: u64) -> Done {
    let durable = Arc::new(AtomicU64::new(0));
    let counted = durable.clone();
    let appender = log.clone().appender(Box::new(move |completions| {
        counted.fetch_add(completions.iter().filter(|c| c.durable).count() as u64, Ordering::Relaxed);
    }))?;
    let mut reading = Reading::default();
    for i in 0..count {
        while i - durable.load(Ordering::Relaxed) >= window {
            std::thread::sleep(Duration::from_micros(100));
        }
        reading.fill(i);
        loop {
            let headers: [(&str, &[u8]); 2] =
                [("received_ms", b"1795248000000"), ("mqtt_topic", reading.mqtt_topic.as_bytes())];
            let record = Record {
                key: reading.vin.as_bytes(),
                value: Some(reading.json.as_bytes()),
                headers: &headers,
                timestamp_ms: 1_795_248_000_000 + i as i64,
            };
            match appender.append(topic, &record, i) {
                Ok(()) => break,
                Err(AppendError::Full) => std::thread::sleep(Duration::from_millis(1)),
                Err(e) => return Err(e.into()),
            }
        }
    }
    appender.flush(Duration::from_secs(60));
    assert_eq!(durable.load(Ordering::Relaxed), count, "every record is durable");
    Ok(())
}

fn transform(log: &Arc<dyn Log>, input: &Arc<str>, output: &Arc<str>, count: u64, group: &str) -> Done {
    let options =
        ProcessorOptions { group: group.to_owned(), instance: "bench".to_owned(), topics: vec![input.clone()] };
    let mut processor = Processor::new(log.clone(), log.clone(), &options)?;
    let (mut done, mut positions, mut outputs) = (0, Vec::new(), Outputs::default());
    while done < count {
        if let Event::Batch(batch) = processor.next(BATCH, Duration::from_millis(500))? {
            for r in batch.iter() {
                let record = Record { key: r.key, value: r.value, headers: &[], timestamp_ms: r.timestamp_ms };
                outputs.push(output, batch.partition(), &record);
            }
            done += batch.len() as u64;
            let offset = batch.next_offset().expect("a batch is not empty");
            positions.retain(|p: &Position| p.partition != batch.partition());
            positions.push(Position { topic: input.clone(), partition: batch.partition(), offset });
            if outputs.len() >= BATCH || done == count {
                assert_eq!(processor.commit(&outputs, &positions)?, Outcome::Committed);
                outputs = Outputs::default();
            }
        }
    }
    Ok(())
}

fn read(log: &Arc<dyn Log>, topic: &Arc<str>, count: u64) -> Done {
    let bounds = log.describe(topic)?.partitions;
    let range = |(partition, b): (usize, PartitionDescription)| Range {
        topic: topic.clone(),
        partition: partition as u32,
        start: b.first,
        end: Some(b.next),
    };
    let mut reader = log.clone().reader(bounds.into_iter().enumerate().map(range).collect())?;
    let (mut records, mut bytes) = (0, 0);
    loop {
        match reader.next(BATCH, Duration::from_millis(500))? {
            Read::Batch(batch) => {
                records += batch.len() as u64;
                bytes += batch.iter().map(|r| r.value.map_or(0, <[u8]>::len)).sum::<usize>();
            }
            Read::Idle => {}
            Read::End => break,
        }
    }
    assert_eq!(records, count);
    assert!(bytes > 0);
    Ok(())
}
