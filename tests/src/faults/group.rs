//! Consumer groups as Kafka's coordinator keeps them: the classic protocol, eager, in ranges, static members.
//!
//! ```text
//! join ─► the others are to rejoin ─► all have ─► generation + 1, partitions in ranges
//!           └─ one does not: its session expires, and it is out
//! join under a name that is a member already ─► takes over its place and partitions; the one before is fenced
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use event_log::TopicPartition;

/// A member's place as of its last assignment: what a transaction carries to prove that the place still holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) cluster: usize,
    pub(super) group: String,
    pub(super) name: String,
    pub(super) member: u64,
    pub(super) generation: u64,
}

#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) generation: u64,
    /// Whether a new generation is being formed.
    pub(super) forming: bool,
    /// By the name that stays the same over a restart.
    pub(super) members: BTreeMap<String, Member>,
    /// Members are numbered as they come.
    last_member: u64,
}

#[derive(Debug)]
pub(super) struct Member {
    /// Another one after each join under the same name.
    pub(super) number: u64,
    /// The task that it belongs to.
    pub(super) task: Option<usize>,
    pub(super) topics: Vec<Arc<str>>,
    /// Has rejoined for the generation that is being formed.
    pub(super) joined: bool,
    /// Of the current generation.
    pub(super) assignment: Vec<TopicPartition>,
}

impl Group {
    /// A consumer comes under `name`. Gives its number.
    pub(super) fn join(&mut self, name: &str, task: Option<usize>, topics: &[Arc<str>]) -> u64 {
        self.last_member += 1;
        let number = self.last_member;
        match self.members.get_mut(name) {
            Some(known) if known.topics == topics => {
                known.number = number;
                known.task = task;
                known.joined = true;
            }
            _ => {
                let topics = topics.to_vec();
                self.form();
                let member = Member { number, task, topics, joined: true, assignment: Vec::new() };
                self.members.insert(name.to_owned(), member);
            }
        }
        number
    }

    /// The member's session is over: it is out.
    pub(super) fn expire(&mut self, name: &str) {
        if self.members.remove(name).is_some() {
            self.form();
        }
    }

    fn form(&mut self) {
        if !self.forming {
            self.forming = true;
            for member in self.members.values_mut() {
                member.joined = false;
            }
        }
    }

    /// Begins the new generation if all have rejoined for it. `partitions` tells how many a topic has.
    pub(super) fn complete<E>(&mut self, partitions: impl Fn(&str) -> Result<u32, E>) -> Result<(), E> {
        if !self.forming || !self.members.values().all(|m| m.joined) {
            return Ok(());
        }
        let mut assignments: BTreeMap<String, Vec<TopicPartition>> = BTreeMap::new();
        let mut topics: Vec<Arc<str>> = self.members.values().flat_map(|m| m.topics.iter().cloned()).collect();
        topics.sort();
        topics.dedup();
        for topic in topics {
            let takers: Vec<_> = self.members.iter().filter(|(_, m)| m.topics.contains(&topic)).collect();
            let (all, takers_count) = (partitions(&topic)? as usize, takers.len());
            let mut next = 0;
            for (i, (name, _)) in takers.into_iter().enumerate() {
                let share = all / takers_count + usize::from(i < all % takers_count);
                let range = (next..next + share)
                    .map(|partition| TopicPartition { topic: topic.clone(), partition: partition as u32 });
                assignments.entry(name.clone()).or_default().extend(range);
                next += share;
            }
        }
        for (name, member) in &mut self.members {
            member.assignment = assignments.remove(name).unwrap_or_default();
        }
        self.forming = false;
        self.generation += 1;
        Ok(())
    }

    /// Whether a transaction of this member may still commit positions.
    pub(super) fn admits(&self, place: &Place) -> bool {
        self.generation == place.generation
            && self.members.get(&place.name).is_some_and(|member| member.number == place.member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(group: &mut Group) {
        group.complete(|_| Ok::<_, ()>(5)).expect("the topic is known");
    }

    fn partitions(group: &Group, name: &str) -> Vec<u32> {
        group.members[name].assignment.iter().map(|p| p.partition).collect()
    }

    #[test]
    fn ranges_move_when_members_come_and_go() {
        let mut group = Group::default();
        let topics = ["t".into()];
        let one = group.join("1", None, &topics);
        complete(&mut group);
        assert_eq!((group.generation, partitions(&group, "1")), (1, vec![0, 1, 2, 3, 4]));
        let place = |member, generation| Place { cluster: 0, group: "g".into(), name: "1".into(), member, generation };
        assert!(group.admits(&place(one, 1)));

        group.join("2", None, &topics);
        complete(&mut group);
        assert!(group.forming, "1 has not rejoined");
        assert!(group.admits(&place(one, 1)), "until then it may commit what it has");
        group.members.get_mut("1").expect("a member").joined = true;
        complete(&mut group);
        assert_eq!((partitions(&group, "1"), partitions(&group, "2")), (vec![0, 1, 2], vec![3, 4]));
        assert!(!group.admits(&place(one, 1)));

        // A restart under the same name disturbs nobody, and fences the one before.
        let again = group.join("1", None, &topics);
        complete(&mut group);
        assert_eq!((group.generation, partitions(&group, "1")), (2, vec![0, 1, 2]));
        assert!(group.admits(&place(again, 2)) && !group.admits(&place(one, 2)));

        group.expire("1");
        group.members.get_mut("2").expect("a member").joined = true;
        complete(&mut group);
        assert_eq!(partitions(&group, "2"), [0, 1, 2, 3, 4]);
        assert!(!group.admits(&place(again, 2)));
    }
}
