//! A Kafka that allows each stage what docs/operations.md lists, and nothing else.
//!
//! Two brokers of this test's own, edge and cloud, with StandardAuthorizer and SASL/PLAIN. An administrator deploys the
//! topics and grants the rights of the table; then the whole pipeline runs, each stage as a user of its own. One right
//! after another is taken from its stage while cars drive: the stage names it, and resumes once it has it back.
#![allow(clippy::unwrap_used)]

mod rights;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use whole_pipeline_tests::audit::Audit;
use whole_pipeline_tests::kafka::{Broker, free_address};
use whole_pipeline_tests::process::Process;

const PATIENCE: Duration = Duration::from_secs(180);

/// The stages, which are the users.
const STAGES: [&str; 6] = ["mqtt-bridge", "preprocessor", "scorer", "replicator", "sink", "trainer"];

struct Site {
    edge: Broker,
    cloud: Broker,
    files: tempfile::TempDir,
    mqtt: String,
}

impl Site {
    fn start() -> Option<Self> {
        let site = Self {
            edge: Broker::start_secured(&STAGES)?,
            cloud: Broker::start_secured(&STAGES)?,
            files: tempfile::tempdir().unwrap(),
            mqtt: free_address(),
        };
        std::fs::write(site.path("site.key"), "a key of one test site, and no other").unwrap();
        Some(site)
    }

    fn path(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }

    /// Starts a stage, which logs in by its name.
    fn stage(&self, name: &str) -> Process {
        let (edge, cloud) = (self.edge.secured_url(), self.cloud.secured_url());
        let (key, lake) = (self.path("site.key"), self.path("lake"));
        let (one, both) = (["--kafka-option"].as_slice(), ["--kafka-option", "--cloud-kafka-option"].as_slice());
        let (args, options): (&[&str], _) = match name {
            "mqtt-bridge" => (&["--log", &edge, "--listen", &self.mqtt, "--pseudonym-key-file", &key], one),
            // The cars live faster than the clock.
            "preprocessor" => (&["--log", &edge, "--event-time-ahead", "any", "--pseudonym-key-file", &key], one),
            "replicator" => {
                let options = ["--edge-kafka-option", "--cloud-kafka-option"].as_slice();
                (&["--edge-log", &edge, "--cloud-log", &cloud], options)
            }
            "scorer" => (&["--log", &edge, "--cloud-log", &cloud, "--lake", &lake], both),
            "sink" => (&["--log", &cloud, "--lake", &lake, "--max-age", "1s"], one),
            _ => (&["--from", "log", "--log", &cloud, "--lake", &lake, "--min-rows", "500", "--epochs", "2"], one),
        };
        let (user, password) = (format!("sasl.username={name}"), format!("sasl.password={name}"));
        let login = ["security.protocol=SASL_PLAINTEXT", "sasl.mechanism=PLAIN", &user, &password];
        let login = options.iter().flat_map(|option| login.map(|value| [*option, value])).flatten();
        Process::start(name, &args.iter().copied().chain(login).collect::<Vec<_>>())
    }

    /// Other cars with each number; they stop by themselves after `duration`, if there is one.
    fn cars(&self, first: &str, duration: Option<&str>) -> Process {
        let (ledger, mqtt) = (self.path(&format!("{first}.csv")), &self.mqtt);
        let fleet = ["--cars", "30", "--seed", "3", "--first-car", first, "--mqtt", mqtt, "--ledger", &ledger];
        let pace = match duration {
            Some(duration) => vec!["--speedup", "2400", "--duration", duration],
            None => vec!["--speedup", "600"],
        };
        Process::start("simulator", &[&fleet[..], &pace].concat())
    }

    fn audit(&self, ledgers: &[&str]) -> Audit {
        let (edge, cloud, lake) = (self.edge.url(), self.cloud.url(), self.path("lake"));
        let ledgers: Vec<_> = ledgers.iter().map(|first| self.path(&format!("{first}.csv"))).collect();
        let places = ["--edge-log", &edge, "--cloud-log", &cloud, "--lake", &lake, "--wait", "120s"];
        let key = ["--pseudonym-key-file", &self.path("site.key")];
        let ledgers = ledgers.iter().flat_map(|ledger| ["--ledger", ledger]);
        Audit::of(&places.into_iter().chain(key).chain(ledgers).collect::<Vec<_>>())
    }
}

#[test]
fn the_documented_rights_are_enough_and_each_is_named_when_it_is_missing() {
    let Some(site) = Site::start() else { return };
    let (edge, cloud) = (site.edge.url(), site.cloud.url());
    Process::start("carstream", &["deploy", "--edge-log", &edge, "--cloud-log", &cloud]).succeed();

    let mut bridge = site.stage("mqtt-bridge");
    bridge.line_with(&["waiting for topic", "not allowed to see topic", "grant Describe on it"]);
    rights::grant_documented(&site.edge, &site.cloud);
    bridge.line_with(&["MQTT at 127.0.0.1:"]);
    bridge.line_with(&["not allowed to read the settings of topic telemetry.raw", "grant DescribeConfigs"]);
    let mut stages = BTreeMap::from([("mqtt-bridge", bridge)]);
    stages.extend(["preprocessor", "replicator", "sink", "scorer"].map(|name| (name, site.stage(name))));
    site.cars("0", Some("30s")).succeed();
    let said = site.stage("trainer").succeed();
    assert!(!said.contains("cannot read some records"), "{said}");
    stages.get_mut("scorer").unwrap().line_with(&["scoring with model"]);

    let cars = site.cars("100", None);
    for (name, broker, operation, topic, right) in [
        ("sink", &site.cloud, "Read", "telemetry", "grant Read on topic"),
        ("replicator", &site.cloud, "Write", "telemetry", "grant Write on topic"),
        ("scorer", &site.edge, "Write", "scores", "grant Write on topic"),
        ("preprocessor", &site.edge, "Read", "telemetry.raw", "grant Read on group preprocessor-telemetry"),
        ("mqtt-bridge", &site.edge, "Write", "telemetry.raw", "grant Write on topic"),
    ] {
        let mut stage = stages.remove(name).unwrap();
        let resource = ["--topic".to_owned(), topic.to_owned()];
        broker.forbid(name, operation, &resource);
        // Who may neither read nor write a topic may not see it either: the one or the other is noticed first.
        let unseen = format!("not allowed to see topic {topic}");
        let named = if name == "mqtt-bridge" { vec![right] } else { vec![right, &unseen] };
        let line = stage.line_with_any(&named);
        assert!(line.contains(topic), "{line}");
        broker.allow(name, operation, &resource);
        // The bridge retries, and its cars wait. The others may have ended: their supervisor starts them again.
        if name != "mqtt-bridge" {
            if !stage.has_ended() {
                stage.terminate();
            }
            let (code, said) = stage.end();
            assert!(matches!(code, Some(0 | 1)), "{code:?}: {said}");
            stage = site.stage(name);
        }
        stages.insert(name, stage);
    }
    cars.terminate();
    cars.succeed();

    // Everything has arrived everywhere: what a stage may not do would show as lost or not scored.
    let deadline = Instant::now() + PATIENCE;
    let mut found = site.audit(&["0", "100"]);
    while found.count("scored") < found.count("clean") && Instant::now() < deadline {
        found = site.audit(&["0", "100"]);
    }
    found.assert_clean();
    assert!(found.count("clean") > 1000 && found.count("scored") == found.count("clean"), "{}", found.said);
    for stage in stages.values() {
        stage.terminate();
    }
    for stage in stages.into_values() {
        let said = stage.succeed();
        assert!(!said.contains("cannot read some records"), "{said}");
    }
}
