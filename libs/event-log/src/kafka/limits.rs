//! What each topic takes: how large a batch, and how far from the broker's clock the time of a record.
//!
//! ```text
//!  describe ──► max.message.bytes, message.timestamp.….max.ms ─┐
//!  a batch was refused ──► looked up again, or halved ─────────┼─► Limits ─► size of batches, records refused at once
//!                                                              │             times that are clamped
//!  nothing is known ──► Kafka's defaults ──────────────────────┘
//! ```
//!
//! Kafka's limit is on a *batch*, and librdkafka's on a batch is one for all topics. So batches are kept below the
//! smallest limit of the topics that are used. A record that is larger than that travels alone: when a topic refuses a
//! batch of one record, it is that record.

use std::collections::HashMap;

use parking_lot::RwLock;
use rdkafka::admin::ConfigResource;

/// `max.message.bytes` of a topic, unless somebody has changed it.
const MAX_BATCH_BYTES: usize = 1_048_588;
/// `message.timestamp.after.max.ms` of a topic, unless somebody has changed it: since Kafka 4. Before, there was none.
const AHEAD_MS: i64 = 3_600_000;

/// What a topic takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    /// The largest batch.
    pub(super) max_bytes: usize,
    /// How far the time of a record may be ahead of the broker's clock.
    pub(super) ahead_ms: i64,
    /// How far it may be behind.
    pub(super) behind_ms: i64,
}

impl Default for Limit {
    fn default() -> Self {
        Self { max_bytes: MAX_BATCH_BYTES, ahead_ms: AHEAD_MS, behind_ms: i64::MAX }
    }
}

impl Limit {
    /// Of a topic with these settings.
    pub(super) fn of(settings: &ConfigResource) -> Self {
        let setting = |name: &str| settings.get(name).and_then(|entry| entry.value.as_deref()).unwrap_or_default();
        let ms = |name: &str| setting(name).parse().ok().map(|ms: i64| ms.max(0));
        let kept = setting("message.timestamp.type") != "LogAppendTime"; // the broker writes its own time
        Self {
            max_bytes: setting("max.message.bytes").parse().unwrap_or(MAX_BATCH_BYTES),
            ahead_ms: ms("message.timestamp.after.max.ms").filter(|_| kept).unwrap_or(i64::MAX),
            behind_ms: ms("message.timestamp.before.max.ms").filter(|_| kept).unwrap_or(i64::MAX),
        }
    }

    /// The time under which a record is written at `now_ms`: its own, unless that is so far ahead that a broker may
    /// refuse it. Half of what a topic allows, at most half an hour, is for records; the other half is for the
    /// difference between this host's clock and the broker's.
    pub(super) fn clamp(self, timestamp_ms: i64, now_ms: i64) -> i64 {
        let allowed = now_ms.saturating_add(self.ahead_ms.min(AHEAD_MS) / 2);
        if timestamp_ms > allowed { now_ms } else { timestamp_ms }
    }

    /// Why a broker refuses records of which this is the oldest, at `now_ms`. None is far ahead of that: see
    /// [`Limit::clamp`].
    pub(super) fn explain(self, oldest_ms: i64, now_ms: i64) -> String {
        let age_ms = now_ms.saturating_sub(oldest_ms);
        if age_ms > self.behind_ms / 2 {
            return format!(
                "one is {} s old: raise the topic's message.timestamp.before.max.ms ({}), or set this host's clock",
                age_ms / 1000,
                self.behind_ms
            );
        }
        if self.ahead_ms == i64::MAX {
            return "its settings allow any; look into the broker's log".to_owned();
        }
        format!(
            "this host's clock is more than {} s ahead of the broker's: set it, or the broker's",
            self.ahead_ms / 1000
        )
    }
}

/// The limits of the topics that were seen to exist.
#[derive(Debug, Default)]
pub(super) struct Limits(RwLock<HashMap<Box<str>, Limit>>);

impl Limits {
    pub(super) fn knows(&self, topic: &str) -> bool {
        self.0.read().contains_key(topic)
    }

    /// Notes that a topic exists.
    pub(super) fn know(&self, topic: &str) {
        if !self.knows(topic) {
            self.0.write().entry(topic.into()).or_default();
        }
    }

    /// Notes the limit of a topic.
    pub(super) fn set(&self, topic: &str, limit: Limit) {
        if self.0.read().get(topic) != Some(&limit) {
            self.0.write().insert(topic.into(), limit);
        }
    }

    pub(super) fn of(&self, topic: &str) -> Limit {
        self.0.read().get(topic).copied().unwrap_or_default()
    }

    /// The topics.
    pub(super) fn topics(&self) -> Vec<Box<str>> {
        self.0.read().keys().cloned().collect()
    }

    /// The largest batch that every one of them takes.
    pub(super) fn smallest(&self) -> usize {
        self.0.read().values().map(|limit| limit.max_bytes).min().unwrap_or(MAX_BATCH_BYTES)
    }

    /// The topic has refused a batch of at most `bytes`, and does not say what it takes: half of that is tried next.
    pub(super) fn halve(&self, topic: &str, bytes: usize) {
        let mut limits = self.0.write();
        let limit = limits.entry(topic.into()).or_default();
        limit.max_bytes = limit.max_bytes.min(bytes) / 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_as_small_as_the_most_narrow_topic_wants() {
        let limits = Limits::default();
        assert_eq!(limits.smallest(), MAX_BATCH_BYTES);
        limits.know("wide");
        limits.set("narrow", Limit { max_bytes: 20_000, ..Limit::default() });
        limits.know("narrow");
        assert_eq!((limits.smallest(), limits.of("narrow").max_bytes), (20_000, 20_000));
        limits.halve("wide", 20_000);
        assert_eq!((limits.smallest(), limits.of("wide").max_bytes), (10_000, 10_000));
        limits.halve("wide", 20_000);
        assert_eq!(limits.of("wide").max_bytes, 5_000, "every refusal halves it");
    }

    #[test]
    fn only_times_that_a_broker_may_refuse_are_changed() {
        let now = 1_800_000_000_000;
        let usual = Limit::default();
        for kept in [0, -5, now - 1, now, now + AHEAD_MS / 2] {
            assert_eq!(usual.clamp(kept, now), kept);
        }
        for ahead in [now + AHEAD_MS / 2 + 1, 4_070_908_800_000, i64::MAX] {
            assert_eq!(usual.clamp(ahead, now), now);
        }
        assert_eq!(Limit { ahead_ms: 1, ..usual }.clamp(now + 1, now), now, "a topic that allows next to nothing");
        let unbounded = Limit { ahead_ms: i64::MAX, ..usual };
        assert_eq!(unbounded.clamp(now + AHEAD_MS, now), now, "retention would wait for it");
    }
}
