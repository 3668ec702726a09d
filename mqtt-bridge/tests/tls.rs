//! MQTT over TLS: the certificate says which car a client is, and who has none, or a wrong one, stays outside.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use rcgen::DnType;
use support::client::{Client, Connect, V3, V5, connect_packet, publish_packet};
use support::tls::{Site, TlsClient, connect, refusal, silent};
use support::{CAR, KEY, TestBridge, wait_until};
use telemetry::pseudonym::PseudonymKey;
use test_support::clock::now_ms;
use test_support::random::Random;
use time::OffsetDateTime;
use tokio_rustls::rustls::version::{TLS12, TLS13};

const TELEMETRY: &str = "vehicles/WVWZZZ1JZXW000001/telemetry";

fn in_hours(hours: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(now_ms() / 1000 + hours * 3600).unwrap()
}

fn start(site: &Site) -> (TestBridge, std::net::SocketAddr) {
    let bridge = TestBridge::start(|args| site.configure_only(args));
    let address = bridge.tls_address.unwrap();
    (bridge, address)
}

#[test]
fn a_car_is_the_one_of_its_certificate_whatever_it_calls_itself() {
    let site = Site::new();
    let car = site.car(CAR);
    let pseudonym = PseudonymKey::from_bytes(KEY).unwrap().pseudonym(CAR);
    for (level, tls) in [(V3, &TLS12), (V3, &TLS13), (V5, &TLS12), (V5, &TLS13)] {
        let (bridge, address) = start(&site);
        let config = site.client_of(Some(&car), &[tls]);
        let mut client = connect(address, level, &config, "OTHER");
        bridge.gate.hold();
        client.publish(TELEMETRY, 1, b"mine");
        wait_until("the log has it", || bridge.gate.held() == 1);
        assert_eq!(bridge.metric("pubacks_total"), 0, "not before the commit");
        bridge.gate.open();
        client.expect_pubacks([1]);
        assert!(client.subscribe("vehicles/OTHER/alerts") >= 0x80, "another car's alerts");
        let alerts = format!("vehicles/{CAR}/alerts");
        assert_eq!(client.subscribe(&alerts), 1);
        bridge.append("alerts", &pseudonym, b"news");
        assert_eq!(client.packet(), publish_packet(level, &alerts, 1, b"news"));
        client.publish("vehicles/OTHER/telemetry", 2, b"not mine");
        if level == V5 {
            assert_eq!(client.packet(), [0x40, 3, 0, 2, 0x87]);
            assert_eq!(bridge.metric("publish_refusals_total{reason=\"not-authorized\"}"), 1);
        } else {
            client.expect_end(0);
            bridge.wait_for("closes_total{reason=\"not-authorized\"}", 1);
        }
        assert_eq!(bridge.records("telemetry.raw").len(), 1);
    }
}

#[test]
fn a_will_is_the_car_s_own() {
    let site = Site::new();
    let (bridge, address) = start(&site);
    let config = site.client(Some(&site.car(CAR)));
    let says = |vin: &str| {
        let mut client = silent(address, V5, &config);
        let topic = format!("vehicles/{vin}/status");
        let will = Some((&*topic, "lost"));
        client.send(&connect_packet(&Connect { level: V5, client_id: vin, keep_alive_s: 60, will }));
        client.packet()[3]
    };
    assert_eq!(says("OTHER"), 0x87);
    assert_eq!(says(CAR), 0);
    wait_until("the will is in the log", || bridge.records("status.raw").len() == 1);
    assert_eq!(bridge.records("status.raw")[0].key, CAR);
}

#[test]
fn who_cannot_prove_to_be_a_car_is_refused_and_counted() {
    let (site, stranger) = (Site::new(), Site::new());
    let (bridge, address) = start(&site);
    let expired = site.odd(|params| params.not_after = in_hours(-1));
    let future = site.odd(|params| params.not_before = in_hours(1));
    let server = site.odd(|params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]);
    let cases = [
        (None, "tls-no-certificate"),
        (Some(stranger.car(CAR)), "tls-unknown-ca"),
        (Some(expired), "tls-expired"),
        (Some(future), "tls-not-yet-valid"),
        (Some(server), "tls-certificate"),
    ];
    for (pair, reason) in cases {
        for (n, tls) in [(1, &TLS12), (2, &TLS13)] {
            let said = refusal(address, &site.client_of(pair.as_ref(), &[tls]));
            assert!(said.is_some_and(|said| said.contains("alert")), "{reason}");
            bridge.wait_for(&format!("connect_refusals_total{{reason=\"{reason}\"}}"), n);
        }
    }
    let said = refusal(address, &stranger.client(Some(&site.car(CAR)))).unwrap();
    assert!(said.contains("UnknownIssuer"), "the bridge is a stranger to the client: {said}");
    bridge.wait_for("connect_refusals_total{reason=\"tls-refused-by-client\"}", 1);
    let mut plain = Client::silent(address, V3);
    plain.send(&connect_packet(&Connect { level: V3, client_id: CAR, keep_alive_s: 60, will: None }));
    let _ = plain.stream.read_to_end(&mut Vec::new()); // an alert, which is no MQTT
    bridge.wait_for("connect_refusals_total{reason=\"tls-protocol\"}", 1);
    drop(TcpStream::connect(address).unwrap());
    bridge.wait_for("connect_refusals_total{reason=\"tls-lost\"}", 1);
    bridge.wait_for("tls_handshakes", 0);
    assert_eq!(bridge.metric("connections"), 0);
    connect(address, V5, &site.client(Some(&site.car(CAR))), CAR).disconnect();
}

#[test]
fn a_certificate_without_a_vin_is_refused_in_connack() {
    let site = Site::new();
    let (bridge, address) = start(&site);
    let nameless = site.odd(|params| {
        params.distinguished_name.remove(DnType::CommonName);
    });
    let two = site.odd(|params| params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "OTHER"));
    let wrong = site.odd(|params| params.distinguished_name.push(DnType::CommonName, "a/b"));
    for (n, pair) in (1..).zip([nameless, two, wrong]) {
        for (level, code) in [(V3, 5), (V5, 0x87)] {
            let mut client = silent(address, level, &site.client(Some(&pair)));
            client.send(&connect_packet(&Connect { level, client_id: CAR, keep_alive_s: 60, will: None }));
            let answer = client.packet();
            assert_eq!((answer[0], answer[3]), (0x20, code), "not authorized: {answer:02x?}");
            assert!(client.packet().is_empty());
        }
        bridge.wait_for("connect_refusals_total{reason=\"no-vin\"}", 2 * n);
    }
}

#[test]
fn nobody_s_connection_is_ended_by_who_takes_its_name() {
    let site = Site::new();
    let bridge = TestBridge::start(|args| site.configure(args));
    let address = bridge.tls_address.unwrap();
    let (car, other) = (site.client(Some(&site.car(CAR))), site.client(Some(&site.car("OTHER"))));
    let mut mine = connect(address, V5, &car, CAR);
    let _namesake = connect(address, V5, &other, CAR);
    let _plain = Client::connect(bridge.address, V5, CAR);
    let _mine_too = connect(address, V5, &car, "a second one");
    mine.publish(TELEMETRY, 1, b"x");
    mine.expect_pubacks([1]);
    assert_eq!(bridge.metric("takeovers_total"), 0);
    let _again = connect(address, V5, &car, CAR);
    mine.expect_end(0x8e);
    assert_eq!(bridge.metric("takeovers_total"), 1);
}

#[test]
fn a_certificate_has_so_many_connections_and_no_more() {
    let site = Site::new();
    let bridge = TestBridge::start(|args| {
        site.configure_only(args);
        args.limits.max_connections_per_car = 2;
    });
    let address = bridge.tls_address.unwrap();
    let (car, other) = (site.client(Some(&site.car(CAR))), site.client(Some(&site.car("OTHER"))));
    let first = connect(address, V5, &car, "first");
    let _second = connect(address, V5, &car, "second");
    for (level, code) in [(V3, 3), (V5, 0x97)] {
        let mut third = silent(address, level, &car);
        third.send(&connect_packet(&Connect { level, client_id: "third", keep_alive_s: 60, will: None }));
        let answer = third.packet();
        assert_eq!((answer[0], answer[3]), (0x20, code), "{answer:02x?}");
        assert!(third.packet().is_empty());
    }
    assert_eq!(bridge.metric("connect_refusals_total{reason=\"too-many-of-car\"}"), 2);
    connect(address, V5, &other, "third").disconnect();
    first.disconnect();
    bridge.wait_for("connections", 1);
    connect(address, V5, &car, "third").disconnect();
}

#[test]
fn stalled_handshakes_block_nobody_and_end() {
    let site = Site::new();
    let bridge = TestBridge::start(|args| {
        site.configure_only(args);
        args.limits.max_connections = 3;
        args.limits.connect_timeout = Duration::from_secs(2);
    });
    let address = bridge.tls_address.unwrap();
    let stalled: Vec<_> = (0..2).map(|_| Client::silent(address, V5)).collect();
    bridge.wait_for("tls_handshakes", 2);
    let config = site.client(Some(&site.car(CAR)));
    let mut car = connect(address, V5, &config, CAR);
    let mut one_too_many = silent(address, V5, &config);
    one_too_many.send(&connect_packet(&Connect { level: V5, client_id: "second", keep_alive_s: 60, will: None }));
    assert_eq!(one_too_many.packet()[3], 0x89, "server busy: handshakes are connections");
    for mut client in stalled {
        assert!(client.packet().is_empty());
    }
    bridge.wait_for("connect_refusals_total{reason=\"tls-timeout\"}", 2);
    car.publish(TELEMETRY, 1, b"x");
    car.expect_pubacks([1]);
    drop(one_too_many);
    connect(address, V5, &config, "second").disconnect();
}

#[test]
fn a_drain_ends_connections_and_handshakes() {
    let site = Site::new();
    let (mut bridge, address) = start(&site);
    let mut car = connect(address, V5, &site.client(Some(&site.car(CAR))), CAR);
    let mut stalled = Client::silent(address, V5);
    bridge.wait_for("tls_handshakes", 1);
    bridge.gate.hold();
    car.publish(TELEMETRY, 1, b"accepted");
    wait_until("the log has it", || bridge.gate.held() == 1);
    bridge.shutdown.cancel();
    assert!(stalled.packet().is_empty());
    bridge.gate.open();
    car.expect_pubacks([1]);
    car.expect_end(0x8b);
    bridge.stopped().unwrap();
}

fn server_certificate(client: &TlsClient) -> Vec<u8> {
    client.stream.conn.peer_certificates().unwrap()[0].to_vec()
}

#[test]
fn new_files_are_for_new_connections_and_broken_ones_for_nobody() {
    let (site, next) = (Site::new(), Site::new());
    let (bridge, address) = start(&site);
    let car = site.car(CAR);
    let config = site.client(Some(&car));
    let mut first = connect(address, V5, &config, "first");
    let mut packet_ids = 1..;
    let mut still_works = |client: &mut TlsClient| {
        let packet_id = packet_ids.next().unwrap();
        client.publish(TELEMETRY, packet_id, b"x");
        client.expect_pubacks([packet_id]);
    };
    let expiry = "certificate_expiry_timestamp_seconds{certificate=\"server\"}";
    let first_expiry = bridge.metric(expiry);
    assert!(first_expiry > 1_700_000_000);

    site.issue_server();
    bridge.wait_for("tls_reloads_total", 1);
    let second = connect(address, V5, &config, "second");
    assert_ne!(server_certificate(&first), server_certificate(&second));
    assert!(bridge.metric(expiry) >= first_expiry);
    still_works(&mut first);

    let (certificate, key) = (site.read("mqtt-bridge.crt"), site.read("mqtt-bridge.key"));
    for (file, text) in [("mqtt-bridge.key", "no key"), ("mqtt-bridge.crt", next.ca()), ("ca.crt", "")] {
        let whole = site.read(file);
        site.write(file, text);
        bridge.wait_for("tls_files_unusable", 1);
        let third = connect(address, V5, &config, "third");
        assert_eq!(server_certificate(&second), server_certificate(&third), "the earlier ones, with a broken {file}");
        site.write(file, &whole);
        bridge.wait_for("tls_files_unusable", 0);
    }
    std::fs::remove_file(site.path("mqtt-bridge.key")).unwrap();
    bridge.wait_for("tls_files_unusable", 1);
    site.write("mqtt-bridge.key", &key);
    bridge.wait_for("tls_files_unusable", 0);
    assert_eq!(bridge.metric("tls_reloads_total"), 1);
    assert_eq!(site.read("mqtt-bridge.crt"), certificate);

    site.write("ca.crt", &format!("{}{}", site.ca(), next.ca()));
    bridge.wait_for("tls_reloads_total", 2);
    let newcomer = site.client(Some(&next.car("NEWCOMER")));
    connect(address, V5, &newcomer, "newcomer").disconnect();
    connect(address, V5, &config, "fourth").disconnect();
    site.write("ca.crt", next.ca());
    bridge.wait_for("tls_reloads_total", 3);
    assert!(refusal(address, &config).is_some(), "its authority is withdrawn");
    still_works(&mut first);
    connect(address, V5, &newcomer, "newcomer").disconnect();
}

#[test]
fn no_session_is_resumed_past_a_withdrawn_authority() {
    let (site, next) = (Site::new(), Site::new());
    let (bridge, address) = start(&site);
    for tls in [&TLS12, &TLS13] {
        // One config, so one store of sessions.
        let config = site.client_of(Some(&site.car(CAR)), &[tls]);
        for _ in 0..2 {
            let mut client = connect(address, V5, &config, CAR);
            client.publish(TELEMETRY, 1, b"x");
            client.expect_pubacks([1]);
            let kind = client.stream.conn.handshake_kind();
            assert_eq!(kind, Some(tokio_rustls::rustls::HandshakeKind::Full));
            client.disconnect();
        }
        let before = bridge.metric("tls_reloads_total");
        site.write("ca.crt", next.ca());
        bridge.wait_for("tls_reloads_total", before + 1);
        assert!(refusal(address, &config).is_some());
        site.write("ca.crt", site.ca());
        bridge.wait_for("tls_reloads_total", before + 2);
    }
}

#[test]
fn large_packets_and_long_bursts_come_through_whole() {
    let site = Site::new();
    let (bridge, address) = start(&site);
    let mut car = connect(address, V3, &site.client(Some(&site.car(CAR))), CAR);
    let payload: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
    car.publish(TELEMETRY, 1, &payload);
    car.expect_pubacks([1]);
    // Many in one record, and the answers not read until all are sent.
    let burst: Vec<u8> = (2..=2_000).flat_map(|id| publish_packet(V3, TELEMETRY, id, &id.to_be_bytes())).collect();
    car.send(&burst);
    car.expect_pubacks(2..=2_000);
    let records = bridge.records("telemetry.raw");
    assert_eq!(records.len(), 2_000);
    assert_eq!(records[0].value, payload);
    car.send(&publish_packet(V3, TELEMETRY, 2_001, b"slow")[..10]);
    std::thread::sleep(Duration::from_millis(50));
    car.send(&publish_packet(V3, TELEMETRY, 2_001, b"slow")[10..]);
    car.expect_pubacks([2_001]);
}

#[test]
fn garbage_harms_nobody_else() {
    let site = Site::new();
    let (bridge, address) = start(&site);
    let mut car = connect(address, V3, &site.client(Some(&site.car(CAR))), CAR);
    let mut random = Random::new(1);
    for round in 0..100 {
        let mut client = Client::silent(address, V3);
        // As a TLS record, or as nothing.
        let mut bytes = if round % 2 == 0 { vec![22, 3, 1, 0, 100] } else { Vec::new() };
        bytes.extend(random.bytes(100));
        let _ = std::io::Write::write_all(&mut client.stream, &bytes);
    }
    bridge.wait_for("tls_handshakes", 0);
    car.publish(TELEMETRY, 1, b"x");
    car.expect_pubacks([1]);
}

#[test]
fn files_that_cannot_work_are_reported_together() {
    let site = Site::new();
    let problems = |spoil: &dyn Fn()| {
        spoil();
        let mut args = mqtt_bridge::Args::new(
            support::any_port(),
            event_log::LogArgs::new(event_log::LogUrl::Directory(site.path("log"))),
            None,
        );
        site.configure(&mut args);
        let metrics = mqtt_bridge::Metrics::new(&mut prometheus_client::registry::Registry::default());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let error = runtime.block_on(mqtt_bridge::Bridge::bind(args, metrics)).unwrap_err();
        error.downcast::<service::ConfigError>().expect("bad settings").0
    };
    let found = problems(&|| site.write("mqtt-bridge.key", &site.car(CAR).1));
    assert!(found.len() == 1 && found[0].contains("--tls-key"), "another one's key: {found:?}");
    let found = problems(&|| ["mqtt-bridge.key", "mqtt-bridge.crt", "ca.crt"].iter().for_each(|f| site.write(f, "-")));
    assert_eq!(found.len(), 3, "{found:?}");
    let found =
        problems(&|| ["mqtt-bridge.key", "ca.crt"].iter().for_each(|f| std::fs::remove_file(site.path(f)).unwrap()));
    assert_eq!(found.len(), 2, "{found:?}");
}
