//! What became of appended records: delivery reports of an appender's producer, until its thread takes them.
//!
//! ```text
//!  librdkafka ──► Deliveries ─┬─ completions ───────► on_completion
//!                             ├─ the first failure ─► a warning, and the log's refusal
//!                             └─ too large ─────────► sent again, in smaller batches
//! ```

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, DeliveryResult, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, ProducerContext};

use super::clients::{self, Warned};
use crate::{Completion, Record};

/// So long a refusal is a reason not to be ready. Cars that went elsewhere show nothing: then it is time to try again.
const REFUSAL_LASTS: Duration = Duration::from_secs(60);

/// Why a broker refuses what is appended, until it is known better.
pub(super) struct Refusal {
    pub(super) since: Instant,
    pub(super) cause: String,
}

impl Refusal {
    /// The cause, unless it is old.
    pub(super) fn cause(&self) -> Option<&str> {
        (self.since.elapsed() < REFUSAL_LASTS).then_some(&*self.cause)
    }
}

/// A record of a batch that its topic has refused as too large.
pub(super) struct TooLarge {
    pub(super) topic: String,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    headers: Option<OwnedHeaders>,
    pub(super) token: usize,
    pub(super) size: usize,
}

impl TooLarge {
    fn copy_of(message: &BorrowedMessage<'_>, token: usize) -> Self {
        let (key, value) = (message.key().unwrap_or_default(), message.payload());
        let headers = message.headers();
        let borrowed = headers.into_iter().flat_map(|headers| headers.iter());
        let borrowed: Vec<_> = borrowed.map(|h| (h.key, h.value.unwrap_or_default())).collect();
        let size = Record { key, value, headers: &borrowed, timestamp_ms: 0 }.size();
        let headers = headers.map(BorrowedHeaders::detach);
        let (key, value) = (key.to_vec(), value.map(<[u8]>::to_vec));
        Self { topic: message.topic().to_owned(), key, value, headers, token, size }
    }

    pub(super) fn to_send(&self) -> BaseRecord<'_, [u8], [u8], usize> {
        BaseRecord {
            topic: &self.topic,
            partition: None,
            payload: self.value.as_deref(),
            key: Some(&self.key),
            timestamp: None, // now: librdkafka does not give the first one back
            headers: self.headers.clone(),
            delivery_opaque: self.token,
        }
    }
}

/// Collects delivery reports. A token travels through librdkafka as the opaque pointer itself: no allocation.
#[derive(Default)]
pub(super) struct Deliveries {
    pub(super) reported: Mutex<Reported>,
    warned: Warned,
}

#[derive(Default)]
pub(super) struct Reported {
    pub(super) completions: Vec<Completion>,
    pub(super) failure: Option<Failure>,
    too_large: Vec<TooLarge>,
}

/// The first record since the last look that was not written.
pub(super) struct Failure {
    pub(super) topic: String,
    pub(super) error: KafkaError,
}

impl Deliveries {
    /// How many reports have come since the last look.
    pub(super) fn reports(&self) -> usize {
        let reported = self.reported.lock();
        reported.completions.len() + reported.too_large.len()
    }

    pub(super) fn take_too_large(&self) -> Vec<TooLarge> {
        std::mem::take(&mut self.reported.lock().too_large)
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        clients::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        clients::note_error(&self.warned, &error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, token: usize) {
        use RDKafkaErrorCode::{MessageBatchTooLarge, MessageSizeTooLarge, PurgeInflight, PurgeQueue};
        let mut reported = self.reported.lock();
        let Err((error, message)) = result else {
            reported.completions.push(Completion { token: token as u64, durable: true });
            return;
        };
        match error.rdkafka_error_code() {
            Some(MessageSizeTooLarge | MessageBatchTooLarge) => {
                reported.too_large.push(TooLarge::copy_of(message, token));
                return;
            }
            Some(PurgeQueue | PurgeInflight) => {}
            _ => {
                reported
                    .failure
                    .get_or_insert_with(|| Failure { topic: message.topic().to_owned(), error: error.clone() });
            }
        }
        reported.completions.push(Completion { token: token as u64, durable: false });
    }
}
