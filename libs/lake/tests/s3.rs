//! What the lake needs of an S3 store, on a real server.
#![allow(clippy::unwrap_used)]

#[path = "support/s3.rs"]
mod s3;
#[path = "support/unsound.rs"]
mod unsound;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use lake::{Error, Lake, LakeUrl};
use object_store::memory::InMemory;
use s3::S3;
use unsound::{Unsound, UnsoundStore};

/// A lake over a store in memory.
fn lake_over(store: impl object_store::ObjectStore) -> Lake {
    Lake::with_store(Arc::new(store), LakeUrl::Directory("in memory".into()))
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_create_one_object_one_succeeds() {
    let Some(s3) = S3::start() else { return };
    let lakes: Vec<_> = (0..8).map(|_| s3.lake("race").open().unwrap()).collect();
    for round in 0..50 {
        let name = format!("a/b/{round}");
        let create = async |writer: usize| lakes[writer].create(&name, Bytes::from(vec![writer as u8; 100_000])).await;
        let results = futures_util::future::join_all((0..lakes.len()).map(create)).await;
        let winners: Vec<_> = (0..lakes.len()).filter(|writer| results[*writer].is_ok()).collect();
        assert_eq!(winners.len(), 1, "round {round}: {results:?}");
        let losers = results.iter().flat_map(|result| result.as_ref().err());
        assert!(losers.into_iter().all(|error| matches!(error, Error::Exists { .. })), "{results:?}");
        let bytes = lakes[0].get(&name).await.unwrap();
        assert_eq!(bytes, vec![winners[0] as u8; 100_000], "round {round}: the winner's, whole");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_is_a_lake() {
    let Some(s3) = S3::start() else { return };
    let lake = s3.lake("some/prefix").open().unwrap();
    lake.check_writable().await.unwrap();
    assert!(lake.list("").await.unwrap().is_empty(), "the probe is gone");
    // More than a page of a listing.
    let names: Vec<_> = (0..1_100).map(|n| format!("folder/{n:04}")).collect();
    let created = stream::iter(&names).map(|name| lake.create(name, Bytes::new())).buffer_unordered(16);
    created.for_each(|result| async move { result.unwrap() }).await;
    assert_eq!(lake.list("folder").await.unwrap(), names);
    assert!(s3.lake("other").open().unwrap().list("").await.unwrap().is_empty(), "a prefix is a lake of its own");
    lake.create("models/m/1/manifest.json", "{}".into()).await.unwrap();
    let again = lake.create("models/m/1/manifest.json", "{}".into()).await.unwrap_err();
    assert!(matches!(again, Error::Exists { .. }), "{again}");
    assert_eq!(lake.get("models/m/1/manifest.json").await.unwrap(), "{}");
    let missing = lake.get("models/m/2/manifest.json").await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_server_is_said_and_in_time() {
    let Some(s3) = S3::start() else { return };
    let mut wrong = s3.lake("p");
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "guessed").unwrap();
    let right = wrong.s3.secret_access_key_file.replace(secret.path().to_owned()).unwrap();
    let chain = |error: Error| {
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        causes.map(|error| error.to_string()).collect::<Vec<_>>().join(": ")
    };
    let lake = wrong.open().unwrap();
    let error = chain(lake.check_writable().await.unwrap_err());
    assert!(error.contains("s3://lake/p") && error.contains("403"), "{error}");
    std::fs::copy(right, secret.path()).unwrap();
    lake.check_writable().await.expect("the file is read again");
    let mut wrong = s3.lake("p");
    wrong.lake = "s3://another-bucket".parse().unwrap();
    let error = chain(wrong.open().unwrap().create("x", Bytes::new()).await.unwrap_err());
    assert!(error.contains("NoSuchBucket"), "{error}");
    let lake = s3.lake("p").open_with(Duration::from_millis(200)).unwrap();
    s3.hang();
    let error = lake.create("x", Bytes::new()).await.unwrap_err();
    assert!(error.is_retriable(), "{error}");
    s3.go_on();
    lake.list("").await.unwrap();
}

#[tokio::test]
async fn a_store_that_overwrites_is_refused() {
    lake_over(InMemory::new()).check_writable().await.unwrap();
    let lake = lake_over(UnsoundStore(Unsound::Overwrites, InMemory::new()));
    let error = lake.check_writable().await.unwrap_err();
    assert!(matches!(error, Error::Overwrites { .. }), "{error}");
}

#[tokio::test]
async fn a_conflict_without_an_object_may_be_tried_again() {
    let lake = lake_over(UnsoundStore(Unsound::Conflicts, InMemory::new()));
    let error = lake.create("x", Bytes::new()).await.unwrap_err();
    assert!(error.is_retriable(), "{error}");
}
