//! The platform on a real schema registry (Apicurio): deployed, grown while it runs, shut off, killed.
//!
//! Needs `CARSTREAM_TEST_SCHEMA_REGISTRY_SCRIPT`; `scripts/test` names it. A registry takes seconds to start, so this
//! is one story with one registry, a chapter a function.
#![allow(clippy::unwrap_used)]

#[path = "support/registry.rs"]
mod registry;
mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use carstream::audit::{Evidence, Sources, audit};
use event_log::{Outputs, Record, TopicSpec, partition_for_key};
use lake::{Lake, LakeUrl};
use model::Model;
use prometheus_client::registry::Registry as Metrics;
use registry::{Apicurio, Gate};
use schema_registry::{COMPATIBILITY, Error, Registered, Registry, SchemaRegistryArgs};
use service::Readiness;
use support::{CARS, Site, carstream, commit, records, vin};
use telemetry::avro::{AvroDecoder, AvroEncoder, schema_id};
use telemetry::schema::{Schema, Schemas};
use test_support::clock::now_ms;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

const SUBJECT: &str = "telemetry-value";
const V2: &str = "telemetry.v2.avsc";

/// Any model does: it is one score a reading that counts.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../libs/model/tests/independent");

/// Readings of each car that one call sends.
const SEQS: i64 = 40;

const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_a_platform_with_a_schema_registry() {
    let Some(apicurio) = Apicurio::place() else { return };
    let site = Site::new();
    a_stage_waits_for_the_registry_and_refuses_an_empty_one(&site, &apicurio).await;
    let client = Client::of(&apicurio.url());
    deployments_can_run_again(&apicurio, &client).await;
    changes_that_break_a_reader_are_refused(&site, &apicurio, &client).await;

    let gate = Gate::before(&apicurio).await;
    let mut platform = Platform::start(&site, &gate, &client).await;
    let mut sent = newer_and_older_writers_come_while_it_runs(&platform, &client).await;
    the_audit_reads_them_as_well(&site, &gate, sent.len()).await;
    an_id_that_nobody_knows_is_a_dead_letter(&platform).await;
    while_the_registry_is_away_nothing_is_given_up(&platform, &gate, &client, &mut sent).await;
    // A sink that starts now meets all versions at once, and knows them from the start.
    platform.stages.push(sink(&site, "second-lake", &gate.url(), platform.stop.clone()));
    a_stage_is_ready(&platform, "second-lake").await;
    apicurio.kill();
    a_dead_registry_stops_nothing_that_is_known(&platform, &mut sent).await;
    platform.stop(&sent).await;
}

/// It has written something: it has its schemas by then.
async fn a_stage_is_ready(platform: &Platform<'_>, lake: &str) {
    let lake = Lake::open(&LakeUrl::Directory(platform.site.path(lake))).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while lake.coverage("telemetry").await.unwrap().ranges.is_empty() {
        assert!(Instant::now() < deadline, "the second sink writes nothing");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A client of the registry, for the test itself.
#[derive(Clone)]
struct Client(Arc<Registry>);

impl Client {
    fn of(url: &str) -> Self {
        Self(Arc::new(args(url).connect().unwrap().unwrap()))
    }

    /// Its calls block.
    async fn ask<T: Send + 'static>(&self, ask: impl FnOnce(&Registry) -> T + Send + 'static) -> T {
        let registry = self.0.clone();
        tokio::task::spawn_blocking(move || ask(&registry)).await.unwrap()
    }

    async fn registered(&self, subject: &str, file: &str) -> Registered {
        let (subject, schema) =
            (subject.to_owned(), contract::Contract::builtin().schemas().file(file).unwrap().json.clone());
        self.ask(move |registry| registry.find(&subject, &schema)).await.unwrap().unwrap()
    }

    /// Registers a further version of clean readings, with `field`.
    async fn register_with(&self, field: &'static str) -> Writer {
        let text = contract::Contract::builtin().schemas().file(V2).unwrap().json.replace(
            r#"{"name": "ambient_temp","#,
            &format!(r#"{{"name": "{field}", "type": ["null", "float"], "default": null}}, {{"name": "ambient_temp","#),
        );
        let found = self.ask(move |registry| {
            registry.register(SUBJECT, &text)?;
            Ok::<_, Error>(registry.find(SUBJECT, &text)?.unwrap())
        });
        let found = found.await.unwrap();
        Writer::new(Schema::of_writer(field, &found.schema, found.id).unwrap())
    }
}

/// Somebody who writes clean readings with a schema and its id.
struct Writer {
    id: u32,
    schemas: Schemas,
}

impl Writer {
    fn new(schema: Schema) -> Self {
        Self { id: schema.id.unwrap(), schemas: contract::Contract::builtin().schemas().with_ids_of([schema]) }
    }

    fn of_file(file: &str, id: u32) -> Self {
        Self::new(Schema { id: Some(id), ..Schema::clone(contract::Contract::builtin().schemas().file(file).unwrap()) })
    }
}

fn args(url: &str) -> SchemaRegistryArgs {
    SchemaRegistryArgs { schema_registry: Some(url.parse().unwrap()), ..SchemaRegistryArgs::default() }
}

async fn a_stage_waits_for_the_registry_and_refuses_an_empty_one(site: &Site, apicurio: &Apicurio) {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let scorer = scorer(site, &apicurio.url(), stop);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!scorer.is_finished(), "there is nobody at the address yet");
    apicurio.start();
    let error = format!("{:#}", scorer.await.unwrap().unwrap_err());
    for wanted in
        ["subject telemetry-value does not hold telemetry.v2.avsc", "subject scores-value", "`carstream deploy`"]
    {
        assert!(error.contains(wanted), "{error}");
    }
}

async fn deployments_can_run_again(apicurio: &Apicurio, client: &Client) {
    let other = r#"{"type": "record", "name": "Other", "fields": []}"#;
    client.ask(move |registry| registry.register("other-value", other)).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (edge, cloud, url) = (path("edge"), path("cloud"), apicurio.url());
    let everything =
        ["deploy", "--edge-log", &edge, "--cloud-log", &cloud, "--schema-registry", &url, "--partitions", "6"];

    let (code, said, missing) = carstream(&["deploy", "--schema-registry", &url, "--check"]);
    assert_eq!(code, Some(1), "{said}{missing}");
    for wanted in
        ["faults-value: fault.avsc is not registered", "telemetry-value: compatibility is not set, not FULL_TRANSITIVE"]
    {
        assert!(missing.contains(wanted), "{missing}");
    }
    let (code, first, errors) = carstream(&everything);
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{first}");
    for wanted in [
        "edge: 15 topics of the edge, 15 created",
        "cloud: 6 topics of the cloud, 6 created",
        "subject telemetry-value: telemetry.v1.avsc is version 1, id 2, registered now",
        "subject telemetry-value: telemetry.v2.avsc is version 2, id 3, registered now",
        "these ids differ from the contract's ids.json",
    ] {
        assert!(first.contains(wanted), "{wanted}:\n{first}");
    }
    let (code, again, errors) = carstream(&everything);
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{again}");
    assert!(again.contains("15 topics of the edge, 15 as declared") && !again.contains("registered now"), "{again}");
    let (code, _, errors) = carstream(&[&everything[..], &["--check"]].concat());
    assert_eq!(code, Some(0), "{errors}");
    for subject in [SUBJECT, "faults-value", "scores-value"] {
        let held = client.ask(move |registry| registry.compatibility(subject)).await.unwrap();
        assert_eq!(held.as_deref(), Some(COMPATIBILITY), "{subject}");
    }

    // Without --partitions, 4 are expected; all topics that differ are reported, but not those declared with one
    // partition.
    let (code, _, errors) = carstream(&["deploy", "--edge-log", &edge, "--cloud-log", &cloud]);
    assert_eq!(code, Some(1), "{errors}");
    assert_eq!(errors.matches("partitions are 6, should be 4").count(), 13 + 4, "{errors}");
    let log = event_log::open(&path("strange").parse().unwrap(), &[]).unwrap();
    let strange = TopicSpec { compacted: true, ..topics::builtin("telemetry.raw") };
    log.ensure_topic(&TopicSpec { retention: None, ..strange }).unwrap();
    drop(log);
    let (code, _, errors) = carstream(&["deploy", "--edge-log", &path("strange")]);
    assert_eq!(code, Some(1), "{errors}");
    assert!(
        errors.contains("compaction is true, should be false") && errors.contains("for ever, should be 24 h"),
        "{errors}"
    );
    let (code, _, errors) = carstream(&["deploy", "--check", "--edge-log", &path("nowhere")]);
    assert!(code == Some(64) && !Path::new(&path("nowhere")).exists(), "{errors}");
}

async fn changes_that_break_a_reader_are_refused(site: &Site, apicurio: &Apicurio, client: &Client) {
    // A release that has speed as a double: the registry refuses it, and a deployment of it says why.
    let changed = site.path("changed-contract");
    put(&changed, |path| !path.ends_with("telemetry.v1.avsc"));
    std::fs::write(changed.join("streams/telemetry/ids.json"), format!(r#"{{"2": "{V2}"}}"#)).unwrap();
    let speed = |kind: &str| format!(r#""name": "speed", "type": "{kind}""#);
    let broken =
        contract::Contract::builtin().schemas().file(V2).unwrap().json.replace(&speed("float"), &speed("double"));
    std::fs::write(changed.join("streams/telemetry").join(V2), &broken).unwrap();
    let deploy = ["deploy", "--schema-registry", &apicurio.url(), "--contract", &changed.display().to_string()];
    let (code, _, errors) = carstream(&deploy);
    assert_eq!(code, Some(1), "{errors}");
    let wanted = "subject telemetry-value: telemetry.v2.avsc is not compatible with version 2 (id 3) there: \
        speed is double in telemetry.v2.avsc, float in version 2 of telemetry-value";
    assert!(errors.contains(wanted), "{errors}");
    let refused = client.ask(move |registry| registry.register(SUBJECT, &broken)).await;
    assert!(matches!(&refused, Err(Error::Refused { status: 409, .. })), "{refused:?}");

    // Somebody forces such a change on findings: whoever reads or writes them does not start.
    let schema = |change: (&str, &str)| {
        contract::Contract::builtin().schemas().file("fault.avsc").unwrap().json.replace(change.0, change.1)
    };
    let forced = schema((r#""name": "seq", "type": "long""#, r#""name": "seq", "type": "string""#));
    let force = client.ask(move |registry| {
        registry.set_compatibility("faults-value", "NONE")?;
        registry.register("faults-value", &forced)
    });
    force.await.unwrap();
    let wanted = "subject faults-value: fault.avsc is not compatible with version 2 (id 6) there: \
        seq is long in fault.avsc, string in version 2 of faults-value";
    let mut args = sink_args(site, "lake", &apicurio.url());
    args.topics = vec!["faults".to_owned()];
    let metrics = sink::Metrics::new(&mut Metrics::default());
    let lake = args.lake.open().unwrap();
    let started = sink::run_on(&args, site.edge.clone(), lake, metrics, CancellationToken::new()).await;
    let error = format!("{:#}", started.unwrap_err());
    assert!(error.contains(wanted), "{error}");
    let (code, _, errors) = carstream(&["deploy", "--schema-registry", &apicurio.url(), "--check"]);
    assert!(code == Some(1) && errors.contains(wanted), "{errors}");
}

/// A preprocessor, a scorer and two sinks, in-process on one log.
struct Platform<'s> {
    site: &'s Site,
    stages: Vec<JoinHandle<anyhow::Result<()>>>,
    stop: CancellationToken,
    /// Also when the test fails: its runtime waits for the stages.
    _stop: DropGuard,
    /// Ids of versions 1 and 2 of clean readings, and of scores.
    ids: [u32; 3],
}

/// Which reading: car, boot, sequence number.
type Identity = (String, i64, i64);

impl<'s> Platform<'s> {
    async fn start(site: &'s Site, gate: &Gate, client: &Client) -> Self {
        let (stop, url) = (CancellationToken::new(), gate.url());
        let mut preprocessor = preprocessor::Args::new(site.edge.url().clone(), site.path("site.key"));
        // Findings are out of order in this story.
        let own = site.path("own-contract");
        put(&own, |path| !path.starts_with("streams/faults/") && !path.starts_with("models/"));
        preprocessor.contract = service::ContractArgs::of(own);
        preprocessor.schema_registry = args(&url);
        let (log, stopped) = (site.edge.clone(), stop.clone());
        let preprocessor = tokio::spawn(async move {
            let metrics = preprocessor::Metrics::new(&mut Metrics::default());
            preprocessor::run_on(&preprocessor, log, metrics, stopped).await
        });
        let stages = vec![preprocessor, scorer(site, &url, stop.clone()), sink(site, "lake", &url, stop.clone())];
        let ids = [
            client.registered(SUBJECT, "telemetry.v1.avsc").await.id,
            client.registered(SUBJECT, V2).await.id,
            client.registered("scores-value", "score.avsc").await.id,
        ];
        assert_ne!(ids, [1, 2, 4], "they are as without a registry: nothing is shown");
        Self { site, stages, _stop: stop.clone().drop_guard(), stop, ids }
    }

    /// Readings as cars send them.
    fn send_raw(&self, boot: i64) -> Vec<Identity> {
        self.site.raw(&readings(boot), now_ms());
        self.identities(boot)
    }

    /// Clean readings of another release's preprocessor.
    fn send_clean(&self, writer: &Writer, boot: i64) -> Vec<Identity> {
        let schema = writer.schemas.id(writer.id).unwrap();
        let rows = self.site.rows_of(&schema.arrow, &readings(boot));
        let encoded = AvroEncoder::new(&writer.schemas, writer.id).unwrap().encode(&rows).unwrap();
        for ((car, _, _), message) in self.identities(boot).iter().zip(encoded.iter()) {
            self.send("telemetry", car, message);
        }
        self.identities(boot)
    }

    fn send(&self, topic: &str, key: &str, value: &[u8]) {
        let record = Record { key: key.as_bytes(), value: Some(value), headers: &[], timestamp_ms: now_ms() };
        let mut outputs = Outputs::default();
        outputs.push(&topic.into(), partition_for_key(record.key, 4), &record);
        commit(&self.site.edge, "test", &outputs, &[]);
    }

    fn identities(&self, boot: i64) -> Vec<Identity> {
        let named = |(car, boot, seq)| (self.site.key.pseudonym(&vin(car)).to_string(), boot, seq);
        readings(boot).into_iter().map(named).collect()
    }

    /// Waits until each of these has its score, and nothing else has one.
    async fn scored(&self, sent: &BTreeSet<Identity>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for stage in &self.stages {
                assert!(!stage.is_finished(), "a stage has ended");
            }
            let scores = records(&self.site.edge, "scores");
            if scores.len() >= sent.len() {
                let schemas = contract::Contract::builtin().schemas().with_ids_of([Schema {
                    id: Some(self.ids[2]),
                    ..Schema::clone(contract::Contract::builtin().schemas().file("score.avsc").unwrap())
                }]);
                let mut decoder = AvroDecoder::new(&schemas, "score.avsc").unwrap();
                scores.iter().for_each(|record| decoder.decode(&record.3).unwrap());
                let rows = decoder.finish();
                assert_eq!((identities_of(&rows), rows.num_rows()), (sent.clone(), sent.len()), "one score each");
                return;
            }
            assert!(Instant::now() < deadline, "{} of {} have a score", scores.len(), sent.len());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn dead_letters(&self) -> usize {
        records(&self.site.edge, "scorer.dead-letter").len()
    }

    /// Stops everything; then the lake has each reading once.
    async fn stop(self, sent: &BTreeSet<Identity>) {
        self.stop.cancel();
        for stage in self.stages {
            stage.await.unwrap().unwrap();
        }
        for lake in ["lake", "second-lake"] {
            let lake = Lake::open(&LakeUrl::Directory(self.site.path(lake))).unwrap();
            let (mut found, mut rows) = (BTreeSet::new(), 0);
            for range in lake.coverage("telemetry").await.unwrap().ranges {
                let mut reader = lake
                    .read(range, contract::Contract::builtin().schemas().file(V2).unwrap().arrow.clone())
                    .await
                    .unwrap();
                while let Some(read) = reader.next().await.unwrap() {
                    rows += read.batch.num_rows();
                    found.append(&mut identities_of(&read.batch));
                }
            }
            assert_eq!((&found, rows), (sent, sent.len()), "each reading once in {}", lake.url());
            for name in lake.objects("telemetry").await.unwrap() {
                assert_eq!(lake.footer(&name).await.unwrap().schema_id, self.ids[1], "{name}");
            }
        }
    }
}

async fn newer_and_older_writers_come_while_it_runs(platform: &Platform<'_>, client: &Client) -> BTreeSet<Identity> {
    let mut sent: BTreeSet<_> = platform.send_raw(81).into_iter().collect();
    platform.scored(&sent).await;
    for record in records(&platform.site.edge, "telemetry") {
        assert_eq!(schema_id(&record.3), Some(platform.ids[1]), "what the preprocessor writes");
    }
    // Now half of the fleet is upgraded: a schema that no stage was built with, and one that is older than theirs.
    let newer = client.register_with("humidity").await;
    sent.extend(platform.send_clean(&newer, 82));
    sent.extend(platform.send_raw(83));
    sent.extend(platform.send_clean(&Writer::of_file("telemetry.v1.avsc", platform.ids[0]), 84));
    platform.scored(&sent).await;
    assert_eq!(platform.dead_letters(), 0);
    sent
}

async fn the_audit_reads_them_as_well(site: &Site, gate: &Gate, sent: usize) {
    let uses = [("telemetry", V2), ("scores", "score.avsc")];
    let opened = args(&gate.url())
        .open(contract::Contract::builtin().schemas(), &uses, &Readiness::default(), &CancellationToken::new())
        .await;
    let mut sources = Sources::new(None, Some(site.edge.clone()), None);
    sources.schemas = opened.unwrap().unwrap();
    let report = audit(sources.clone(), Evidence::default(), None, CancellationToken::new()).await.unwrap();
    assert!(report.is_clean() && report.hops[0].records == sent as u64, "{report}");
    sources.schemas = schema_registry::SchemaSource::of(contract::Contract::builtin().schemas().clone());
    let report = audit(sources, Evidence::default(), None, CancellationToken::new()).await.unwrap();
    assert!(!report.is_clean(), "it read ids of the registry as those of ids.json: {report}");
}

async fn an_id_that_nobody_knows_is_a_dead_letter(platform: &Platform<'_>) {
    platform.send("telemetry", "nobody", &[0, 0, 0, 0x27, 0x0f, 1, 2, 3]);
    let deadline = Instant::now() + PATIENCE;
    while platform.dead_letters() == 0 {
        assert!(Instant::now() < deadline, "it never became a dead letter");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let letter = &records(&platform.site.edge, "scorer.dead-letter")[0];
    let header = |name: &str| letter.4.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    assert_eq!(header(pipeline::DeadLetterHeader::REASON).unwrap(), b"unknown-schema");
}

async fn while_the_registry_is_away_nothing_is_given_up(
    platform: &Platform<'_>,
    gate: &Gate,
    client: &Client,
    sent: &mut BTreeSet<Identity>,
) {
    let newest = client.register_with("dew_point").await;
    gate.shut();
    sent.extend(platform.send_clean(&newest, 85));
    sent.extend(platform.send_raw(86));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(platform.dead_letters(), 1, "a registry that is away for a moment makes no dead letters");
    gate.open();
    platform.scored(sent).await;
    assert_eq!(platform.dead_letters(), 1);
}

async fn a_dead_registry_stops_nothing_that_is_known(platform: &Platform<'_>, sent: &mut BTreeSet<Identity>) {
    sent.extend(platform.send_raw(87));
    sent.extend(platform.send_clean(&Writer::of_file("telemetry.v1.avsc", platform.ids[0]), 88));
    platform.scored(sent).await;
    assert_eq!(platform.dead_letters(), 1);
}

fn readings(boot: i64) -> Vec<(u32, i64, i64)> {
    (0..CARS).flat_map(|car| (0..SEQS).map(move |seq| (car, boot, seq))).collect()
}

fn identities_of(rows: &arrow::array::RecordBatch) -> BTreeSet<Identity> {
    let long = |name: &str, i: usize| rows[name].as_primitive::<Int64Type>().value(i);
    let cars = rows["car"].as_string::<i32>();
    (0..rows.num_rows()).map(|i| (cars.value(i).to_owned(), long("boot_id", i), long("seq", i))).collect()
}

fn scorer(site: &Site, url: &str, shutdown: CancellationToken) -> JoinHandle<anyhow::Result<()>> {
    let read = |name: &str| std::fs::read(Path::new(MODEL).join(name)).unwrap();
    let model = Model::from_parts(&read("manifest.json"), &read("weights.safetensors")).unwrap();
    let mut args = scorer::Args::new(site.edge.url().clone(), "unused".parse().unwrap());
    args.schema_registry = self::args(url);
    let (log, models) = (site.edge.clone(), scorer::ModelSource::Fixed(Box::new(model)));
    tokio::spawn(async move {
        scorer::run_on(&args, log, models, scorer::Metrics::new(&mut Metrics::default()), shutdown).await
    })
}

fn sink_args(site: &Site, lake: &str, url: &str) -> sink::Args {
    let mut args = sink::Args::new(site.edge.url().clone(), LakeUrl::Directory(site.path(lake)));
    args.schema_registry = self::args(url);
    args.topics = vec!["telemetry".to_owned()];
    args.max_age = Duration::from_millis(200);
    // Of the id that nobody knows.
    args.skip_undecodable = true;
    args
}

fn sink(site: &Site, lake: &str, url: &str, shutdown: CancellationToken) -> JoinHandle<anyhow::Result<()>> {
    let (args, log) = (sink_args(site, lake, url), site.edge.clone());
    let lake = args.lake.open().unwrap();
    tokio::spawn(
        async move { sink::run_on(&args, log, lake, sink::Metrics::new(&mut Metrics::default()), shutdown).await },
    )
}

/// A contract of these files of the platform's, and nothing else.
fn put(directory: &Path, wanted: impl Fn(&str) -> bool) {
    for (path, text) in contract::Contract::platform_files().into_iter().filter(|(path, _)| wanted(path)) {
        let path = directory.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    std::fs::write(directory.join("contract.json"), r#"{"extends": "nothing"}"#).unwrap();
}
