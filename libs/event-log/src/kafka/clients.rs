//! How librdkafka clients are set up, and what becomes of what they have to say.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::admin::AdminClient;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::statistics::Statistics;

use crate::{BoxError, KafkaOption, LogUrl};

/// A report of a broken connection explains a time-out for this long after it. librdkafka repeats the same report every
/// 30 s only.
const REPORT_IS_FRESH: Duration = Duration::from_secs(60);
/// How often the same trouble is warned of.
const WARN_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// librdkafka's own `batch.size`.
const BATCH_BYTES: usize = 1_000_000;
/// A dead letter is larger than the record it is about, by its headers. It must still fit: more than the 1,000,000
/// bytes that an appender takes, less than the 1,048,588 that a broker does.
const MAX_RECORD_BYTES: usize = 1_040_000;

/// Properties that the promises of this crate rest on: no option may change them.
const NOT_FOR_OPTIONS: &[&str] = &[
    "acks",
    "auto.offset.reset",
    "delivery.report.only.error",
    "enable.auto.commit",
    "auto.commit.enable",
    "enable.auto.offset.store",
    "enable.idempotence",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "group.remote.assignor",
    "isolation.level",
    "partition.assignment.strategy",
    "partitioner",
    "request.required.acks",
    "transactional.id",
];

/// Takes the available delivery reports, as long as `reported` grows. A caller that waits for more sleeps in between:
/// the binding's own poll spins through the last millisecond of its timeout, which takes most of a processor when
/// records are always in flight.
pub(super) fn serve<C: ProducerContext>(producer: &BaseProducer<C>, reported: impl Fn(&C) -> usize) {
    loop {
        let before = reported(producer.context());
        producer.poll(Duration::ZERO);
        if reported(producer.context()) == before {
            return;
        }
    }
}

/// The settings of all clients of one log.
pub(super) struct Clients {
    bootstrap: String,
    options: Vec<KafkaOption>,
}

impl Clients {
    pub(super) fn new(bootstrap: &str, options: &[KafkaOption]) -> Result<Self, BoxError> {
        let options = KafkaOption::all(options)?;
        if let Some(KafkaOption { key, .. }) = options.iter().find(|o| NOT_FOR_OPTIONS.contains(&&*o.key)) {
            return Err(format!("{key} cannot be set: the log's guarantees depend on its value").into());
        }
        Ok(Self { bootstrap: bootstrap.to_owned(), options })
    }

    /// A configuration with `settings`, and the user's options on top.
    pub(super) fn config(&self, settings: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap).set("client.id", "carstream");
        // Reconnect quickly to a broker that was restarted; the default waits up to 10 s.
        config.set("reconnect.backoff.max.ms", "2000");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        for option in &self.options {
            config.set(&option.key, &option.value);
        }
        config.set_log_level(RDKafkaLogLevel::Warning);
        config
    }

    /// The configuration of a producer whose batches have at most `batch_bytes`.
    pub(super) fn producer(&self, settings: &[(&str, &str)], batch_bytes: usize) -> ClientConfig {
        let mut config = self.config(settings);
        let bytes = number(&config, "batch.size").unwrap_or(BATCH_BYTES).min(batch_bytes).max(1);
        config.set("batch.size", bytes.to_string());
        config
    }

    /// The largest record that a transaction can write, if the topic takes it.
    pub(super) fn max_record_bytes(&self) -> usize {
        let option = self.options.iter().rfind(|option| option.key == "message.max.bytes");
        option.and_then(|option| option.value.parse().ok()).unwrap_or(MAX_RECORD_BYTES)
    }

    pub(super) fn admin(&self) -> KafkaResult<AdminClient<Diagnostics>> {
        let mut config = self.config(&[]);
        // Nobody serves the log queue of an admin client: let it stay empty.
        config.set_log_level(RDKafkaLogLevel::Emerg);
        config.create_with_context(Diagnostics::default())
    }

    pub(super) fn probe(&self) -> KafkaResult<BaseConsumer<Diagnostics>> {
        self.config(&[("isolation.level", "read_committed")]).create_with_context(Diagnostics::default())
    }

    /// A consumer that knows a group without being in it.
    pub(super) fn group_probe(&self, group: &str) -> KafkaResult<BaseConsumer<Diagnostics>> {
        self.config(&[
            ("group.id", group),
            // With this, librdkafka asks for stable positions: those no open transaction may still change.
            ("isolation.level", "read_committed"),
            ("enable.auto.commit", "false"),
        ])
        .create_with_context(Diagnostics::default())
    }
}

/// A setting in milliseconds that `config` holds. librdkafka refuses a client whose setting is not a number.
pub(super) fn duration_ms(config: &ClientConfig, key: &str) -> Duration {
    Duration::from_millis(number(config, key).unwrap_or_default())
}

/// A setting that `config` holds.
pub(super) fn number<T: FromStr>(config: &ClientConfig, key: &str) -> Option<T> {
    config.get(key)?.parse().ok()
}

/// What was warned of lately, so that a cause that lasts does not fill the log output.
#[derive(Debug, Default)]
pub(super) struct Warned(Mutex<HashMap<String, Instant>>);

impl Warned {
    /// Whether it is time to warn of this cause: the first time, and once in [`WARN_AGAIN_AFTER`].
    pub(super) fn is_due(&self, cause: &str) -> bool {
        let mut warned = self.0.lock();
        warned.retain(|_, when| when.elapsed() < WARN_AGAIN_AFTER);
        if warned.contains_key(cause) {
            return false;
        }
        warned.insert(cause.to_owned(), Instant::now());
        true
    }
}

/// Keeps the last report of a broken connection, and passes the rest on to `tracing`.
#[derive(Debug, Default)]
pub(super) struct Diagnostics {
    last: Mutex<Option<(Instant, String)>>,
    /// Errors that were warned of although librdkafka goes on.
    warned: Warned,
}

impl Diagnostics {
    /// The cause of `error`: the connection that does not come about, if there is a fresh report of one and the error
    /// could be its consequence. Without a report, what may be the cause: something else listens there, say.
    pub(super) fn explain(&self, error: &KafkaError) -> BoxError {
        if could_be_the_connection(error) {
            let last = self.last.lock();
            if let Some((when, report)) = &*last
                && when.elapsed() < REPORT_IS_FRESH
            {
                return report.clone().into();
            }
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::BrokerTransportFailure) {
                let question = "does a Kafka broker listen there, with this security.protocol?";
                return format!("{}: {question}", Plain::of(error)).into();
            }
        }
        Plain::of(error).into()
    }
}

impl Diagnostics {
    /// Notes an error after which librdkafka tries again by itself. Connections come and go, and whatever lasts is said
    /// elsewhere; of anything else there is a warning, not more often than once in [`WARN_AGAIN_AFTER`].
    pub(super) fn reading_continues(&self, log: &LogUrl, error: &KafkaError) {
        let cause = Plain::of(error).to_string();
        if could_be_the_connection(error) {
            tracing::debug!(%log, cause, "reading continues");
            return;
        }
        if self.warned.is_due(&cause) {
            tracing::warn!(%log, cause, "cannot read some records, and tries again");
        }
    }
}

/// Whether records are there and this client cannot unpack them: no retry helps.
pub(super) fn is_unreadable(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{BadCompression, BadMessage, NotImplemented};
    matches!(error.rdkafka_error_code(), Some(BadCompression | BadMessage | NotImplemented))
}

fn could_be_the_connection(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut, RequestTimedOut, Resolve};
    let code = match error {
        KafkaError::AdminOp(code) => Some(*code),
        _ => error.rdkafka_error_code(),
    };
    let waiting_for_coordinator = code == Some(RDKafkaErrorCode::WaitingForCoordinator);
    waiting_for_coordinator
        || matches!(code, Some(AllBrokersDown | BrokerTransportFailure | OperationTimedOut | RequestTimedOut | Resolve))
}

impl ClientContext for Diagnostics {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // "N/N brokers are down" says less than the report about each broker before it.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        note_error(&self.warned, &error, reason);
        // "… (after 12ms in state CONNECT, 3 identical error(s) suppressed)"
        let report = reason.split_once(" (after ").map_or(reason, |(report, _)| report);
        let report = (Instant::now(), report.to_owned());
        *self.last.lock() = Some(report);
    }

    fn stats(&self, _: Statistics) {}

    fn stats_raw(&self, statistics: &[u8]) {
        tracing::debug!(target: "librdkafka", statistics = %String::from_utf8_lossy(statistics));
    }
}

/// Logs an error that librdkafka reports outside of any operation. Matters of connections, and of groups, which readers
/// have by name only, are named by the operation that suffers; the end of a partition is no error. Anything else is a
/// warning.
pub(super) fn note_error(warned: &Warned, error: &KafkaError, reason: &str) {
    use RDKafkaErrorCode::{Fatal, GroupAuthorizationFailed, PartitionEOF};
    let named_elsewhere = could_be_the_connection(error)
        || matches!(error.rdkafka_error_code(), Some(Fatal | GroupAuthorizationFailed | PartitionEOF));
    if !named_elsewhere && warned.is_due(&Plain::of(error).to_string()) {
        tracing::warn!(target: "librdkafka", %error, reason);
    } else {
        tracing::debug!(target: "librdkafka", %error, reason);
    }
}

impl ConsumerContext for Diagnostics {}

/// Connections come and go, and the operation that suffers says so: librdkafka's own words about them, and about
/// properties that are meant for another kind of client, are for debugging. So is a coordinator that a broker which has
/// just started lacks for a moment.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    let detail = match facility {
        "FAIL" | "ERROR" | "CONFWARN" | "MAXPOLL" | "TERMINATE" => true,
        "GETPID" => message.ends_with(": retrying"),
        _ => matches!(level, RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug | RDKafkaLogLevel::Notice),
    };
    if detail {
        tracing::debug!(target: "librdkafka", facility, "{message}");
    } else {
        tracing::warn!(target: "librdkafka", facility, "{message}");
    }
}

/// What went wrong, in librdkafka's words, without the layers around them.
#[derive(Debug)]
pub(super) struct Plain(String);

impl Plain {
    pub(super) fn of(error: &KafkaError) -> Self {
        Self(match error {
            KafkaError::Transaction(e) => e.string(),
            KafkaError::AdminOp(code) => code.to_string(),
            KafkaError::ClientConfig(_, what, key, value) => {
                let remedy = match what.contains("not available at build time") {
                    true => ": build carstream with --features event-log/kafka-tls",
                    false => "",
                };
                format!("librdkafka property {key}={value}: {what}{remedy}")
            }
            other => match other.rdkafka_error_code() {
                Some(code) => code.to_string(),
                None => other.to_string(),
            },
        })
    }
}

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Plain {}
