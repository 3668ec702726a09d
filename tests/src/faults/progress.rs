//! Whether a run has ended, and what is left if it does not.

use std::collections::BTreeSet;

use event_log::TopicPartition;

use super::Drained;
use super::world::{State, World};

impl World {
    /// Whether nothing is left to come, and everything has been processed.
    pub(super) fn is_done(&mut self) -> bool {
        self.input.len() == 0
            && self.tasks.iter().all(|task| task.state != State::Paused)
            && self.clusters.iter().all(|c| c.producers.values().all(|p| p.open.is_none()))
            && self.left().is_empty()
    }

    /// Partitions that are not processed to their end, as text.
    fn left(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        for Drained { source, target, group, topics } in &self.drained {
            for topic in topics {
                let source = &self.clusters[*source];
                let ends = source.describe(topic).expect("the topic was made before").partitions;
                let named = |partition| TopicPartition { topic: topic.clone(), partition };
                let partitions: Vec<_> = (0..ends.len() as u32).map(named).collect();
                let committed = self.clusters[*target].committed(group, &partitions).expect("positions can be read");
                for (partition, (end, at)) in ends.iter().zip(committed).enumerate() {
                    let at = at.unwrap_or(end.first);
                    if at != end.next {
                        left.push(format!("{topic}/{partition} is processed to {at} of {}", end.next));
                    }
                }
            }
        }
        left
    }

    /// Everything that a run still waits for, as text.
    pub(super) fn what_is_left(&mut self) -> String {
        let mut left = self.left();
        let open: BTreeSet<_> = self
            .clusters
            .iter()
            .flat_map(|c| c.producers.iter().filter(|(_, p)| p.open.is_some()).map(|(id, _)| id.clone()))
            .collect();
        if !open.is_empty() {
            left.push(format!("transactions of {open:?} are open"));
        }
        left.push(format!("{} records have not come in", self.input.len()));
        left.join(", ")
    }
}
