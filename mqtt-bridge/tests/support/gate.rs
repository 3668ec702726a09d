//! A log like the one it wraps, but for when and how appends complete.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use event_log::{AppendError, Appender, Completion, Error, Log, OnCompletion, Record};

#[derive(Default)]
struct State {
    holding: bool,
    failing: bool,
    full: bool,
    /// The largest payload that it takes.
    max_bytes: Option<usize>,
    /// What is wrong with it: that it does not answer, or that it takes nothing more.
    trouble: Option<Trouble>,
    held: Vec<Completion>,
}

/// What a log may say when it is asked whether it can be written to.
#[derive(Debug, Clone, Copy)]
pub enum Trouble {
    Unavailable,
    Ended,
}

/// What the test does to the completions.
#[derive(Default)]
pub struct Gate {
    state: Mutex<State>,
    deliver: OnceLock<Arc<OnCompletion>>,
}

impl Gate {
    /// From now on the log says nothing.
    pub fn hold(&self) {
        self.state.lock().unwrap().holding = true;
    }

    /// From now on the log says of every record that it may not be durable.
    pub fn fail(&self) {
        self.state.lock().unwrap().failing = true;
    }

    /// What the log says from now on when it is asked whether it can be written to.
    pub fn set_trouble(&self, trouble: Option<Trouble>) {
        self.state.lock().unwrap().trouble = trouble;
    }

    /// Whether the append queue has no room.
    pub fn set_full(&self, full: bool) {
        self.state.lock().unwrap().full = full;
    }

    /// From now on the log takes no larger payloads.
    pub fn set_max_bytes(&self, bytes: usize) {
        self.state.lock().unwrap().max_bytes = Some(bytes);
    }

    /// How many completions are held back.
    pub fn held(&self) -> usize {
        self.state.lock().unwrap().held.len()
    }

    /// Lets go of what is held, the last first, and holds nothing any more.
    pub fn open(&self) {
        let held = {
            let mut state = self.state.lock().unwrap();
            state.holding = false;
            state.full = false;
            std::mem::take(&mut state.held)
        };
        let reversed: Vec<_> = held.into_iter().rev().collect();
        if let (Some(deliver), false) = (self.deliver.get(), reversed.is_empty()) {
            deliver(&reversed);
        }
    }

    fn completed(&self, completions: &[Completion]) {
        let mut state = self.state.lock().unwrap();
        let failing = state.failing;
        let decided = completions.iter().map(|c| Completion { durable: c.durable && !failing, ..*c });
        if state.holding {
            state.held.extend(decided);
            return;
        }
        let decided: Vec<_> = decided.collect();
        drop(state);
        self.deliver.get().expect("an appender")(&decided);
    }
}

/// The log.
#[derive(Debug)]
pub struct GatedLog {
    pub inner: Arc<dyn Log>,
    pub gate: Arc<Gate>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gate")
    }
}

impl Log for GatedLog {
    test_support::passes_on!(inner: url ensure_topic describe committed reader consumer transactor);

    fn check_writable(&self, topic: &str) -> Result<(), Error> {
        let trouble = self.gate.state.lock().unwrap().trouble;
        let (operation, log) = ("write", self.url().to_string());
        match trouble {
            None => self.inner.check_writable(topic),
            Some(Trouble::Unavailable) => Err(Error::Unavailable { operation, log, source: "no answer".into() }),
            Some(Trouble::Ended) => Err(Error::Refused { operation, log, source: "the disk was full".into() }),
        }
    }

    fn appender(self: Arc<Self>, on_completion: OnCompletion) -> Result<Arc<dyn Appender>, Error> {
        assert!(self.gate.deliver.set(Arc::new(on_completion)).is_ok(), "one appender a gate");
        let gate = self.gate.clone();
        let inner = self.inner.clone().appender(Box::new(move |completions| gate.completed(completions)))?;
        Ok(Arc::new(GatedAppender { inner, gate: self.gate.clone() }))
    }
}

struct GatedAppender {
    inner: Arc<dyn Appender>,
    gate: Arc<Gate>,
}

impl Appender for GatedAppender {
    fn append(&self, topic: &Arc<str>, record: &Record<'_>, token: u64) -> Result<(), AppendError> {
        let (full, max_bytes) = {
            let state = self.gate.state.lock().unwrap();
            (state.full, state.max_bytes.unwrap_or(usize::MAX))
        };
        if full {
            return Err(AppendError::Full);
        }
        let bytes = record.value.map_or(0, <[u8]>::len);
        if bytes > max_bytes {
            let (log, topic, limit) = ("the gate".to_owned(), topic.to_string(), max_bytes);
            return Err(Error::TooLarge { log, topic, bytes, limit, remedy: "none" }.into());
        }
        self.inner.append(topic, record, token)
    }

    fn flush(&self, timeout: Duration) -> bool {
        self.inner.flush(timeout)
    }
}
