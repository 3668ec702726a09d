//! Which groups read which topics: whom retention waits for.
//!
//! ```text
//! keyspace meta   group/GROUP NUL TOPIC   → 1: reads this topic, 0: its positions are of the topic in another log
//! ```
//!
//! A group is known as a reader of a topic from the moment it joins or is announced ([`Log::keep_for`]), before it has
//! committed anything, until it is forgotten. A group with a position and without such a note is a reader, too: it
//! comes from a version that kept no notes.
//!
//! [`Log::keep_for`]: crate::Log::keep_for

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::{RwLock, RwLockReadGuard};

use super::disk::Disk;
use super::partition::Partition;
use super::positions::Positions;
use crate::Error;

const PREFIX: &str = "group/";

/// What the positions of a group in a topic mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It reads the topic of this log.
    Reader,
    /// It reads a topic of this name in another log.
    Elsewhere,
}

/// By topic and group.
pub(super) type Roles = BTreeMap<(Arc<str>, Arc<str>), Role>;

/// The notes of an open log. Retention holds them while it removes records: a group that has been added is waited for.
pub(super) struct Groups(RwLock<Roles>);

impl Groups {
    pub(super) fn load(disk: &Disk) -> Result<Self, Error> {
        let mut roles = Roles::new();
        for entry in disk.meta.prefix(PREFIX) {
            let (key, value) = entry.into_inner().map_err(|e| disk.unopened(e))?;
            let names = std::str::from_utf8(&key[PREFIX.len()..]).ok().and_then(|names| names.split_once('\0'));
            let role = match &*value {
                [1] => Some(Role::Reader),
                [0] => Some(Role::Elsewhere),
                _ => None,
            };
            let Some(((group, topic), role)) = names.zip(role) else {
                return Err(disk.corrupt("the note of a group".into(), "it cannot be read"));
            };
            roles.insert((topic.into(), group.into()), role);
        }
        Ok(Self(roles.into()))
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Roles> {
        self.0.read()
    }

    /// Notes durably what the positions of `group` in `topics` mean.
    pub(super) fn add(&self, disk: &Disk, group: &str, topics: &[Arc<str>], role: Role) -> Result<(), Error> {
        if group.is_empty() || group.contains('\0') {
            return Err(disk.refused("add a group", format!("{group:?} is not a valid group name")));
        }
        let mut roles = self.0.write();
        let keys = topics.iter().map(|topic| (topic.clone(), Arc::from(group)));
        let new: Vec<_> = keys.filter(|key| roles.get(key) != Some(&role)).collect();
        if new.is_empty() {
            return Ok(());
        }
        disk.check_writable()?;
        let mut batch = disk.durable_batch();
        for (topic, group) in &new {
            batch.insert(&disk.meta, stored_key(group, topic), [u8::from(role == Role::Reader)]);
        }
        batch.commit().map_err(|e| disk.failed("add a group", e))?;
        roles.extend(new.into_iter().map(|key| (key, role)));
        Ok(())
    }

    /// Removes the notes and the positions of `group`. Returns whether there were any.
    pub(super) fn forget(&self, disk: &Disk, positions: &Positions, group: &str) -> Result<bool, Error> {
        let mut roles = self.0.write();
        disk.check_writable()?;
        let mut batch = disk.durable_batch();
        let mut found = positions.remove(disk, &mut batch, group);
        for (topic, of) in roles.keys().filter(|(_, of)| &**of == group) {
            batch.remove(&disk.meta, stored_key(of, topic));
            found = true;
        }
        batch.commit().map_err(|e| disk.failed("forget a group", e))?;
        positions.write().retain(|(of, ..), _| &**of != group);
        roles.retain(|(_, of), _| &**of != group);
        Ok(found)
    }
}

/// The groups that read `topic`.
pub(super) fn readers(roles: &Roles, positions: &Positions, topic: &str) -> Vec<Arc<str>> {
    let mut readers: BTreeSet<Arc<str>> = positions.groups(topic);
    for ((_, group), role) in roles.iter().filter(|((of, _), _)| &**of == topic) {
        match role {
            Role::Reader => readers.insert(group.clone()),
            Role::Elsewhere => readers.remove(group),
        };
    }
    readers.into_iter().collect()
}

/// How far `readers` have read a partition, the slowest first. One without a position has read nothing.
pub(super) fn progress(readers: &[Arc<str>], positions: &Positions, partition: &Partition) -> Vec<(u64, Arc<str>)> {
    let position = |group: &Arc<str>| positions.committed(group, &partition.topic, [partition.index])[0].unwrap_or(0);
    let mut progress: Vec<_> = readers.iter().map(|group| (position(group), group.clone())).collect();
    progress.sort();
    progress
}

fn stored_key(group: &str, topic: &str) -> Vec<u8> {
    [PREFIX.as_bytes(), group.as_bytes(), &[0], topic.as_bytes()].concat()
}
