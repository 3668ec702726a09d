//! The settings of the edge box: those of its stages that differ from site to site.

use std::path::PathBuf;
use std::time::Duration;

use event_log::{KafkaOption, LogArgs, LogUrl};
use lake::{LakeUrl, S3Args};
use mqtt_bridge::{ClientIdRule, Limits, Listen, TlsArgs};
use schema_registry::SchemaRegistryArgs;
use service::{ConfigError, ContractArgs, ServiceArgs};

/// An edge site in one process, without Docker or Java: MQTT in, clean readings and scores in an embedded log, and to
/// the cloud if there is an uplink.
///
/// What is no setting here is as in the stages' own defaults.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  carstream edge --log site-log --pseudonym-key-file site.key --model model
      a site without an uplink: a directory, a key, a model, no more
  carstream edge --log site-log --pseudonym-key-file site.key --lake s3://readings --cloud-log kafka://cloud:9092
      follows the models that the cloud announces, and copies what may leave the site")]
pub struct Args {
    /// The site's log: a directory, made if there is none. One process at a time has it open.
    #[arg(long, env = "CARSTREAM_LOG", value_name = "DIR")]
    pub log: PathBuf,
    /// The file with the site's secret key for pseudonyms, at least 16 bytes: `openssl rand -hex 32 > site.key`.
    #[arg(long, env = "CARSTREAM_PSEUDONYM_KEY_FILE", value_name = "FILE")]
    pub pseudonym_key_file: PathBuf,
    /// Where to listen for MQTT connections without TLS, for this machine and trusted networks; or none, which leaves
    /// --tls-listen.
    #[arg(long, env = "CARSTREAM_MQTT_LISTEN", value_name = "HOST:PORT|none", default_value_t)]
    pub listen: Listen,
    /// TLS, as for the bridge.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Which cars a client without a certificate may publish for.
    #[arg(long, env = "CARSTREAM_MQTT_CLIENT_ID", value_enum, default_value_t)]
    pub client_id: ClientIdRule,
    /// What the site has.
    #[command(flatten)]
    pub contract: ContractArgs,

    /// Score with this model, a directory with manifest.json and weights.safetensors: needs no uplink, ever.
    #[arg(long, env = "CARSTREAM_MODEL", value_name = "DIR", conflicts_with_all = ["lake", "models_log"])]
    pub model: Option<PathBuf>,
    /// Score with the models that are announced, taken from this lake. The first one after a start needs the uplink.
    #[arg(long, env = "CARSTREAM_LAKE", value_name = "URL")]
    pub lake: Option<LakeUrl>,
    /// How S3 is reached.
    #[command(flatten)]
    pub s3: S3Args,
    /// The log whose topic `models` announces models, if it is not --cloud-log.
    #[arg(long, env = "CARSTREAM_MODELS_LOG", value_name = "URL", requires = "lake")]
    pub models_log: Option<LogUrl>,

    /// Copy clean readings, findings, scores and alerts to this log. While it is away they wait in the site's log, as
    /// long as the retention of the topics allows (a week), and are copied when it is back. Without it nothing leaves the
    /// site.
    #[arg(long, env = "CARSTREAM_CLOUD_LOG", value_name = "URL")]
    pub cloud_log: Option<LogUrl>,
    /// A librdkafka property for the cloud's log; may be repeated, or comma-separated in the environment.
    #[arg(
        long = "cloud-kafka-option",
        env = "CARSTREAM_CLOUD_KAFKA_OPTIONS",
        value_name = "KEY=VALUE",
        value_delimiter = ',',
        requires = "cloud_log"
    )]
    pub cloud_kafka_options: Vec<KafkaOption>,
    /// Where schema ids come from: a site that is replicated needs the registry of the cloud, if that has one.
    #[command(flatten)]
    pub schema_registry: SchemaRegistryArgs,
    /// What this site is called in the cloud. Each of several sites needs its own.
    #[arg(long, env = "CARSTREAM_SOURCE_NAME", value_name = "NAME", default_value = "edge")]
    pub site: String,

    /// When stopped, score and copy what the log holds at that moment, each for at most so long. The rest is done after
    /// the next start.
    #[arg(long, env = "CARSTREAM_DRAIN_TIMEOUT", value_name = "SECONDS", default_value = "30", value_parser = service::seconds)]
    pub drain_timeout: Duration,
    /// The bounds of the bridge.
    #[command(flatten)]
    pub limits: Limits,
    /// What every process has.
    #[command(flatten)]
    pub service: ServiceArgs,
}

impl Args {
    /// What cannot work, as far as the stages themselves do not say it.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        if self.model.is_none() && self.lake.is_none() {
            problems.push("--model DIR or --lake URL is missing: where the scorer's model comes from".to_owned());
        }
        // As a log URL, so that kafka:// is told rather than made a directory.
        if let Ok(LogUrl::Kafka { .. }) | Err(_) = self.log.to_string_lossy().parse::<LogUrl>() {
            problems.push(format!(
                "--log {}: the edge box has its log in a directory; with Kafka, run the stages as processes of their own",
                self.log.display()
            ));
        }
        ConfigError::check(problems)
    }

    /// The site's log. The properties are for logs of the cloud that a stage opens by itself.
    pub(super) fn log(&self) -> LogArgs {
        LogArgs { log: LogUrl::Directory(self.log.clone()), kafka_options: self.cloud_kafka_options.clone() }
    }

    pub(super) fn bridge(&self) -> mqtt_bridge::Args {
        let any_port = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let mut args = mqtt_bridge::Args::new(any_port, self.log(), Some(self.pseudonym_key_file.clone()));
        args.contract = self.contract.clone();
        args.listen = self.listen;
        args.tls = self.tls.clone();
        args.client_id = self.client_id;
        args.limits = self.limits;
        args
    }

    pub(super) fn preprocessor(&self) -> preprocessor::Args {
        let mut args = preprocessor::Args::new(self.log().log, self.pseudonym_key_file.clone());
        args.contract = self.contract.clone();
        args.schema_registry = self.schema_registry.clone();
        args
    }

    pub(super) fn scorer(&self) -> scorer::Args {
        // With a fixed model the lake is not looked at.
        let lake = self.lake.clone().unwrap_or_else(|| LakeUrl::Directory(PathBuf::new()));
        let mut args = scorer::Args::new(self.log().log, lake);
        args.log = self.log();
        args.contract = self.contract.clone();
        args.lake.s3 = self.s3.clone();
        args.model = self.model.clone();
        args.models_log = self.models_log.clone().or_else(|| self.cloud_log.clone());
        args.drain_timeout = self.drain_timeout;
        args.schema_registry = self.schema_registry.clone();
        args
    }

    /// `None`: nothing leaves the site.
    pub(super) fn replicator(&self) -> Option<replicator::Args> {
        let mut args = replicator::Args::new(self.log().log, self.cloud_log.clone()?);
        args.target_kafka_options = self.cloud_kafka_options.clone();
        args.contract = self.contract.clone();
        args.source_name = self.site.clone();
        args.drain_timeout = self.drain_timeout;
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
        assert!(parse(&[]).expect("valid for clap").check().is_err());
        assert!(parse(&["--model", "m"]).expect("valid").check().is_ok());
        assert!(parse(&["--model", "m", "--lake", "l"]).is_err());
        let args = parse(&["--lake", "l", "--cloud-log", "cloud"]).expect("valid");
        assert_eq!(args.scorer().models_log, args.cloud_log, "the trainer announces in the cloud");
    }

    #[test]
    fn a_kafka_log_is_told_what_to_do() {
        let mut args = parse(&["--model", "m"]).expect("valid");
        assert!(args.replicator().is_none());
        args.log = "kafka://localhost:9092".into();
        assert!(args.check().is_err_and(|error| error.to_string().contains("processes of their own")));
    }
}
