//! Retention: which blocks go, and which stay for whom.
//!
//! ```text
//!  first ──────────── floor: the slowest group's position ──────────────── next
//!    │ older than the retention │                          │ younger
//!    └── removed ───────────────┤
//!                               └── held for a group; given up only if the disk runs out, an hour at a time
//! ```

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::disk::Disk;
use super::groups::{self, Roles};
use super::partition::Partition;
use super::store::Store;
use super::topics::encode_bounds;
use crate::Error;

/// How much of the records that the disk has no room for is given up at a time: the oldest, so much log time of them.
const GIVE_UP_MS: i64 = 3_600_000;
/// How often to report that records are held for a group.
const REPORT_EVERY_MS: i64 = 3_600_000;

/// When something was reported, by topic and group.
type Reported = HashMap<(Arc<str>, Arc<str>), i64>;

/// What retention has done and not done in one log, since it was opened.
#[derive(Debug, Default)]
pub(super) struct Retention {
    /// Records removed that a group had not read.
    pub(super) given_up: AtomicU64,
    /// Records past their retention that are held for groups, as of the last run.
    pub(super) held: AtomicU64,
    /// When it was last reported that records are held.
    reported_ms: Mutex<Reported>,
}

/// A partition with records that are past their retention and held for groups.
struct Held {
    partition: Arc<Partition>,
    before_ms: i64,
    /// When the oldest of them was appended.
    oldest_ms: i64,
    /// Their offsets: of those that a group has not read.
    offsets: Range<u64>,
    /// Positions of the groups, the slowest first.
    progress: Vec<(u64, Arc<str>)>,
}

impl Retention {
    /// One run over all topics with a retention. `is_short`: whether the disk runs out of space.
    pub(super) fn run(&self, store: &Store, is_short: impl FnOnce(&Disk) -> bool) -> Result<(), Error> {
        let (disk, now_ms) = (&store.disk, store.time.now_ms());
        // Held throughout: a group that joins meanwhile waits, and then begins at a first offset that stays.
        let roles = store.readers.read();
        let mut held = Vec::new();
        for topic in store.topics.all() {
            let Some(retention) = topic.stored.retention().filter(|_| !topic.stored.compacted) else { continue };
            let before_ms = now_ms.saturating_sub(to_ms(retention));
            held.extend(expire_topic(store, &roles, &topic.partitions, before_ms)?);
        }
        let oldest_ms = held.iter().map(|held| held.oldest_ms).min();
        if let Some(oldest_ms) = oldest_ms.filter(|_| is_short(disk)) {
            let until_ms = oldest_ms.saturating_add(GIVE_UP_MS);
            for held in &mut held {
                self.give_up(disk, held, until_ms)?;
            }
        }
        let records = held.iter().map(|held| held.offsets.end.saturating_sub(held.offsets.start)).sum();
        self.held.store(records, Ordering::Relaxed);
        self.report(store, &held, now_ms);
        Ok(())
    }

    /// Removes what was appended before `until_ms`, whoever has not read it.
    fn give_up(&self, disk: &Disk, held: &mut Held, until_ms: i64) -> Result<(), Error> {
        let partition = &held.partition;
        expire(disk, partition, held.before_ms.min(until_ms.saturating_add(1)), u64::MAX)?;
        let given_up = held.offsets.start..partition.first().min(held.offsets.end);
        if given_up.is_empty() {
            return Ok(());
        }
        self.given_up.fetch_add(given_up.end - given_up.start, Ordering::Relaxed);
        let slower = held.progress.iter().filter(|(position, _)| *position < given_up.end);
        let groups = slower.map(|(position, group)| format!("{group} (at {position})")).collect::<Vec<_>>().join(", ");
        tracing::error!(
            topic = %partition.topic,
            partition = partition.index,
            "the disk of {} is almost full: removed {}/{} offsets {} to {}, which these groups had not read: {groups}. \
             Free some space and start them, or forget a group that is gone for good (carstream groups --forget)",
            disk.url,
            partition.topic,
            partition.index,
            given_up.start,
            given_up.end - 1
        );
        held.offsets.start = given_up.end;
        Ok(())
    }

    /// Reports from time to time for which groups records are held.
    fn report(&self, store: &Store, held: &[Held], now_ms: i64) {
        let mut reported_ms = self.reported_ms.lock();
        for held in held.iter().filter(|held| !held.offsets.is_empty()) {
            let Some((position, group)) = held.progress.first() else { continue };
            let topic = &held.partition.topic;
            let last_ms = reported_ms.entry((topic.clone(), group.clone())).or_insert(i64::MIN);
            if now_ms.saturating_sub(*last_ms) >= REPORT_EVERY_MS {
                *last_ms = now_ms;
                tracing::warn!(
                    %topic,
                    %group,
                    "{topic} in {} keeps records past its retention: group {group} has not read them. It is at \
                     {topic}/{} offset {position}. If it is gone for good: carstream groups --forget {group}",
                    store.disk.url,
                    held.partition.index
                );
            }
        }
    }
}

/// Removes what is old and read, and returns the partitions with records that are old and not read.
fn expire_topic(
    store: &Store,
    roles: &Roles,
    partitions: &[Arc<Partition>],
    before_ms: i64,
) -> Result<Vec<Held>, Error> {
    let mut held = Vec::new();
    let Some(topic) = partitions.first().map(|p| &p.topic) else { return Ok(held) };
    let readers = groups::readers(roles, &store.positions, topic);
    for partition in partitions {
        let progress = groups::progress(&readers, &store.positions, partition);
        let floor = progress.first().map_or(u64::MAX, |(position, _)| *position);
        expire(&store.disk, partition, before_ms, floor)?;
        if floor == u64::MAX {
            continue;
        }
        // What is left at the beginning and old is held.
        let mut oldest_ms = None;
        let mut offsets = floor.max(partition.first())..floor;
        for place in store.disk.places(partition, partition.first()..partition.next()) {
            let place = place?;
            if place.appended_ms >= before_ms {
                break;
            }
            oldest_ms = oldest_ms.or(Some(place.appended_ms));
            offsets.end = place.last + 1;
        }
        let Some(oldest_ms) = oldest_ms.filter(|_| !offsets.is_empty()) else { continue };
        held.push(Held { partition: partition.clone(), before_ms, oldest_ms, offsets, progress });
    }
    Ok(held)
}

/// Forgets the blocks at the beginning that were appended before `before_ms` and lie below `floor`.
fn expire(disk: &Disk, partition: &Partition, before_ms: i64, floor: u64) -> Result<(), Error> {
    let mut first = partition.first();
    let mut batch = disk.durable_batch();
    for place in disk.places(partition, first..partition.next()) {
        let place = place?;
        if place.appended_ms >= before_ms || place.last >= floor {
            break;
        }
        disk.remove_place(&mut batch, partition, &place);
        first = place.last + 1;
    }
    if first > partition.first() {
        disk.check_writable()?;
        batch.insert(&disk.meta, partition.bounds_key(), encode_bounds(first, first));
        batch.commit().map_err(|e| disk.failed("apply retention", e))?;
        partition.set_first(first);
        tracing::debug!(topic = %partition.topic, partition = partition.index, first, "retention removed records");
    }
    Ok(())
}

fn to_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::block::pack_new;
    use super::super::commit::Request;
    use super::super::groups::Role;
    use super::*;
    use crate::{Batch, Clock, LogUrl, TopicSpec};

    const HOUR: Duration = Duration::from_secs(3600);

    struct Log {
        store: Store,
        clock: Clock,
        retention: Retention,
        _folder: tempfile::TempDir,
    }

    impl Log {
        fn new(topics: &[&str]) -> Self {
            let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::default());
            let url = LogUrl::Directory(folder.path().to_owned());
            let store = Store::open(url, &folder.path().join("store"), clock.clone()).unwrap();
            for name in topics {
                let spec =
                    TopicSpec { name: (*name).into(), partitions: 1, retention: Some(24 * HOUR), compacted: false };
                store.topics.ensure(&store.disk, &spec).unwrap();
            }
            Self { store, clock, retention: Retention::default(), _folder: folder }
        }

        fn partition(&self, topic: &str) -> Arc<Partition> {
            self.store.topic(topic).unwrap().partitions[0].clone()
        }

        /// One block of ten records.
        fn append(&self, topic: &str) {
            let mut batch = Batch::new(topic.into(), 0);
            (0..10).for_each(|_| batch.push(0, 0, b"k", Some(b"v"), std::iter::empty()));
            let outputs = vec![(self.partition(topic), pack_new(&batch))];
            self.store.commit(Request { outputs, positions: Vec::new() }).unwrap();
        }

        fn reads(&self, group: &str, topic: &str, position: u64) {
            self.store.readers.add(&self.store.disk, group, &[topic.into()], Role::Reader).unwrap();
            let positions = vec![((group.into(), topic.into(), 0), position)];
            self.store.commit(Request { outputs: Vec::new(), positions }).unwrap();
        }

        fn run(&self, is_short: bool) {
            self.retention.run(&self.store, |_| is_short).unwrap();
        }

        fn counts(&self) -> (u64, u64) {
            (self.retention.held.load(Ordering::Relaxed), self.retention.given_up.load(Ordering::Relaxed))
        }
    }

    #[test]
    fn a_disk_that_runs_out_takes_the_oldest_unread_records_an_hour_at_a_time() {
        let log = Log::new(&["a", "b"]);
        log.append("a");
        log.clock.pass(HOUR / 2);
        log.append("b");
        log.clock.pass(HOUR);
        log.append("a");
        log.append("b");
        log.clock.pass(24 * HOUR + HOUR / 4);
        log.append("a");
        log.reads("slow", "a", 3);
        log.reads("fast", "a", 20);
        log.reads("slow", "b", 0);
        let firsts = || (log.partition("a").first(), log.partition("b").first());
        log.run(false);
        assert_eq!((firsts(), log.counts()), ((0, 0), (17 + 20, 0)));
        log.run(true);
        assert_eq!((firsts(), log.counts()), ((10, 10), (10 + 10, 7 + 10)), "what was read is not counted");
        log.run(false);
        assert_eq!(firsts(), (10, 10), "no more than the disk needs");
        log.run(true);
        assert_eq!((firsts(), log.counts()), ((20, 20), (0, 37)));
        log.run(true);
        assert_eq!((firsts(), log.counts()), ((20, 20), (0, 37)), "never what is younger than its retention");
    }

    #[test]
    fn what_nobody_waits_for_goes_by_age_alone() {
        let log = Log::new(&["a"]);
        log.append("a");
        log.clock.pass(23 * HOUR);
        log.run(true);
        assert_eq!(log.partition("a").first(), 0);
        log.clock.pass(2 * HOUR);
        log.run(false);
        assert_eq!((log.partition("a").first(), log.counts()), (10, (0, 0)));
    }
}
