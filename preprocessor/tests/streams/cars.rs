//! Which cars are known: no more than the settings say, and none that has been silent for long.

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use event_log::{Outputs, Record, append_and_wait, partition_for_key};
use preprocessor::{Args, CarsArgs, reason};
use serde_json::Value;
use test_support::clock::yesterday_ms;

use crate::{PATIENCE, Site, driver, has, pseudonym, reading, vin};

const PARTITIONS: u32 = 4;

const DAY_MS: i64 = 24 * 3_600_000;

/// Cars whose readings are in the first partition.
fn of_one_partition() -> impl Iterator<Item = u32> {
    (1..).filter(|n| partition_for_key(vin(*n).as_bytes(), PARTITIONS) == 0)
}

impl Site {
    fn with_cars(&self, cars: CarsArgs) -> Args {
        Args { cars, ..self.args() }
    }

    /// A reading of a car that measured and sent it then.
    fn sent_at(&self, n: u32, boot: i64, seq: i64, event_time_ms: i64, received_ms: i64) {
        let mut reading = reading(n, boot, seq);
        reading["event_time_ms"] = event_time_ms.into();
        let mqtt_topic = format!("vehicles/{}/telemetry", vin(n));
        let value = reading.to_string().into_bytes();
        let at = (received_ms, Some(received_ms.to_string()));
        self.append_at("telemetry.raw", &vin(n), Some(&mqtt_topic), Some(&value), at);
    }

    /// What a stage finds that has never written a snapshot: it replays everything.
    fn lose_snapshots(&self) {
        let mut outputs = Outputs::default();
        for (partition, chunk) in (0..PARTITIONS).flat_map(|partition| ["0", "b0"].map(|chunk| (partition, chunk))) {
            let key = format!("preprocessor-telemetry/telemetry.raw/{partition}/{chunk}");
            let record = Record { key: key.as_bytes(), value: None, headers: &[], timestamp_ms: 0 };
            outputs.push(&"preprocessor.state".into(), partition, &record);
        }
        self.commit(&outputs);
        // What tombstones take the place of is read until compaction removes it.
        self.log.maintain().unwrap();
    }

    fn reasons(&self) -> Vec<(String, i64, String)> {
        let letter = |letter: crate::Stored| {
            let reading: Value = serde_json::from_slice(&letter.value).unwrap();
            let reason = letter.header("dead-letter.reason");
            (reading["vin"].as_str().unwrap().to_owned(), reading["seq"].as_i64().unwrap(), reason)
        };
        self.contents("telemetry.dead-letter").into_iter().map(letter).collect()
    }
}

#[test]
fn cars_beyond_the_bound_are_set_aside_and_the_others_are_not_touched() {
    let site = Site::new();
    let cars: Vec<_> = of_one_partition().take(5).collect();
    let max = CarsArgs { max_cars_per_partition: 3, ..site.args().cars };
    for seq in 0..2 {
        cars.iter().for_each(|n| site.send("telemetry", *n, &reading(*n, 1, seq)));
    }
    let refused = |seqs: &[i64]| -> Vec<_> {
        let letter = |seq: i64, n: u32| (vin(n), seq, reason::TOO_MANY_CARS.to_owned());
        seqs.iter().flat_map(|seq| [letter(*seq, cars[3]), letter(*seq, cars[4])]).collect()
    };
    let metrics = site.run_with(site.with_cars(max));
    has(&metrics, "carstream_preprocessor_dead_letters_total{reason=\"too-many-cars\"} 4");
    assert_eq!(site.reasons(), refused(&[0, 1]));
    // The same cars are known after a replay, and repeats are repeats.
    site.lose_snapshots();
    for seq in 1..3 {
        cars.iter().for_each(|n| site.send("telemetry", *n, &reading(*n, 1, seq)));
    }
    let metrics = site.run_with(site.with_cars(max));
    has(&metrics, "carstream_preprocessor_replayed_total 10");
    has(&metrics, "carstream_preprocessor_duplicates_removed_total{stream=\"telemetry\"} 3");
    assert_eq!(site.reasons(), refused(&[0, 1, 1, 2]));
    assert_eq!(site.clean().num_rows(), 9);
}

#[test]
fn a_car_that_was_silent_for_long_is_forgotten_and_its_repeats_do_not_pass() {
    let run = |forget_after: &str| {
        let site = Site::new();
        let [silent, other]: [u32; 2] = of_one_partition().take(2).collect::<Vec<_>>().try_into().unwrap();
        let began_ms = yesterday_ms() - 100 * DAY_MS;
        site.sent_at(silent, 1, 0, began_ms, began_ms);
        for day in 0..95 {
            site.sent_at(other, 1, day, began_ms + day * DAY_MS, began_ms + day * DAY_MS);
        }
        let mut args = site.args();
        args.cars.forget.forget_after = forget_after.parse().unwrap();
        let forgotten = site.run_with(args.clone());
        // The car repeats what it sent at first, and sends what is new.
        let now_ms = began_ms + 96 * DAY_MS;
        site.sent_at(silent, 1, 0, began_ms, now_ms);
        site.sent_at(silent, 1, 1, now_ms, now_ms);
        site.sent_at(other, 1, 94, now_ms, now_ms);
        let metrics = site.run_with(args);
        assert_eq!(site.clean().column(2).as_primitive::<Int64Type>().values().len(), 97);
        (site.reasons(), forgotten, metrics, vin(silent))
    };
    let cars = |metrics: &str, forgotten: u32, repeats: u32| {
        has(metrics, &format!("carstream_preprocessor_cars_forgotten_total{{stream=\"telemetry\"}} {forgotten}"));
        has(metrics, &format!("carstream_preprocessor_duplicates_removed_total{{stream=\"telemetry\"}} {repeats}"));
    };
    let (reasons, first, second, vin) = run("90d");
    assert_eq!(reasons, [(vin, 0, reason::EVENT_TIME_OUT_OF_WINDOW.to_owned())]);
    cars(&first, 1, 0);
    cars(&second, 0, 1);
    let (reasons, first, second, _) = run("never");
    assert_eq!(reasons, []);
    cars(&first, 0, 0);
    cars(&second, 0, 2);
}

#[test]
fn a_reference_table_has_no_more_rows_than_there_may_be_cars() {
    let site = Site::new();
    let max = CarsArgs { max_cars_per_partition: 2, ..site.args().cars };
    let cars: Vec<_> = of_one_partition().take(3).collect();
    for n in &cars {
        site.send("drivers", *n, &driver(*n, "fleet", 12));
    }
    site.send("drivers", cars[0], &driver(cars[0], "fleet", 13));
    site.send("telemetry", cars[0], &reading(cars[0], 1, 0));
    let metrics = site.run_with(site.with_cars(max));
    has(&metrics, "carstream_preprocessor_table_rows{stream=\"telemetry\",table=\"drivers\"} 2");
    has(&metrics, "carstream_preprocessor_bad_table_rows_total{stream=\"telemetry\",table=\"drivers\"} 1");
    let years = site.clean().column_by_name("driver_experience_years").unwrap().clone();
    assert_eq!(years.as_primitive::<arrow::datatypes::Int32Type>().value(0), 13, "rows that are known still change");
}

impl Site {
    /// As `carstream forget` asks for it.
    fn ask_to_forget(&self, n: u32) {
        let (vin, topic) = (vin(n), "telemetry.raw".into());
        let headers: [(&str, &[u8]); 1] = [(contract::FORGET, b"1795219200000")];
        let record = Record { key: vin.as_bytes(), value: None, headers: &headers, timestamp_ms: yesterday_ms() };
        assert!(append_and_wait(&self.log, &topic, &record, PATIENCE).unwrap());
    }
}

#[test]
fn a_car_is_forgotten_when_its_request_comes_and_the_request_goes_on_under_its_pseudonym() {
    let site = Site::new();
    let [asks, other]: [u32; 2] = of_one_partition().take(2).collect::<Vec<_>>().try_into().unwrap();
    let send = |n: u32, seqs: &[i64]| seqs.iter().for_each(|seq| site.send("telemetry", n, &reading(n, 1, *seq)));
    send(asks, &[0, 1]);
    send(other, &[0]);
    site.ask_to_forget(asks);
    send(asks, &[1, 2]);
    send(other, &[0]);
    let metrics = site.run();
    has(&metrics, "carstream_preprocessor_cars_forgotten_total{stream=\"telemetry\"} 1");
    has(&metrics, "carstream_preprocessor_duplicates_removed_total{stream=\"telemetry\"} 1");
    assert_eq!(site.reasons(), []);
    let clean = site.contents_with_tombstones("telemetry");
    let of_car: Vec<_> = clean.iter().filter(|(stored, _)| stored.key == pseudonym(asks).as_bytes()).collect();
    let is_request: Vec<_> = of_car.iter().map(|(_, value)| value.is_none()).collect();
    assert_eq!(is_request, [false, false, true, false, false], "behind all that came before it");
    assert_eq!(of_car[2].0.headers, [(contract::FORGET.to_owned(), b"1795219200000".to_vec())]);
    assert_eq!(clean.len(), 6);
    // A replay forgets it at the same place.
    site.lose_snapshots();
    send(asks, &[0, 1, 2]);
    send(other, &[0]);
    let metrics = site.run();
    has(&metrics, "carstream_preprocessor_replayed_total 7");
    has(&metrics, "carstream_preprocessor_duplicates_removed_total{stream=\"telemetry\"} 3");
    // A tombstone without the request is what it always was.
    site.append("telemetry.raw", &vin(asks), None, None);
    has(&site.run(), "carstream_preprocessor_dead_letters_total{reason=\"no-payload\"} 1");
}
