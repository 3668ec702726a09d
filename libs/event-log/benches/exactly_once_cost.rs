//! What exactly-once costs against at-least-once on Kafka: run by hand, on a machine that does nothing else.
//!
//! ```text
//! cargo bench -p event-log --bench exactly_once_cost -- kafka://HOST:PORT [--broker-pid PID]
//!     [--records 500000] [--rate 5000] [--seconds 20] [--rounds 1] [--kafka-option KEY=VALUE]…
//! ```
//!
//! The same transform, a copy of readings (530 bytes of JSON), in a process of its own:
//!
//! - `exactly once`: this crate's [`Processor`], outputs and positions in one transaction;
//! - `at least once`: rdkafka as its users write it, an idempotent producer, acks=all; when the outputs are written,
//!   the
//!   consumer's positions are committed. A crash in between doubles records. Settings are otherwise the same.
//!
//! First at full speed, by records per commit: the cost of a record. Then at a steady rate, by milliseconds between
//! commits: the cost, and the time from appending a record until a reader of committed records has it. `ms 0` commits
//! as soon as no more records are available.

#![allow(clippy::unwrap_used)]

mod load;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, ValueEnum};
use event_log::*;
use load::{Reading, cpu_seconds, cpu_seconds_of};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use test_support::measurement;
use test_support::process::OwnedChild;

const PARTITIONS: u32 = 4;
/// Long enough that it never triggers a commit by itself.
const NEVER_MS: u64 = 60_000;
/// A commit at a steady rate holds at most this many: never reached.
const NO_LIMIT: usize = 100_000;
/// At a steady rate, the first seconds are not measured: connections and assignments come about.
const WARM_UP: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Parser)]
struct Args {
    /// The log.
    log: LogUrl,
    /// A librdkafka property of everything that this crate does here, as in the stages.
    #[arg(long, value_name = "KEY=VALUE")]
    kafka_option: Vec<KafkaOption>,
    /// The broker's process, if its CPU is to be measured too.
    #[arg(long)]
    broker_pid: Option<u32>,
    /// How many records at full speed.
    #[arg(long, default_value_t = 500_000)]
    records: u64,
    /// How many records per second at a steady rate.
    #[arg(long, default_value_t = 5000)]
    rate: u64,
    /// How long at a steady rate.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// How often to measure each.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Of the process that transforms: what it is to do.
    #[command(flatten)]
    work: Option<Work>,
}

#[derive(clap::Args, Clone)]
struct Work {
    #[arg(long, hide = true, required = false)]
    how: How,
    #[arg(long, hide = true, required = false)]
    input: Arc<str>,
    #[arg(long, hide = true, required = false)]
    output: Arc<str>,
    #[arg(long, hide = true, required = false)]
    max_records: usize,
    #[arg(long, hide = true, required = false)]
    max_wait_ms: u64,
    /// Ends after this many.
    #[arg(long, hide = true, required = false)]
    until: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum How {
    ExactlyOnce,
    AtLeastOnce,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            How::ExactlyOnce => "exactly once",
            How::AtLeastOnce => "at least once",
        }
    }
}

type Done = Result<(), Box<dyn std::error::Error>>;

fn main() -> Done {
    let args = Args::parse_from(measurement::arguments());
    let log = open(&args.log, &args.kafka_option)?;
    if let Some(work) = &args.work {
        match work.how {
            How::ExactlyOnce => exactly_once(&log, work)?,
            How::AtLeastOnce => at_least_once(&args.log, work)?,
        }
        // Standard output is a pipe to the process that measures.
        writeln!(std::io::stdout(), "{}", cpu_seconds())?;
        return Ok(());
    }
    at_full_speed(&args, &log)?;
    at_a_steady_rate(&args, &log)
}

fn at_full_speed(args: &Args, log: &Arc<dyn Log>) -> Done {
    let input = topic(log, "input")?;
    append(log, &input, 0..args.records, None)?;
    println!("{} records at full speed", args.records);
    println!("{:<16}{:>16}{:>12}{:>20}{:>20}", "", "records/commit", "records/s", "client CPU s/M", "broker CPU s/M");
    for _ in 0..args.rounds {
        for max_records in [5000, 1000, 200] {
            for how in [How::AtLeastOnce, How::ExactlyOnce] {
                let work = Work {
                    how,
                    input: input.clone(),
                    output: topic(log, "output")?,
                    max_records,
                    max_wait_ms: NEVER_MS,
                    until: args.records,
                };
                let (began, broker) = (Instant::now(), broker_cpu(args));
                let cpu = start(args, &work)?.finish()?;
                let (seconds, broker) = (began.elapsed().as_secs_f64(), broker_cpu(args) - broker);
                let per_million = 1e6 / args.records as f64;
                let (client, broker) = (cpu * per_million, broker * per_million);
                let speed = args.records as f64 / seconds;
                println!("{:<16}{max_records:>16}{speed:>12.0}{client:>20.2}{broker:>20.2}", how.name());
            }
        }
    }
    Ok(())
}

fn at_a_steady_rate(args: &Args, log: &Arc<dyn Log>) -> Done {
    println!("\n{} records/s; the broker's CPU includes the load and the reader", args.rate);
    println!(
        "{:<16}{:>16}{:>12}{:>12}{:>20}{:>20}",
        "", "ms/commit", "p50 ms", "p99 ms", "client CPU s/M", "broker CPU s/M"
    );
    for _ in 0..args.rounds {
        for max_wait_ms in [100, 50, 20, 10, 0] {
            for how in [How::AtLeastOnce, How::ExactlyOnce] {
                steady(args, log, how, max_wait_ms)?;
            }
        }
    }
    Ok(())
}

fn steady(args: &Args, log: &Arc<dyn Log>, how: How, max_wait_ms: u64) -> Done {
    let (input, output) = (topic(log, "input")?, topic(log, "output")?);
    let until = args.rate * (WARM_UP.as_secs() + args.seconds);
    let work = Work { how, input: input.clone(), output: output.clone(), max_records: NO_LIMIT, max_wait_ms, until };
    let child = start(args, &work)?;
    let (began, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let reader = std::thread::spawn({
        let (log, stop) = (log.clone(), stop.clone());
        move || latencies(&log, &output, until, &stop)
    });
    let pid = child.process.id().to_string();
    let before = std::thread::spawn({
        let broker_pid = args.broker_pid;
        move || {
            std::thread::sleep(WARM_UP);
            (cpu_seconds_of(&pid), broker_pid.map_or(0.0, |pid| cpu_seconds_of(&pid.to_string())))
        }
    });
    append(log, &input, 0..until, Some((args.rate, began)))?;
    let cpu = child.finish()?;
    let broker = broker_cpu(args);
    let (cpu_before, broker_before) = before.join().unwrap();
    let latencies = reader.join().unwrap();
    stop.store(true, Ordering::Relaxed);
    let mut measured: Vec<_> = latencies.into_iter().skip((args.rate * WARM_UP.as_secs()) as usize).collect();
    measured.sort();
    let at = |share: f64| measured[((measured.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let per_million = 1e6 / (args.rate * args.seconds) as f64;
    let (client, broker) = ((cpu - cpu_before) * per_million, (broker - broker_before) * per_million);
    let (name, p50, p99) = (how.name(), at(0.5), at(0.99));
    println!("{name:<16}{max_wait_ms:>16}{p50:>12.1}{p99:>12.1}{client:>20.2}{broker:>20.2}");
    Ok(())
}

/// The process that transforms.
struct Transform {
    process: OwnedChild,
}

fn start(args: &Args, work: &Work) -> Result<Transform, Box<dyn std::error::Error>> {
    let how = work.how.to_possible_value().expect("every way has a name");
    let kafka_options = args.kafka_option.iter().map(|o| format!("--kafka-option={}={}", o.key, o.value));
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg(args.log.to_string())
        .args(kafka_options)
        .args(["--how", how.get_name(), "--input", &work.input, "--output", &work.output])
        .args(["--max-records", &work.max_records.to_string(), "--max-wait-ms", &work.max_wait_ms.to_string()])
        .args(["--until", &work.until.to_string()])
        .stdout(Stdio::piped());
    Ok(Transform { process: OwnedChild::spawn(&mut command)? })
}

impl Transform {
    /// Waits for its end; returns the CPU time it took.
    fn finish(mut self) -> Result<f64, Box<dyn std::error::Error>> {
        let line = BufReader::new(self.process.stdout.take().expect("a pipe")).lines().next();
        let status = self.process.wait()?;
        match line {
            Some(line) if status.success() => Ok(line?.parse()?),
            _ => Err(format!("the transform ended with {status}").into()),
        }
    }
}

fn broker_cpu(args: &Args) -> f64 {
    args.broker_pid.map_or(0.0, |pid| cpu_seconds_of(&pid.to_string()))
}

fn topic(log: &Arc<dyn Log>, what: &str) -> Result<Arc<str>, Error> {
    let name: Arc<str> = format!("cost-{what}-{}", now_us()).into();
    log.ensure_topic(&TopicSpec { name: name.clone(), partitions: PARTITIONS, retention: None, compacted: false })?;
    Ok(name)
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// Appends readings; at a rate, with the time of their appending in front.
fn append(log: &Arc<dyn Log>, topic: &Arc<str>, numbers: std::ops::Range<u64>, rate: Option<(u64, Instant)>) -> Done {
    let appender = log.clone().appender(Box::new(|completions| assert!(completions.iter().all(|c| c.durable))))?;
    let (mut reading, mut value) = (Reading::default(), String::new());
    for i in numbers {
        if let Some((rate, began)) = rate {
            let due = began + Duration::from_micros(i * 1_000_000 / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        reading.fill(i);
        value.clear();
        value += &format!("{:020}", now_us());
        value += &reading.json;
        let record = Record {
            key: reading.vin.as_bytes(),
            value: Some(value.as_bytes()),
            headers: &[],
            timestamp_ms: 1_795_248_000_000 + i as i64,
        };
        while let Err(error) = appender.append(topic, &record, i) {
            match error {
                AppendError::Full => std::thread::sleep(Duration::from_millis(1)),
                AppendError::Refused(e) => return Err(e.into()),
            }
        }
    }
    assert!(appender.flush(PATIENCE), "everything is written");
    Ok(())
}

/// From the appending of each reading to its being read, in the order of reading.
fn latencies(log: &Arc<dyn Log>, topic: &Arc<str>, count: u64, stop: &AtomicBool) -> Vec<Duration> {
    let ranges = (0..PARTITIONS).map(|partition| Range { topic: topic.clone(), partition, start: 0, end: None });
    let mut reader = log.clone().reader(ranges.collect()).unwrap();
    let mut latencies = Vec::with_capacity(count as usize);
    while latencies.len() < count as usize && !stop.load(Ordering::Relaxed) {
        if let Read::Batch(batch) = reader.next(10_000, Duration::from_millis(100)).unwrap() {
            let now = now_us();
            for r in batch.iter() {
                let appended: u64 = std::str::from_utf8(&r.value.unwrap()[..20]).unwrap().parse().unwrap();
                latencies.push(Duration::from_micros(now.saturating_sub(appended)));
            }
        }
    }
    latencies
}

// ── The transform, exactly once ─────────────────────────────────────────────────────────────────────────────────────

fn exactly_once(log: &Arc<dyn Log>, work: &Work) -> Done {
    let options = ProcessorOptions {
        group: format!("cost-{}", work.output),
        instance: "one".to_owned(),
        topics: vec![work.input.clone()],
    };
    let mut processor = Processor::new(log.clone(), log.clone(), &options)?;
    let (mut outputs, mut positions) = (Outputs::default(), BTreeMap::new());
    let (mut since, mut done, max_wait) = (Instant::now(), 0, Duration::from_millis(work.max_wait_ms));
    while done < work.until {
        let timeout = if positions.is_empty() { PATIENCE } else { max_wait.saturating_sub(since.elapsed()) };
        let room = work.max_records - outputs.len();
        let due = match processor.next(room, timeout)? {
            Event::Batch(batch) => {
                if positions.is_empty() {
                    since = Instant::now();
                }
                for r in batch.iter() {
                    let record = Record { key: r.key, value: r.value, headers: &[], timestamp_ms: r.timestamp_ms };
                    outputs.push(&work.output, batch.partition(), &record);
                }
                positions.insert(batch.partition(), batch.next_offset().expect("a batch is not empty"));
                !max_wait.is_zero() && since.elapsed() >= max_wait
            }
            event => matches!(event, Event::Idle) && !positions.is_empty(),
        };
        if due || outputs.len() >= work.max_records || done + outputs.len() as u64 >= work.until {
            let list = std::mem::take(&mut positions).into_iter();
            let list = list.map(|(partition, offset)| Position { topic: work.input.clone(), partition, offset });
            assert_eq!(processor.commit(&outputs, &list.collect::<Vec<_>>())?, Outcome::Committed);
            done += outputs.len() as u64;
            outputs = Outputs::default();
        }
    }
    Ok(())
}

// ── The transform, at least once ────────────────────────────────────────────────────────────────────────────────────

const DRAIN_PAUSE: Duration = Duration::from_micros(500);

fn at_least_once(url: &LogUrl, work: &Work) -> Done {
    let LogUrl::Kafka { bootstrap } = url else { return Err(format!("{url} is not Kafka").into()) };
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", format!("cost-{}", work.output))
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("queued.max.messages.kbytes", "32768")
        .set("fetch.queue.backoff.ms", "20")
        .create()?;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", "lz4")
        .set("linger.ms", "2")
        .set("delivery.report.only.error", "true")
        .set("queue.buffering.max.messages", "1000000")
        .create()?;
    consumer.subscribe(&[&work.input])?;
    let (mut pending, mut positions) = (0, BTreeMap::new());
    let (mut since, mut done, max_wait) = (Instant::now(), 0, Duration::from_millis(work.max_wait_ms));
    while done < work.until {
        let timeout = if pending == 0 { PATIENCE } else { max_wait.saturating_sub(since.elapsed()) };
        let message = consumer.poll(timeout).transpose()?;
        let due = match &message {
            Some(_) => !max_wait.is_zero() && pending % 64 == 63 && since.elapsed() >= max_wait,
            None => pending > 0,
        };
        if let Some(message) = message {
            if pending == 0 {
                since = Instant::now();
            }
            let record = BaseRecord::to(&work.output)
                .partition(message.partition())
                .key(message.key().unwrap_or_default())
                .payload(message.payload().unwrap_or_default())
                .timestamp(message.timestamp().to_millis().unwrap_or_default());
            producer.send(record).map_err(|(error, _)| error)?;
            positions.insert(message.partition(), message.offset() + 1);
            pending += 1;
        }
        if due || pending >= work.max_records || done + pending as u64 >= work.until {
            // As the processor waits: the binding's poll with a time-out spins for a millisecond, which would count
            // here.
            while producer.in_flight_count() > 0 {
                producer.poll(Duration::ZERO);
                std::thread::sleep(DRAIN_PAUSE);
            }
            let mut list = TopicPartitionList::new();
            for (partition, offset) in std::mem::take(&mut positions) {
                list.add_partition_offset(&work.input, partition, Offset::Offset(offset))?;
            }
            consumer.commit(&list, CommitMode::Sync)?;
            done += pending as u64;
            pending = 0;
        }
    }
    Ok(())
}
