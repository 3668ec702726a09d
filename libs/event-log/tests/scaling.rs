//! Several instances of a stage on Kafka, as processes: started, stopped, killed and suspended under load.
//!
//! Whatever is done to them, every record of the input is in the output once, in the order of its partition. Needs
//! `CARSTREAM_TEST_KAFKA=HOST:PORT`.
//!
//! Short in CI. For long: `CARSTREAM_TEST_SCALING_S=600 CARSTREAM_TEST_SCALING_SEED=7`, and for a broker that is killed
//! and paused too, `CARSTREAM_TEST_SCALING_BROKER=1` with `CARSTREAM_TEST_KAFKA_SCRIPT`.

#![allow(clippy::unwrap_used)]

mod support;

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use event_log::*;
use support::broker::Broker;
use support::worker::{Job, Said, Worker, work_if_asked};
use support::*;
use test_support::random::Random;

/// Instances go without a word here, and the others wait for it: as short as a broker allows.
const SHORT_SESSIONS: &str = "session.timeout.ms=6000,transaction.timeout.ms=10000";
/// The broker ends a transaction of a member that the group still knows.
const SHORT_TRANSACTIONS: &str = "session.timeout.ms=60000,transaction.timeout.ms=5000,linger.ms=1000";
/// Longer than from one transaction to the next, shorter than its records linger.
const A_WHILE: Duration = Duration::from_millis(400);
/// Longer than a session.
const LONG_PAUSE: Duration = Duration::from_millis(8500);
/// Longer than a transaction may be open, and than the broker takes to notice.
const VERY_LONG_PAUSE: Duration = Duration::from_secs(21);
const PARTITIONS: u32 = 6;
const NAMES: [&str; 4] = ["one", "two", "three", "four"];
/// So many live on whatever is done to the others.
const AT_LEAST: usize = 2;
/// Records per second.
const LOAD: u64 = 1500;

#[test]
fn an_instance() {
    work_if_asked();
}

#[test]
fn an_instance_that_was_killed_goes_on_at_once() {
    let Some(backend) = kafka() else { return };
    // As in production: who had to wait for the end of a session would wait for 30 s.
    let (log, job) = job(&backend.url, "");
    let load = Load::start(&log, &job.input);
    let other = Worker::start(&job, NAMES[0]);
    let mut worker = Worker::start(&job, NAMES[1]);
    let mut times = Vec::new();
    for _ in 0..4 {
        wait_until("both work", || other.said().commits > 0 && worker.said().commits > 9);
        worker.kill();
        worker = Worker::start(&job, NAMES[1]);
        wait_until("it commits again", || worker.said().first_commit.is_some());
        times.push(worker.said().first_commit.unwrap());
    }
    println!("from the start of a killed instance to its first commit: {times:.2?}");
    let generous = Duration::from_secs(20);
    assert!(times[1..].iter().all(|t| *t < generous), "a restart waited for the end of its session: {times:?}");
    assert_appended(&log, &job.input, &load.stop());
    drained(&log, &job);
    assert_eq!(other.stop().error, None);
    assert_eq!(worker.stop().error, None);
    assert_copied(&log, &job);
}

#[test]
fn an_instance_that_was_suspended_within_a_transaction_goes_on() {
    let Some(backend) = kafka() else { return };
    let (log, mut job) = job(&backend.url, SHORT_TRANSACTIONS);
    job.max_records = 20_000;
    let values: Vec<_> = (0..100_000).map(|i| i.to_string()).collect();
    append_all(&log, &job.input, values.iter().map(|v| record(v, v)));
    let worker = Worker::start(&job, NAMES[0]);
    wait_until("it works", || worker.said().commits > 0);
    std::thread::sleep(A_WHILE); // the next transaction is open
    worker.pause();
    std::thread::sleep(VERY_LONG_PAUSE);
    worker.resume();
    // The broker has ended its transaction, as it would end one of an instance that was replaced.
    drained(&log, &job);
    let said = worker.stop();
    assert_eq!(said.error, None, "nobody has taken over");
    assert!(said.rollbacks + said.restarts > 0, "it was not within a transaction");
    assert_copied(&log, &job);
}

#[test]
fn instances_come_and_go_under_load() {
    let Some(backend) = kafka() else { return };
    let broker = if std::env::var_os("CARSTREAM_TEST_SCALING_BROKER").is_some() { Broker::start() } else { None };
    let (seed, time) = (setting("CARSTREAM_TEST_SCALING_SEED", SEED), setting("CARSTREAM_TEST_SCALING_S", 0));
    println!("CARSTREAM_TEST_SCALING_SEED={seed} CARSTREAM_TEST_SCALING_S={time}");
    let url = broker.as_ref().map_or(&backend.url, |b| &b.url);
    let (log, job) = job(url, SHORT_SESSIONS);
    let load = Load::start(&log, &job.input);
    let mut fleet = Fleet::start(&job, seed);

    let until = Instant::now() + Duration::from_secs(time);
    let mut kinds = Kind::ALL.to_vec();
    loop {
        // Every kind, in an order of the seed's; then again.
        fleet.random.shuffle(&mut kinds);
        for kind in &kinds {
            fleet.suffer(*kind);
            if let Some(broker) = &broker {
                fleet.broker(broker);
            }
        }
        if Instant::now() >= until {
            break;
        }
    }
    assert_appended(&log, &job.input, &load.stop());
    fleet.heal();
    drained(&log, &job);
    fleet.stop();
    let records = assert_copied(&log, &job);
    println!("{records} records, each copied once");
}

/// The plan that this test has had since it exists: what was seed 4 before the generator was shared. Seed 4 of today
/// was seen to end with positions that cannot be read for longer than this test waits, as after the transaction that
/// hangs in Kafka (docs/limits.md).
const SEED: u64 = 0x0bc1_6021_7309_4ae7;

fn setting<T: FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().map_or(default, |value| value.parse().ok().unwrap_or_else(|| panic!("{name}={value}")))
}

fn job(url: &LogUrl, kafka_options: &'static str) -> (Arc<dyn Log>, Job) {
    let log = event_log::open(url, &[]).unwrap();
    let (input, output) = (topic(&*log, "input", PARTITIONS), topic(&*log, "output", PARTITIONS));
    let (url, group) = (url.clone(), unique("group"));
    let max_records = 200; // small: a fault hits a commit as likely as not
    (log, Job { entry: "an_instance", url, kafka_options, input, output, group, max_records })
}

/// Appends numbered records at a steady rate, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    completions: Completions,
    thread: std::thread::JoinHandle<()>,
}

impl Load {
    fn start(log: &Arc<dyn Log>, topic: &Arc<str>) -> Self {
        narrate();
        let (stop, completions) = (Arc::new(AtomicBool::new(false)), Completions::default());
        let appender = log.clone().appender(completions.callback()).unwrap();
        let (topic, told) = (topic.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let (started, mut sent) = (Instant::now(), 0);
            while !told.load(Ordering::Relaxed) {
                let due = started.elapsed().as_millis() as u64 * LOAD / 1000;
                while sent < due {
                    let (key, value) = (format!("car {}", sent % 97), sent.to_string());
                    append(&*appender, &topic, &record(&key, &value), sent);
                    sent += 1;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(appender.flush(PATIENCE * 3), "everything completes");
        });
        Self { stop, completions, thread }
    }

    /// What became of each record, after the last one.
    fn stop(self) -> Vec<Completion> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.completions.all()
    }
}

/// Durable records are in the topic once; others once at most.
fn assert_appended(log: &Arc<dyn Log>, topic: &Arc<str>, completions: &[Completion]) {
    let mut copies = vec![0; completions.len()];
    for record in read_topic(log, topic).into_iter().flatten() {
        copies[record.value.unwrap().parse::<usize>().unwrap()] += 1;
    }
    for c in completions {
        let copies = copies[c.token as usize];
        assert!(copies == 1 || copies == 0 && !c.durable, "record {} is there {copies} times: {c:?}", c.token);
    }
    let lost = completions.iter().filter(|c| !c.durable).count();
    println!("{} records were appended, {lost} were given back as not durable", completions.len());
}

/// Waits until the group has processed everything.
fn drained(log: &Arc<dyn Log>, job: &Job) {
    let ends: Vec<_> = log.describe(&job.input).unwrap().partitions.iter().map(|p| Some(p.next)).collect();
    wait_until("everything is processed", || log.committed(&job.group, &job.input).is_ok_and(|c| c == ends));
}

/// The output is the input, record for record in each partition. Returns how many there are.
fn assert_copied(log: &Arc<dyn Log>, job: &Job) -> usize {
    let records = |topic| -> Vec<Vec<_>> {
        read_topic(log, topic).into_iter().map(|p| p.into_iter().map(|r| (r.key, r.value)).collect()).collect()
    };
    let (input, mut output) = (records(&job.input), records(&job.output));
    wait_until("the last commits are visible", || {
        output = records(&job.output);
        output.iter().map(Vec::len).sum::<usize>() >= input.iter().map(Vec::len).sum()
    });
    for (partition, (input, output)) in input.iter().zip(&output).enumerate() {
        let differs = input.iter().zip(output).position(|(i, o)| i != o);
        assert_eq!(differs, None, "partition {partition}: lost, doubled or moved");
        assert_eq!(input.len(), output.len(), "partition {partition}");
    }
    input.iter().map(Vec::len).sum()
}

/// What is done to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// kill -9, and started again at once.
    Kill,
    /// kill -9, and started again after its session.
    Lose,
    /// Stopped as by a signal, and started again at once.
    Restart,
    /// Stopped as by a signal, and another time started again.
    Remove,
    /// Suspended for less than a session.
    Pause,
    /// Suspended for longer: its partitions move.
    PauseLong,
    /// Suspended so long that the broker aborts its transaction.
    PauseVeryLong,
    /// A second process with its name is started.
    Double,
}

impl Kind {
    const ALL: [Kind; 8] = [
        Kind::Kill,
        Kind::Lose,
        Kind::Restart,
        Kind::Remove,
        Kind::Pause,
        Kind::PauseLong,
        Kind::PauseVeryLong,
        Kind::Double,
    ];
}

/// The instances, and those that are about to come back.
struct Fleet<'j> {
    job: &'j Job,
    random: Random,
    live: Vec<Worker>,
    away: Vec<(Instant, Away)>,
    restarts: Vec<Duration>,
    /// Of instances that have ended: transactions rolled back, and starts from the last commit.
    ended: (u64, u64),
}

enum Away {
    Gone(&'static str),
    Paused(Worker),
}

impl<'j> Fleet<'j> {
    fn start(job: &'j Job, seed: u64) -> Self {
        let live: Vec<_> = NAMES.iter().map(|name| Worker::start(job, name)).collect();
        wait_until("all instances work", || live.iter().all(|w| w.said().commits > 0));
        Self { job, random: Random::new(seed), live, away: Vec::new(), restarts: Vec::new(), ended: (0, 0) }
    }

    /// Takes an instance that lives, when enough others do.
    fn victim(&mut self) -> Worker {
        loop {
            self.come_back();
            if self.live.len() > AT_LEAST {
                let i = self.random.index(self.live.len());
                return self.live.swap_remove(i);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn suffer(&mut self, kind: Kind) {
        let wait = Duration::from_millis(200 + self.random.below(1300));
        std::thread::sleep(wait);
        let mut worker = self.victim();
        let name = worker.name;
        println!("{kind:?} {name}");
        match kind {
            Kind::Kill => {
                self.note(&worker.kill());
                self.restart(name);
            }
            Kind::Lose => {
                self.note(&worker.kill());
                self.away.push((Instant::now() + LONG_PAUSE, Away::Gone(name)));
            }
            Kind::Restart => {
                self.note(&worker.stop());
                self.restart(name);
            }
            Kind::Remove => {
                self.note(&worker.stop());
                self.away.push((Instant::now() + LONG_PAUSE, Away::Gone(name)));
            }
            Kind::Pause | Kind::PauseLong | Kind::PauseVeryLong => {
                worker.pause();
                let time = match kind {
                    Kind::Pause => Duration::from_secs(2),
                    Kind::PauseLong => LONG_PAUSE,
                    _ => VERY_LONG_PAUSE,
                };
                self.away.push((Instant::now() + time, Away::Paused(worker)));
            }
            Kind::Double => {
                self.restart(name);
                assert!(!worker.wait().success(), "{name} makes way for the second of its name");
                let why = worker.said().error.expect("it says why");
                assert!(why.contains("another process with this name"), "{name}: {why}");
                self.note(&worker.said());
            }
        }
    }

    fn broker(&mut self, broker: &Broker) {
        match self.random.below(6) {
            0 => {
                println!("kill the broker");
                broker.kill();
                broker.start_again();
            }
            1 => {
                let time = Duration::from_millis(1000 + self.random.below(14_000));
                println!("pause the broker for {time:?}");
                broker.pause();
                std::thread::sleep(time);
                broker.resume();
            }
            _ => {}
        }
    }

    fn note(&mut self, said: &Said) {
        self.ended.0 += said.rollbacks;
        self.ended.1 += said.restarts;
    }

    /// Starts an instance and waits until it commits.
    fn restart(&mut self, name: &'static str) {
        let worker = Worker::start(self.job, name);
        wait_until("a started instance commits", || worker.said().first_commit.is_some());
        self.restarts.extend(worker.said().first_commit);
        self.live.push(worker);
    }

    fn come_back(&mut self) {
        let now = Instant::now();
        while let Some(i) = self.away.iter().position(|(when, _)| *when <= now) {
            match self.away.swap_remove(i).1 {
                Away::Gone(name) => self.live.push(Worker::start(self.job, name)),
                Away::Paused(worker) => {
                    worker.resume();
                    self.live.push(worker);
                }
            }
        }
        for worker in &mut self.live {
            assert!(!worker.has_ended(), "{} ended: {:?}", worker.name, worker.said().error);
        }
    }

    /// Waits until everyone is back.
    fn heal(&mut self) {
        wait_until("everyone is back", || {
            self.come_back();
            self.away.is_empty()
        });
    }

    fn stop(mut self) {
        self.come_back();
        let mut restarts = std::mem::take(&mut self.restarts);
        restarts.sort();
        println!("from the start of an instance to its first commit, while others come and go: {restarts:.2?}");
        for worker in std::mem::take(&mut self.live) {
            self.note(&worker.stop());
        }
        println!("{} transactions were rolled back; instances started over {} times", self.ended.0, self.ended.1);
    }
}
