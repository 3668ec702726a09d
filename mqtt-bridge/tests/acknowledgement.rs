//! A PUBACK means that the log has committed, whatever the log does.
#![allow(clippy::unwrap_used)]

mod support;

use support::client::{Client, Connect, V3, V5};
use support::{CAR, TestBridge, wait_until};
use test_support::clock::now_ms;

fn topic(kind: &str) -> String {
    format!("vehicles/{CAR}/{kind}")
}

#[test]
fn a_puback_comes_after_the_commit_and_the_record_is_what_was_sent() {
    for level in [V3, V5] {
        let bridge = TestBridge::start(|_| {});
        let mut car = Client::connect(bridge.address, level, CAR);
        bridge.gate.hold();
        let payload = b"{\"speed\": 12.5}\0\xff not even JSON";
        car.publish(&topic("telemetry"), 7, payload);
        wait_until("the log has it", || bridge.gate.held() == 1);
        car.expect_silence();
        assert_eq!(bridge.metric("in_flight"), 1);
        assert_eq!(bridge.metric("pubacks_total"), 0);
        bridge.gate.open();
        car.expect_pubacks([7]);
        bridge.wait_for("in_flight", 0);

        let records = bridge.records("telemetry.raw");
        assert_eq!(records.len(), 1);
        let record = &records[0];
        assert_eq!((&record.key[..], &record.value[..]), (CAR, &payload[..]));
        assert_eq!(record.headers[0].0, "received_ms");
        let received_ms: i64 = std::str::from_utf8(&record.headers[0].1).unwrap().parse().unwrap();
        assert_eq!(received_ms, record.timestamp_ms);
        let now_ms = now_ms();
        assert!((now_ms - 600_000..=now_ms).contains(&received_ms), "{received_ms}");
        assert_eq!(record.headers[1..], [("mqtt_topic".to_owned(), topic("telemetry").into_bytes())]);
        assert!(!bridge.metrics().contains(CAR), "no VIN in metrics");
    }
}

#[test]
fn each_kind_ends_in_its_topic_with_qos_0_too() {
    let bridge = TestBridge::start(|_| {});
    let mut car = Client::connect(bridge.address, V3, "mosq-8a7f"); // a stock client's random identifier
    for (kind, log_topic) in
        [("telemetry", "telemetry.raw"), ("faults", "faults.raw"), ("drivers", "drivers"), ("status", "status.raw")]
    {
        car.publish(&topic(kind), 0, b"without");
        car.publish(&topic(kind), 1, b"with");
        car.expect_pubacks([1]);
        let values: Vec<_> = bridge.records(log_topic).into_iter().map(|r| r.value).collect();
        // `drivers` is compacted: the last one holds, sooner or later.
        assert!(
            values == [&b"without"[..], b"with"] || (kind == "drivers" && values == [b"with"]),
            "{kind} {values:?}"
        );
    }
    assert_eq!(bridge.metric("publishes_total{kind=\"faults\"}"), 2);
    assert_eq!(bridge.metric("pubacks_total"), 4);
}

#[test]
fn pubacks_keep_the_order_of_the_publishes_though_the_log_does_not() {
    for level in [V3, V5] {
        let bridge = TestBridge::start(|_| {});
        let mut cars: Vec<_> = (0..3).map(|i| Client::connect(bridge.address, level, &format!("car{i}"))).collect();
        bridge.gate.hold();
        for id in 1..=20 {
            for (i, car) in cars.iter_mut().enumerate() {
                car.publish(&format!("vehicles/car{i}/telemetry"), id, id.to_string().as_bytes());
            }
        }
        wait_until("the log has all", || bridge.gate.held() == 60);
        bridge.gate.open(); // the last first
        for car in &mut cars {
            car.expect_pubacks(1..=20);
            car.expect_silence();
        }
    }
}

#[test]
fn no_puback_and_the_end_when_the_log_cannot_say_that_it_is_durable() {
    for level in [V3, V5] {
        let bridge = TestBridge::start(|_| {});
        let mut car = Client::connect(bridge.address, level, CAR);
        car.publish(&topic("telemetry"), 1, b"committed");
        car.expect_pubacks([1]);
        bridge.gate.fail();
        car.publish(&topic("telemetry"), 2, b"unknown");
        car.expect_end(0x80);
        bridge.wait_for("closes_total{reason=\"not-durable\"}", 1);
        assert_eq!(bridge.metric("pubacks_total"), 1);
        bridge.wait_for("in_flight", 0);
    }
}

#[test]
fn a_will_is_recorded_when_the_car_is_lost_and_only_then() {
    for level in [V3, V5] {
        let bridge = TestBridge::start(|_| {});
        let will = Some((&topic("status")[..], "{\"status\":\"lost\"}")).map(|(t, p)| (t.to_owned(), p));
        let connect = |client_id| {
            let will = will.as_ref().map(|(topic, payload)| (&topic[..], *payload));
            Client::connect_as(bridge.address, &Connect { level, client_id, keep_alive_s: 60, will })
        };
        connect("polite").disconnect();
        bridge.wait_for("closes_total{reason=\"disconnect\"}", 1);
        assert_eq!(bridge.metric("wills_total"), 0);
        drop(connect("lost"));
        bridge.wait_for("wills_total", 1);
        wait_until("the will is in the log", || bridge.records("status.raw").len() == 1);
        let record = &bridge.records("status.raw")[0];
        assert_eq!((&record.key[..], &record.value[..]), (CAR, &b"{\"status\":\"lost\"}"[..]));
        bridge.wait_for("connections", 0);
    }
}

#[test]
fn the_second_connection_of_a_car_takes_over() {
    for level in [V3, V5] {
        let bridge = TestBridge::start(|_| {});
        let status = topic("status");
        let will = Some((&status[..], "lost"));
        let mut first = Client::connect_as(bridge.address, &Connect { level, client_id: CAR, keep_alive_s: 60, will });
        bridge.gate.hold();
        first.publish(&topic("telemetry"), 1, b"undecided");
        wait_until("the log has it", || bridge.gate.held() == 1);
        let mut second = Client::connect(bridge.address, level, CAR);
        first.expect_end(0x8e);
        second.publish(&topic("status"), 1, b"online");
        wait_until("the log has all", || bridge.gate.held() == 3);
        bridge.gate.open();
        second.expect_pubacks([1]);
        second.expect_silence(); // not the first connection's PUBACK
        let statuses: Vec<_> = bridge.records("status.raw").into_iter().map(|r| r.value).collect();
        assert_eq!(statuses, [&b"lost"[..], b"online"], "the will of the first comes first");
        assert_eq!(bridge.metric("takeovers_total"), 1);
        bridge.wait_for("connections", 1);
    }
}
