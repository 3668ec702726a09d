//! Where the log is, as a setting.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::{BoxError, Error, Log};

/// The settings of a stage with one log.
#[derive(Debug, Clone, clap::Args)]
pub struct LogArgs {
    /// Use this log: kafka://HOST:PORT[,HOST:PORT…], or a directory for the embedded log.
    #[arg(long, env = "CARSTREAM_LOG", value_name = "URL", default_value = "kafka://localhost:9092")]
    pub log: LogUrl,
    /// Pass a property of librdkafka on to --log; may be repeated, or comma-separated in the environment.
    ///
    /// @FILE names a file with one property on each line: for passwords.
    #[arg(long = "kafka-option", env = "CARSTREAM_KAFKA_OPTIONS", value_name = "KEY=VALUE|@FILE")]
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

    /// What of the settings cannot work.
    pub fn problems(&self) -> Vec<String> {
        self.log.problems("--log")
    }
}

/// The settings of one of two logs that a command knows: `--PREFIX-log` and `--PREFIX-kafka-option`.
macro_rules! log_args {
    ($(#[$about:meta])* $Name:ident, $prefix:literal, $PREFIX:literal, $(#[$log:meta])*) => {
        $(#[$about])*
        #[derive(Debug, Clone, Default, clap::Args)]
        pub struct $Name {
            $(#[$log])*
            #[arg(id = concat!($prefix, "_log"), long = concat!($prefix, "-log"),
                env = concat!("CARSTREAM_", $PREFIX, "_LOG"), value_name = "URL")]
            pub log: Option<LogUrl>,
            /// Properties of librdkafka for it.
            #[arg(id = concat!($prefix, "_kafka_option"), long = concat!($prefix, "-kafka-option"),
                help = concat!("Pass a property of librdkafka on to --", $prefix, "-log; see --kafka-option"),
                env = concat!("CARSTREAM_", $PREFIX, "_KAFKA_OPTIONS"), value_name = "KEY=VALUE|@FILE")]
            pub kafka_options: Vec<KafkaOption>,
        }

        impl $Name {
            /// Settings for a log without extra properties.
            pub fn new(log: LogUrl) -> Self {
                Self { log: Some(log), kafka_options: Vec::new() }
            }

            /// Opens the log. `None`: there is none.
            pub fn open(&self) -> Result<Option<Arc<dyn Log>>, Error> {
                self.log.as_ref().map(|log| crate::open(log, &self.kafka_options)).transpose()
            }

            /// What of the settings cannot work.
            pub fn problems(&self) -> Vec<String> {
                self.log.iter().flat_map(|log| log.problems(concat!("--", $prefix, "-log"))).collect()
            }
        }
    };
}

log_args! {
    /// The log of the edge, for a command that knows the cloud's as well.
    EdgeLogArgs, "edge", "EDGE",
    /// Use this log as the edge's: kafka://HOST:PORT[,HOST:PORT…], or a directory for the embedded log.
}

log_args! {
    /// The log of the cloud, for a command that knows the edge's as well.
    CloudLogArgs, "cloud", "CLOUD",
    /// Use this log as the cloud's: kafka://HOST:PORT[,HOST:PORT…], or a directory for the embedded log.
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

impl LogUrl {
    /// Whether this is HOST:PORT[,HOST:PORT…].
    fn is_servers(text: &str) -> bool {
        let is_server = |server: &str| {
            server.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        text.split(',').all(is_server)
    }

    /// The directory of an embedded log.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Kafka { .. } => None,
            Self::Directory(path) => Some(path),
        }
    }

    /// What keeps `setting` from being this log, as far as that is known before it is opened.
    pub fn problems(&self, setting: &str) -> Vec<String> {
        match self {
            Self::Directory(path) if path.exists() && !path.is_dir() => {
                vec![format!("{setting} {}: is a file: choose a directory", path.display())]
            }
            _ => Vec::new(),
        }
    }
}

impl FromStr for LogUrl {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if let Some(bootstrap) = s.strip_prefix("kafka://") {
            let bootstrap = bootstrap.trim_end_matches('/');
            if !Self::is_servers(bootstrap) {
                return Err(format!("{s}: every server needs a host and a port, as in kafka://localhost:9092"));
            }
            return Ok(Self::Kafka { bootstrap: bootstrap.to_owned() });
        }
        let refusal = || format!("{s:?} is neither kafka://HOST:PORT nor a directory");
        if s.is_empty() {
            return Err(refusal());
        }
        // A server without kafka://, or another scheme: as a directory it would be created, and found empty.
        if s.split_once(':').is_some_and(|(before, _)| !before.contains('/')) {
            let server = s.strip_prefix("kafka:").unwrap_or(s).trim_matches('/');
            let kafka = match Self::is_servers(server) {
                true => format!("kafka://{server}, or "),
                false => String::new(),
            };
            return Err(format!("{}: write {kafka}./{s} for a directory of that name", refusal()));
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

/// A librdkafka property; or, with the name `@`, a file of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaOption {
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl KafkaOption {
    const FILE: &str = "@";

    /// The properties that `options` stand for, with the lines of files (`#` begins a comment) in their places.
    pub(crate) fn all(options: &[Self]) -> Result<Vec<Self>, BoxError> {
        let mut all = Vec::new();
        for option in options {
            if option.key != Self::FILE {
                all.push(option.clone());
                continue;
            }
            let file = &option.value;
            let text =
                std::fs::read_to_string(file).map_err(|e| format!("cannot read the Kafka options in {file}: {e}"))?;
            for (number, line) in (1..).zip(text.lines().map(str::trim)) {
                match line.split_once('=') {
                    _ if line.is_empty() || line.starts_with('#') => {}
                    Some((key, value)) if !key.trim().is_empty() => {
                        all.push(Self { key: key.trim().to_owned(), value: value.trim().to_owned() });
                    }
                    // What it says may be a password.
                    _ => return Err(format!("line {number} of {file} is not KEY=VALUE").into()),
                }
            }
        }
        Ok(all)
    }
}

impl FromStr for KafkaOption {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if let Some(file) = s.strip_prefix(Self::FILE).filter(|file| !file.is_empty()) {
            return Ok(Self { key: Self::FILE.to_owned(), value: file.to_owned() });
        }
        match s.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self { key: key.to_owned(), value: value.to_owned() }),
            _ => Err(format!("{s:?} is neither KEY=VALUE nor @FILE")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_a_scheme_is_no_directory() {
        let refused = |text: &str| text.parse::<LogUrl>().expect_err(text);
        let kafka = "is neither kafka://HOST:PORT nor a directory: write kafka://localhost:9092, or ";
        for server in ["localhost:9092", "kafka:localhost:9092", "kafka:/localhost:9092"] {
            assert_eq!(refused(server), format!("{server:?} {kafka}./{server} for a directory of that name"));
        }
        assert!(refused("a:9092,b:9092").contains("write kafka://a:9092,b:9092, or"));
        assert!(refused("s3://bucket").ends_with("nor a directory: write ./s3://bucket for a directory of that name"));
        assert!(refused("").ends_with("nor a directory") && refused("kafka://host").contains("a host and a port"));
        for directory in ["log", "./localhost:9092", "/var/lib/a:1", "data/log:1"] {
            assert_eq!(directory.parse(), Ok(LogUrl::Directory(directory.into())));
        }
    }

    #[test]
    fn a_file_of_options_stands_in_its_place_and_its_mistakes_are_named_without_its_secrets() {
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("kafka.properties");
        let option = |text: &str| text.parse::<KafkaOption>().expect("valid");
        let options = [option("client.id=me"), option(&format!("@{}", file.display())), option("a=b=c")];
        let error = KafkaOption::all(&options).expect_err("no file yet").to_string();
        assert!(error.contains("kafka.properties"), "{error}");

        std::fs::write(&file, "# who we are\nsasl.username = site\nsasl.password=p=1\n\n").expect("writable");
        let all = KafkaOption::all(&options).expect("readable");
        let shown: Vec<_> = all.iter().map(|o| format!("{} {}", o.key, o.value)).collect();
        assert_eq!(shown, ["client.id me", "sasl.username site", "sasl.password p=1", "a b=c"]);

        std::fs::write(&file, "sasl.username=site\nhunter2\n").expect("writable");
        let error = KafkaOption::all(&options).expect_err("no KEY").to_string();
        assert!(error.contains("line 2 of") && !error.contains("hunter2"), "{error}");
        for bad in ["", "@", "=value", "key"] {
            assert!(bad.parse::<KafkaOption>().is_err(), "{bad}");
        }
    }
}
