//! The log of one instance of a simulation.

use std::fmt;
use std::sync::Arc;

use event_log::{
    Appender, Consumer, Error, Log, LogUrl, OnCompletion, ProcessorOptions, Range, Reader, TopicDescription, TopicSpec,
    Transactor,
};

use super::consumer::FaultyConsumer;
use super::reader::FaultyReader;
use super::transactor::FaultyTransactor;
use super::turn::{Shared, Turn};

#[derive(Clone)]
pub(super) struct FaultyLog {
    pub(super) shared: Arc<Shared>,
    pub(super) cluster: usize,
    /// `None` for those who only watch.
    pub(super) task: Option<usize>,
    pub(super) url: LogUrl,
}

impl FaultyLog {
    /// Waits until it is this instance's turn to do `what`.
    pub(super) fn step(&self, what: fmt::Arguments<'_>) -> Result<Turn<'_>, Error> {
        self.shared.step(self.task, what)
    }
}

impl fmt::Debug for FaultyLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyLog").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Log for FaultyLog {
    fn url(&self) -> &LogUrl {
        &self.url
    }

    fn ensure_topic(&self, spec: &TopicSpec) -> Result<(), Error> {
        let mut turn = self.step(format_args!("ensures {}", spec.name))?;
        turn.trouble("create a topic")?;
        turn.world.clusters[self.cluster].ensure_topic(spec)
    }

    fn describe(&self, topic: &str) -> Result<TopicDescription, Error> {
        let mut turn = self.step(format_args!("describes {topic}"))?;
        turn.trouble("describe a topic")?;
        turn.world.clusters[self.cluster].describe(topic)
    }

    fn committed(&self, group: &str, topic: &str) -> Result<Vec<Option<u64>>, Error> {
        let mut turn = self.step(format_args!("looks up the positions of {group}"))?;
        turn.trouble("look up positions")?;
        let cluster = &turn.world.clusters[self.cluster];
        let (group, topic) = (cluster.names.inside(group), cluster.names.inside(topic));
        cluster.inner.committed(&group, &topic).map_err(|e| cluster.names.outside(e))
    }

    /// No loop has one, so its appends are neither steps nor part of a run.
    fn appender(self: Arc<Self>, _: OnCompletion) -> Result<Arc<dyn Appender>, Error> {
        Err(Error::Refused {
            operation: "create an appender",
            log: self.url.to_string(),
            source: "a simulation is of loops, and no loop appends".into(),
        })
    }

    fn reader(self: Arc<Self>, ranges: Vec<Range>) -> Result<Box<dyn Reader>, Error> {
        Ok(Box::new(FaultyReader::new((*self).clone(), &ranges)?))
    }

    fn consumer(self: Arc<Self>, options: &ProcessorOptions) -> Result<Box<dyn Consumer>, Error> {
        let log = (*self).clone();
        Ok(Box::new(FaultyConsumer::join(log, self, options)?))
    }

    /// As with Kafka: what fences must be where the transactions are.
    fn consumer_of(
        self: Arc<Self>,
        source: Arc<dyn Log>,
        options: &ProcessorOptions,
    ) -> Result<Box<dyn Consumer>, Error> {
        Ok(Box::new(FaultyConsumer::join((*self).clone(), source, options)?))
    }

    fn identity(&self) -> String {
        format!("{} ({})", self.url, self.cluster)
    }

    fn transactor(self: Arc<Self>, options: &ProcessorOptions) -> Result<Box<dyn Transactor>, Error> {
        self.shared.loop_begins(self.task);
        Ok(Box::new(FaultyTransactor::new((*self).clone(), options)?))
    }
}
