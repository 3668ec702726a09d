//! The reasons of dead letters besides those of [`telemetry::json::REASONS`].

/// The record has no payload.
pub const NO_PAYLOAD: &str = "no-payload";
/// MQTT topic, key and payload are not of the same car.
pub const TOPIC_MISMATCH: &str = "topic-mismatch";
/// Whether it has been let through before is no longer known.
pub const SEQUENCE_TOO_OLD: &str = "sequence-too-old";

/// Its event time is further from its receipt than the settings allow.
pub const EVENT_TIME_OUT_OF_WINDOW: &str = "event-time-out-of-window";

/// Its car is not known, and the partition has as many cars as the settings allow.
pub const TOO_MANY_CARS: &str = "too-many-cars";

/// All of them.
pub(crate) const ALL: [&str; 5] =
    [NO_PAYLOAD, TOPIC_MISMATCH, SEQUENCE_TOO_OLD, EVENT_TIME_OUT_OF_WINDOW, TOO_MANY_CARS];
