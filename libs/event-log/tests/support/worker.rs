//! One instance of a stage, as a process: it copies a topic to another as the stages do, and says what it has done.
//!
//! It is this test binary again, started with what to do in its environment.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read as _, Write};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_log::*;
use test_support::process::OwnedChild;

use super::{copied, wait_until};

const LOG: &str = "CARSTREAM_WORKER_LOG";
const OPTIONS: &str = "CARSTREAM_WORKER_KAFKA_OPTIONS";
const TOPICS: &str = "CARSTREAM_WORKER_TOPICS";
const GROUP: &str = "CARSTREAM_WORKER_GROUP";
const INSTANCE: &str = "CARSTREAM_WORKER_INSTANCE";
const MAX_RECORDS: &str = "CARSTREAM_WORKER_MAX_RECORDS";

/// A commit is due this long after the first record.
const MAX_WAIT: Duration = Duration::from_millis(20);
/// Before what may pass is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// What the workers of one group have in common.
#[derive(Clone)]
pub struct Job {
    /// The test that calls [`work_if_asked`].
    pub entry: &'static str,
    pub url: LogUrl,
    pub kafka_options: &'static str,
    pub input: Arc<str>,
    pub output: Arc<str>,
    pub group: Arc<str>,
    /// A commit is due after this many records.
    pub max_records: usize,
}

/// A worker that runs, or has run.
pub struct Worker {
    pub name: &'static str,
    child: OwnedChild,
    stdin: Option<ChildStdin>,
    said: Arc<Mutex<Said>>,
    listener: Option<JoinHandle<()>>,
}

/// The worker's output so far.
#[derive(Default, Clone)]
pub struct Said {
    /// From its start to its first commit.
    pub first_commit: Option<Duration>,
    pub commits: u64,
    pub rollbacks: u64,
    /// How often it started over after something that may pass.
    pub restarts: u64,
    /// Why it ended, if by an error.
    pub error: Option<String>,
}

impl Worker {
    pub fn start(job: &Job, name: &'static str) -> Self {
        let started = Instant::now();
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command
            .args(["--exact", job.entry, "--nocapture", "--test-threads", "1"])
            .env(LOG, job.url.to_string())
            .env(OPTIONS, job.kafka_options)
            .env(TOPICS, format!("{} {}", job.input, job.output))
            .env(GROUP, &*job.group)
            .env(INSTANCE, name)
            .env(MAX_RECORDS, job.max_records.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = OwnedChild::spawn(&mut command).expect("the worker starts");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("a pipe"));
        let said = Arc::new(Mutex::new(Said::default()));
        let heard = said.clone();
        let listener = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let mut said = heard.lock().expect("no panic");
                match line.split_once(' ').unwrap_or((&line, "")) {
                    ("committed", _) => {
                        said.commits += 1;
                        said.first_commit.get_or_insert(started.elapsed());
                    }
                    ("rolled-back", _) => said.rollbacks += 1,
                    ("started-over", why) => {
                        said.restarts += 1;
                        println!("{name} starts over: {why}");
                    }
                    ("ended", why) => said.error = Some(why.to_owned()),
                    _ => {} // the test harness
                }
            }
        });
        Self { name, child, stdin, said, listener: Some(listener) }
    }

    pub fn said(&self) -> Said {
        self.said.lock().expect("no panic").clone()
    }

    pub fn pause(&self) {
        self.child.signal("STOP");
    }

    pub fn resume(&self) {
        self.child.signal("CONT");
    }

    /// kill -9.
    pub fn kill(mut self) -> Said {
        self.child.kill().expect("it is killed");
        self.wait();
        self.said()
    }

    /// Tells it to stop, as a signal tells a stage, and waits until it has.
    pub fn stop(mut self) -> Said {
        drop(self.stdin.take());
        let status = self.wait();
        assert!(status.success(), "{} stopped with {status}: {:?}", self.name, self.said().error);
        self.said()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        wait_until("a worker ends", || self.has_ended());
        if let Some(listener) = self.listener.take() {
            listener.join().expect("everything that it said is heard");
        }
        self.child.wait().expect("a child")
    }
}

/// In a process that [`Worker::start`] started: works until told to stop. Otherwise nothing.
pub fn work_if_asked() {
    let Ok(url) = std::env::var(LOG) else { return };
    super::narrate();
    let get = |name| std::env::var(name).expect("set by the parent");
    let kafka_options: Vec<KafkaOption> =
        get(OPTIONS).split_terminator(',').map(|o| o.parse().expect("KEY=VALUE")).collect();
    let log = event_log::open(&url.parse().expect("a URL"), &kafka_options).expect("the log opens");
    let topics = get(TOPICS);
    let (input, output) = topics.split_once(' ').expect("two topics");
    let options = ProcessorOptions { group: get(GROUP), instance: get(INSTANCE), topics: vec![input.into()] };
    let output: Arc<str> = output.into();
    let max_records = get(MAX_RECORDS).parse().expect("a number");
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]); // ends when the parent closes it, or is gone
        told.store(true, Ordering::Relaxed);
    });
    while !stop.load(Ordering::Relaxed) {
        match work(&log, &options, &output, max_records, &stop) {
            Ok(()) => {}
            Err(e) if e.is_retriable() => {
                let cause = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
                say(&format!("started-over {e}: {cause}\n"));
                std::thread::sleep(PAUSE);
            }
            Err(e) => {
                say(&format!("ended {e}\n"));
                std::process::exit(1);
            }
        }
    }
    std::process::exit(0);
}

/// The loop of the stages.
fn work(
    log: &Arc<dyn Log>,
    options: &ProcessorOptions,
    output: &Arc<str>,
    max_records: usize,
    stop: &AtomicBool,
) -> Result<(), Error> {
    let mut processor = Processor::new(log.clone(), log.clone(), options)?;
    let mut pending = Pending::default();
    while !stop.load(Ordering::Relaxed) {
        match processor.next(max_records, MAX_WAIT)? {
            Event::Batch(batch) => {
                if pending.positions.is_empty() {
                    pending.since = Some(Instant::now());
                }
                copied(&batch, output, &mut pending.outputs);
                let partition = batch.at();
                pending.positions.insert(partition, batch.next_offset().expect("a batch is not empty"));
            }
            Event::Assigned(_) | Event::Revoked(_) => pending.commit(&mut processor)?,
            Event::Idle => {}
        }
        let late = pending.since.is_some_and(|since| since.elapsed() >= MAX_WAIT);
        if late || pending.outputs.len() >= max_records {
            pending.commit(&mut processor)?;
        }
    }
    pending.commit(&mut processor)
}

#[derive(Default)]
struct Pending {
    outputs: Outputs,
    positions: BTreeMap<TopicPartition, u64>,
    since: Option<Instant>,
}

impl Pending {
    fn commit(&mut self, processor: &mut Processor) -> Result<(), Error> {
        let Pending { outputs, positions, .. } = std::mem::take(self);
        if positions.is_empty() {
            return Ok(());
        }
        let positions: Vec<_> = positions
            .into_iter()
            .map(|(p, offset)| Position { topic: p.topic, partition: p.partition, offset })
            .collect();
        match processor.commit(&outputs, &positions)? {
            Outcome::Committed => say("committed\n"),
            Outcome::RolledBack => say("rolled-back\n"),
        }
        Ok(())
    }
}

/// Not `print!`, which the test harness may keep to itself. A parent that is gone is noticed elsewhere.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
