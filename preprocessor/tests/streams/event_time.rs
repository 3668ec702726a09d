//! Event times far from the receipt of their record: set aside, by the record's own time of receipt.

use preprocessor::{Args, EventTimeArgs, Reach, reason};
use serde_json::{Value, json};
use test_support::clock::{now_ms, yesterday_ms};

use crate::{Site, reading, vin};

const DAY_MS: i64 = 24 * 3_600_000;

impl Site {
    /// A message of car 1, received at that time, or without a note of it.
    fn receive(&self, kind: &str, value: &Value, received_ms: Option<i64>) {
        let mqtt_topic = format!("vehicles/{}/{kind}", vin(1));
        let (value, at) = (value.to_string(), (now_ms(), received_ms.map(|ms| ms.to_string())));
        self.append_at(&format!("{kind}.raw"), &vin(1), Some(&mqtt_topic), Some(value.as_bytes()), at);
    }

    /// The sequence numbers and reasons of the dead letters.
    fn refused(&self, kind: &str) -> Vec<(i64, String)> {
        let letters = self.contents(&format!("{kind}.dead-letter"));
        let seq = |value: &[u8]| serde_json::from_slice::<Value>(value).unwrap()["seq"].as_i64().unwrap();
        letters.iter().map(|letter| (seq(&letter.value), letter.header("dead-letter.reason"))).collect()
    }
}

fn reading_at(seq: i64, event_time_ms: i64) -> Value {
    let mut reading = reading(1, 1, seq);
    reading["event_time_ms"] = event_time_ms.into();
    reading
}

fn out_of_window(seqs: &[i64]) -> Vec<(i64, String)> {
    seqs.iter().map(|seq| (*seq, reason::EVENT_TIME_OUT_OF_WINDOW.to_owned())).collect()
}

#[test]
fn a_record_is_judged_by_its_own_time_of_receipt() {
    let site = Site::new();
    let (now_ms, long_ago_ms) = (now_ms(), now_ms() - 100 * DAY_MS);
    // A raw record that is read months after its receipt, as in a replay.
    site.receive("telemetry", &reading_at(0, long_ago_ms - 29 * DAY_MS), Some(long_ago_ms));
    site.receive("telemetry", &reading_at(1, long_ago_ms - 31 * DAY_MS), Some(long_ago_ms));
    // It was the future then, and is not now.
    site.receive("telemetry", &reading_at(2, long_ago_ms + DAY_MS), Some(long_ago_ms));
    // Without a note of the receipt the time of the record stands for it.
    site.receive("telemetry", &reading_at(3, now_ms - DAY_MS), None);
    site.receive("telemetry", &reading_at(4, now_ms + DAY_MS), None);
    let metrics = site.run();
    assert_eq!(site.refused("telemetry"), out_of_window(&[1, 2, 4]));
    assert_eq!(site.clean().num_rows(), 2);
    let count = "carstream_preprocessor_dead_letters_total{reason=\"event-time-out-of-window\"} 3";
    assert!(metrics.contains(count), "{metrics}");
}

#[test]
fn a_repeat_is_a_repeat_however_late_it_comes() {
    let site = Site::new();
    site.receive("telemetry", &reading_at(0, yesterday_ms()), Some(yesterday_ms()));
    // Its acknowledgement was lost, and the car was away for longer than the window.
    site.receive("telemetry", &reading_at(0, yesterday_ms()), Some(yesterday_ms() + 60 * DAY_MS));
    // One that was set aside is not remembered: it gets its chance.
    site.receive("telemetry", &reading_at(1, yesterday_ms() + DAY_MS), Some(yesterday_ms()));
    site.receive("telemetry", &reading_at(1, yesterday_ms()), Some(yesterday_ms()));
    let metrics = site.run();
    assert_eq!(site.refused("telemetry"), out_of_window(&[1]));
    assert_eq!(site.clean().num_rows(), 2);
    assert!(metrics.contains("carstream_preprocessor_duplicates_removed_total{stream=\"telemetry\"} 1"), "{metrics}");
}

#[test]
fn every_stream_with_an_event_time_is_judged_and_the_settings_say_how_far_it_may_be() {
    let finding = |seq: i64, repaired_ms: i64| {
        json!({"vin": vin(1), "boot_id": 1, "seq": seq, "workshop": "w", "kind": "cooling_failure",
            "component": "radiator", "began_ms": yesterday_ms() - 90 * DAY_MS, "repaired_ms": repaired_ms})
    };
    let refused = |event_time: EventTimeArgs| {
        let site = Site::new();
        for (seq, distance_ms) in [(0, 0), (1, -1000 * DAY_MS), (2, 1000 * DAY_MS)] {
            site.receive("telemetry", &reading_at(seq, yesterday_ms() + distance_ms), Some(yesterday_ms()));
            site.receive("faults", &finding(seq, yesterday_ms() + distance_ms), Some(yesterday_ms()));
        }
        site.run_with(Args { event_time, ..site.args() });
        assert_eq!(site.refused("telemetry"), site.refused("faults"));
        site.refused("faults")
    };
    let default = Site::new().args().event_time;
    assert_eq!(refused(default), out_of_window(&[1, 2]));
    assert_eq!(refused(EventTimeArgs { event_time_behind: Reach::Any, ..default }), out_of_window(&[2]));
    assert_eq!(refused(EventTimeArgs { event_time_ahead: Reach::Any, ..default }), out_of_window(&[1]));
    assert_eq!(refused(EventTimeArgs::ANY), []);
}
