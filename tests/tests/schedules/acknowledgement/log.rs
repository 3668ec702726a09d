//! The log that outlives the bridge, what is noted of it, and the log as one life of the bridge has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_log::{
    AppendError, Appender, Completion, Consumer, Error, Log, LogUrl, OnCompletion, ProcessorOptions, Range, Reader,
    Record, TopicDescription, TopicSpec, Transactor,
};

use super::PATIENCE;
use super::life::Life;

/// What the lives of a bridge have in common: the log that stays, and what is noted.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) inner: Arc<dyn Log>,
    pub(crate) namespace: String,
    began: Instant,
    noted: Mutex<Noted>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
pub(crate) struct Noted {
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) story: Vec<String>,
    pub(crate) appends: u64,
    /// Values that the inner log has.
    pub(super) committed: BTreeSet<Vec<u8>>,
    /// Values that the log once said were not durable, and left out: later ones of their key may have come before them.
    pub(crate) left_out: BTreeSet<Vec<u8>>,
}

impl Noted {
    pub(super) fn fault(&mut self, fault: &'static str, times: u64) {
        *self.faults.entry(fault).or_default() += times;
    }
}

impl World {
    pub(crate) fn new(seed: u64, inner: Arc<dyn Log>, namespace: &str) -> Arc<Self> {
        let (noted, threads) = (Mutex::default(), Mutex::default());
        Arc::new(Self { seed, inner, namespace: namespace.to_owned(), began: Instant::now(), noted, threads })
    }

    /// Counts a fault.
    pub(crate) fn fault(&self, fault: &'static str, times: u64) {
        self.noted().fault(fault, times);
    }

    pub(super) fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap()
    }

    pub(crate) fn tell(&self, what: &str) {
        let line = format!("{:8.2} ms  {what}", self.began.elapsed().as_secs_f64() * 1e3);
        self.noted().story.push(line);
    }

    pub(crate) fn is_committed(&self, value: &[u8]) -> bool {
        self.noted().committed.contains(value)
    }

    /// What was noted, once nothing more can come.
    pub(crate) fn ended(&self) -> Noted {
        for thread in self.threads.lock().unwrap().drain(..) {
            thread.join().unwrap();
        }
        std::mem::take(&mut self.noted())
    }
}

pub(super) fn unavailable(operation: &'static str) -> Error {
    Error::Unavailable { operation, log: "log".to_owned(), source: "the schedule says so".into() }
}

/// The log of a life, for a bridge that sends no alerts: it only appends.
pub(crate) fn log_of(life: &Arc<Life>) -> Arc<dyn Log> {
    Arc::new(MortalLog { life: life.clone(), url: life.world.inner.url().clone() })
}

struct MortalAppender(Arc<Life>);

impl Appender for MortalAppender {
    fn append(&self, topic: &Arc<str>, record: &Record<'_>, token: u64) -> Result<(), AppendError> {
        self.0.append(topic, record, token)
    }

    fn flush(&self, timeout: Duration) -> bool {
        self.0.flush(timeout)
    }
}

impl Drop for MortalAppender {
    /// As real ones do, waits for what is queued; if there was no crash.
    fn drop(&mut self) {
        self.0.flush(PATIENCE);
        self.0.close();
    }
}

struct MortalLog {
    life: Arc<Life>,
    url: LogUrl,
}

impl std::fmt::Debug for MortalLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "life {} of a log", self.life.number)
    }
}

impl Log for MortalLog {
    fn url(&self) -> &LogUrl {
        &self.url
    }

    fn ensure_topic(&self, spec: &TopicSpec) -> Result<(), Error> {
        let World { inner, namespace, .. } = &*self.life.world;
        inner.ensure_topic(&TopicSpec { name: format!("{namespace}{}", spec.name).into(), ..spec.clone() })
    }

    fn appender(self: Arc<Self>, on_completion: OnCompletion) -> Result<Arc<dyn Appender>, Error> {
        let life = self.life.clone();
        let all_durable = |completions: &[Completion]| assert!(completions.iter().all(|c| c.durable));
        let inner = life.world.inner.clone().appender(Box::new(all_durable))?;
        let thread = {
            let life = life.clone();
            std::thread::spawn(move || life.serve(&*inner, &on_completion))
        };
        life.world.threads.lock().unwrap().push(thread);
        Ok(Arc::new(MortalAppender(life)))
    }

    fn describe(&self, topic: &str) -> Result<TopicDescription, Error> {
        let World { inner, namespace, .. } = &*self.life.world;
        inner.describe(&format!("{namespace}{topic}"))
    }

    fn committed(&self, _: &str, _: &str) -> Result<Vec<Option<u64>>, Error> {
        Err(unavailable("committed"))
    }

    fn reader(self: Arc<Self>, _: Vec<Range>) -> Result<Box<dyn Reader>, Error> {
        Err(unavailable("reader"))
    }

    fn consumer(self: Arc<Self>, _: &ProcessorOptions) -> Result<Box<dyn Consumer>, Error> {
        Err(unavailable("consumer"))
    }

    fn transactor(self: Arc<Self>, _: &ProcessorOptions) -> Result<Box<dyn Transactor>, Error> {
        Err(unavailable("transactor"))
    }
}
