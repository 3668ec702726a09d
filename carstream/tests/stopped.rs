//! `carstream resume` on a log with a partition that retention has passed.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use carstream::resume::{Args, SinkArgs, Stage, StageArgs, run};
use contract::{Contract, own};
use event_log::{Clock, Log, LogArgs, LogUrl, Outputs, Position, ProcessorOptions, Record};
use lake::{Encodings, Lake, LakeArgs, LakeUrl, ObjectName, ObjectWriter};
use pipeline::gaps::{self, Accept, Place};
use service::ContractArgs;
use test_support::clock::now_ms;

fn stage(log: &Path, change: impl Fn(&mut StageArgs)) -> StageArgs {
    let mut args = StageArgs {
        log: LogArgs::new(LogUrl::Directory(log.to_owned())),
        contract: ContractArgs::default(),
        group: None,
        topic: None,
        partition: None,
        accept_gap: false,
        accept_recreated: false,
    };
    change(&mut args);
    args
}

fn of_preprocessor(log: &Path, change: impl Fn(&mut StageArgs)) -> anyhow::Result<String> {
    run(&Args { stage: Stage::Preprocessor(stage(log, change)) })
}

/// A log with five records in one partition of a topic, which is returned.
fn log_with_records(path: &Path, clock: &Clock, topic: &str) -> (Arc<dyn Log>, u32) {
    let log = event_log::open_with_clock(path, clock.clone()).expect("a log");
    log.ensure_topic(&topics::builtin(topic)).expect("a topic");
    let appender = log.clone().appender(Box::new(|_| {})).expect("an appender");
    let record = Record { key: b"k", value: Some(b"v"), headers: &[], timestamp_ms: now_ms() };
    (0..5).for_each(|token| appender.append(&topic.into(), &record, token).expect("room"));
    assert!(appender.flush(Duration::from_secs(60)));
    (log, event_log::partition_for_key(b"k", 4))
}

#[test]
fn what_is_stopped_is_listed_and_a_decision_is_recorded() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("log");
    let error = of_preprocessor(&path, |_| {}).expect_err("a typo").to_string();
    assert!(error.contains("does not exist"), "{error}");
    let clock = Clock::default();
    let (log, partition) = log_with_records(&path, &clock, "telemetry.raw");
    clock.pass(Duration::from_secs(30 * 3600));
    log.maintain().expect("nobody reads it");
    let error = of_preprocessor(&path, |_| {}).expect_err("no group is behind").to_string();
    assert!(error.contains("no such partition of the preprocessor is stopped"), "{error}");
    let group = "preprocessor-telemetry";
    let options = ProcessorOptions { group: group.into(), instance: "1".into(), topics: Vec::new() };
    let mut transactor = log.clone().transactor(&options).expect("a transactor");
    let position = Position { topic: "telemetry.raw".into(), partition, offset: 2 };
    let committed = transactor.commit(&Outputs::default(), &[position], &Default::default());
    assert_eq!(committed.expect("writable"), event_log::Outcome::Committed);

    let listed = of_preprocessor(&path, |_| {}).expect("listed");
    let expected = format!("telemetry.raw/{partition}: group {group} is at offset 2, and retention has removed");
    assert!(listed.starts_with(&expected) && listed.lines().count() == 1, "{listed}");
    let decisions = || gaps::load(&log, own::GAPS, group, "telemetry.raw").expect("readable");
    for (what, change) in [
        ("resumes none", &(|args: &mut StageArgs| args.accept_recreated = true) as &dyn Fn(&mut StageArgs)),
        ("is stopped in", &|args| (args.partition, args.accept_gap) = (Some(partition + 1), true)),
        ("no stream or model", &|args| (args.topic, args.accept_gap) = (Some("telemetry".to_owned()), true)),
    ] {
        let error = of_preprocessor(&path, change).expect_err(what).to_string();
        assert!(error.contains(what), "{error}");
    }
    let scorer = run(&Args { stage: Stage::Scorer(stage(&path, |args| args.accept_gap = true)) });
    assert!(scorer.is_err_and(|error| error.to_string().contains("of the scorer is stopped")));
    assert!(decisions().is_empty(), "nothing was decided");

    let said = of_preprocessor(&path, |args| args.accept_gap = true).expect("carried out");
    assert!(said.contains("not at 2") && said.contains("start the stage again"), "{said}");
    let place = Place { group: group.into(), topic: "telemetry.raw".into(), partition, from: 2 };
    let decision = &decisions()[&place];
    assert_eq!((decision.accepted, decision.to), (Accept::Gap, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_sink_has_stopped_is_listed_and_skipped_in_the_lake() {
    let directory = tempfile::tempdir().expect("a directory");
    let clock = Clock::default();
    let (log, partition) = log_with_records(&directory.path().join("log"), &clock, "telemetry");
    let lake_url = LakeUrl::Directory(directory.path().join("lake"));
    let sink = |change: &dyn Fn(&mut SinkArgs)| {
        let mut args = SinkArgs {
            log: LogArgs::new(log.url().clone()),
            lake: LakeArgs::new(lake_url.clone()),
            contract: ContractArgs::default(),
            topic: None,
            partition: None,
            accept_gap: false,
        };
        change(&mut args);
        tokio::task::block_in_place(|| run(&Args { stage: Stage::Sink(Box::new(args)) }))
    };
    let error = sink(&|_| {}).expect_err("a typo").to_string();
    assert!(error.contains("--lake") && error.contains("does not exist"), "{error}");

    let lake = Lake::open(&lake_url).expect("a lake");
    let schema = &Contract::builtin().schemas().file("telemetry.v2.avsc").expect("a schema").arrow;
    let name = ObjectName::new("telemetry", partition, 0, now_ms());
    let writer = ObjectWriter::new(name, schema, 2, Encodings::default()).expect("a writer");
    lake.put_object(&writer.finish(2).expect("an object")).await.expect("stored");
    let error = sink(&|_| {}).expect_err("the log has what follows").to_string();
    assert!(error.contains("no such partition"), "{error}");
    clock.pass(Duration::from_secs(40 * 24 * 3600));
    log.maintain().expect("nobody reads it");

    let listed = sink(&|_| {}).expect("listed");
    assert_eq!(listed, format!("telemetry/{partition}: retention removed offsets 2 to 4: --accept-gap\n"));
    for (what, change) in [
        ("no such partition", &(|args: &mut SinkArgs| args.partition = Some(partition + 1)) as &dyn Fn(&mut SinkArgs)),
        ("no such topic for the lake", &|args| args.topic = Some("telemetry.raw".to_owned())),
    ] {
        let error = sink(&|args| {
            args.accept_gap = true;
            change(args);
        });
        let error = error.expect_err(what).to_string();
        assert!(error.contains(what), "{error}");
    }
    assert_eq!(lake.next_offsets("telemetry").await.expect("readable").offsets[&partition], 2, "nothing was decided");
    let said = sink(&|args| args.accept_gap = true).expect("carried out");
    assert!(said.contains("the lake continues at offset 5, not at 2"), "{said}");
    assert_eq!(lake.next_offsets("telemetry").await.expect("readable").offsets[&partition], 5);
    assert!(sink(&|args| args.accept_gap = true).is_err(), "it is behind no more");
}
