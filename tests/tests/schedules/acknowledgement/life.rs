//! One life of a bridge, as its log sees it: a queue in the memory of a process that can crash, before a real log.
//!
//! ```text
//! append ─► full? refused? ─► queue in memory ── some while ──► inner log ── some while ──► completion
//!                              └ a crash: gone                   └ a crash: there, and nobody was told
//! ```
//!
//! As [`event_log::Appender`] promises, records of a key are committed in the order of their appends; completions come
//! in any. What happens to an append is a function of the seed, the life, the key and the append's number.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use event_log::{AppendError, Appender, Completion, OnCompletion, Record};
use tokio::sync::Notify;

use super::log::{World, unavailable};
use super::{PATIENCE, draw};

/// What the faults are called.
pub(crate) const FAULTS: [&str; 9] =
    ["late", "out of step", "full", "refused", "left out", "unknown", "crash", "lost with the memory", UNHEARD];
const UNHEARD: &str = "commit that nobody heard of";

/// How a life of the bridge ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Not before the cars are done.
    Open,
    /// It crashes within this append.
    AtAppend(u64),
    /// It crashes when the inner log has this many records, before it learns of it.
    AtCommit(u64),
    /// It is asked to stop at this append.
    StopAt(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Durable,
    /// It is not durable, and reported so.
    LeftOut,
    /// It is durable, but reported as unknown.
    Unknown,
}

/// One life of a bridge, as its log sees it.
pub(crate) struct Life {
    pub(super) world: Arc<World>,
    pub(super) number: u64,
    end: End,
    /// In thousandths of all appends: late, out of step, full, refused, left out, unknown.
    rates: [u64; 6],
    state: Mutex<State>,
    changed: Condvar,
    /// The process is gone.
    pub(crate) crashed: Notify,
    /// It is asked to stop.
    pub(crate) stopping: Notify,
}

#[derive(Default)]
struct State {
    is_over: bool,
    appends: u64,
    commits: u64,
    /// Appended, and not completed.
    undecided: usize,
    keys: HashMap<Vec<u8>, Key>,
    /// By time, and by the number of the append.
    due: BTreeMap<(Instant, u64), Event>,
}

#[derive(Default)]
struct Key {
    appends: u64,
    /// How often there was no room for the next one.
    full: u64,
    last_commit: Option<Instant>,
    last_completion: Option<Instant>,
}

enum Event {
    Commit(Box<Pending>),
    Complete(Completion),
}

struct Pending {
    topic: Arc<str>,
    key: Vec<u8>,
    value: Vec<u8>,
    headers: Vec<(String, Vec<u8>)>,
    timestamp_ms: i64,
    token: u64,
    fate: Fate,
    number: u64,
    completion_after: Duration,
}

impl Life {
    /// The next life. A calm one has no faults, and no end of its own.
    pub(crate) fn new(world: &Arc<World>, number: u64, is_calm: bool) -> Arc<Self> {
        let mut random = draw(world.seed, &[1, number]);
        let at = random.between(1, 25);
        let end = *random.one_of(&[End::AtAppend(at), End::AtAppend(at), End::AtCommit(at), End::StopAt(at)]);
        let rates = std::array::from_fn(|_| if random.chance(1, 2) { 0 } else { *random.one_of(&[20, 60, 200]) });
        Arc::new(Self {
            world: world.clone(),
            number,
            end: if is_calm { End::Open } else { end },
            rates: if is_calm { [0; 6] } else { rates },
            state: Mutex::default(),
            changed: Condvar::new(),
            crashed: Notify::new(),
            stopping: Notify::new(),
        })
    }

    /// [`Appender::append`].
    pub(super) fn append(&self, topic: &Arc<str>, record: &Record<'_>, token: u64) -> Result<(), AppendError> {
        let mut state = self.state.lock().unwrap();
        if state.is_over {
            return Ok(()); // a process that is gone does nothing
        }
        let (world, now) = (&self.world, Instant::now());
        let number = state.appends;
        let key = state.keys.entry(record.key.to_vec()).or_default();
        let hash = record.key.iter().fold(0, |hash: u64, byte| hash * 257 + u64::from(*byte));
        let mut random = draw(world.seed, &[2, self.number, hash, key.appends]);
        let [late, out_of_step, full, refused, left_out, unknown] = self.rates.map(|rate| random.chance(rate, 1_000));
        if full && key.full < random.between(1, 2) {
            key.full += 1;
            world.fault("full", 1);
            return Err(AppendError::Full);
        }
        key.full = 0;
        key.appends += 1;
        if refused {
            world.fault("refused", 1);
            world.tell(&format!("refused: {}", String::from_utf8_lossy(record.value.unwrap_or_default())));
            return Err(AppendError::Refused(unavailable("append a record")));
        }
        let after = Duration::from_micros(if late { random.between(2_000, 15_000) } else { random.below(300) });
        let commit_at = (now + after).max(key.last_commit.unwrap_or(now));
        key.last_commit = Some(commit_at);
        let completion_after = Duration::from_micros(if out_of_step { random.between(500, 6_000) } else { 0 });
        let fate = if left_out {
            Fate::LeftOut
        } else if unknown {
            Fate::Unknown
        } else {
            Fate::Durable
        };
        if late {
            world.fault("late", 1);
        }
        let pending = Pending {
            topic: format!("{}{topic}", world.namespace).into(),
            key: record.key.to_vec(),
            value: record.value.unwrap_or_default().to_vec(),
            headers: record.headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect(),
            timestamp_ms: record.timestamp_ms,
            token,
            fate,
            number,
            completion_after,
        };
        world.tell(&format!("append {number}: {}", String::from_utf8_lossy(&pending.value)));
        state.due.insert((commit_at, number), Event::Commit(Box::new(pending)));
        state.appends += 1;
        state.undecided += 1;
        world.noted().appends += 1;
        match self.end {
            End::AtAppend(at) if at == state.appends => self.crash(&mut state),
            End::StopAt(at) if at == state.appends => self.stopping.notify_one(),
            _ => {}
        }
        self.changed.notify_all();
        Ok(())
    }

    /// The process is gone, and its memory.
    fn crash(&self, state: &mut State) {
        let due = std::mem::take(&mut state.due);
        let lost = due.values().filter(|event| matches!(event, Event::Commit(_))).count();
        state.is_over = true;
        self.world.tell(&format!("crash: {lost} records were in memory only, {} answers", due.len() - lost));
        for (fault, times) in [("crash", 1), ("lost with the memory", lost), (UNHEARD, due.len() - lost)] {
            self.world.fault(fault, times as u64);
        }
        self.changed.notify_all();
        self.crashed.notify_one();
    }

    /// The appender's thread: does what is due, until the life is over.
    pub(super) fn serve(&self, inner: &dyn Appender, on_completion: &OnCompletion) {
        while let Some(due) = self.wait() {
            let (mut commits, mut completions) = (Vec::new(), Vec::new());
            for event in due {
                match event {
                    Event::Commit(pending) => commits.push(*pending),
                    Event::Complete(completion) => completions.push(completion),
                }
            }
            self.commit(inner, commits);
            if !completions.is_empty() && !self.state.lock().unwrap().is_over {
                on_completion(&completions);
                self.state.lock().unwrap().undecided -= completions.len();
                self.changed.notify_all();
            }
        }
    }

    /// Waits for something to do. `None`: the life is over.
    fn wait(&self) -> Option<Vec<Event>> {
        let mut state = self.state.lock().unwrap();
        while !state.is_over {
            let now = Instant::now();
            let later = state.due.split_off(&(now, u64::MAX));
            let due = std::mem::replace(&mut state.due, later);
            if !due.is_empty() {
                return Some(due.into_values().collect());
            }
            let next = state.due.keys().next().map(|(at, _)| *at);
            state = match next {
                Some(at) => self.changed.wait_timeout(state, at - now).unwrap().0,
                None => self.changed.wait(state).unwrap(),
            };
        }
        None
    }

    /// Gives records to the inner log, and waits until it has them.
    fn commit(&self, inner: &dyn Appender, commits: Vec<Pending>) {
        if commits.is_empty() {
            return;
        }
        for pending in commits.iter().filter(|pending| pending.fate != Fate::LeftOut) {
            let headers: Vec<_> = pending.headers.iter().map(|(name, value)| (&name[..], &value[..])).collect();
            let (value, timestamp_ms) = (Some(&pending.value[..]), pending.timestamp_ms);
            let record = Record { key: &pending.key, value, headers: &headers, timestamp_ms };
            inner.append(&pending.topic, &record, 0).unwrap();
        }
        assert!(inner.flush(PATIENCE), "the inner log has no faults");
        let mut guard = self.state.lock().unwrap();
        let state = &mut *guard;
        state.commits += commits.len() as u64;
        let crashes = !state.is_over && matches!(self.end, End::AtCommit(at) if at <= state.commits);
        let mut noted = self.world.noted();
        let now = Instant::now();
        for pending in commits {
            let fault = match pending.fate {
                _ if state.is_over || crashes => UNHEARD,
                Fate::Durable => "",
                Fate::LeftOut => "left out",
                Fate::Unknown => "unknown",
            };
            let set = if pending.fate == Fate::LeftOut { &mut noted.left_out } else { &mut noted.committed };
            set.insert(pending.value);
            let at = now + pending.completion_after;
            let key = state.keys.entry(pending.key).or_default();
            let overtakes = key.last_completion.is_some_and(|last| at < last);
            key.last_completion = key.last_completion.max(Some(at));
            for fault in [fault, if overtakes { "out of step" } else { "" }] {
                if !fault.is_empty() {
                    noted.fault(fault, 1);
                }
            }
            noted
                .story
                .push(format!("{:11}  append {} of life {}: {:?}", "", pending.number, self.number, pending.fate));
            let completion = Completion { token: pending.token, durable: pending.fate == Fate::Durable };
            if !state.is_over {
                state.due.insert((at, pending.number), Event::Complete(completion));
            }
        }
        drop(noted);
        if crashes {
            self.crash(state);
        }
    }

    /// [`Appender::flush`].
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        let state = self.state.lock().unwrap();
        let busy = |state: &mut State| state.undecided > 0 && !state.is_over;
        !self.changed.wait_timeout_while(state, timeout, busy).unwrap().1.timed_out()
    }

    /// Nobody appends any more.
    pub(super) fn close(&self) {
        self.state.lock().unwrap().is_over = true;
        self.changed.notify_all();
    }
}
