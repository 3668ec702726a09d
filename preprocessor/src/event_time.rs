//! Event times that cannot be true: too far from the receipt of their record.
//!
//! ```text
//!  2000-01-01         receipt − 30 d ◄──────── accepted ────────► receipt + 1 h         2096-10-02
//!  dead letter                                                                         dead letter
//! ```
//!
//! A clock that was never set says 2000, a broken one 2096. After one such reading, whatever orders readings by event
//! time or takes the newest is wrong. The time of receipt is the bridge's and travels with the record: read again,
//! whenever that is, a record is judged as it was before.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat};
use event_log::RecordRef;
use service::values;
use telemetry::schema::Field;

/// How far event times may be from the receipt of their record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct EventTimeArgs {
    /// Accept event times at most this long before receipt, and make dead letters of earlier ones; any: accept all.
    #[arg(long, env = "CARSTREAM_EVENT_TIME_BEHIND", value_name = "DURATION|any",
        default_value_t = Reach::Within(contract::EVENT_TIME_BEHIND))]
    pub event_time_behind: Reach,
    /// Accept event times at most this long after receipt, and make dead letters of later ones; any: accept all.
    ///
    /// Simulated cars that live faster than the clock get ahead of it: they need any.
    #[arg(long, env = "CARSTREAM_EVENT_TIME_AHEAD", value_name = "DURATION|any",
        default_value_t = Reach::Within(contract::EVENT_TIME_AHEAD))]
    pub event_time_ahead: Reach,
}

/// How far event times may be from receipt, on one side of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// At most this far.
    Within(Duration),
    /// As far as the schema allows.
    Any,
}

impl FromStr for Reach {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "any" { Ok(Self::Any) } else { values::duration(text).map(Self::Within) }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Within(duration) => f.write_str(&values::shown_duration(*duration)),
            Self::Any => f.write_str("any"),
        }
    }
}

impl Reach {
    fn includes(self, distance_ms: i64) -> bool {
        match self {
            Self::Within(duration) => i64::try_from(duration.as_millis()).is_ok_and(|most_ms| distance_ms <= most_ms),
            Self::Any => true,
        }
    }
}

impl EventTimeArgs {
    /// Accepts every event time.
    pub const ANY: Self = Self { event_time_behind: Reach::Any, event_time_ahead: Reach::Any };

    /// What is wrong with the settings.
    pub(crate) fn problems(&self) -> Vec<String> {
        let nothing_passes = self.event_time_behind == Reach::Within(Duration::ZERO);
        let problem = || "--event-time-behind: must be above 0: every reading is older than its receipt".to_owned();
        nothing_passes.then(problem).into_iter().collect()
    }

    /// Why a record with this event time, in this field, cannot be accepted. Holds no value of a field that is tagged
    /// as personal data.
    pub(crate) fn refusal(&self, field: &Field, event_time_ms: i64, received_ms: i64) -> Option<String> {
        let behind_ms = received_ms.saturating_sub(event_time_ms);
        let accepted = match behind_ms {
            0.. => self.event_time_behind.includes(behind_ms),
            _ => self.event_time_ahead.includes(behind_ms.saturating_neg()),
        };
        if accepted {
            return None;
        }
        let shown = |ms: i64| {
            DateTime::from_timestamp_millis(ms)
                .map_or(ms.to_string(), |t| t.to_rfc3339_opts(SecondsFormat::Millis, true))
        };
        let found = match field.pii {
            None => format!("is {}, received {}", shown(event_time_ms), shown(received_ms)),
            Some(_) => "is too far from its receipt".to_owned(),
        };
        let Self { event_time_behind: behind, event_time_ahead: ahead } = self;
        Some(format!("{} {found}; allowed {behind} before receipt to {ahead} after it", field.name))
    }
}

/// When the bridge received a record; of a record that no bridge wrote, its timestamp.
pub(crate) fn received_ms(record: &RecordRef<'_>) -> i64 {
    let header =
        record.headers.get(contract::RECEIVED_MS).and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
    header.unwrap_or(record.timestamp_ms)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const RECEIVED_MS: i64 = 1_795_219_200_000;
    const HOUR_MS: i64 = 3_600_000;

    #[derive(Parser)]
    struct Settings {
        #[command(flatten)]
        window: EventTimeArgs,
    }

    fn window(settings: &[&str]) -> EventTimeArgs {
        Settings::parse_from([&["x"], settings].concat()).window
    }

    fn field(name: &str) -> Field {
        let stream = contract::Contract::builtin().stream(contract::READINGS).unwrap();
        stream.input.schema.fields.iter().find(|field| field.name == name).unwrap().clone()
    }

    #[test]
    fn a_window_has_two_ends_and_both_belong_to_it() {
        let (default, time) = (window(&[]), field("event_time_ms"));
        let is_refused =
            |window: EventTimeArgs, ms: i64| window.refusal(&time, RECEIVED_MS + ms, RECEIVED_MS).is_some();
        let (behind_ms, ahead_ms) = (-30 * 24 * HOUR_MS, HOUR_MS);
        for ms in [behind_ms, -1, 0, 1, ahead_ms] {
            assert!(!is_refused(default, ms), "{ms}");
        }
        for ms in [behind_ms - 1, ahead_ms + 1, -RECEIVED_MS, 2 * RECEIVED_MS] {
            assert!(is_refused(default, ms), "{ms}");
            assert!(!is_refused(EventTimeArgs::ANY, ms), "{ms}");
        }
        let faster = window(&["--event-time-ahead", "any"]);
        assert!(!is_refused(faster, 9 * ahead_ms) && is_refused(faster, behind_ms - 1));
        assert!(default.refusal(&time, i64::MIN, i64::MAX).is_some());
        assert!(default.refusal(&time, i64::MAX, i64::MIN).is_some());
    }

    #[test]
    fn a_refusal_names_the_field_the_times_and_the_window() {
        let refusal =
            window(&["--event-time-ahead", "90s"]).refusal(&field("event_time_ms"), 946_684_800_001, RECEIVED_MS);
        let wanted = "event_time_ms is 2000-01-01T00:00:00.001Z, received 2026-11-21T00:00:00.000Z; allowed 30d before \
            receipt to 90s after it";
        assert_eq!(refusal.as_deref(), Some(wanted));
        let personal = Field { pii: field("trip_id").pii, ..field("event_time_ms") };
        let refusal = window(&["--event-time-behind", "any"]).refusal(&personal, 2 * RECEIVED_MS, RECEIVED_MS);
        let wanted = "event_time_ms is too far from its receipt; allowed any before receipt to 1h after it";
        assert_eq!(refusal.as_deref(), Some(wanted));
    }

    #[test]
    fn a_window_that_nothing_passes_is_a_bad_setting() {
        assert!(window(&[]).problems().is_empty() && window(&["--event-time-ahead", "0s"]).problems().is_empty());
        assert_eq!(window(&["--event-time-behind", "0s"]).problems().len(), 1);
        assert!("30".parse::<Reach>().is_err() && "all".parse::<Reach>().is_err());
    }
}
