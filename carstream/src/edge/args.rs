//! The settings of the edge box: those of its stages that differ from site to site.

use std::path::PathBuf;
use std::sync::Arc;

use event_log::{CloudLogArgs, Log, LogArgs, LogUrl};
use lake::{LakeUrl, S3Args};
use mqtt_bridge::{ClientIdRule, Limits, Listen, TlsArgs};
use preprocessor::{CarsArgs, EventTimeArgs};
use schema_registry::SchemaRegistryArgs;
use service::{ConfigError, ContractArgs, ServiceArgs, values};

use crate::live::Site;

/// Run an edge site in one process, without Docker or Java: MQTT in, clean readings and scores in an embedded log,
/// copied to the cloud if an uplink exists.
///
/// With a --cloud-log, the uplink, records that may leave the site are copied there. While it is unreachable, they stay
/// in the site's log, as long as its disk has room. Everything else has the stages' own defaults.
///
/// The log serves one process. carstream dead-letter, audit, forget and groups with the same --log (--edge-log) have
/// the running box carry them out: run them as its user.
///
/// /readyz answers 503 also while the uplink or a model is missing, though readings are accepted; use /livez for
/// restarts.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  carstream edge --log site-log --pseudonym-key-file site.key --model model
      a site without an uplink: a directory, a key, a model, no more
  carstream edge --log site-log --pseudonym-key-file site.key --lake s3://readings --cloud-log kafka://cloud:9092
      follows the models that the cloud announces, and copies what may leave the site")]
pub struct Args {
    /// Keep the site's log in this directory, which is made if it is missing; one process at a time has it open.
    #[arg(long, env = "CARSTREAM_LOG", value_name = "DIR")]
    pub log: PathBuf,
    /// Read the site's secret key for pseudonyms from this file, at least 16 bytes; a site has one key.
    #[arg(long, env = "CARSTREAM_PSEUDONYM_KEY_FILE", value_name = "FILE")]
    pub pseudonym_key_file: PathBuf,
    /// Accept MQTT without TLS at this address: for this machine and trusted networks; `none`: only with TLS.
    #[arg(long, env = "CARSTREAM_MQTT_LISTEN", value_name = "HOST:PORT|none", default_value_t)]
    pub listen: Listen,
    /// TLS, as for the bridge.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Let a client without a certificate publish for any car, or only for the VIN that is its client identifier.
    #[arg(long, env = "CARSTREAM_MQTT_CLIENT_ID", value_enum, default_value_t)]
    pub client_id: ClientIdRule,
    /// What the site has.
    #[command(flatten)]
    pub contract: ContractArgs,

    /// Score with the model in this directory, which has manifest.json and weights.safetensors.
    ///
    /// Then announcements are not followed, and --lake is not used: it never needs an uplink.
    #[arg(long, env = "CARSTREAM_MODEL", value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Take announced models from this object store, unless --model names one: a directory, file:///DIRECTORY, or
    /// s3://BUCKET[/PREFIX].
    ///
    /// The scorer takes the models from it that are announced in --cloud-log, or else in --log; the first one after a
    /// start needs the uplink.
    #[arg(long, env = "CARSTREAM_LAKE", value_name = "URL")]
    pub lake: Option<LakeUrl>,
    /// How S3 is reached.
    #[command(flatten)]
    pub s3: S3Args,
    /// The uplink. Without it nothing leaves the site.
    #[command(flatten)]
    pub cloud: CloudLogArgs,
    /// Where schema ids come from: a site that is replicated needs the registry of the cloud, if that has one.
    #[command(flatten)]
    pub schema_registry: SchemaRegistryArgs,
    /// Name the edge site this in the cloud, in the header source.cluster; each of several sites needs its own name.
    #[arg(long, env = "CARSTREAM_SITE", value_name = "NAME", default_value = replicator::DEFAULT_SITE,
        value_parser = values::name)]
    pub site: String,

    /// Which event times are accepted.
    #[command(flatten)]
    pub event_time: EventTimeArgs,
    /// Which cars are known, and how many.
    #[command(flatten)]
    pub cars: CarsArgs,
    /// Resume partitions whose next records retention has removed, at the first one left, as carstream resume does.
    ///
    /// Each gap is recorded in the topic stages.gaps, and the audit counts its records as lost. For one start: without
    /// it, such a partition waits for a decision.
    #[arg(long)]
    pub accept_gap: bool,

    /// The bounds of the bridge.
    #[command(flatten)]
    pub limits: Limits,
    /// What every process has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

impl Args {
    /// Reports the settings of all stages that cannot work, before anything is opened.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        if self.model.is_none() && self.lake.is_none() {
            problems.push("--model DIR or --lake URL is missing: the scorer needs a model".to_owned());
        }
        // Parsed as a log URL, so that kafka:// is an error and not a directory name.
        if let Ok(LogUrl::Kafka { .. }) | Err(_) = self.log.to_string_lossy().parse::<LogUrl>() {
            problems.push(format!(
                "--log {}: the edge box has its log in a directory; with Kafka, run the stages as separate processes",
                self.log.display()
            ));
        }
        let replicator = self.replicator().map(|args| args.problems()).unwrap_or_default();
        for problem in [
            self.bridge().problems(),
            preprocessor::problems(&self.preprocessor()),
            scorer::problems(&self.scorer()),
            replicator,
        ]
        .concat()
        {
            // What the stages share they all report.
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        ConfigError::check(problems)
    }

    /// What runs here, in one line.
    pub(super) fn described(&self) -> String {
        let uplink = self.cloud.log.as_ref().map_or("none".to_owned(), ToString::to_string);
        let contract = self.contract.contract.as_ref().map_or("the platform's".to_owned(), |c| c.display().to_string());
        format!(
            "carstream {}, site {}: log {}, uplink {uplink}, contract {contract}",
            env!("CARGO_PKG_VERSION"),
            self.site,
            self.log.display()
        )
    }

    /// The site, for commands on the running box.
    pub(super) fn site(&self, log: Arc<dyn Log>) -> anyhow::Result<Site> {
        let contract = self.contract.load()?;
        let (pseudonym_key_file, name) = (self.pseudonym_key_file.clone(), self.site.clone());
        Ok(Site { log, contract, pseudonym_key_file, name, schemas: self.schema_registry.clone() })
    }

    /// The site's log.
    pub(super) fn log(&self) -> LogArgs {
        LogArgs::new(LogUrl::Directory(self.log.clone()))
    }

    pub(super) fn bridge(&self) -> mqtt_bridge::Args {
        let any_port = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let mut args = mqtt_bridge::Args::new(any_port, self.log(), Some(self.pseudonym_key_file.clone()));
        args.contract = self.contract.clone();
        args.listen = self.listen.clone();
        args.tls = self.tls.clone();
        args.client_id = self.client_id;
        args.limits = self.limits;
        args
    }

    pub(super) fn preprocessor(&self) -> preprocessor::Args {
        let mut args = preprocessor::Args::new(self.log().log, self.pseudonym_key_file.clone());
        args.contract = self.contract.clone();
        args.event_time = self.event_time;
        args.cars = self.cars;
        args.drain = self.limits.drain;
        args.accept_gap = self.accept_gap;
        args.schema_registry = self.schema_registry.clone();
        args
    }

    pub(super) fn scorer(&self) -> scorer::Args {
        // With a fixed model the lake is not looked at.
        let lake = self.lake.clone().unwrap_or_else(|| LakeUrl::Directory(PathBuf::new()));
        let mut args = scorer::Args::new(self.log().log, lake);
        args.contract = self.contract.clone();
        args.lake.s3 = self.s3.clone();
        args.model = self.model.clone();
        args.forget = self.cars.forget;
        args.cloud = self.cloud.clone();
        args.drain = self.limits.drain;
        args.accept_gap = self.accept_gap;
        args.schema_registry = self.schema_registry.clone();
        args
    }

    /// `None`: nothing leaves the site.
    pub(super) fn replicator(&self) -> Option<replicator::Args> {
        let mut args = replicator::Args::new(self.log().log, self.cloud.log.clone()?);
        args.contract = self.contract.clone();
        args.cloud = self.cloud.clone();
        args.site = self.site.clone();
        args.drain = self.limits.drain;
        Some(args)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Edge {
        #[command(flatten)]
        args: Args,
    }

    fn parse(more: &[&str]) -> Result<Args, clap::Error> {
        let edge = ["edge", "--log", "log", "--pseudonym-key-file", "key"];
        Edge::try_parse_from([&edge[..], more].concat()).map(|edge| edge.args)
    }

    #[test]
    fn a_model_is_needed_and_comes_from_one_place() {
        let problems = parse(&[]).expect("valid for clap").check().expect_err("no model").0;
        assert_eq!(problems[0], "--model DIR or --lake URL is missing: the scorer needs a model");
        // Both, as in a file of variables that all stages share: the model wins.
        let args = parse(&["--model", "m", "--lake", "s3://b"]).expect("valid");
        assert_eq!(args.scorer().model, args.model);
        let problems = args.check().expect_err("no key and no model").0;
        assert!(problems.len() == 2 && problems[1] == "--model m: the directory does not exist", "{problems:?}");
        let args = parse(&["--lake", "l", "--cloud-log", "cloud"]).expect("valid");
        assert_eq!(args.scorer().cloud.log, args.cloud.log, "the trainer announces in the cloud");
    }

    #[test]
    fn a_kafka_log_is_told_what_to_do() {
        let mut args = parse(&["--model", "m"]).expect("valid");
        assert!(args.replicator().is_none());
        args.log = "kafka://localhost:9092".into();
        assert!(args.check().is_err_and(|error| error.to_string().contains("separate processes")));
    }
}
