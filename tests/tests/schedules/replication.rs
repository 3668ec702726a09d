//! The replicator as it is, between two logs: one to three instances share a topic.

use std::sync::Arc;
use std::time::Duration;

use event_log::{Log, LogUrl, Outputs, Record, TopicSpec};
use prometheus_client::registry::Registry;
use replicator::{Args, Metrics, SOURCE_OFFSET, SOURCE_PARTITION, SOURCE_TOPIC, STATE_TOPIC, group_of};
use test_support::random::Random;
use whole_pipeline_tests::faults::Role;

use crate::oracle::{self, Found, Place};
use crate::{Ran, Setting, stopped_by};

const TOPIC: &str = "faults";

pub(crate) fn run(setting: &Setting) -> Ran {
    let mut random = Random::new(setting.seed ^ 0x0000_c0b1_e500);
    let (partitions, instances) = (random.between(1, 4) as u32, random.between(1, 3) as usize);
    let batch = random.between(1, 8) as usize;
    let input = input(&mut random, partitions);

    let simulation = setting.simulation();
    let source = simulation.cluster(setting.inner.clone(), &format!("{}edge-", setting.namespace));
    let target = simulation.cluster(setting.inner.clone(), &format!("{}cloud-", setting.namespace));
    let (source_log, target_log) = (source.log(), target.log());
    let spec = TopicSpec { name: TOPIC.into(), partitions, retention: None, compacted: false };
    source_log.ensure_topic(&spec).unwrap();

    let mut args = Args::new(LogUrl::Directory("edge".into()), LogUrl::Directory("cloud".into()));
    args.topics = vec![TOPIC.to_owned()];
    args.pipeline.batch_records = batch;
    args.pipeline.batch_wait = Duration::from_secs(24 * 3600);
    // A run ends when nothing is left to drain; a failed one ends at once.
    args.drain.timeout = Duration::from_millis(500);
    let group = group_of(&args.site, TOPIC);
    let (from, to, lie) = (source.clone(), target.clone(), setting.lie);
    let role = Role {
        name: "replicator",
        instances,
        drains: true,
        run: Arc::new(move |process| {
            let shutdown = stopped_by(process);
            let mut args = args.clone();
            args.pipeline.instance = process.instance().to_owned();
            let (source, target) = (process.log(&from), lie.log(process.log(&to)));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let metrics = Metrics::new(&mut Registry::default());
            let ran = runtime.block_on(replicator::run_on(&args, source, target, metrics, shutdown));
            ran.map_err(|error| format!("{error:#}"))
        }),
    };
    let input = input.into_iter().map(|piece| (source.clone(), piece)).collect();
    let drained = vec![source.drained(&target, &group, &[TOPIC.into()])];
    let report = simulation.run(vec![role], input, drained);
    Ran { report, findings: judge(&source_log, &target_log) }
}

/// Records that come in, piece by piece, and not by their keys: copying does not look at them.
fn input(random: &mut Random, partitions: u32) -> Vec<Outputs> {
    let mut number = 0;
    let mut piece = |random: &mut Random| {
        let mut piece = Outputs::default();
        for _ in 0..random.between(1, 10) {
            number += 1;
            let (key, value) = (format!("k{}", random.below(5)), number.to_string());
            let value = (!random.chance(1, 12)).then_some(value.as_bytes());
            let headers: &[(&str, &[u8])] = &[("origin", b"test")];
            let record = Record { key: key.as_bytes(), value, headers, timestamp_ms: 1_000 + number };
            piece.push(&TOPIC.into(), random.below(u64::from(partitions)) as u32, &record);
        }
        piece
    };
    (0..random.between(1, 8)).map(|_| piece(random)).collect()
}

/// Each record has one copy, in its partition, in order, as it is, and the copy says where it comes from, so that
/// positions can be translated.
fn judge(source: &Arc<dyn Log>, target: &Arc<dyn Log>) -> Vec<String> {
    let originals = oracle::contents(source, TOPIC);
    if target.describe(TOPIC).is_err() {
        return vec!["nothing was ever copied".to_owned()];
    }
    let copies = oracle::contents(target, TOPIC);
    let copied: Vec<_> = copies.iter().filter_map(|copy| Some((copy, origin(copy)?))).collect();
    let mut findings = oracle::once_each(TOPIC, originals.iter(), copied.iter().map(|(_, place)| *place));
    if copied.len() != copies.len() {
        findings.push(format!("{} copies do not say what they are of", copies.len() - copied.len()));
    }
    // By partition, whatever the key is.
    let partitions: Vec<_> = copied.iter().map(|(copy, _)| copy.partition.to_string()).collect();
    let in_order = partitions.iter().zip(&copied).map(|(partition, (_, place))| (&**partition, place.1));
    findings.extend(oracle::in_order(TOPIC, in_order));
    let from = translated_from(target);
    for (copy, place) in &copied {
        if from.get(copy.partition as usize).is_none_or(|from| copy.offset < *from) {
            findings
                .push(format!("{TOPIC}/{} offset {} is not translated: its copy is before {from:?}", place.0, place.1));
        }
        let Some(original) = originals.iter().find(|original| original.place() == *place) else { continue };
        let same = (copy.partition, &copy.key, &copy.value, copy.timestamp_ms, copy.headers.first())
            == (original.partition, &original.key, &original.value, original.timestamp_ms, original.headers.first());
        if !same {
            findings.push(format!("{TOPIC}/{} offset {} has another copy: {copy:?}", place.0, place.1));
        }
    }
    findings
}

/// By partition, the offset of the target from which on the replicator looks for copies to translate positions.
fn translated_from(target: &Arc<dyn Log>) -> Vec<u64> {
    let notes = oracle::contents(target, STATE_TOPIC);
    let note = notes.iter().rev().find(|note| note.key == format!("edge/{TOPIC}"));
    let note = note.and_then(|note| serde_json::from_slice::<serde_json::Value>(&note.value).ok());
    let from = note.and_then(|note| note["target_from"].as_array().cloned()).unwrap_or_default();
    from.iter().filter_map(serde_json::Value::as_u64).collect()
}

fn origin(copy: &Found) -> Option<Place> {
    let number = |name| copy.header(name)?.parse::<u64>().ok();
    (copy.header(SOURCE_TOPIC)? == TOPIC).then_some(())?;
    Some((number(SOURCE_PARTITION)? as u32, number(SOURCE_OFFSET)?))
}
