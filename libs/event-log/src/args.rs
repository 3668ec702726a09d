//! Where the log is, as a setting.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::{Error, Log};

/// The settings of a stage with one log.
#[derive(Debug, Clone, clap::Args)]
pub struct LogArgs {
    /// The log: kafka://HOST:PORT[,HOST:PORT…], or a directory for the embedded log.
    #[arg(long, env = "CARSTREAM_LOG", value_name = "URL", default_value = "kafka://localhost:9092")]
    pub log: LogUrl,
    /// A librdkafka property, passed through as it is; may be repeated, or comma-separated in the environment.
    #[arg(long = "kafka-option", env = "CARSTREAM_KAFKA_OPTIONS", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub kafka_options: Vec<KafkaOption>,
}

impl LogArgs {
    /// Settings for a log without extra properties.
    pub fn new(log: LogUrl) -> Self {
        Self { log, kafka_options: Vec::new() }
    }

    /// Opens the log.
    pub fn open(&self) -> Result<Arc<dyn Log>, Error> {
        crate::open(&self.log, &self.kafka_options)
    }
}

/// Where a log is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogUrl {
    /// A Kafka cluster: `kafka://HOST:PORT[,HOST:PORT…]`.
    Kafka {
        /// As librdkafka takes it: `HOST:PORT[,HOST:PORT…]`.
        bootstrap: String,
    },
    /// A directory of the embedded log.
    Directory(PathBuf),
}

impl FromStr for LogUrl {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if let Some(bootstrap) = s.strip_prefix("kafka://") {
            let bootstrap = bootstrap.trim_end_matches('/');
            let complete = bootstrap.split(',').all(|server| {
                server.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
            });
            if !complete {
                return Err(format!("{s}: every server needs a host and a port, as in kafka://localhost:9092"));
            }
            return Ok(Self::Kafka { bootstrap: bootstrap.to_owned() });
        }
        if s.contains("://") || s.is_empty() {
            return Err(format!("{s:?} is neither kafka://HOST:PORT nor a directory"));
        }
        Ok(Self::Directory(s.into()))
    }
}

impl fmt::Display for LogUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kafka { bootstrap } => write!(f, "kafka://{bootstrap}"),
            Self::Directory(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A librdkafka property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaOption {
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl FromStr for KafkaOption {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self { key: key.to_owned(), value: value.to_owned() }),
            _ => Err(format!("{s:?} is not KEY=VALUE")),
        }
    }
}
