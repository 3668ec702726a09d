//! Where everything of a run is, and how each process is called.
//!
//! ```text
//!  simulator ─(cars)─► mqtt-bridge ─► EDGE BROKER ◄─► preprocessor ×2, scorer ×2
//!                                          └─► replicator ─(link)─► CLOUD BROKER ─► sink ─(store)─► OBJECT STORE
//!                                                                     trainer, scorer ◄─(store)───────┘
//!  (…) a proxy of this program: see `proxy`
//! ```
//!
//! Everything is below one directory: `logs/` has what each process said, `simulator.csv` what the cars know.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use event_log::KafkaOption;
use parking_lot::Mutex;
use test_support::disk::Disk;
use test_support::process::Watcher;
use tokio::runtime::Handle;

use crate::clock::{self, Clocks};
use crate::outlived::Copies;
use crate::plan::Role;
use crate::process::Program;
use crate::proxy::Proxy;

/// Ports for those that must find theirs free again after a restart: below what systems hand out to clients, and so
/// that those that scripts/kafka derives from them are free as well.
const PORTS: std::ops::Range<u16> = 23_000..30_000;

/// No reading is dropped by a car, however long the bridge is away.
const BUFFER_READINGS: u32 = 1_000_000;

/// Some readings cannot be used, so that dead letters are counted as well.
const BROKEN_SHARE: f64 = 0.002;

/// Some cars are newer, so that two schemas are on the wire.
const NEWER_SCHEMA_SHARE: f64 = 0.25;

/// A fleet to learn from: half a day of a few cars, in seconds.
const LEARNING_CARS: u32 = 40;
const LEARNING_SPEEDUP: u32 = 4_800;
const LEARNING: &str = "8s";
/// Numbers that no other fleet of this run has.
const FIRST_LEARNING_CAR: u32 = 500_000;

/// About half of what that fleet sends.
const TRAINING_ROWS: u32 = 7_000;

/// Small objects, and many.
const SINK_MAX_AGE: &str = "2s";

/// Uploads that hang are tried again soon: the store hangs for seconds only.
const STORE_TIMEOUT: &str = "5s";

/// Of the object store's disk, which is in memory: more than a run of an hour writes.
pub(crate) const STORE_SIZE: &str = "2g";

/// What a run is made of.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) cars: u32,
    pub(crate) speedup: f64,
    /// Where the release binaries are.
    pub(crate) binaries: PathBuf,
    /// The repository's scripts.
    pub(crate) scripts: PathBuf,
    pub(crate) session_timeout: Duration,
    pub(crate) kafka_options: Vec<KafkaOption>,
}

/// A directory, ports and proxies.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) settings: Settings,
    pub(crate) directory: PathBuf,
    pub(crate) cars: Proxy,
    pub(crate) link: Proxy,
    pub(crate) store: Proxy,
    pub(crate) clocks: Clocks,
    mqtt_port: u16,
    edge_port: u16,
    cloud_port: u16,
    cloud_proxied_port: u16,
    store_port: u16,
    object_store: Option<ObjectStore>,
    store_disk: Option<Disk>,
    /// The edge's broker is the cloud's as well.
    pub(crate) one_broker: bool,
    /// How long the cars send.
    pub(crate) drive: Duration,
    /// Programs that take a stage's place, and what comes before the stage's arguments.
    pub(crate) stand_ins: BTreeMap<Role, (PathBuf, String)>,
    /// What retention has removed.
    pub(crate) copies: Mutex<Copies>,
}

impl Site {
    /// Prepares `directory`, chooses ports, starts the proxies.
    pub(crate) fn new(settings: Settings, directory: PathBuf, runtime: &Handle) -> anyhow::Result<Self> {
        for folder in ["logs", "lake"] {
            let folder = directory.join(folder);
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        std::fs::write(directory.join("site.key"), "the pseudonym key of a site that is there for one run")?;
        let clocks = Clocks::new(directory.join("clocks"))?;
        let mut ports = free_ports()?.into_iter();
        let mut port = || ports.next().context("too few free ports");
        let (mqtt_port, edge_port, cloud_port) = (port()?, port()?, port()?);
        let (cloud_proxied_port, store_port) = (port()?, port()?);
        Ok(Self {
            settings,
            directory,
            cars: Proxy::start(runtime, mqtt_port)?,
            link: Proxy::start(runtime, cloud_proxied_port)?,
            store: Proxy::start(runtime, store_port)?,
            clocks,
            mqtt_port,
            edge_port,
            cloud_port,
            cloud_proxied_port,
            store_port,
            object_store: None,
            store_disk: None,
            one_broker: false,
            drive: Duration::ZERO,
            stand_ins: BTreeMap::new(),
            copies: Mutex::default(),
        })
    }

    /// Starts the object store; without it the lake is a directory.
    pub(crate) fn start_object_store(&mut self) -> anyhow::Result<()> {
        let script = self.settings.scripts.join("s3");
        if can_mount_store_disk()? {
            self.store_disk = Disk::mount(&self.path("store"), STORE_SIZE);
        }
        self.object_store = Some(ObjectStore::start(script, self.store_port, self.path("store"))?);
        Ok(())
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.path("logs")
    }

    /// Where a fleet writes what became of its readings.
    pub(crate) fn ledger(&self, fleet: Role) -> String {
        self.shown(&format!("{}.csv", fleet.name()))
    }

    pub(crate) fn key_file(&self) -> String {
        self.shown("site.key")
    }

    pub(crate) fn edge_log(&self) -> String {
        format!("kafka://127.0.0.1:{}", self.edge_port)
    }

    pub(crate) fn cloud_log(&self) -> String {
        format!("kafka://127.0.0.1:{}", if self.one_broker { self.edge_port } else { self.cloud_port })
    }

    /// The log of one of the two brokers.
    pub(crate) fn log_of(&self, broker: Role) -> String {
        if broker == Role::CloudBroker { self.cloud_log() } else { self.edge_log() }
    }

    /// Copies what is on the object store's disk, which goes with the run, to where everything else is.
    pub(crate) fn keep_store(&self) -> anyhow::Result<()> {
        if self.store_disk.is_some() {
            let mut command = Command::new("cp");
            command.arg("--recursive").args([self.path("store"), self.path("store-at-the-end")]);
            ensure!(command.status().context("cannot run cp")?.success(), "cannot copy the object store");
        }
        Ok(())
    }

    /// The disk of the object store.
    pub(crate) fn store_disk(&self) -> anyhow::Result<&Disk> {
        self.store_disk.as_ref().context("the object store has no disk of its own")
    }

    /// The lake as a setting.
    pub(crate) fn lake(&self) -> String {
        if self.object_store.is_some() { "s3://lake".to_owned() } else { self.shown("lake") }
    }

    /// The lake's files, without a way through the object store.
    pub(crate) fn lake_directory(&self) -> PathBuf {
        self.path(if self.object_store.is_some() { "store/buckets/lake" } else { "lake" })
    }

    /// How to reach the object store without the proxy.
    pub(crate) fn direct_store_settings(&self) -> Vec<(String, String)> {
        self.store_settings(self.store_port)
    }

    fn store_settings(&self, port: u16) -> Vec<(String, String)> {
        let mut settings = self.object_store.as_ref().map(|store| store.settings.clone()).unwrap_or_default();
        for (name, value) in &mut settings {
            if name == "AWS_ENDPOINT_URL" {
                *value = format!("http://127.0.0.1:{port}");
            }
        }
        settings
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// What to run for an instance of a role.
    pub(crate) fn program(&self, role: Role, instance: u32) -> Program {
        let args = match role {
            Role::Cars | Role::LearningCars => self.simulator(role),
            Role::Bridge => self.bridge(),
            Role::Preprocessor => self.preprocessor(instance),
            Role::Replicator => self.replicator(),
            Role::Scorer => self.scorer(instance),
            Role::Sink => self.sink(),
            Role::Trainer => self.trainer(),
            Role::EdgeBroker => self.broker("edge", self.edge_port, None),
            Role::CloudBroker => self.broker("cloud", self.cloud_port, Some(self.cloud_proxied_port)),
        };
        let several = role.instances() > 1 || instance > 1;
        let name = if several { format!("{}-{instance}", role.name()) } else { role.name().to_owned() };
        let (path, args) = match (role, self.stand_ins.get(&role)) {
            (Role::EdgeBroker | Role::CloudBroker, _) => (self.settings.scripts.join("kafka"), args),
            (_, Some((path, first))) => (path.clone(), [vec![first.clone()], args].concat()),
            (_, None) => (self.binary(role.binary()), args),
        };
        let mut env = match role {
            // Brokers start often here: what starts fast is better than what runs fast.
            Role::EdgeBroker | Role::CloudBroker => {
                vec![("JAVA_TOOL_OPTIONS".to_owned(), "-XX:TieredStopAtLevel=1".to_owned())]
            }
            Role::Scorer | Role::Sink | Role::Trainer => self.store_settings(self.store.port()),
            _ => Vec::new(),
        };
        if clock::OWNERS.contains(&role) {
            env.extend(self.clocks.env(role));
        }
        Program { name, path, args, env, finite: matches!(role, Role::Cars | Role::LearningCars | Role::Trainer) }
    }

    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.settings.binaries.join(name)
    }

    fn simulator(&self, role: Role) -> Vec<String> {
        let Settings { seed, cars, speedup, .. } = &self.settings;
        let mqtt = format!("127.0.0.1:{}", self.cars.port());
        let ledger = self.ledger(role);
        let mut args = strings(&[
            ("--mqtt", &mqtt),
            ("--seed", seed),
            ("--broken-share", &BROKEN_SHARE),
            ("--newer-schema-share", &NEWER_SCHEMA_SHARE),
            ("--buffer", &BUFFER_READINGS),
            ("--drain-timeout", &"10m"),
            ("--ledger", &ledger),
        ]);
        let drive = format!("{}s", self.drive.as_secs());
        let fleet: [(&str, &dyn Display); 4] = match role {
            Role::LearningCars => [
                ("--cars", &LEARNING_CARS),
                ("--first-car", &FIRST_LEARNING_CAR),
                ("--speedup", &LEARNING_SPEEDUP),
                ("--duration", &LEARNING),
            ],
            _ => [("--cars", cars), ("--first-car", &0), ("--speedup", speedup), ("--duration", &drive)],
        };
        args.extend(strings(&fleet));
        // Where there is no ledger yet, it begins one.
        args.push("--resume".to_owned());
        args
    }

    fn bridge(&self) -> Vec<String> {
        let listen = format!("127.0.0.1:{}", self.mqtt_port);
        let args = [
            ("--listen", &listen as &dyn Display),
            ("--log", &self.edge_log()),
            ("--pseudonym-key-file", &self.key_file()),
        ];
        [strings(&args), self.kafka_options("--kafka-option")].concat()
    }

    fn preprocessor(&self, instance: u32) -> Vec<String> {
        let args = [
            ("--log", &self.edge_log() as &dyn Display),
            ("--pseudonym-key-file", &self.key_file()),
            ("--instance", &instance),
            // A long run is a longer life of the cars than the window has room for.
            ("--event-time-behind", &"any"),
        ];
        [strings(&args), self.kafka_options("--kafka-option")].concat()
    }

    fn replicator(&self) -> Vec<String> {
        let through_the_link = format!("kafka://127.0.0.1:{}", self.link.port());
        let args = [("--edge-log", &self.edge_log() as &dyn Display), ("--cloud-log", &through_the_link)];
        let options = ["--edge-kafka-option", "--cloud-kafka-option"].map(|option| self.kafka_options(option));
        [strings(&args), options.concat()].concat()
    }

    fn scorer(&self, instance: u32) -> Vec<String> {
        let args = [("--log", &self.edge_log() as &dyn Display), ("--lake", &self.lake()), ("--instance", &instance)];
        [strings(&args), self.kafka_options("--kafka-option")].concat()
    }

    fn sink(&self) -> Vec<String> {
        let args = [
            ("--log", &self.cloud_log() as &dyn Display),
            ("--lake", &self.lake()),
            ("--max-age", &SINK_MAX_AGE),
            ("--store-timeout", &STORE_TIMEOUT),
        ];
        [strings(&args), self.kafka_options("--kafka-option")].concat()
    }

    fn trainer(&self) -> Vec<String> {
        strings(&[
            ("--log", &self.edge_log()),
            ("--lake", &self.lake()),
            ("--min-rows", &TRAINING_ROWS),
            ("--epochs", &1),
        ])
    }

    fn broker(&self, name: &str, port: u16, proxied: Option<u16>) -> Vec<String> {
        let data = self.shown(name);
        let mut args = strings(&[("--port", &port as &dyn Display), ("--data", &data)]);
        args.insert(0, "serve".to_owned());
        if let Some(listen) = proxied {
            args.extend(["--proxied".to_owned(), format!("{listen}:{}", self.link.port())]);
        }
        args
    }

    fn kafka_options(&self, option: &str) -> Vec<String> {
        let session_timeout = format!("session.timeout.ms={}", self.settings.session_timeout.as_millis());
        let given = self.settings.kafka_options.iter().map(|given| format!("{}={}", given.key, given.value));
        std::iter::once(session_timeout).chain(given).flat_map(|setting| [option.to_owned(), setting]).collect()
    }
}

/// Whether the object store can have a disk of its own to be filled: only root may mount one, and the store needs a
/// kernel (6.6) that keeps extended attributes in memory, too.
pub(crate) fn can_mount_store_disk() -> anyhow::Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    let is_new = (numbers.next(), numbers.next()) >= (Some(6), Some(6));
    Ok(is_new && Disk::mount(tempfile::tempdir()?.path(), "1m").is_some())
}

/// A real S3 server, by scripts/s3. Stopped when dropped.
#[derive(Debug)]
struct ObjectStore {
    script: PathBuf,
    data: PathBuf,
    settings: Vec<(String, String)>,
    _watcher: Watcher,
}

impl ObjectStore {
    fn start(script: PathBuf, port: u16, data: PathBuf) -> anyhow::Result<Self> {
        let _watcher = Watcher::of_server(&script, &data).context("cannot run sh")?;
        let mut command = Command::new(&script);
        command.args(["start", "--port", &port.to_string(), "--data"]).arg(&data);
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot run scripts/s3")?;
        ensure!(output.status.success(), "the object store did not start ({})", output.status);
        let said = String::from_utf8(output.stdout)?;
        let settings = said.lines().filter_map(|line| line.split_once('='));
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Self { script, data, settings, _watcher })
    }
}

impl Drop for ObjectStore {
    fn drop(&mut self) {
        let mut command = Command::new(&self.script);
        // Its output is complete; the run is over.
        let _ = command.args(["stop", "--kill", "--data"]).arg(&self.data).status();
    }
}

fn strings(args: &[(&str, &dyn Display)]) -> Vec<String> {
    args.iter().flat_map(|(name, value)| [(*name).to_owned(), value.to_string()]).collect()
}

/// Ports where nobody listens. Two runs at a time begin at different places.
fn free_ports() -> anyhow::Result<Vec<u16>> {
    let ports = u32::from(PORTS.end - PORTS.start);
    let first = std::process::id().wrapping_mul(10) % ports;
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let free: Vec<_> = (0..ports).map(|i| PORTS.start + ((first + i) % ports) as u16).filter(is_free).take(5).collect();
    ensure!(free.len() == 5, "fewer than five free ports from {} to {}", PORTS.start, PORTS.end);
    Ok(free)
}

/// Where a run's directory is made if none is named.
pub(crate) fn new_directory() -> anyhow::Result<PathBuf> {
    let directory = tempfile::Builder::new().prefix("carstream-chaos.").tempdir();
    Ok(directory.context("cannot create a directory for the run")?.keep())
}

/// A directory that was named: it must be new or empty.
pub(crate) fn empty_directory(path: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(entries.next().is_none(), "{} is not empty: a run needs a directory of its own", path.display());
    Ok(path.canonicalize()?)
}
