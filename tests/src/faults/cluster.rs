//! What a cluster of brokers would know: groups, transactions, and the inner log that holds what was committed.
//!
//! ```text
//! init(id) ──► epoch + 1; what was open under the id is aborted, or, if its end was on the way, perhaps committed
//! begin ─► positions accepted (generation, member) ─► open ─► end ─► inner log: outputs and positions, one commit
//!                                                       ├─ times out: aborted
//!                                                       └─ the end is on its way, nobody waits for it: comes late
//! positions under an open transaction are not told before it is decided (Kafka: "unstable")
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use event_log::{
    Error, Log, Membership, Outcome, Outputs, Position, ProcessorOptions, TopicDescription, TopicPartition, TopicSpec,
    Transactor,
};
use test_support::random::Random;

use super::group::{Group, Place};
use super::names::Names;

pub(super) struct Cluster {
    pub(super) inner: Arc<dyn Log>,
    pub(super) names: Names,
    /// Topics that were created here.
    topics: BTreeMap<Arc<str>, TopicSpec>,
    pub(super) groups: BTreeMap<String, Group>,
    /// By transactional id.
    pub(super) producers: BTreeMap<String, Producer>,
    /// The inner log has one of these per group, and commits never fail half.
    committers: BTreeMap<String, Box<dyn Transactor>>,
}

/// What the transaction coordinator knows of a transactional id.
#[derive(Default)]
pub(super) struct Producer {
    pub(super) epoch: u64,
    pub(super) open: Option<Transaction>,
}

pub(super) struct Transaction {
    pub(super) group: String,
    /// With the inner log's names.
    pub(super) outputs: Outputs,
    pub(super) positions: Vec<Position>,
    /// The request to commit is on its way, and nobody waits for its answer.
    pub(super) end_on_its_way: bool,
    /// The task that began it.
    pub(super) task: Option<usize>,
}

impl Cluster {
    pub(super) fn new(inner: Arc<dyn Log>, namespace: &str) -> Self {
        Self {
            inner,
            names: Names::new(namespace),
            topics: BTreeMap::new(),
            groups: BTreeMap::new(),
            producers: BTreeMap::new(),
            committers: BTreeMap::new(),
        }
    }

    /// Creates a topic that removes nothing, whatever is asked for: when the inner log does so, no seed tells.
    pub(super) fn ensure_topic(&mut self, spec: &TopicSpec) -> Result<(), Error> {
        let inside = TopicSpec { name: self.names.inside(&spec.name), retention: None, compacted: false, ..*spec };
        self.inner.ensure_topic(&inside).map_err(|e| self.names.outside(e))?;
        self.topics.entry(spec.name.clone()).or_insert_with(|| spec.clone());
        Ok(())
    }

    pub(super) fn describe(&self, topic: &str) -> Result<TopicDescription, Error> {
        let described = self.inner.describe(&self.names.inside(topic)).map_err(|e| self.names.outside(e))?;
        let spec = self.topics.get(topic);
        let (compacted, retention) = (spec.is_some_and(|s| s.compacted), spec.and_then(|s| s.retention));
        Ok(TopicDescription { compacted, retention, ..described })
    }

    pub(super) fn partitions(&self, topic: &str) -> Result<u32, Error> {
        Ok(self.describe(topic)?.partitions.len() as u32)
    }

    /// A consumer joins. Gives its member number.
    pub(super) fn join(&mut self, group: &str, name: &str, task: Option<usize>, topics: &[Arc<str>]) -> u64 {
        self.groups.entry(group.to_owned()).or_default().join(name, task, topics)
    }

    /// Begins a new generation of the group if all its members have rejoined.
    pub(super) fn complete(&mut self, group: &str) -> Result<(), Error> {
        let Some(mut known) = self.groups.remove(group) else { return Ok(()) };
        let completed = known.complete(|topic| self.partitions(topic));
        self.groups.insert(group.to_owned(), known);
        completed
    }

    /// A producer takes over a transactional id: everyone before is fenced, and nothing of theirs is open any more.
    /// Gives the new epoch, and whether what was open has been committed.
    pub(super) fn init(&mut self, id: &str, random: &mut Random) -> Result<(u64, bool), Error> {
        let producer = self.producers.entry(id.to_owned()).or_default();
        producer.epoch += 1;
        let epoch = producer.epoch;
        match producer.open.take() {
            // The broker may have begun to commit before it heard of the new producer.
            Some(left) if left.end_on_its_way && random.chance(1, 2) => {
                self.write(&left)?;
                Ok((epoch, true))
            }
            _ => Ok((epoch, false)),
        }
    }

    /// Whether positions of this member are accepted: it must hold its place in a group that is here.
    pub(super) fn admits(&self, cluster: usize, membership: &Membership) -> bool {
        let here = membership.place::<Place>().filter(|place| place.cluster == cluster);
        here.is_some_and(|place| self.groups.get(&place.group).is_some_and(|group| group.admits(place)))
    }

    /// Makes a transaction durable and visible.
    pub(super) fn write(&mut self, transaction: &Transaction) -> Result<(), Error> {
        let inside = self.names.inside(&transaction.group);
        let positions: Vec<_> = transaction
            .positions
            .iter()
            .map(|p| Position { topic: self.names.inside(&p.topic), partition: p.partition, offset: p.offset })
            .collect();
        let committer = self.committer(&transaction.group, &inside)?;
        let committed = committer.commit(&transaction.outputs, &positions, &Membership::default());
        let committed = committed.map_err(|e| self.names.outside(e))?;
        assert_eq!(committed, Outcome::Committed, "the inner log commits, or fails");
        Ok(())
    }

    /// What the group has committed.
    pub(super) fn committed(&mut self, group: &str, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, Error> {
        let inside = self.names.inside(group);
        let partitions: Vec<_> = partitions
            .iter()
            .map(|p| TopicPartition { topic: self.names.inside(&p.topic), partition: p.partition })
            .collect();
        let committed = self.committer(group, &inside)?.committed(&partitions);
        committed.map_err(|e| self.names.outside(e))
    }

    /// Whether an open transaction may still move one of these positions.
    pub(super) fn is_unstable(&self, group: &str, partitions: &[TopicPartition]) -> bool {
        self.producers.values().filter_map(|p| p.open.as_ref()).any(|open| {
            let touches =
                |p: &Position| partitions.iter().any(|asked| asked.topic == p.topic && asked.partition == p.partition);
            open.group == group && open.positions.iter().any(touches)
        })
    }

    fn committer(&mut self, group: &str, inside: &str) -> Result<&mut Box<dyn Transactor>, Error> {
        if !self.committers.contains_key(group) {
            let options = ProcessorOptions { group: inside.to_owned(), instance: String::new(), topics: Vec::new() };
            let committer = self.inner.clone().transactor(&options)?;
            self.committers.insert(group.to_owned(), committer);
        }
        Ok(self.committers.get_mut(group).expect("it was just put there"))
    }
}
