//! An alert in the log reaches its car, and no other.
#![allow(clippy::unwrap_used)]

mod support;

use support::client::{Client, V3, V5, publish_packet};
use support::{CAR, KEY, TestBridge};
use telemetry::pseudonym::PseudonymKey;

fn pseudonym(vin: &str) -> String {
    PseudonymKey::from_bytes(KEY).unwrap().pseudonym(vin)
}

#[test]
fn an_alert_reaches_its_car_and_no_other() {
    for level in [V3, V5] {
        let bridge = TestBridge::start(|_| {});
        bridge.append("alerts", &pseudonym(CAR), b"old news");
        let topic = format!("vehicles/{CAR}/alerts");
        let mut car = Client::connect(bridge.address, level, CAR);
        let mut other = Client::connect(bridge.address, level, "OTHER");
        assert_eq!(car.subscribe(&topic), 1);
        assert!(other.subscribe(&topic) >= 0x80, "another car's alerts");
        assert_eq!(other.subscribe("vehicles/OTHER/alerts"), 1);
        bridge.append("alerts", &pseudonym(CAR), b"{\"state\":\"open\"}");
        bridge.append("alerts", "not a pseudonym", b"{}");
        let alert = car.packet();
        // Packet identifier 1, or a later one where the old alert was still on its way at SUBSCRIBE.
        let (alert, packet_id) = if alert.ends_with(b"old news") { (car.packet(), 2) } else { (alert, 1) };
        assert_eq!(alert, publish_packet(level, &topic, packet_id, b"{\"state\":\"open\"}"));
        let before = bridge.metric("alerts_delivered_total");
        car.send(&[0x40, 2, 0, packet_id as u8]);
        bridge.wait_for("alerts_delivered_total", before + 1);
        bridge.append("alerts", &pseudonym("OTHER"), b"for the other");
        assert!(other.packet().ends_with(b"for the other"));
        car.expect_silence();
        drop(other);
        bridge.wait_for("alerts_dropped_total", 1); // not acknowledged when the car left
    }
}

#[test]
fn without_alerts_a_subscription_fails() {
    let bridge = TestBridge::start(|args| args.no_alerts = true);
    let mut car = Client::connect(bridge.address, V3, CAR);
    assert_eq!(car.subscribe(&format!("vehicles/{CAR}/alerts")), 0x80);
}
