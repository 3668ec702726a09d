//! A topic that was deployed with other numbers is taken as it is.
#![allow(clippy::unwrap_used)]

use contract::Contract;
use event_log::{Error, LogUrl, TopicSpec};

#[test]
fn a_stage_takes_a_topic_as_it_was_deployed_unless_it_would_lose_records() {
    let directory = tempfile::tempdir().unwrap();
    let log = event_log::open(&LogUrl::Directory(directory.path().join("log")), &[]).unwrap();
    let contract = Contract::builtin();
    let ensure = |name: &str| topics::ensure(&*log, contract.expect_topic(name));
    let declared = topics::builtin("telemetry");
    log.ensure_topic(&TopicSpec { partitions: 7, retention: None, ..declared.clone() }).unwrap();
    ensure("telemetry").unwrap();
    let found = log.describe("telemetry").unwrap();
    assert_eq!((found.partitions.len(), found.retention, found.replicas), (7, None, None), "left as it was");
    ensure("faults").unwrap();
    let found = log.describe("faults").unwrap();
    assert_eq!((found.partitions.len(), found.retention), (declared.partitions as usize, declared.retention));
    log.ensure_topic(&TopicSpec { compacted: true, ..topics::builtin("scores") }).unwrap();
    let refused = ensure("scores").unwrap_err();
    assert!(matches!(&refused, Error::TopicDiffers { setting: "compaction", .. }), "{refused:?}");
}
