//! The edge box: killed under load, at times with its cars, at times by two signals; first without its uplink.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use contract::own;
use event_log::{Clock, Outcome, Outputs, Position, ProcessorOptions, Record, TopicSpec};
use pipeline::gaps;
use telemetry::pseudonym::PseudonymKey;
use test_support::clock::now_ms;
use whole_pipeline_tests::audit::Audit;
use whole_pipeline_tests::process::Process;
use whole_pipeline_tests::{binary, state};

use super::{kills, moments};

const KEY: &str = "a key of one test site, and no other";

/// Any model does: it is one score a reading that counts. This one is also compared with PyTorch's scores.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../libs/model/tests/independent");

/// Until all readings have gone all the way, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// How long the edge lives before it is killed, in ms.
const LIFE_MS: (u64, u64) = (300, 2_500);

pub(super) struct Site {
    pub(super) log: String,
    pub(super) cloud: String,
    key: String,
    ledger: String,
    /// The same for every start, so that cars find it again.
    mqtt: String,
}

impl Site {
    pub(super) fn new(directory: &Path) -> Self {
        let path = |name: &str| directory.join(name).display().to_string();
        std::fs::write(path("site.key"), KEY).unwrap();
        Self {
            log: path("site-log"),
            cloud: path("cloud-log"),
            key: path("site.key"),
            ledger: path("ledger.csv"),
            mqtt: std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string(),
        }
    }

    pub(super) fn edge(&self, cloud: &str) -> Process {
        self.edge_with(cloud, &[])
    }

    pub(super) fn edge_with(&self, cloud: &str, variables: &[(String, String)]) -> Process {
        let mut edge = self.start(cloud, variables);
        edge.line_with(&["MQTT at"]);
        edge
    }

    /// Starts it, and does not wait for it.
    pub(super) fn start(&self, cloud: &str, variables: &[(String, String)]) -> Process {
        let drain = ["--drain-timeout", if cloud.starts_with("kafka") { "200ms" } else { "60s" }];
        let settings = ["edge", "--log", &self.log, "--pseudonym-key-file", &self.key, "--model", MODEL];
        Process::start_with(
            "carstream",
            &[&settings[..], &["--listen", &self.mqtt, "--cloud-log", cloud], &drain].concat(),
            variables,
        )
    }

    /// They send until they are asked to stop.
    pub(super) fn cars(&self) -> Process {
        let fleet = ["--cars", "60", "--seed", "5", "--speedup", "2400"];
        let more = ["--broken-share", "0.01", "--drain-timeout", "120s", "--resume", "--ledger", &self.ledger];
        Process::start("simulator", &[&fleet[..], &more, &["--mqtt", &self.mqtt]].concat())
    }

    /// The embedded logs are one process's: the edge must not run.
    pub(super) fn audit(&self) -> Audit {
        let logs = ["--edge-log", &self.log, "--cloud-log", &self.cloud, "--scores", "yes"];
        Audit::of(&[&logs[..], &["--pseudonym-key-file", &self.key, "--ledger", &self.ledger]].concat())
    }

    /// The same of the edge alone.
    fn audit_of_the_edge(&self) -> Audit {
        let of = ["--edge-log", &self.log, "--pseudonym-key-file", &self.key, "--ledger", &self.ledger];
        Audit::of(&[&of[..], &["--scores", "yes"]].concat())
    }

    /// The cars whose readings the box has acknowledged.
    fn vins(&self) -> BTreeSet<String> {
        let text = std::fs::read_to_string(&self.ledger).unwrap();
        let rows = text.lines().filter(|line| line.contains(",acknowledged,"));
        rows.filter(|line| line.contains(",valid,")).map(|line| line.split(',').next().unwrap().to_owned()).collect()
    }

    /// Stops `edge`, and lets it run again until every reading has gone all the way.
    pub(super) fn audit_at_the_end(&self, mut edge: Process) -> Audit {
        let deadline = Instant::now() + PATIENCE;
        loop {
            edge.terminate();
            edge.succeed();
            let audit = self.audit();
            if audit.caught_up() {
                return audit;
            }
            assert!(Instant::now() < deadline, "something stands still: {}", audit.said);
            edge = self.edge(&self.cloud);
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

/// The address of a cloud that nothing answers at.
pub(super) fn no_uplink() -> String {
    format!("kafka://{}", std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

/// Nothing on the cloud's side can stop the cars: here all its topics have other partitions than the site's.
#[test]
fn what_is_wrong_in_the_cloud_does_not_stop_the_cars() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::new(directory.path());
    {
        let cloud = event_log::open(&site.cloud.parse().unwrap(), &[]).unwrap();
        for topic in contract::Contract::builtin().leaving_the_edge() {
            cloud.ensure_topic(&TopicSpec { partitions: 7, ..topics::spec(topic) }).unwrap();
        }
    }
    let mut edge = site.edge(&site.cloud);
    edge.line_with(&["the site goes on without it", "partitions"]);
    let cars = site.cars();
    std::thread::sleep(Duration::from_secs(2));
    cars.terminate();
    cars.succeed();
    assert!(!edge.has_ended(), "{}", edge.said());
    edge.terminate();
    edge.succeed();
    let audit = site.audit_of_the_edge();
    audit.assert_clean();
    assert!(audit.said["ledger"]["acknowledged"].as_u64() > Some(0), "{}", audit.said);
}

/// Its log serves one process: commands on it are carried out by the box, while its cars send.
#[test]
fn a_running_box_answers_for_its_log() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::new(directory.path());
    let mut edge = site.edge(&no_uplink());
    let cars = site.cars();
    let carstream = |args: &[&str]| {
        let output = Command::new(binary("carstream")).args(args).env_clear().output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let succeed = |args: &[&str]| {
        let (code, said) = carstream(args);
        assert_eq!(code, Some(0), "{args:?}: {said}");
        said
    };
    let list = ["dead-letter", "list", "--log", &site.log, "--json", "--limit", "1"];
    let deadline = Instant::now() + PATIENCE;
    let letter: serde_json::Value = loop {
        let said = succeed(&list);
        let first = said.lines().find(|line| line.contains("position"));
        if let Some(line) = first {
            break serde_json::from_str(line).unwrap();
        }
        assert!(Instant::now() < deadline, "no car has sent anything broken: {said}");
        std::thread::sleep(Duration::from_millis(200));
    };
    let position = letter["position"].as_str().unwrap();
    let shown = succeed(&["dead-letter", "show", "--log", &site.log, position]);
    assert!(shown.contains(letter["reason"].as_str().unwrap()), "{shown}");
    assert!(succeed(&["dead-letter", "replay", "--log", &site.log, "--all", "--dry-run"]).contains("would"));
    let groups = succeed(&["groups", "--log", &site.log]);
    assert!(groups.contains("preprocessor-telemetry") && groups.contains("scorer"), "{groups}");

    // What fails there fails here, with the same code.
    let audit = ["audit", "--edge-log", &site.log, "--ledger", &site.ledger];
    for (args, code, why) in [
        (&[&audit[..], &["--lake", "lake"]].concat()[..], 64, "audits its own log only"),
        (&["dead-letter", "list", "--log", &site.log, "--topic", "telemetry"], 64, "is no dead-letter topic"),
        (&["groups", "--log", &site.log, "--forget", "typo"], 1, "knows no group typo"),
    ] {
        let (ended, said) = carstream(args);
        assert!(ended == Some(code) && said.contains(why), "{args:?}: {ended:?}, {said}");
    }
    // A command that is given up does not keep the next one waiting.
    Process::start("carstream", &[&audit[..], &["--wait", "1h"]].concat()).kill();
    cars.terminate();
    cars.succeed();
    let live = Audit::of(&["--edge-log", &site.log, "--ledger", &site.ledger, "--wait", "180s", "--scores", "yes"]);
    live.assert_clean();
    assert!(live.said["ledger"]["acknowledged"].as_u64() > Some(0), "{}", live.said);
    assert!(!edge.has_ended(), "{}", edge.said());

    // What a killed box leaves behind is nobody to ask.
    edge.kill();
    assert_eq!(succeed(&["groups", "--log", &site.log]).lines().count(), groups.lines().count());
    let edge = site.edge(&no_uplink());
    succeed(&["groups", "--log", &site.log]);
    edge.terminate();
    edge.succeed();
    assert_eq!(live.said["ledger"], site.audit_of_the_edge().said["ledger"], "stopped, it says the same");
}

/// While its cars send, and it keeps the log open.
#[test]
fn a_running_box_forgets_a_car() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::new(directory.path());
    let edge = site.edge(&no_uplink());
    let cars = site.cars();
    std::thread::sleep(Duration::from_secs(3));
    cars.terminate();
    cars.succeed();
    let vins: BTreeSet<_> = site.vins();
    let [asks, other]: [String; 2] = vins.into_iter().take(2).collect::<Vec<_>>().try_into().unwrap();
    let pseudonym = |vin: &str| PseudonymKey::from_bytes(KEY.as_bytes()).unwrap().pseudonym(vin);
    let forget = ["forget", "--log", &site.log, "--vin", &asks, "--wait", "180s"];
    let output = Command::new(binary("carstream")).args(forget).env_clear().output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for line in [&*pseudonym(&asks), "forgotten by: preprocessor-telemetry", "forgotten by: scorer"] {
        assert!(said.contains(line), "{line:?} is not in\n{said}");
    }
    edge.terminate();
    edge.succeed();
    site.audit_of_the_edge().assert_clean();
    let log = event_log::open(&site.log.parse().unwrap(), &[]).unwrap();
    for (vin, known) in [(&asks, false), (&other, true)] {
        assert_eq!(state::knows(&log, "preprocessor.state", vin), known, "{vin}");
        assert_eq!(state::knows(&log, "scorer.state", &pseudonym(vin)), known, "{vin}");
    }
}

/// What retention removed unprocessed is an operator's to accept, while the box takes what its cars send.
#[test]
fn a_running_box_resumes_a_partition_that_retention_has_passed() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::new(directory.path());
    let (raw, group) = (topics::builtin("telemetry.raw"), "preprocessor-telemetry");
    let clock = Clock::default();
    let log = event_log::open_with_clock(Path::new(&site.log), clock.clone()).unwrap();
    log.ensure_topic(&raw).unwrap();
    let appender = log.clone().appender(Box::new(|_| {})).unwrap();
    let record = Record { key: b"a car of long ago", value: Some(b"{}"), headers: &[], timestamp_ms: now_ms() };
    (0..5).for_each(|token| appender.append(&raw.name, &record, token).unwrap());
    assert!(appender.flush(PATIENCE));
    clock.pass(2 * raw.retention.unwrap());
    log.maintain().unwrap();
    let partition = event_log::partition_for_key(record.key, raw.partitions);
    let position = Position { topic: raw.name.clone(), partition, offset: 2 };
    let options = ProcessorOptions { group: group.to_owned(), instance: "1".to_owned(), topics: Vec::new() };
    let mut transactor = log.clone().transactor(&options).unwrap();
    let committed = transactor.commit(&Outputs::default(), &[position], &Default::default()).unwrap();
    assert_eq!(committed, Outcome::Committed);
    drop((transactor, appender, log));

    let edge = site.edge(&no_uplink());
    let cars = site.cars();
    let resume = |accept: &[&str]| {
        let command = [&["resume", "preprocessor", "--log", &site.log], accept].concat();
        let output = Command::new(binary("carstream")).args(command).env_clear().output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let (listed, said) = resume(&[]);
    assert!(listed && said.starts_with(&format!("telemetry.raw/{partition}: group {group} is at offset 2")), "{said}");
    let (decided, said) = resume(&["--accept-gap"]);
    assert!(decided && said.contains("the running stage carries it out"), "{said}");
    let began = Instant::now();
    while resume(&[]).0 {
        assert!(began.elapsed() < PATIENCE, "the partition does not resume");
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(Duration::from_secs(2));
    cars.terminate();
    cars.succeed();
    edge.terminate();
    edge.succeed();
    // What was skipped is named, and nothing else.
    let audit = site.audit_of_the_edge();
    assert_eq!(audit.said["counts"], serde_json::json!({"removed-unread": 3}), "{}", audit.said);
    assert_eq!(audit.count("clean") + audit.count("dead_letters"), audit.count("acknowledged"), "{}", audit.said);
    let log = event_log::open(&site.log.parse().unwrap(), &[]).unwrap();
    let decisions = gaps::load(&log, own::GAPS, group, &raw.name).unwrap();
    let decision = decisions.values().next().expect("what was decided is kept");
    assert_eq!((decisions.len(), decision.skipped(2)), (1, Some(2..5)));
}

#[test]
fn a_killed_edge_box_goes_on_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let (mut random, kills) = (moments(), kills());
    let site = Site::new(directory.path());
    // No server: everything waits for its uplink.
    let no_uplink = no_uplink();
    let mut cars = site.cars();
    for kill in 0..kills {
        let edge = site.edge(if kill < kills / 2 { &no_uplink } else { &site.cloud });
        std::thread::sleep(Duration::from_millis(random.between(LIFE_MS.0, LIFE_MS.1)));
        if kill % 4 == 1 {
            let code = edge.terminate_twice();
            assert!(code == Some(130) || code == Some(0), "{code:?}");
        } else {
            edge.kill();
        }
        if kill % 3 == 2 {
            cars.kill();
            cars = site.cars();
        }
    }
    let edge = site.edge(&site.cloud);
    std::thread::sleep(Duration::from_secs(3));
    // What is not acknowledged by now stays with the cars: the audit wants it nowhere, or everywhere.
    cars.terminate();
    cars.succeed();
    let audit = site.audit_at_the_end(edge);
    eprintln!("{kills} kills: {}", audit.said["ledger"]);
    audit.assert_clean();
    for hop in ["replicated", "scored"] {
        assert_eq!(audit.count(hop), audit.count("clean"), "{}", audit.said);
    }
    assert!(audit.count("dead_letters") > 0 && audit.count("clean") > 5_000, "{}", audit.said);
    assert!(audit.count("duplicates_removed") > 0, "no kill came between a commit and its PUBACK: nothing was shown");
}
