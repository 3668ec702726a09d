//! A lake in memory with some objects, and what is found in it.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::NaiveDate;
use futures_util::TryStreamExt;
use lake::{Days, Lake, LakeUrl, ObjectName, OffsetRange};
use object_store::ObjectStore;
use object_store::memory::InMemory;

use crate::rows::{object, schema};

/// More than all small objects of a test have together.
pub const LARGE: u64 = 1 << 30;

pub fn all_days() -> Days {
    NaiveDate::MIN..=NaiveDate::MAX
}

pub fn lake_of(store: Arc<dyn ObjectStore>) -> Lake {
    Lake::with_store(store, LakeUrl::Directory("in memory".into()))
}

/// Objects `start..end`, each of the partition's offsets but every tenth, which has no row.
pub async fn put(lake: &Lake, partition: u32, bounds: &[u64]) {
    for pair in bounds.windows(2) {
        lake.put_object(&object(partition, pair[0], pair[1], &offsets(pair[0], pair[1]))).await.unwrap();
    }
}

pub fn offsets(start: u64, end: u64) -> Vec<u64> {
    (start..end).filter(|offset| offset % 10 != 3).collect()
}

pub fn range(partition: u32, start: u64, end: u64) -> OffsetRange {
    OffsetRange { topic: "telemetry".into(), partition, start, end }
}

/// How often each row of a partition is found by who reads every file, as programs that know nothing of carstream do.
pub async fn seen_by_a_glob(store: &Arc<InMemory>) -> BTreeMap<(u32, u64), u64> {
    let (mut seen, lake) = (BTreeMap::new(), lake_of(store.clone()));
    for file in store.list(Some(&"telemetry".into())).try_collect::<Vec<_>>().await.unwrap() {
        let name = ObjectName::parse(file.location.as_ref()).unwrap();
        let footer = lake.footer(&name).await.unwrap();
        let partition = name.partition;
        let mut reader = lake.read_object(name, &footer, schema());
        while let Some(rows) = reader.next().await.unwrap() {
            rows.offsets.values().iter().for_each(|offset| *seen.entry((partition, *offset as u64)).or_default() += 1);
        }
    }
    seen
}
