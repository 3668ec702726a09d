//! What a sink and a trainer ask of a lake of two million objects, on a store that takes its time for each request.
//!
//! ```text
//! cargo bench -p lake --bench grown
//! ```
//!
//! 347 days, 4 partitions, an object a minute: 1,998,720 names. A request of a listing (1,000 names) takes 60 ms, one
//! for a footer 20 ms. The store is in this process: network and XML come on top, other clients do not disturb.
//! Memory is the growth of the process's peak, the store's pages of names included.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/rows.rs"]
mod rows;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::NaiveDate;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use lake::{Lake, LakeUrl, ObjectName};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

const DAYS: u64 = 347;
const PARTITIONS: u32 = 4;
const PER_DAY: u64 = 24 * 60;
/// Days whose objects can be read; of the others there are only names.
const WHOLE_DAYS: u64 = 8;
const PAGE_NAMES: usize = 1_000;
const LIST_TAKES: Duration = Duration::from_millis(60);
const GET_TAKES: Duration = Duration::from_millis(20);

fn date(day: u64) -> NaiveDate {
    NaiveDate::from_ymd_opt(2026, 1, 1).unwrap() + chrono::Days::new(day)
}

#[derive(Debug, Default)]
struct SlowStore {
    names: InMemory,
    lists: Arc<AtomicU64>,
    gets: AtomicU64,
}

impl SlowStore {
    fn paged(&self, names: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
        let lists = self.lists.clone();
        let pages = stream::once(async { names.collect::<Vec<_>>().await }).flat_map(move |names| {
            let mut pages: Vec<Vec<_>> = Vec::new();
            let mut names = names.into_iter().peekable();
            while pages.is_empty() || names.peek().is_some() {
                pages.push(names.by_ref().take(PAGE_NAMES).collect());
            }
            stream::iter(pages)
        });
        let answered = pages.then(move |page| {
            lists.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::time::sleep(LIST_TAKES).await;
                stream::iter(page)
            }
        });
        answered.flatten().boxed()
    }
}

#[async_trait]
impl ObjectStore for SlowStore {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.names.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(&self, at: &Path, o: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.names.put_multipart_opts(at, o).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(GET_TAKES).await;
        self.names.get_opts(at, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.names.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.paged(self.names.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.paged(self.names.list_with_offset(prefix, offset))
    }

    /// The folders are known: the store in memory would look at every name.
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.lists.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(LIST_TAKES).await;
        let prefix = prefix.unwrap();
        let of_day =
            || (0..PARTITIONS).map(|partition| prefix.clone().join(format!("partition={partition}"))).collect();
        let of_topic = || (0..DAYS).map(|day| prefix.clone().join(format!("date={}", date(day)))).collect();
        let common_prefixes = if prefix.parts_count() == 1 { of_topic() } else { of_day() };
        Ok(ListResult { common_prefixes, objects: Vec::new() })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.names.copy_opts(from, to, options).await
    }
}

impl fmt::Display for SlowStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a slow store")
    }
}

async fn measured<T>(store: &SlowStore, what: &str, asked: impl Future<Output = Result<T, lake::Error>>) -> T {
    store.lists.store(0, Ordering::Relaxed);
    store.gets.store(0, Ordering::Relaxed);
    std::fs::write("/proc/self/clear_refs", "5").unwrap(); // the peak begins anew
    let (began, before) = (Instant::now(), memory_mib("VmRSS"));
    let answer = asked.await.unwrap();
    let (lists, gets) = (store.lists.load(Ordering::Relaxed), store.gets.load(Ordering::Relaxed));
    let (s, mib) = (began.elapsed().as_secs_f64(), memory_mib("VmHWM") - before);
    println!("{what}: {s:.1} s, {mib} MiB on top, {lists} requests to list, {gets} to read");
    answer
}

/// A line of what the kernel knows about this process.
fn memory_mib(name: &str) -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<i64>().unwrap() / 1024
}

fn main() {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
        let store = Arc::new(SlowStore::default());
        for (partition, offset) in (0..PARTITIONS).flat_map(|p| (0..DAYS * PER_DAY).map(move |offset| (p, offset))) {
            let day = offset / PER_DAY;
            let date = date(day).to_string();
            let name = ObjectName { topic: "telemetry".into(), date, partition, start: offset, end: None, erasures: 0 };
            let whole = || rows::object(partition, offset, offset + 1, &[offset]).bytes;
            let bytes = if day + WHOLE_DAYS >= DAYS { whole() } else { Bytes::new() };
            store.put(&name.path(), bytes.into()).await.unwrap();
        }
        println!("{} objects", DAYS * PER_DAY * u64::from(PARTITIONS));
        let lake = Lake::with_store(store.clone(), LakeUrl::Directory("in memory".into()));
        let next = measured(&store, "where a sink resumes", lake.next_offsets("telemetry")).await;
        assert!(next.offsets.values().all(|next| *next == DAYS * PER_DAY));
        let conflict = lake.list("telemetry/date=2026-12-13/partition=1").await.unwrap();
        let conflict = ObjectName::parse(&conflict[0]).unwrap();
        measured(&store, "where it resumes after another sink", lake.next_offset_after(&conflict)).await.unwrap();
        let window = date(DAYS - 7)..=date(DAYS);
        let covered = measured(&store, "the window of a training", lake.coverage_of("telemetry", &window)).await;
        assert_eq!(covered.ranges.len(), PARTITIONS as usize);
        let all = async {
            let names = store.list(Some(&Path::from("telemetry")));
            Ok(names.try_fold(0_u64, async |count, _| Ok(count + 1)).await.unwrap())
        };
        measured(&store, "all names, one page after the other", all).await;
    });
}
