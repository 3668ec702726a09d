//! How fast a log is, and what it costs: run by hand, on a machine that does nothing else.
//!
//! ```text
//! cargo run --release -p event-log --example log_bench -- [kafka://HOST:PORT | DIRECTORY] [RECORDS]
//! ```
//!
//! Appends records like readings (530 bytes of JSON, headers included), copies them to another topic in transactions
//! of 5,000, and reads them. CPU is that of this process; with Kafka the broker's comes on top.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use event_log::*;

const PARTITIONS: u32 = 4;
const BATCH: usize = 5000;
const CARS: u64 = 500;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
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
                processor.commit(&outputs, &positions)?;
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

/// A reading as text: numbers that change, names that don't, about as compressible as a real one.
#[derive(Default)]
struct Reading {
    vin: String,
    mqtt_topic: String,
    json: String,
}

impl Reading {
    fn fill(&mut self, i: u64) {
        use std::fmt::Write;
        // Noise for the digits: a multiplicative hash is enough.
        let mut state = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut noise = move |n: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) % n
        };
        let car = i % CARS;
        self.vin.clear();
        let _ = write!(self.vin, "WVWZZZ1JZ3W{car:06}");
        self.mqtt_topic.clear();
        let _ = write!(self.mqtt_topic, "vehicles/{}/telemetry", self.vin);
        self.json.clear();
        let _ = write!(self.json, "{{\"vin\":\"{}\",\"boot_id\":{},\"seq\":{}", self.vin, car * 7, i / CARS);
        for field in [
            "coolant_temp",
            "intake_air_temp",
            "intake_air_flow_speed",
            "battery_percentage",
            "battery_voltage",
            "current_draw",
            "speed",
            "engine_vibration_amplitude",
            "throttle_pos",
            "tire_pressure_11",
            "tire_pressure_12",
            "accelerometer_11_value",
            "accelerometer_12_value",
        ] {
            let _ = write!(self.json, ",\"{field}\":{}.{:04}", noise(100), noise(10_000));
        }
        self.json.push('}');
    }
}

/// User and system time of this process; Linux counts it in hundredths of a second.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// The largest resident memory so far.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) / 1024
}
