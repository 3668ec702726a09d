//! The loop, with a transform that has no state and one that has.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use event_log::{Batch, Log, Outputs, Record, TopicSpec};
use pipeline::{Emit, Metrics, Options, Transform};
use prometheus_client::registry::Registry;
use test_support::random::Random;
use whole_pipeline_tests::faults::{ClusterHandle, Process, Role};

use crate::oracle::{self, Found, Place};
use crate::{Lie, Ran, Setting, stopped_by};

const IN: &str = "in";
const OUT: &str = "out";
const DEAD: &str = "dead";
const STATE: &str = "state";
const GROUP: &str = "g";

/// Each record becomes one that names it, or a dead letter.
pub(crate) fn stateless(setting: &Setting) -> Ran {
    run(setting, false)
}

/// Each record of a key becomes one that counts them, and names the one before: all of it from state. The rules by
/// which they are counted change meanwhile, as a scorer's model does.
pub(crate) fn stateful(setting: &Setting) -> Ran {
    run(setting, true)
}

/// What one run is like, besides its faults.
struct Shape {
    partitions: u32,
    instances: usize,
    max_records: usize,
    snapshot_records: u64,
    /// After so many records the rules change.
    rules_for: u64,
    input: Vec<Outputs>,
}

impl Shape {
    fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x005e_ed0f_5a6e);
        let partitions = random.between(1, 4) as u32;
        let keys = random.between(1, 8);
        let mut input = Vec::new();
        let mut seqs = BTreeMap::new();
        for _ in 0..random.between(1, 8) {
            let mut piece = Outputs::default();
            for _ in 0..random.between(1, 10) {
                let key = random.below(keys);
                let seq: &mut u64 = seqs.entry(key).or_default();
                *seq += 1;
                let value = format!("{}{seq}", if random.chance(1, 10) { "bad " } else { "" });
                oracle::put(&mut piece, &IN.into(), partitions, &format!("k{key}"), value.as_bytes());
            }
            input.push(piece);
        }
        Self {
            partitions,
            instances: random.between(1, 3) as usize,
            max_records: random.between(1, 8) as usize,
            snapshot_records: *random.one_of(&[1, 1, 3, 6, 1000]),
            rules_for: *random.one_of(&[3, 8, 20, u64::MAX]),
            input,
        }
    }
}

fn run(setting: &Setting, is_stateful: bool) -> Ran {
    let shape = Shape::draw(setting.seed);
    let simulation = setting.simulation();
    let cluster = simulation.cluster(setting.inner.clone(), &setting.namespace);
    let log = cluster.log();
    // Not as many of the state: snapshots of several partitions share one.
    for (name, partitions, compacted) in
        [(IN, shape.partitions, false), (OUT, 2, false), (DEAD, 1, false), (STATE, 2, true)]
    {
        log.ensure_topic(&TopicSpec { name: name.into(), partitions, retention: None, compacted }).unwrap();
    }
    let (of_role, lie) = (cluster.clone(), setting.lie);
    let (max_records, snapshot_records) = (shape.max_records, shape.snapshot_records);
    let rules = Rules { applied: Arc::default(), last_for: shape.rules_for };
    let role = Role {
        name: "stage",
        instances: shape.instances,
        drains: false,
        run: Arc::new(move |process| {
            let options = Options { max_records, snapshot_records, ..options(process, &of_role, lie) };
            let shutdown = stopped_by(process);
            let metrics = Metrics::new(&mut Registry::default(), "stage");
            let ran = if is_stateful {
                let mut count = Count { lie, rules: rules.clone(), successor: None, seen: HashMap::new() };
                pipeline::run(options, &mut count, &metrics, &shutdown)
            } else {
                pipeline::run(options, &mut Name, &metrics, &shutdown)
            };
            ran.map_err(|error| format!("{error:#}"))
        }),
    };
    let input = shape.input.into_iter().map(|piece| (cluster.clone(), piece)).collect();
    let drained = vec![cluster.drained(&cluster, GROUP, &[IN.into()])];
    let report = simulation.run(vec![role], input, drained);
    Ran { report, findings: judge(&log, is_stateful) }
}

fn options(process: &Process, cluster: &ClusterHandle, lie: Lie) -> Options {
    let log = lie.log(process.log(cluster));
    Options {
        source: log.clone(),
        target: log,
        group: GROUP.into(),
        instance: process.instance().into(),
        topics: vec![IN.into()],
        tables: Vec::new(),
        outputs: vec![OUT.into()],
        dead_letter: Some(DEAD.into()),
        state: Some(STATE.into()),
        gaps: None,
        accept_gap: false,
        snapshot_records: 1,
        max_records: 1,
        // Never: a batch ends when it is full, or when nothing more comes.
        max_wait: Duration::from_secs(24 * 3600),
    }
}

fn judge(log: &Arc<dyn Log>, is_stateful: bool) -> Vec<String> {
    let (all, out, dead) = (oracle::contents(log, IN), oracle::contents(log, OUT), oracle::contents(log, DEAD));
    let (bad, good): (Vec<_>, Vec<_>) = all.iter().partition(|found| found.text().starts_with("bad"));
    let made: Vec<_> = out.iter().map(|found| (found, Made::parse(&found.text()))).collect();
    let mut findings = oracle::once_each(IN, good.iter().copied(), made.iter().map(|(_, made)| made.of));
    findings.extend(oracle::once_each(IN, bad.into_iter(), dead.iter().filter_map(Found::origin)));
    findings.extend(oracle::in_order(IN, made.iter().map(|(found, made)| (&*found.key, made.of.1))));
    if is_stateful {
        let mut last: BTreeMap<&str, (u64, i64)> = BTreeMap::new();
        let mut expected = BTreeMap::new();
        for found in good {
            let (count, before) = last.get(&*found.key).copied().unwrap_or((0, -1));
            expected.insert(found.place(), (count + 1, before));
            last.insert(&found.key, (count + 1, found.offset as i64));
        }
        let mut rules_at = BTreeMap::new();
        for (found, made) in &made {
            let (count, before) = made.state;
            rules_at.insert(made.of, count / RULES);
            let (wanted, state) = (expected.get(&made.of).copied(), (count % RULES, before));
            if wanted.is_some_and(|wanted| wanted != state) {
                let ((partition, offset), key) = (made.of, &found.key);
                findings.push(format!(
                    "the state was not exact: {IN}/{partition} offset {offset} (key {key}) gave {state:?}, not \
                     {wanted:?}"
                ));
            }
        }
        let rules_at: Vec<_> = rules_at.into_iter().collect();
        for pair in rules_at.windows(2) {
            let [((partition, offset), rules), ((next_partition, next), rules_of_next)] = pair else { continue };
            if partition == next_partition && rules > rules_of_next {
                findings.push(format!("{IN}/{partition} offset {next} is counted by older rules than offset {offset}"));
            }
        }
    }
    findings
}

/// What an output says.
struct Made {
    /// The record that it was made of.
    of: Place,
    /// How many records of its key there were with it, and the offset of the one before.
    state: (u64, i64),
}

impl Made {
    fn parse(text: &str) -> Self {
        let mut numbers = text.split(' ').map(|number| number.parse::<i64>().unwrap());
        let mut next = || numbers.next().unwrap();
        Self { of: (next() as u32, next() as u64), state: (next() as u64, next()) }
    }
}

fn emit_made(batch: &Batch, key: &[u8], offset: u64, (count, before): (u64, i64), emit: &mut Emit) {
    let value = format!("{} {offset} {count} {before}", batch.partition());
    emit.send(&OUT.into(), &Record { key, value: Some(value.as_bytes()), headers: &[], timestamp_ms: 5 });
}

/// Says where each record came from.
struct Name;

impl Transform for Name {
    fn apply(&mut self, batch: &Batch, emit: &mut Emit) -> anyhow::Result<()> {
        for record in batch.iter() {
            if record.value.is_some_and(|value| value.starts_with(b"bad")) {
                emit.dead_letter(&record, "bad", "says so itself");
            } else {
                emit_made(batch, record.key, record.offset, (0, 0), emit);
            }
        }
        Ok(())
    }
}

/// Rules that change while records are counted.
#[derive(Clone)]
struct Rules {
    applied: Arc<AtomicU64>,
    last_for: u64,
}

impl Rules {
    fn newest(&self) -> u64 {
        self.applied.load(Ordering::Relaxed) / self.last_for
    }
}

/// Counts begin with so many times the number of their rules.
const RULES: u64 = 1_000;

/// By key: the count, and the offset of the last record.
type Seen = BTreeMap<String, (u64, i64)>;

/// Counts the records of each key, and knows the one before.
struct Count {
    lie: Lie,
    rules: Rules,
    /// It is one, of these rules.
    successor: Option<u64>,
    /// With the rules of each partition.
    seen: HashMap<u32, (u64, Seen)>,
}

impl Count {
    /// The rules of a partition are those of its first record, good or bad.
    fn of(&mut self, partition: u32) -> &mut (u64, Seen) {
        let newest = || self.successor.unwrap_or_else(|| self.rules.newest());
        self.seen.entry(partition).or_insert_with(|| (newest(), Seen::new()))
    }

    fn take(&mut self, partition: u32, key: &[u8], offset: u64) -> (u64, i64) {
        let key = String::from_utf8_lossy(key).into_owned();
        let (rules, seen) = self.of(partition);
        let seen = seen.entry(key).or_insert((*rules * RULES, -1));
        let said = (seen.0 + 1, seen.1);
        *seen = (said.0, offset as i64);
        said
    }
}

impl Transform for Count {
    fn reset(&mut self, _topic: &Arc<str>, partition: u32) {
        if self.lie != Lie::StateKept {
            self.seen.remove(&partition);
        }
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn state_version(&self) -> String {
        "1".to_owned()
    }

    fn snapshot(&self, _topic: &Arc<str>, partition: u32) -> Vec<u8> {
        let (rules, seen) = &self.seen[&partition];
        let lines = seen.iter().map(|(key, (count, last))| format!("{key} {count} {last}\n"));
        format!("{rules}\n{}", lines.collect::<String>()).into_bytes()
    }

    fn restore(&mut self, _topic: &Arc<str>, partition: u32, snapshot: &[u8]) -> anyhow::Result<()> {
        let mut lines = std::str::from_utf8(snapshot)?.lines();
        let rules = lines.next().context("there are no rules")?.parse()?;
        assert!(!self.seen.contains_key(&partition) || self.lie == Lie::StateKept, "the partition was not reset");
        let (_, seen) = self.seen.entry(partition).or_insert((rules, Seen::new()));
        for line in lines {
            let mut parts = line.split(' ');
            let mut next = || parts.next().context("a line is too short");
            seen.insert(next()?.to_owned(), (next()?.parse()?, next()?.parse()?));
        }
        Ok(())
    }

    fn replay(&mut self, batch: &Batch) -> anyhow::Result<()> {
        self.of(batch.partition());
        let is_late = self.lie == Lie::LateSuccessor && self.successor.is_some();
        let records = batch.iter().take(batch.len() - usize::from(is_late));
        for record in records.filter(|r| !r.value.is_some_and(|value| value.starts_with(b"bad"))) {
            self.take(batch.partition(), record.key, record.offset);
        }
        Ok(())
    }

    fn is_outdated(&self, _topic: &Arc<str>, partition: u32) -> bool {
        self.seen.get(&partition).is_some_and(|(rules, _)| *rules != self.rules.newest())
    }

    fn successor(&self, _topic: &Arc<str>, _partition: u32) -> anyhow::Result<Box<dyn Transform>> {
        let (lie, rules, successor) = (self.lie, self.rules.clone(), Some(self.rules.newest()));
        Ok(Box::new(Self { lie, rules, successor, seen: HashMap::new() }))
    }

    fn apply(&mut self, batch: &Batch, emit: &mut Emit) -> anyhow::Result<()> {
        self.of(batch.partition());
        self.rules.applied.fetch_add(batch.len() as u64, Ordering::Relaxed);
        for record in batch.iter() {
            if record.value.is_some_and(|value| value.starts_with(b"bad")) {
                emit.dead_letter(&record, "bad", "says so itself");
            } else {
                let state = self.take(batch.partition(), record.key, record.offset);
                emit_made(batch, record.key, record.offset, state, emit);
            }
        }
        Ok(())
    }
}
