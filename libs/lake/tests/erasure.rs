//! Erasure: a car that asked for it is gone from every object that counts, wherever a compaction dies, whoever else is
//! at it; and no row of another car is lost or doubled.
#![allow(clippy::unwrap_used)]

#[path = "support/counting.rs"]
mod counting;
#[path = "support/days.rs"]
mod days;
#[path = "support/mortal.rs"]
mod mortal;
#[path = "support/rows.rs"]
mod rows;

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::compute::concat_batches;
use counting::CountingStore;
use days::{LARGE, all_days, lake_of, offsets, put, range, seen_by_a_glob};
use futures_util::TryStreamExt;
use lake::{Compacted, Error, Lake, ObjectName, OffsetRange};
use mortal::Mortal;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use proptest::prelude::*;
use rows::{object, rows, schema};

/// The row at an offset is of one of seven cars.
const CARS: u64 = 7;

/// The car that asks.
const CAR: u64 = 5;

async fn ask(lake: &Lake, partition: u32, before: u64) {
    lake.request_erasure("telemetry", partition, before, &format!("car-{CAR}")).await.unwrap();
}

async fn compact(lake: &Lake) -> Compacted {
    lake.compact("telemetry", "car", &all_days(), LARGE).await.unwrap()
}

fn is_asked(offset: u64, before: u64) -> bool {
    offset % CARS == CAR && offset < before
}

/// The rows of a range when those of the car before an offset are gone.
fn left(start: u64, end: u64, before: u64) -> Vec<u64> {
    offsets(start, end).into_iter().filter(|offset| !is_asked(*offset, before)).collect()
}

async fn read(lake: &Lake, range: &OffsetRange) -> Vec<u64> {
    let mut reader = lake.read(range.clone(), schema()).await.unwrap();
    let (mut found, mut batches) = (Vec::new(), Vec::new());
    while let Some(rows) = reader.next().await.unwrap() {
        found.extend(rows.offsets.values().iter().map(|offset| *offset as u64));
        batches.push(rows.batch);
    }
    assert_eq!(concat_batches(&schema(), &batches).unwrap(), rows(&found), "rows are what they were");
    found
}

/// Asserts that readers find this range of partition 0 whole, with these rows, and files nothing else.
async fn assert_erased(store: &Arc<InMemory>, end: u64, before: u64) {
    let (lake, whole) = (lake_of(store.clone()), range(0, 0, end));
    let covered = lake.coverage("telemetry").await.unwrap();
    assert_eq!(covered.ranges, std::slice::from_ref(&whole), "{:?}", covered.remarks());
    assert_eq!(lake.next_offsets("telemetry").await.unwrap().offsets[&0], end);
    let expected = left(0, end, before);
    assert_eq!(read(&lake, &whole).await, expected);
    let seen = seen_by_a_glob(store).await;
    assert!(seen.values().all(|count| *count == 1));
    assert_eq!(seen.into_keys().map(|(_, offset)| offset).collect::<Vec<_>>(), expected);
    let mut gone = 0;
    for name in lake.objects("telemetry").await.unwrap() {
        gone += lake.footer(&name).await.unwrap().erased;
    }
    assert_eq!(gone as usize, offsets(0, end).len() - expected.len(), "footers name what is gone");
}

/// The bytes of all objects that hold rows: so small that they are stored as they are.
async fn bytes(store: &InMemory) -> Vec<u8> {
    let mut all = Vec::new();
    for file in store.list(Some(&"telemetry".into())).try_collect::<Vec<_>>().await.unwrap() {
        all.extend(store.get(&file.location).await.unwrap().bytes().await.unwrap());
    }
    all
}

fn contain(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|window| window == part.as_bytes())
}

async fn names(lake: &Lake) -> Vec<(u64, Option<u64>, u32)> {
    let names = lake.objects("telemetry").await.unwrap();
    names.into_iter().map(|name| (name.start, name.end, name.erasures)).collect()
}

#[tokio::test]
async fn a_car_is_erased_from_what_is_merged_and_from_what_was_merged_before() {
    let store = Arc::new(InMemory::new());
    let lake = lake_of(store.clone());
    put(&lake, 0, &[0, 11, 40]).await;
    compact(&lake).await;
    put(&lake, 0, &[40, 45, 70]).await;
    // Another partition, in which nobody has asked for anything.
    put(&lake, 1, &[0, 11, 40]).await;
    assert!(contain(&bytes(&store).await, "car-5"));
    ask(&lake, 0, 70).await;
    ask(&lake, 0, 70).await;
    let done = compact(&lake).await;
    let (erased, rows) = (offsets(0, 70).len() - left(0, 70, 70).len(), left(0, 70, 70).len() + offsets(0, 40).len());
    assert_eq!((done.created, done.removed, done.erased), (3, 5, erased as u64), "{done:?}");
    assert_eq!((done.rows, &*done.left), (rows as u64, &[][..]));
    assert_eq!(names(&lake).await, [(0, Some(40), 1), (40, Some(70), 0), (0, Some(40), 0)]);
    assert_eq!(read(&lake, &range(1, 0, 40)).await, offsets(0, 40));
    let requests = lake.erasure_requests("telemetry").await.unwrap();
    assert_eq!((requests.count(), requests.before(0, "car-5"), requests.before(1, "car-5")), (1, Some(70), None));
    assert!(requests.has("car-5") && !requests.has("car-4") && requests.reach(0, 69) && !requests.reach(0, 70));
    for name in lake.objects("telemetry").await.unwrap().into_iter().filter(|name| name.partition == 1) {
        store.delete(&name.path()).await.unwrap();
    }
    assert_erased(&store, 70, 70).await;
    assert!(!contain(&bytes(&store).await, "car-5"), "not a byte of its name is left");
    assert_eq!(compact(&lake).await, Compacted::default(), "nothing is left to do");
}

#[tokio::test]
async fn a_car_that_returns_keeps_its_later_rows_and_may_ask_again() {
    let store = Arc::new(InMemory::new());
    let lake = lake_of(store.clone());
    put(&lake, 0, &[0, 20, 60]).await;
    // In the middle of an object, on a row of the car.
    for (before, erasures) in [(40, 0), (54, 1), (60, 2)] {
        ask(&lake, 0, before).await;
        compact(&lake).await;
        assert_eq!(names(&lake).await, [(0, Some(60), erasures)]);
        assert_erased(&store, 60, before).await;
    }
    ask(&lake, 0, 30).await;
    assert_eq!(compact(&lake).await, Compacted::default(), "an earlier request asks for less");
}

#[tokio::test]
async fn what_holds_nothing_of_the_car_stays_and_is_searched_once() {
    let store = Arc::new(CountingStore::new(InMemory::new()));
    let lake = lake_of(store.clone());
    let others = |start: u64| (start..start + 20).filter(|offset| offset % CARS != CAR).collect::<Vec<_>>();
    for start in [0, 20, 40] {
        let mut object = object(0, start, start + 20, &others(start));
        object.name.date = format!("2026-11-{:02}", 10 + start / 20);
        lake.put_object(&object).await.unwrap();
    }
    let mut with_the_car = object(0, 60, 80, &offsets(60, 80));
    with_the_car.name.date = "2026-11-19".to_owned();
    lake.put_object(&with_the_car).await.unwrap();
    let reads = async || {
        store.reset();
        let done = compact(&lake).await;
        (done.created, store.reads())
    };
    assert_eq!(reads().await, (0, 4), "the footers");
    ask(&lake, 0, 75).await;
    let (created, first) = reads().await;
    assert_eq!(created, 1);
    let unchanged = [(0, None, 0), (20, None, 0), (40, None, 0), (60, Some(80), 0)];
    assert_eq!(names(&lake).await, unchanged);
    // The new one is searched as well; it keeps the row at 75.
    let (created, second) = reads().await;
    assert_eq!((created, read(&lake, &range(0, 60, 80)).await), (0, left(60, 80, 75)));
    assert_eq!(reads().await, (0, 4 + 1), "the footers, and what was searched");
    assert!(first > second && second > 5, "{first} {second}");
    // Another request; and one that asks for nothing that was not asked for before.
    lake.request_erasure("telemetry", 0, 80, "car-100").await.unwrap();
    assert!(reads().await.1 > second, "all are searched for it");
    assert_eq!(reads().await, (0, 4 + 1));
    store.delete(&"_forget/telemetry/partition=0/searched".into()).await.unwrap();
    assert!(reads().await.1 > second, "it may be lost");
    assert_eq!(names(&lake).await, unchanged);
}

#[tokio::test]
async fn rows_that_come_back_go_again() {
    let store = Arc::new(InMemory::new());
    let lake = lake_of(store.clone());
    put(&lake, 0, &[0, 20, 40]).await;
    compact(&lake).await;
    ask(&lake, 0, 40).await;
    compact(&lake).await;
    assert_eq!(compact(&lake).await, Compacted::default());
    let stored_by_one_that_does_not_know = |start, end| {
        let mut object = object(0, start, end, &offsets(start, end));
        object.name.end = Some(end);
        object
    };
    // The same range: it does not count, and is removed.
    lake.put_object(&stored_by_one_that_does_not_know(0, 40)).await.unwrap();
    assert_eq!(read(&lake, &range(0, 0, 40)).await, left(0, 40, 40));
    assert_eq!((compact(&lake).await.removed, names(&lake).await), (1, vec![(0, Some(40), 1)]));
    assert_erased(&store, 40, 40).await;
    // A larger one: it counts until the next compaction.
    put(&lake, 0, &[40, 50]).await;
    lake.put_object(&stored_by_one_that_does_not_know(0, 50)).await.unwrap();
    assert_eq!(read(&lake, &range(0, 0, 50)).await, offsets(0, 50));
    compact(&lake).await;
    assert_erased(&store, 50, 40).await;
    // One that overlaps another.
    lake.put_object(&stored_by_one_that_does_not_know(20, 60)).await.unwrap();
    for _ in 0..2 {
        compact(&lake).await;
    }
    assert_eq!(read(&lake, &range(0, 0, 60)).await, left(0, 60, 40));
    assert!(seen_by_a_glob(&store).await.values().all(|count| *count == 1));
}

/// Before and after every request to the store.
#[tokio::test]
async fn it_may_die_at_any_point() {
    let (mut finished, mut at, mut doubled, mut erased_half) = (false, 0, 0, 0);
    while !finished {
        for after_its_effect in [false, true] {
            let store = Arc::new(InMemory::new());
            let lake = lake_of(store.clone());
            put(&lake, 0, &[0, 9, 30]).await;
            compact(&lake).await;
            put(&lake, 0, &[30, 45, 62]).await;
            ask(&lake, 0, 60).await;
            let mortal = lake_of(Arc::new(Mortal::shared(store.clone(), at, after_its_effect)));
            finished = mortal.compact("telemetry", "car", &all_days(), LARGE).await.is_ok();
            let covered = lake.coverage("telemetry").await.unwrap();
            assert_eq!(covered.ranges, [range(0, 0, 62)], "{:?}", covered.remarks());
            // Of each object the old or the new.
            let found = read(&lake, &range(0, 0, 62)).await;
            let halves = [(0, 30), (30, 62)].map(|(start, end)| {
                let of_half: Vec<_> = found.iter().copied().filter(|offset| (start..end).contains(offset)).collect();
                let is_new = of_half == left(start, end, 60);
                assert!(is_new || of_half == offsets(start, end), "died at {at}: {of_half:?}");
                is_new
            });
            erased_half += u64::from(halves[0] != halves[1]);
            let seen = seen_by_a_glob(&store).await;
            assert!(left(0, 62, 60).iter().all(|offset| seen.contains_key(&(0, *offset))), "died at {at}");
            doubled += seen.values().filter(|count| **count > 1).count();
            // A sink that writes on.
            put(&lake, 0, &[62, 70]).await;
            let done = compact(&lake).await;
            assert_eq!(done.left, Vec::<String>::new());
            assert_erased(&store, 70, 60).await;
            assert_eq!(compact(&lake).await.created, 0);
        }
        at += 1;
    }
    assert!(at > 20, "only {at} requests");
    assert!(doubled > 0 && erased_half > 0, "it never died between the create and the removal, or between two objects");
}

/// One stores an object under the name under which another one, who knows other requests, is about to store its own.
#[tokio::test]
async fn two_that_know_other_requests_agree_on_one_object() {
    let small = async || {
        let store = Arc::new(InMemory::new());
        put(&lake_of(store.clone()), 0, &[0, 9, 30]).await;
        ask(&lake_of(store.clone()), 0, 30).await;
        store
    };
    let mut with_the_car = object(0, 0, 30, &offsets(0, 30));
    with_the_car.name.end = Some(30);
    let name = with_the_car.name.path();
    let store = small().await;
    compact(&lake_of(store.clone())).await;
    let without_it = store.get(&name).await.unwrap().bytes().await.unwrap();
    // Who looks for cars in a column that does not exist knows of no request.
    for (faster, column) in [(with_the_car.bytes, "car"), (without_it, "vehicle")] {
        let store = small().await;
        let slower = Mortal::shared(store.clone(), u64::MAX, false).with_faster(name.clone(), faster);
        let done = lake_of(Arc::new(slower)).compact("telemetry", column, &all_days(), LARGE).await.unwrap();
        assert_eq!((done.created, done.removed, &*done.left), (0, 2, &[][..]), "{column}");
        compact(&lake_of(store.clone())).await;
        assert_erased(&store, 30, 30).await;
    }
}

#[tokio::test]
async fn an_object_without_the_column_has_no_cars() {
    let store = Arc::new(InMemory::new());
    let lake = lake_of(store.clone());
    put(&lake, 0, &[0, 20]).await;
    ask(&lake, 0, 20).await;
    let done = lake.compact("telemetry", "vehicle", &all_days(), LARGE).await.unwrap();
    assert_eq!(done, Compacted::default());
    assert_eq!(read(&lake, &range(0, 0, 20)).await, offsets(0, 20));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Two compactions, of which each may die and may not know of the request yet, a sink that notes the request behind
    /// the rows, and a reader, in an order that the case draws.
    #[test]
    fn whoever_is_at_it_the_car_is_gone_and_the_others_are_there(
        cuts in prop::collection::vec(1u64..15, 4..14),
        dies in prop::array::uniform2(5u64..90),
        targets in prop::array::uniform2(prop::sample::select(vec![1, LARGE, 9_000])),
        compacted_before in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let sums = cuts.iter().scan(0, |sum, cut| { *sum += cut; Some(*sum) });
        let bounds: Vec<_> = std::iter::once(0).chain(sums).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Arc::new(InMemory::new());
            let lake = lake_of(store.clone());
            let (written, later) = bounds.split_at(bounds.len() / 2);
            put(&lake, 0, written).await;
            if compacted_before {
                compact(&lake).await;
            }
            put(&lake, 0, &[written[written.len() - 1], later[0]]).await;
            let (end, before) = (later[0], later[0] + 3);
            let yielding = |seed| lake_of(Arc::new(Mortal::shared(store.clone(), u64::MAX, false).yielding(seed)));
            let erase = |i: usize| {
                let mortal = Mortal::shared(store.clone(), dies[i], i == 1).yielding(seed.wrapping_add(i as u64));
                let (lake, target) = (lake_of(Arc::new(mortal)), targets[i]);
                async move {
                    for _ in 0..2 {
                        lake.compact("telemetry", "car", &all_days(), target).await?;
                    }
                    Ok(())
                }
            };
            let look = async {
                let reading = yielding(!seed);
                for _ in 0..3 {
                    let found = read(&reading, &range(0, 0, end)).await;
                    let others = found.iter().copied().filter(|offset| !is_asked(*offset, before));
                    assert_eq!(others.collect::<Vec<_>>(), left(0, end, before));
                    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len(), "each once");
                }
            };
            let write = async {
                let writing = yielding(seed / 3);
                ask(&writing, 0, before).await;
                put(&writing, 0, later).await;
            };
            let (one, two, (), ()) = tokio::join!(erase(0), erase(1), look, write);
            for result in [one, two] {
                prop_assert!(matches!(result, Ok(()) | Err(Error::Store { .. })), "{:?}", result);
            }
            for _ in 0..3 {
                compact(&lake).await;
            }
            let whole = range(0, 0, bounds[bounds.len() - 1]);
            prop_assert_eq!(read(&lake, &whole).await, left(0, whole.end, before));
            let seen = seen_by_a_glob(&store).await;
            prop_assert!(seen.values().all(|count| *count == 1));
            prop_assert!(seen.keys().all(|(_, offset)| !is_asked(*offset, before)));
            for file in lake.list("telemetry").await.unwrap() {
                let footer = lake.footer(&ObjectName::parse(&file).unwrap()).await.unwrap();
                let present = seen.keys().filter(|(_, offset)| (footer.start..footer.end).contains(offset)).count();
                prop_assert_eq!(footer.rows, present as u64);
            }
            Ok(())
        })?;
    }
}
