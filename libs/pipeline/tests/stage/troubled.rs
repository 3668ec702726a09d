//! An embedded log on which commits fail and partitions come and go, as a seed says.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_log::{
    Consumer, Error, Event, Log, Membership, Outcome, Outputs, Position, ProcessorOptions, TopicPartition, Transactor,
};
use test_support::random::Random;

/// What went wrong, so that a test can tell that it did.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Trouble {
    /// Commits that were refused.
    pub(crate) rolled_back: u32,
    /// Commits that were said to be refused and were not.
    pub(crate) unknown: u32,
    /// Commits after which, or instead of which, the log was gone: the stage starts anew.
    pub(crate) gone: u32,
    /// Partitions taken away and given back.
    pub(crate) moved: u32,
}

/// The log underneath, and the trouble on top.
pub(crate) struct Troubled {
    log: Arc<dyn Log>,
    shared: Arc<Mutex<(Random, Trouble)>>,
}

impl Troubled {
    pub(crate) fn new(log: Arc<dyn Log>, seed: u64) -> Arc<Self> {
        Arc::new(Self { log, shared: Arc::new(Mutex::new((Random::new(seed), Trouble::default()))) })
    }

    pub(crate) fn trouble(&self) -> Trouble {
        self.shared.lock().unwrap().1
    }
}

impl fmt::Debug for Troubled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Troubled({:?})", self.log)
    }
}

impl Log for Troubled {
    test_support::passes_on!(log: url ensure_topic describe committed appender reader);

    fn consumer(self: Arc<Self>, options: &ProcessorOptions) -> Result<Box<dyn Consumer>, Error> {
        let consumer = self.log.clone().consumer(options)?;
        Ok(Box::new(TroubledConsumer { consumer, shared: self.shared.clone(), held: Vec::new(), away: None }))
    }

    fn transactor(self: Arc<Self>, options: &ProcessorOptions) -> Result<Box<dyn Transactor>, Error> {
        let (url, transactor) = (self.log.url().to_string(), self.log.clone().transactor(options)?);
        Ok(Box::new(TroubledTransactor { transactor, shared: self.shared.clone(), url }))
    }
}

struct TroubledConsumer {
    consumer: Box<dyn Consumer>,
    shared: Arc<Mutex<(Random, Trouble)>>,
    held: Vec<TopicPartition>,
    away: Option<TopicPartition>,
}

impl Consumer for TroubledConsumer {
    fn poll(&mut self, max_records: usize, timeout: Duration) -> Result<Event, Error> {
        let mut shared = self.shared.lock().unwrap();
        if shared.0.below(16) == 0 {
            if let Some(back) = self.away.take() {
                let position = Position { topic: back.topic, partition: back.partition, offset: 0 };
                return Ok(Event::Assigned(vec![position]));
            }
            if !self.held.is_empty() {
                let taken = self.held[shared.0.below(self.held.len() as u64) as usize].clone();
                shared.1.moved += 1;
                self.away = Some(taken.clone());
                return Ok(Event::Revoked(vec![taken]));
            }
        }
        drop(shared);
        // Not the whole time: a partition that is away comes back with one of the next polls.
        let event = self.consumer.poll(max_records, timeout.min(Duration::from_millis(1)))?;
        match &event {
            Event::Assigned(positions) => {
                let partition = |p: &Position| TopicPartition { topic: p.topic.clone(), partition: p.partition };
                self.held = positions.iter().map(partition).collect();
            }
            // Read in vain: the next owner of the partition resumes from its committed position.
            Event::Batch(batch) if self.away.as_ref().is_some_and(|away| away.partition == batch.partition()) => {
                return self.poll(max_records, timeout);
            }
            _ => {}
        }
        Ok(event)
    }

    fn seek(&mut self, positions: &[Position]) -> Result<(), Error> {
        self.consumer.seek(positions)
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        self.consumer.pause(partitions)
    }

    fn membership(&self) -> Membership {
        self.consumer.membership()
    }
}

struct TroubledTransactor {
    transactor: Box<dyn Transactor>,
    shared: Arc<Mutex<(Random, Trouble)>>,
    url: String,
}

impl TroubledTransactor {
    fn gone(&self) -> Error {
        Error::Unavailable { operation: "commit", log: self.url.clone(), source: "trouble".into() }
    }
}

impl Transactor for TroubledTransactor {
    fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, Error> {
        self.transactor.committed(partitions)
    }

    fn commit(&mut self, outputs: &Outputs, positions: &[Position], membership: &Membership) -> Result<Outcome, Error> {
        let fate = {
            let mut shared = self.shared.lock().unwrap();
            let fate = shared.0.below(24);
            let trouble = &mut shared.1;
            match fate {
                0 => trouble.rolled_back += 1,
                1 => trouble.unknown += 1,
                2 | 3 => trouble.gone += 1,
                _ => {}
            }
            fate
        };
        match fate {
            0 => return Ok(Outcome::RolledBack),
            2 => return Err(self.gone()),
            _ => {}
        }
        assert_eq!(self.transactor.commit(outputs, positions, membership)?, Outcome::Committed);
        match fate {
            1 => Ok(Outcome::RolledBack),
            3 => Err(self.gone()),
            _ => Ok(Outcome::Committed),
        }
    }
}
