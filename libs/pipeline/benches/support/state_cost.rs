//! Measures what the state of a transform costs: bytes per car, and the time to write it and to restore it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use event_log::{Batch, Log, LogUrl, Record, TopicSpec};
use pipeline::{Emit, Metrics, Options, Transform};
use prometheus_client::registry::Registry;
use test_support::measurement;
use tokio_util::sync::CancellationToken;

const PARTITIONS: u32 = 4;

/// The state of a partition, or of a whole fleet.
pub(crate) trait State: Send + Sized {
    /// The state of these cars.
    fn of(cars: Range<usize>) -> Self;
    fn to_bytes(&self) -> Vec<u8>;
    fn from_bytes(bytes: &[u8]) -> anyhow::Result<Self>;
}

/// State that its first record makes, and that is stored and restored as the stage's own.
struct Fleet<S> {
    cars: usize,
    partitions: HashMap<u32, S>,
    applied: Arc<AtomicUsize>,
}

impl<S: State> Transform for Fleet<S> {
    fn reset(&mut self, _topic: &Arc<str>, partition: u32) {
        self.partitions.remove(&partition);
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn snapshot(&self, _topic: &Arc<str>, partition: u32) -> Vec<u8> {
        self.partitions[&partition].to_bytes()
    }

    fn restore(&mut self, _topic: &Arc<str>, partition: u32, snapshot: &[u8]) -> anyhow::Result<()> {
        self.partitions.insert(partition, S::from_bytes(snapshot)?);
        Ok(())
    }

    fn apply(&mut self, batch: &Batch, _emit: &mut Emit) -> anyhow::Result<()> {
        let cars = self.cars / PARTITIONS as usize;
        let first = batch.partition() as usize * cars;
        self.partitions.entry(batch.partition()).or_insert_with(|| S::of(first..first + cars));
        self.applied.fetch_add(batch.len(), Ordering::SeqCst);
        Ok(())
    }
}

/// Measures as many cars as the first argument says; 100,000 without one.
pub(crate) fn run<S: State>() -> anyhow::Result<()> {
    let cars = measurement::arguments().nth(1).map_or(Ok(100_000), |cars| cars.parse())?;
    let directory = std::env::temp_dir().join(format!("state-cost-{}", std::process::id()));
    let measured = measure::<S>(cars, &event_log::open(&LogUrl::Directory(directory.clone()), &[])?);
    std::fs::remove_dir_all(directory)?;
    measured
}

fn measure<S: State>(cars: usize, log: &Arc<dyn Log>) -> anyhow::Result<()> {
    for (name, compacted) in [("in", false), ("state", true)] {
        log.ensure_topic(&TopicSpec { name: name.into(), partitions: PARTITIONS, retention: None, compacted })?;
    }
    let before = resident_bytes();
    let state = S::of(0..cars);
    let memory = resident_bytes().saturating_sub(before);
    let began = Instant::now();
    let bytes = state.to_bytes();
    let taking = began.elapsed();
    drop(state);
    println!("{cars} cars in {PARTITIONS} partitions");
    println!("in memory       {:8.1} MB  {:6.0} bytes a car", memory as f64 / 1e6, memory as f64 / cars as f64);
    println!(
        "snapshot        {:8.1} MB  {:6.0} bytes a car",
        bytes.len() as f64 / 1e6,
        bytes.len() as f64 / cars as f64
    );
    println!("to bytes        {:8.0} ms", taking.as_secs_f64() * 1e3);
    drop(bytes);
    let (_, first_stop) = run_stage::<S>(cars, log)?;
    println!(
        "written         {:8.0} ms  at a stop: to bytes, hashed, committed, all partitions",
        first_stop.as_secs_f64() * 1e3
    );
    let (start, _) = run_stage::<S>(cars, log)?;
    println!("restored        {:8.0} ms  from the start of the stage to its first record", start.as_secs_f64() * 1e3);
    Ok(())
}

/// Runs the loop over one record per partition. Returns how long it took to the first one, and to stop.
fn run_stage<S: State>(cars: usize, log: &Arc<dyn Log>) -> anyhow::Result<(Duration, Duration)> {
    let appender = log.clone().appender(Box::new(|_| {}))?;
    for key in 0..4 * PARTITIONS {
        let key = key.to_string();
        let record = Record { key: key.as_bytes(), value: None, headers: &[], timestamp_ms: 0 };
        appender.append(&"in".into(), &record, 0)?;
    }
    appender.flush(Duration::from_secs(10));
    let options = Options {
        source: log.clone(),
        target: log.clone(),
        group: "g".into(),
        instance: "1".into(),
        topics: vec!["in".into()],
        tables: Vec::new(),
        outputs: Vec::new(),
        dead_letter: None,
        state: Some("state".into()),
        gaps: None,
        accept_gap: false,
        snapshot_records: pipeline::SNAPSHOT_RECORDS,
        max_records: 1000,
        max_wait: Duration::from_millis(5),
    };
    let mut fleet = Fleet::<S> { cars, partitions: HashMap::new(), applied: Arc::default() };
    let (applied, metrics) = (fleet.applied.clone(), Metrics::new(&mut Registry::default(), "test"));
    let stop = CancellationToken::new();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let stage = scope.spawn(|| pipeline::run(options, &mut fleet, &metrics, &stop));
        while applied.load(Ordering::SeqCst) == 0 && !stage.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let start = began.elapsed();
        while applied.load(Ordering::SeqCst) < 4 * PARTITIONS as usize && !stage.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let stopping = Instant::now();
        stop.cancel();
        stage.join().map_err(|_| anyhow::anyhow!("the stage panicked"))??;
        anyhow::ensure!(metrics.snapshots.get() == u64::from(PARTITIONS), "a partition got no record");
        Ok((start, stopping.elapsed()))
    })
}

/// What this process has in memory; 0 where the system does not tell (not Linux).
fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    pages.and_then(|s| s.split_whitespace().nth(1)?.parse::<usize>().ok()).map_or(0, |pages| pages * 4096)
}
