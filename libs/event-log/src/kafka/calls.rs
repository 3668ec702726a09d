//! Calls of a transactional producer: repeated while their errors pass, and understood where they do not.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};

use super::clients::{self, Diagnostics};
use crate::BoxError;

/// Between two attempts at a call that failed in a way that passes.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// librdkafka's report about an error has arrived by now; it may be in several pieces.
const EXPLAIN_POLL: Duration = Duration::from_millis(1);
/// Between two looks at whether the outputs are written: short beside a commit, long beside a look.
pub(super) const DRAIN_PAUSE: Duration = Duration::from_micros(500);

/// Keeps the first record that was not written.
#[derive(Default)]
pub(super) struct FirstFailure {
    /// Its topic, and why.
    pub(super) first_failure: Mutex<Option<(String, KafkaError)>>,
    diagnostics: Diagnostics,
}

impl ClientContext for FirstFailure {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        clients::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.diagnostics.error(error, reason);
    }
}

impl ProducerContext for FirstFailure {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = result {
            use rdkafka::Message as _;
            self.first_failure.lock().get_or_insert_with(|| (message.topic().to_owned(), error.clone()));
        }
    }
}

/// How long something has been going on. By two clocks: one may be set, the other may stand still while the machine
/// sleeps. The broker's went on.
pub(super) struct Age(Instant, SystemTime);

impl Default for Age {
    fn default() -> Self {
        Self(Instant::now(), SystemTime::now())
    }
}

impl Age {
    pub(super) fn elapsed(&self) -> Duration {
        self.0.elapsed().max(self.1.elapsed().unwrap_or_default())
    }
}

/// Whether the broker takes nothing more from this producer. (Being replaced in the group is no proof of a successor:
/// the group may have given this very instance a new place after a pause.)
pub(super) fn is_shut_out(producer: &BaseProducer<FirstFailure>, error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{Fatal, Fenced, InvalidProducerEpoch, ProducerFenced};
    let fatal = producer.client().fatal_error().map(|(code, _)| code);
    let fences = |code| matches!(code, Some(Fenced | ProducerFenced));
    match error.rdkafka_error_code() {
        // An old epoch may also be what is left of a transaction that timed out; then the error is not fatal.
        Some(Fatal | InvalidProducerEpoch) => fences(fatal) || fatal == Some(InvalidProducerEpoch),
        code => fences(code),
    }
}

/// What a transaction has failed of, if `error` says no more than that it has failed before. librdkafka tells that to
/// whoever wants to begin another.
pub(super) fn first_cause(producer: &BaseProducer<FirstFailure>, error: KafkaError) -> KafkaError {
    use RDKafkaErrorCode::{PurgeInflight, PurgeQueue, State};
    let says_nothing =
        |error: &KafkaError| matches!(error.rdkafka_error_code(), Some(State | PurgeQueue | PurgeInflight));
    if !says_nothing(&error) {
        return error;
    }
    match producer.begin_transaction() {
        Err(cause) if !says_nothing(&cause) => cause,
        _ => error,
    }
}

/// The cause of `error`, after hearing what librdkafka has to say about its connections.
pub(super) fn explain(producer: &BaseProducer<FirstFailure>, error: &KafkaError) -> BoxError {
    producer.poll(EXPLAIN_POLL);
    producer.context().diagnostics.explain(error)
}

/// Serves delivery reports until none is outstanding, without the 100 ms that a flush of the binding takes.
pub(super) fn drain(producer: &BaseProducer<FirstFailure>, deadline: Instant) {
    while producer.in_flight_count() > 0 && Instant::now() < deadline {
        clients::serve(producer, |_| 0);
        thread::sleep(DRAIN_PAUSE);
    }
}

/// Makes the same call again while its error is one that passes.
pub(super) fn retry(deadline: Instant, mut call: impl FnMut(Duration) -> KafkaResult<()>) -> KafkaResult<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match call(left) {
            Err(KafkaError::Transaction(e)) if e.is_retriable() && Instant::now() + RETRY_PAUSE < deadline => {
                thread::sleep(RETRY_PAUSE);
            }
            result => return result,
        }
    }
}
