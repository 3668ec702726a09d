//! What the folders of a topic list, and which of these objects count.
//!
//! ```text
//! TOPIC/date=…   one request for the days ─► one for each day's partitions ─► one or more for each folder's names
//! ```
//!
//! Folders are listed side by side, each page with its own time limit: a lake of two million objects takes seconds
//! where one listing after the other takes minutes.

use std::cmp::Reverse;
use std::ops::RangeInclusive;

use chrono::NaiveDate;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;

use crate::layout::check_name;
use crate::{Error, Lake, ObjectName};

/// Folders that are listed at the same time: S3 answers thousands of such requests a second.
const CONCURRENT_LISTS: usize = 32;

/// Days, both ends included.
pub type Days = RangeInclusive<NaiveDate>;

/// A day and a partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Folder {
    pub(crate) topic: String,
    pub(crate) date: String,
    pub(crate) partition: u32,
}

impl Folder {
    pub(crate) fn path(&self) -> String {
        format!("{}/date={}/partition={}", self.topic, self.date, self.partition)
    }

    /// Sorts before the name of an object that starts at `start`, and after those that start earlier.
    pub(crate) fn before(&self, start: u64) -> String {
        format!("{}/{start:020}.", self.path())
    }
}

/// The names in some folders.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    pub(crate) objects: Vec<ObjectName>,
    /// Parquet files that carstream did not write.
    pub(crate) foreign: Vec<String>,
}

impl Listed {
    fn add(&mut self, name: &str) {
        match ObjectName::parse(name) {
            Some(name) => self.objects.push(name),
            None if name.ends_with(".parquet") => self.foreign.push(name.to_owned()),
            None => {}
        }
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.objects.append(&mut other.objects);
        self.foreign.append(&mut other.foreign);
    }
}

/// An object, and the first offset that is taken from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: ObjectName,
    pub(crate) from: u64,
}

/// Objects that count, by partition and offset, and those whose rows are in a compacted object as well.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) parts: Vec<Part>,
    pub(crate) covered: Vec<ObjectName>,
}

/// Which objects count. A compacted object takes the place of all that begin within its range; of several with the same
/// range, the one from which rows were erased most often counts; of two that overlap, the second counts from the end of
/// the first.
pub(crate) fn resolve(mut names: Vec<ObjectName>) -> Resolved {
    names.sort_unstable_by(|a, b| {
        let key = |name: &ObjectName| (name.partition, name.start, Reverse((name.end, name.erasures)));
        key(a).cmp(&key(b)).then_with(|| a.date.cmp(&b.date))
    });
    let mut resolved = Resolved::default();
    let (mut partition, mut compacted_to) = (0, 0);
    for name in names {
        if name.partition != partition {
            (partition, compacted_to) = (name.partition, 0);
        }
        if name.end.unwrap_or(name.start + 1) <= compacted_to {
            resolved.covered.push(name);
            continue;
        }
        let from = name.start.max(compacted_to);
        compacted_to = name.end.unwrap_or(compacted_to);
        resolved.parts.push(Part { name, from });
    }
    resolved
}

impl Lake {
    /// The objects of a topic that count, sorted by partition and start offset.
    pub async fn objects(&self, topic: &str) -> Result<Vec<ObjectName>, Error> {
        let listed = self.list_days(topic, None).await?;
        Ok(resolve(listed.objects).parts.into_iter().map(|part| part.name).collect())
    }

    /// All names in the folders of a topic, or in those of some days.
    pub(crate) async fn list_days(&self, topic: &str, days: Option<&Days>) -> Result<Listed, Error> {
        let days = self.days(topic, days).await?;
        self.list_all(days.into_iter().map(|day| (format!("{topic}/date={day}"), None))).await
    }

    /// The days (`YYYY-MM-DD`) that a topic has folders of, all or those among some days, sorted.
    pub(crate) async fn days(&self, topic: &str, among: Option<&Days>) -> Result<Vec<String>, Error> {
        check_name("a topic", topic)?;
        let mut days = self.list_folders(topic, "date=").await?;
        if let Some(among) = among {
            days.retain(|day| day.parse().is_ok_and(|day| among.contains(&day)));
        }
        days.sort_unstable();
        Ok(days)
    }

    /// The folders of these days.
    pub(crate) async fn folders(&self, topic: &str, days: &[String]) -> Result<Vec<Folder>, Error> {
        let of_day = |date: String| async move {
            let partitions = self.list_folders(&format!("{topic}/date={date}"), "partition=").await?;
            let folder = |partition: String| {
                let (topic, date) = (topic.to_owned(), date.clone());
                Some(Folder { topic, date, partition: partition.parse().ok()? })
            };
            Ok(partitions.into_iter().filter_map(folder).collect::<Vec<_>>())
        };
        let folders = stream::iter(days.iter().cloned().map(of_day)).buffered(CONCURRENT_LISTS);
        Ok(folders.try_collect::<Vec<_>>().await?.into_iter().flatten().collect())
    }

    /// The names under several prefixes; for each, only those that sort after a name, if one is given.
    pub(crate) async fn list_all(
        &self,
        prefixes: impl IntoIterator<Item = (String, Option<String>)>,
    ) -> Result<Listed, Error> {
        let list = |(prefix, after): (String, Option<String>)| async move {
            let mut listed = Listed::default();
            self.each_name(&prefix, after.as_deref(), |name| listed.add(name)).await?;
            Ok(listed)
        };
        let mut all = Listed::default();
        let mut lists = stream::iter(prefixes.into_iter().map(list)).buffered(CONCURRENT_LISTS);
        while let Some(listed) = lists.try_next().await? {
            all.append(listed);
        }
        Ok(all)
    }

    /// Calls `then` with each name under `prefix`, of those that sort after a name, if one is given.
    pub(crate) async fn each_name(
        &self,
        prefix: &str,
        after: Option<&str>,
        mut then: impl FnMut(&str),
    ) -> Result<(), Error> {
        let path = Path::from(prefix);
        let mut names = match after {
            Some(after) => self.store.list_with_offset(Some(&path), &Path::from(after)),
            None => self.store.list(Some(&path)),
        };
        let failed = |source| self.store_error("list", prefix, source);
        while let Some(object) = self.in_time("list", prefix, async { names.try_next().await.map_err(failed) }).await? {
            then(object.location.as_ref());
        }
        Ok(())
    }

    /// What follows `prefix` in the names of the folders in `folder`.
    async fn list_folders(&self, folder: &str, prefix: &str) -> Result<Vec<String>, Error> {
        let path = Path::from(folder);
        let listed = async {
            let listed = self.store.list_with_delimiter(Some(&path)).await;
            listed.map_err(|source| self.store_error("list", folder, source))
        };
        let listed = self.in_time("list", folder, listed).await?;
        let names = listed.common_prefixes.iter().filter_map(|path| path.filename()?.strip_prefix(prefix));
        Ok(names.map(str::to_owned).collect())
    }
}
