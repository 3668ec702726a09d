//! Every bound holds, and nothing is lost at it.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::client::{Client, Connect, V3, V5, connect_packet, packet, publish_packet};
use support::{A_MOMENT, CAR, TestBridge, wait_until};
use test_support::random::Random;

const TELEMETRY: &str = "vehicles/WVWZZZ1JZXW000001/telemetry";

#[test]
fn a_full_window_stops_reading_and_nothing_is_lost() {
    let bridge = TestBridge::start(|args| args.limits.max_in_flight = 3);
    let mut car = Client::connect(bridge.address, V3, CAR);
    bridge.gate.hold();
    for id in 1..=10 {
        car.publish(TELEMETRY, id, id.to_string().as_bytes());
    }
    bridge.wait_for("paused", 1);
    std::thread::sleep(A_MOMENT);
    assert_eq!((bridge.metric("in_flight"), bridge.gate.held()), (3, 3), "three, whatever comes");
    bridge.gate.open();
    car.expect_pubacks(1..=10);
    assert_eq!(bridge.records("telemetry.raw").len(), 10);
    bridge.wait_for("paused", 0);
}

#[test]
fn an_mqtt_5_client_is_told_its_window_and_held_to_it() {
    let bridge = TestBridge::start(|args| args.limits.max_in_flight = 3);
    let mut car = Client::connect(bridge.address, V5, CAR);
    bridge.gate.hold();
    for id in 1..=3 {
        car.publish(TELEMETRY, id, b"x");
    }
    wait_until("the log has all", || bridge.gate.held() == 3);
    car.send(&[0xc0, 0]);
    assert_eq!(car.packet(), [0xd0, 0], "it is read on, and may ping");
    car.publish(TELEMETRY, 4, b"x");
    car.expect_end(0x93);
}

#[test]
fn the_byte_budget_of_the_process_stops_reading_and_nothing_is_lost() {
    let bridge = TestBridge::start(|args| {
        args.limits.max_packet_bytes = 16 * 1_024;
        args.limits.max_unacknowledged_bytes = 64 * 1_024;
    });
    let mut cars: Vec<_> = (0..4).map(|i| Client::connect(bridge.address, V3, &format!("car{i}"))).collect();
    bridge.gate.hold();
    let payload = vec![b'x'; 8 * 1_024];
    let senders: Vec<_> = cars
        .iter()
        .map(|car| {
            let mut stream = car.stream.try_clone().unwrap();
            let payload = payload.clone();
            std::thread::spawn(move || {
                for id in 1..=10 {
                    std::io::Write::write_all(&mut stream, &publish_packet(V3, TELEMETRY, id, &payload)).unwrap();
                }
            })
        })
        .collect();
    bridge.wait_for("paused", 4);
    std::thread::sleep(A_MOMENT);
    assert!(bridge.metric("in_flight") <= 8, "64 KiB are at most eight of these: {}", bridge.metric("in_flight"));
    assert!(bridge.metric("in_flight") >= 4);
    bridge.gate.open();
    for (car, sender) in cars.iter_mut().zip(senders) {
        car.expect_pubacks(1..=10);
        sender.join().unwrap();
    }
    assert_eq!(bridge.records("telemetry.raw").len(), 40);
    bridge.wait_for("paused", 0);
}

/// All of a packet but its last byte.
fn half_sent(level: u8, bytes: usize) -> Vec<u8> {
    let mut packet = publish_packet(level, TELEMETRY, 1, &vec![b'x'; bytes]);
    packet.pop();
    packet
}

#[test]
fn who_sends_packets_by_halves_stops_nobody_else() {
    let bridge = TestBridge::start(|args| {
        args.limits.max_packet_bytes = 64 * 1_024;
        args.limits.max_unacknowledged_bytes = 1_024 * 1_024;
    });
    let mut quiet = Client::connect(bridge.address, V3, CAR);
    let half = half_sent(V3, 60 * 1_024);
    // One and a half times the budget.
    let halves: Vec<_> = (0..26)
        .map(|i| {
            let client = Client::connect(bridge.address, V3, &format!("half{i}"));
            let (mut stream, half) = (client.stream.try_clone().unwrap(), half.clone());
            // It blocks, once the bridge does not read.
            let sender = std::thread::spawn(move || std::io::Write::write_all(&mut stream, &half));
            (client, sender)
        })
        .collect();
    for id in 1..=20 {
        quiet.publish(TELEMETRY, id, b"x");
        quiet.expect_pubacks([id]);
        Client::connect(bridge.address, V5, "another").disconnect();
        std::thread::sleep(A_MOMENT / 20);
    }
    let closed = || bridge.metric("closes_total{reason=\"packet-timeout\"}");
    wait_until("those that hold the most are closed", || closed() >= 9);
    for (client, sender) in halves {
        drop(client);
        let _ = sender.join().unwrap();
    }
    bridge.wait_for("connections", 1);
    // The budget is whole again: two thirds of it at once.
    bridge.gate.hold();
    for id in 21..=32 {
        quiet.publish(TELEMETRY, id, &vec![b'x'; 60 * 1_024]);
    }
    wait_until("the log has all", || bridge.gate.held() == 12);
    bridge.gate.open();
    quiet.expect_pubacks(21..=32);
}

#[test]
fn a_packet_has_a_deadline_from_its_first_byte_on() {
    for level in [V3, V5] {
        let bridge = TestBridge::start(|args| args.limits.packet_timeout = Duration::from_secs(2));
        let mut slow = Client::connect(bridge.address, level, "slow");
        let packet = publish_packet(level, TELEMETRY, 7, b"in pieces");
        for piece in packet.chunks(packet.len() / 3) {
            slow.send(piece);
            std::thread::sleep(Duration::from_millis(300));
        }
        slow.expect_pubacks([7]);
        let since = Instant::now();
        // Each byte is news to the keep-alive, and not to the deadline.
        for byte in &packet[..5] {
            slow.send(&[*byte]);
            std::thread::sleep(Duration::from_millis(300));
        }
        slow.expect_end(0x83);
        assert!(since.elapsed() >= Duration::from_millis(1_900), "not before its time");
        bridge.wait_for("closes_total{reason=\"packet-timeout\"}", 1);
    }
}

#[test]
fn the_deadline_of_a_packet_rests_while_the_socket_is_not_read() {
    let bridge = TestBridge::start(|args| {
        args.limits.max_in_flight = 1;
        args.limits.packet_timeout = Duration::from_secs(1);
    });
    let mut car = Client::connect(bridge.address, V3, CAR);
    bridge.gate.hold();
    let packets = [publish_packet(V3, TELEMETRY, 1, b"x"), publish_packet(V3, TELEMETRY, 2, b"y")].concat();
    let (begun, rest) = packets.split_at(packets.len() - 1);
    car.send(begun);
    bridge.wait_for("paused", 1);
    std::thread::sleep(Duration::from_millis(1_500));
    bridge.gate.open();
    car.expect_pubacks([1]);
    car.send(rest);
    car.expect_pubacks([2]);
}

#[test]
fn the_deadline_of_a_packet_rests_while_there_is_no_budget_to_read_it() {
    let bridge = TestBridge::start(|args| {
        args.limits.max_packet_bytes = 16 * 1_024;
        args.limits.max_unacknowledged_bytes = 64 * 1_024;
        args.limits.packet_timeout = Duration::from_secs(1);
    });
    let mut car = Client::connect(bridge.address, V3, CAR);
    let mut greedy = Client::connect(bridge.address, V3, "greedy");
    let packet = publish_packet(V3, TELEMETRY, 7, b"in pieces");
    car.send(&packet[..5]);
    bridge.gate.hold();
    for id in 1..=6 {
        greedy.publish(TELEMETRY, id, &[b'x'; 8 * 1_024]);
    }
    wait_until("the log has them", || bridge.gate.held() == 6);
    car.send(&packet[5..10]);
    bridge.wait_for("paused", 1);
    std::thread::sleep(Duration::from_millis(1_500));
    bridge.gate.open();
    greedy.expect_pubacks(1..=6);
    std::thread::sleep(A_MOMENT);
    car.send(&packet[10..]);
    car.expect_pubacks([7]);
}

#[test]
fn a_connect_packet_is_short() {
    let bridge = TestBridge::start(|_| {});
    for level in [V3, V5] {
        let mut client = Client::silent(bridge.address, level);
        client.send(&[0x10, 0x80, 0x80, 0x02]); // 32 KiB are to follow
        assert!(client.packet().is_empty());
    }
    bridge.wait_for("closes_total{reason=\"packet-too-large\"}", 2);
}

#[test]
fn a_full_append_queue_holds_the_message_back() {
    for level in [V3, V5] {
        let bridge = TestBridge::start(|_| {});
        let mut car = Client::connect(bridge.address, level, CAR);
        bridge.gate.set_full(true);
        car.publish(TELEMETRY, 1, b"first");
        car.publish(TELEMETRY, 0, b"QoS 0");
        car.publish(TELEMETRY, 2, b"second");
        bridge.wait_for("paused", 1);
        car.expect_silence();
        bridge.gate.set_full(false);
        car.expect_pubacks([1, 2]);
        let values: Vec<_> = bridge.records("telemetry.raw").into_iter().map(|r| r.value).collect();
        assert_eq!(values, [&b"first"[..], b"QoS 0", b"second"]);
    }
}

#[test]
fn a_silent_client_is_closed_after_its_keep_alive() {
    for level in [V3, V5] {
        let bridge = TestBridge::start(|_| {});
        let connect = Connect { level, client_id: CAR, keep_alive_s: 1, will: None };
        let mut car = Client::connect_as(bridge.address, &connect);
        let since = Instant::now();
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(500));
            car.send(&[0xc0, 0]);
            assert_eq!(car.packet(), [0xd0, 0], "who pings stays");
        }
        car.expect_end(0x8d);
        assert!(since.elapsed() >= Duration::from_millis(3_400), "not before 1.5 times the keep-alive");
        bridge.wait_for("closes_total{reason=\"keep-alive\"}", 1);
    }
}

#[test]
fn keep_alive_rests_while_the_socket_is_not_read_but_a_pause_has_its_own_limit() {
    let bridge = TestBridge::start(|args| {
        args.limits.max_in_flight = 1;
        args.limits.max_pause = Duration::from_secs(4);
    });
    let connect = Connect { level: V3, client_id: CAR, keep_alive_s: 1, will: None };
    let mut car = Client::connect_as(bridge.address, &connect);
    bridge.gate.hold();
    car.publish(TELEMETRY, 1, b"x");
    bridge.wait_for("paused", 1);
    std::thread::sleep(Duration::from_millis(2_500)); // more than 1.5 times the keep-alive
    car.expect_silence();
    bridge.gate.open();
    car.expect_pubacks([1]);
    bridge.gate.hold();
    car.publish(TELEMETRY, 2, b"x");
    car.expect_end(0x89);
    bridge.wait_for("closes_total{reason=\"paused-too-long\"}", 1);
}

#[test]
fn who_says_nothing_is_closed() {
    let bridge = TestBridge::start(|args| args.limits.connect_timeout = Duration::from_secs(1));
    let mut silent = Client::silent(bridge.address, V3);
    let mut slow = Client::silent(bridge.address, V3);
    slow.send(&connect_packet(&Connect { level: V3, client_id: CAR, keep_alive_s: 0, will: None })[..5]);
    silent.expect_end(0);
    slow.expect_end(0);
    bridge.wait_for("closes_total{reason=\"connect-timeout\"}", 2);
}

#[test]
fn one_connection_more_than_allowed_is_told_so() {
    let bridge = TestBridge::start(|args| args.limits.max_connections = 1);
    let first = Client::connect(bridge.address, V3, "first");
    for (level, answer) in [(V3, vec![0x20, 2, 0, 3]), (V5, vec![0x20])] {
        let mut second = Client::silent(bridge.address, level);
        second.send(&connect_packet(&Connect { level, client_id: "second", keep_alive_s: 60, will: None }));
        let connack = second.packet();
        assert!(connack.starts_with(&answer), "{connack:02x?}");
        assert!(level == V3 || connack[3] == 0x89, "server busy: {connack:02x?}");
        assert!(second.packet().is_empty());
    }
    assert_eq!(bridge.metric("connect_refusals_total{reason=\"busy\"}"), 2);
    first.disconnect();
    bridge.wait_for("connections", 0);
    Client::connect(bridge.address, V5, "third").disconnect();
}

#[test]
fn a_payload_of_a_megabyte_is_refused_with_its_reason() {
    let bridge = TestBridge::start(|_| {});
    let payload = vec![b'x'; 1_000_000];
    for level in [V3, V5] {
        let mut car = Client::connect(bridge.address, level, CAR);
        let mut stream = car.stream.try_clone().unwrap();
        let bytes = publish_packet(level, TELEMETRY, 1, &payload);
        // The bridge may close before all is sent.
        let sender = std::thread::spawn(move || {
            let _ = std::io::Write::write_all(&mut stream, &bytes);
        });
        car.expect_end(0x95);
        sender.join().unwrap();
    }
    assert_eq!(bridge.metric("closes_total{reason=\"packet-too-large\"}"), 2);
    let mut car = Client::connect(bridge.address, V3, CAR);
    car.publish(TELEMETRY, 1, &payload[..200_000]);
    car.expect_pubacks([1]);
    assert_eq!(bridge.records("telemetry.raw")[0].value.len(), 200_000);
}

#[test]
fn a_message_that_the_log_can_never_take_is_its_cars_own_trouble() {
    let bridge = TestBridge::start(|args| {
        args.limits.max_packet_bytes = 16 * 1_024;
        args.limits.max_unacknowledged_bytes = 64 * 1_024;
    });
    bridge.gate.set_max_bytes(1_000);
    let large = vec![b'x'; 8 * 1_024];
    let mut other = Client::connect(bridge.address, V3, "other");
    let mut car = Client::connect(bridge.address, V5, CAR);
    // Often enough to use up the byte budget many times, should refused messages keep their part of it.
    for id in 1..=50 {
        car.publish(TELEMETRY, id, &large);
        assert_eq!(car.packet(), [0x40, 3, 0, id as u8, 0x97], "quota exceeded, and the connection stays");
    }
    // MQTT 3.1.1 cannot say no.
    for _ in 0..50 {
        let mut old = Client::connect(bridge.address, V3, "old");
        old.publish(TELEMETRY, 1, &large);
        old.expect_end(0);
    }
    assert_eq!(bridge.metric("closes_total{reason=\"too-large-for-log\"}"), 50);
    car.publish(TELEMETRY, 51, b"small");
    car.expect_pubacks([51]);
    other.publish(TELEMETRY, 1, b"small");
    other.expect_pubacks([1]);
    assert_eq!(bridge.records("telemetry.raw").len(), 2);

    // The budget is neither less nor more than before. Another connection that is looked at while there is none left
    // would be paused as well.
    drop(other);
    bridge.wait_for("connections", 1);
    bridge.gate.hold();
    let (mut stream, payload) = (car.stream.try_clone().unwrap(), vec![b'x'; 900]);
    let sender = std::thread::spawn(move || {
        for id in 52..=151 {
            std::io::Write::write_all(&mut stream, &publish_packet(V5, TELEMETRY, id, &payload)).unwrap();
        }
    });
    bridge.wait_for("paused", 1);
    let in_flight = bridge.metric("in_flight");
    assert!((50..=70).contains(&in_flight), "64 KiB are about 66 of these: {in_flight}");
    bridge.gate.open();
    car.expect_pubacks(52..=151);
    sender.join().unwrap();
}

#[test]
fn wrong_topics_and_other_versions_are_refused() {
    let bridge = TestBridge::start(|args| args.client_id = mqtt_bridge::ClientIdRule::Vin);
    let mut car = Client::connect(bridge.address, V5, CAR);
    car.publish("vehicles/OTHER/telemetry", 1, b"x");
    assert_eq!(car.packet(), [0x40, 3, 0, 1, 0x87]);
    car.publish("elsewhere", 2, b"x");
    assert_eq!(car.packet(), [0x40, 3, 0, 2, 0x90]);
    car.publish(TELEMETRY, 3, b"x");
    car.expect_pubacks([3]);
    let mut old = Client::connect(bridge.address, V3, "OTHER");
    old.publish(TELEMETRY, 1, b"x");
    old.expect_end(0);
    assert_eq!(bridge.metric("publish_refusals_total{reason=\"not-authorized\"}"), 1);
    assert_eq!(bridge.metric("closes_total{reason=\"not-authorized\"}"), 1);
    assert_eq!(bridge.records("telemetry.raw").len(), 1);

    let mut unknown = Client::silent(bridge.address, 6);
    unknown.send(&connect_packet(&Connect { level: 6, client_id: CAR, keep_alive_s: 60, will: None }));
    assert_eq!(unknown.packet(), [0x20, 2, 0, 1], "unacceptable protocol version");
    assert!(unknown.packet().is_empty());
    let mut qos2 = Client::connect(bridge.address, V5, CAR);
    qos2.send(&packet(0x34, b"\0\x01a\0\x01\0"));
    qos2.expect_end(0x9b);
}

#[test]
fn garbage_harms_nobody_else() {
    let bridge = TestBridge::start(|_| {});
    let mut car = Client::connect(bridge.address, V3, CAR);
    let mut random = Random::new(1);
    for round in 0..200 {
        let mut client = Client::silent(bridge.address, V3);
        let mut bytes = Vec::new();
        if round % 2 == 0 {
            let client_id = &format!("garbage{round}");
            bytes = connect_packet(&Connect { level: V3 + (round % 4 / 2), client_id, keep_alive_s: 60, will: None });
        }
        bytes.extend(random.bytes(100));
        let _ = std::io::Write::write_all(&mut client.stream, &bytes);
    }
    car.publish(TELEMETRY, 1, b"x");
    car.expect_pubacks([1]);
    bridge.wait_for("connections", 1);
    assert_eq!(bridge.records("telemetry.raw").len(), 1);
}
