//! The log embedded in the process: no server, one directory.
//!
//! ```text
//!  Appender ──► queue, a thread ────────┐                             ┌─► Reader, Consumer
//!  Transactor ── outputs + positions ───┴─► group commit: one batch, ─┘    (up to the published
//!                                           one fsync, publish              next offset)
//!  DIRECTORY/lock     held while a process has the log open
//!  DIRECTORY/store/   fjall: keyspaces of topics and bounds, positions, blocks of records, and where each block is
//! ```
//!
//! It serves one process: that of the demo, of a test, or of an edge site in a box. A group has one instance here. What
//! makes a transform atomic is fjall's batch over several keyspaces: outputs and positions are one entry of its
//! journal, checked by a checksum, so after a crash all of it exists or nothing.
//!
//! | bound | at the bound |
//! | --- | --- |
//! | 64 Ki records or 64 MiB queued per appender | `AppendError::Full`: try again after a completion |
//! | a record of 8 MiB (key, value and headers) | refused |
//! | a batch of 16 MiB or `max_records` | the rest comes with the next batch |
//! | memory, see `disk`: some 100 MiB at most | writers wait for the disk |

mod appender;
mod block;
mod commit;
mod consumer;
mod cursor;
mod directories;
mod disk;
mod groups;
mod index;
mod maintenance;
mod partition;
mod positions;
mod reader;
mod retention;
mod store;
mod time;
mod topics;
mod transactor;

pub use directories::CONTROL_SOCKET;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use self::commit::Request;
use self::groups::Role;
use self::maintenance::Maintenance;
use self::store::Store;
use crate::{
    Appender, Clock, Consumer, Error, Group, Health, Log, LogUrl, OnCompletion, ProcessorOptions, Range, Reader,
    TopicDescription, TopicSpec, Transactor,
};

/// Opens the log in the directory `path`, which is created if there is none.
///
/// The same directory gives the same log for as long as anyone in this process holds it.
pub(crate) fn open(path: &Path, clock: Clock) -> Result<Arc<dyn Log>, Error> {
    Ok(directories::open(path, clock)?)
}

/// An open log. Closed when the last one who holds it lets go.
#[derive(Debug)]
struct Embedded {
    url: LogUrl,
    store: Arc<Store>,
    maintenance: Maintenance,
    // Last: the directory is free when everything above is closed.
    _claim: directories::Claim,
}

impl Log for Embedded {
    fn url(&self) -> &LogUrl {
        &self.url
    }

    fn ensure_topic(&self, spec: &TopicSpec) -> Result<(), Error> {
        self.store.topics.ensure(&self.store.disk, spec)
    }

    fn describe(&self, topic: &str) -> Result<TopicDescription, Error> {
        Ok(self.store.topic(topic)?.describe())
    }

    fn check_writable(&self, topic: &str) -> Result<(), Error> {
        self.store.topic(topic)?;
        self.store.disk.check_writable()
    }

    fn committed(&self, group: &str, topic: &str) -> Result<Vec<Option<u64>>, Error> {
        let partitions = self.store.topic(topic)?.partitions.len();
        Ok(self.store.positions.committed(group, topic, 0..partitions as u32))
    }

    fn appender(self: Arc<Self>, on_completion: OnCompletion) -> Result<Arc<dyn Appender>, Error> {
        Ok(Arc::new(appender::EmbeddedAppender::new(self, on_completion)?))
    }

    fn reader(self: Arc<Self>, ranges: Vec<Range>) -> Result<Box<dyn Reader>, Error> {
        Ok(Box::new(reader::EmbeddedReader::new(self, ranges)?))
    }

    fn consumer(self: Arc<Self>, options: &ProcessorOptions) -> Result<Box<dyn Consumer>, Error> {
        Ok(Box::new(consumer::EmbeddedConsumer::new(self, options)?))
    }

    fn consumer_of(
        self: Arc<Self>,
        source: Arc<dyn Log>,
        options: &ProcessorOptions,
    ) -> Result<Box<dyn Consumer>, Error> {
        if source.identity() != self.identity() {
            // Its positions come here, and are those of the source's topics.
            self.store.readers.add(&self.store.disk, &options.group, &options.topics, Role::Elsewhere)?;
        }
        source.consumer(options)
    }

    fn transactor(self: Arc<Self>, options: &ProcessorOptions) -> Result<Box<dyn Transactor>, Error> {
        Ok(Box::new(transactor::EmbeddedTransactor::new(self, options)?))
    }

    fn keep_for(&self, group: &str, topic: &str, positions: &[Option<u64>]) -> Result<(), Error> {
        let (store, name): (_, Arc<str>) = (&self.store, topic.into());
        store.readers.add(&store.disk, group, std::slice::from_ref(&name), Role::Reader)?;
        if positions.iter().all(Option::is_none) {
            return Ok(());
        }
        let topic = store.topic(topic)?;
        let known = store.positions.committed(group, &name, 0..topic.partitions.len() as u32);
        let group: Arc<str> = group.into();
        let moved = topic.partitions.iter().zip(positions).zip(known).filter_map(|((partition, position), known)| {
            // A position beyond the end would let go of records that are still to come.
            let position = (*position)?.min(partition.next());
            (known != Some(position)).then(|| ((group.clone(), name.clone(), partition.index), position))
        });
        let positions: Vec<_> = moved.collect();
        if positions.is_empty() { Ok(()) } else { store.commit(Request { outputs: Vec::new(), positions }) }
    }

    fn groups(&self) -> Result<Vec<Group>, Error> {
        let store = &self.store;
        let roles = store.readers.read();
        let mut groups = Vec::new();
        for topic in store.topics.all() {
            for name in groups::readers(&roles, &store.positions, &topic.name) {
                let positions = store.positions.committed(&name, &topic.name, 0..topic.partitions.len() as u32);
                groups.push(Group { name, topic: topic.name.clone(), positions });
            }
        }
        groups.sort_by(|a, b| (&a.name, &a.topic).cmp(&(&b.name, &b.topic)));
        Ok(groups)
    }

    fn forget_group(&self, group: &str) -> Result<bool, Error> {
        let joined = self.store.groups.lock();
        if joined.contains(group) {
            return Err(Error::GroupInUse { log: self.url.to_string(), group: group.to_owned() });
        }
        self.store.readers.forget(&self.store.disk, &self.store.positions, group)
    }

    fn health(&self) -> Health {
        let retention = self.maintenance.retention();
        Health {
            clock_steps: self.store.time.steps(),
            records_given_up: retention.given_up.load(Ordering::Relaxed),
            records_held: retention.held.load(Ordering::Relaxed),
        }
    }

    fn maintain(&self) -> Result<(), Error> {
        self.maintenance.run()
    }
}
