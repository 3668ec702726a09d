//! A session, driven by bytes, with a log that the test plays.
//!
//! The cases of MQTT 3.1.1 and 5 share one driver and stand side by side, so that a difference shows: one file.

use test_support::random::Random;
use tokio_util::codec::{Decoder, Encoder};

use super::*;
use crate::close::Refusal;
use crate::topics::Kind;
use crate::wire::Connect;
use crate::wire::tests::connect_frame;

const CAR: &str = "WVWZZZ1JZXW000001";

fn kind(level: &str) -> Kind {
    rules().topics.parse(&to(level)).expect("a level of the contract").1
}

fn rules() -> Rules {
    let topics = Arc::new(Topics::new(contract::Contract::builtin()));
    Rules {
        topics,
        client_id: ClientIdRule::Any,
        limits: Limits { max_in_flight: 4, ..Limits::default() },
        alerts: true,
    }
}

/// A session and what the test has seen of it.
struct Driven {
    session: Session,
    rules: Rules,
    input: BytesMut,
    out: BytesMut,
    appended: Vec<(Kind, String, Vec<u8>, u16)>,
    steps: Vec<Step>,
}

impl Driven {
    fn new(version: Version, rules: Rules) -> Self {
        let level = if version == Version::V3 { 4 } else { 5 };
        let frame = connect_frame(level, CAR);
        let Ok(Packet::Connect(connect)) = wire::decode(version, frame.as_slice().into()) else { panic!() };
        let (session, answer) = Session::open(*connect, &rules, None, String::new).unwrap();
        let mut out = BytesMut::new();
        session.accept(answer, &rules, &mut out).unwrap();
        assert_eq!(out[0], 0x20, "CONNACK");
        out.clear();
        Self { session, rules, input: BytesMut::new(), out, appended: Vec::new(), steps: Vec::new() }
    }

    /// Feeds bytes as a connection does.
    fn feed(&mut self, bytes: &[u8]) -> Result<(), Close> {
        self.input.extend_from_slice(bytes);
        while let Some(length) = wire::frame_length(&self.input, self.rules.limits.max_packet_bytes)? {
            if length > self.input.len() {
                break;
            }
            let frame = self.input.split_to(length);
            let packet = wire::decode(self.session.version(), frame)?;
            match self.session.receive(packet, &self.rules, Instant::now(), &mut self.out)? {
                Step::Append(m) => {
                    self.session.window().push(m.packet_id, Fate::Pending, length as u32, Instant::now());
                    self.appended.push((m.kind, m.vin().to_owned(), m.payload.to_vec(), m.packet_id));
                }
                Step::Done => {}
                step => self.steps.push(step),
            }
        }
        Ok(())
    }

    fn take_out(&mut self) -> Vec<u8> {
        self.out.split().to_vec()
    }
}

/// A PUBLISH as a client sends it.
fn publish(version: Version, topic: &str, qos: QoS, id: u16, payload: &'static [u8]) -> Vec<u8> {
    let publish = Publish {
        dup: false,
        retain: false,
        qos,
        topic: topic.to_owned().into(),
        packet_id: NonZeroU16::new(id),
        payload: Bytes::from_static(payload),
        properties: None,
    };
    let mut out = BytesMut::new();
    match version {
        Version::V3 => v3::Codec::new(0).encode(v3::Packet::from(publish), &mut out).unwrap(),
        Version::V5 => v5::Codec::new(0, 0).encode(v5::Packet::from(publish), &mut out).unwrap(),
    }
    out.to_vec()
}

fn to(kind: &str) -> String {
    format!("vehicles/{CAR}/{kind}")
}

const BOTH: [Version; 2] = [Version::V3, Version::V5];

#[test]
fn messages_come_out_as_sent_though_bytes_come_one_by_one() {
    for version in BOTH {
        let mut driven = Driven::new(version, rules());
        let bytes = [
            publish(version, &to("telemetry"), QoS::AtLeastOnce, 1, b"{\"a\": 1}"),
            vec![0xc0, 0],
            publish(version, &to("faults"), QoS::AtMostOnce, 0, b"\xff\0not UTF-8"),
            publish(version, "vehicles/OTHER/drivers", QoS::AtLeastOnce, 2, b""),
        ]
        .concat();
        for byte in bytes {
            driven.feed(&[byte]).unwrap();
        }
        let appended: Vec<_> = driven.appended.iter().map(|(k, v, p, i)| (*k, &v[..], &p[..], *i)).collect();
        assert_eq!(
            appended,
            [
                (kind("telemetry"), CAR, &b"{\"a\": 1}"[..], 1),
                (kind("faults"), CAR, b"\xff\0not UTF-8", 0),
                (kind("drivers"), "OTHER", b"", 2),
            ]
        );
        assert_eq!(driven.take_out(), [0xd0, 0], "PINGRESP, and no PUBACK before the log has committed");
    }
}

#[test]
fn pubacks_follow_the_log_in_the_order_of_the_publishes() {
    for version in BOTH {
        let mut driven = Driven::new(version, rules());
        for id in [11, 12, 13] {
            driven.feed(&publish(version, &to("telemetry"), QoS::AtLeastOnce, id, b"x")).unwrap();
        }
        driven.session.window().complete(1, true);
        driven.session.window().complete(2, true);
        let (found, result) = driven.session.acknowledge(&mut driven.out);
        assert_eq!((found, result), (Acknowledged::default(), Ok(())), "the first is not decided");
        assert!(driven.take_out().is_empty());
        driven.session.window().complete(0, true);
        let (found, result) = driven.session.acknowledge(&mut driven.out);
        assert_eq!((found.pubacks, found.decided, result), (3, 3, Ok(())));
        assert_eq!(driven.take_out(), [0x40, 2, 0, 11, 0x40, 2, 0, 12, 0x40, 2, 0, 13]);
    }
}

#[test]
fn what_is_not_durable_is_never_acknowledged() {
    for version in BOTH {
        let mut driven = Driven::new(version, rules());
        for id in [1, 2, 3] {
            driven.feed(&publish(version, &to("telemetry"), QoS::AtLeastOnce, id, b"x")).unwrap();
        }
        for (sequence, durable) in [(0, true), (1, false), (2, true)] {
            driven.session.window().complete(sequence, durable);
        }
        let (found, result) = driven.session.acknowledge(&mut driven.out);
        assert_eq!((found.pubacks, result), (1, Err(Close::NotDurable)));
        driven.session.say_goodbye(Close::NotDurable, &mut driven.out);
        let out = driven.take_out();
        assert_eq!(out[..4], [0x40, 2, 0, 1]);
        match version {
            Version::V3 => assert_eq!(out.len(), 4),
            Version::V5 => assert_eq!((out[4], out[6]), (0xe0, 0x80), "DISCONNECT, unspecified error"),
        }
    }
}

#[test]
fn a_wrong_topic_is_refused_in_its_turn_or_closes() {
    let mut v5 = Driven::new(Version::V5, rules());
    v5.feed(&publish(Version::V5, &to("telemetry"), QoS::AtLeastOnce, 1, b"x")).unwrap();
    v5.feed(&publish(Version::V5, "somewhere/else", QoS::AtLeastOnce, 2, b"x")).unwrap();
    assert!(matches!(v5.steps[..], [Step::RefusedPublish(Close::TopicInvalid)]));
    assert!(v5.session.acknowledge(&mut v5.out).1.is_ok() && v5.take_out().is_empty());
    v5.session.window().complete(0, true);
    let (found, _) = v5.session.acknowledge(&mut v5.out);
    assert_eq!((found.pubacks, found.decided), (1, 1), "a refusal is neither");
    assert_eq!(v5.take_out(), [0x40, 2, 0, 1, 0x40, 3, 0, 2, 0x90]);
    let qos0 = publish(Version::V5, "somewhere/else", QoS::AtMostOnce, 0, b"x");
    assert_eq!(v5.feed(&qos0), Err(Close::TopicInvalid), "QoS 0 has no PUBACK to say so");
    let mut v3 = Driven::new(Version::V3, rules());
    let wrong = publish(Version::V3, "vehicles/A/alerts", QoS::AtLeastOnce, 1, b"x");
    assert_eq!(v3.feed(&wrong), Err(Close::TopicInvalid), "nobody publishes alerts here");
}

#[test]
fn with_the_vin_rule_a_car_speaks_for_itself_only() {
    let strict = Rules { client_id: ClientIdRule::Vin, ..rules() };
    for version in BOTH {
        let mut driven = Driven::new(version, strict.clone());
        driven.feed(&publish(version, &to("telemetry"), QoS::AtLeastOnce, 1, b"x")).unwrap();
        assert_eq!(driven.appended.len(), 1);
        let other = driven.feed(&publish(version, "vehicles/OTHER/telemetry", QoS::AtLeastOnce, 2, b"x"));
        assert_eq!(driven.appended.len(), 1);
        match version {
            Version::V3 => assert_eq!(other, Err(Close::NotAuthorized)),
            Version::V5 => {
                driven.session.window().complete(0, true);
                driven.session.acknowledge(&mut driven.out).1.unwrap();
                assert_eq!(driven.take_out(), [0x40, 2, 0, 1, 0x40, 3, 0, 2, 0x87]);
            }
        }
    }
}

#[test]
fn what_is_not_offered_closes_with_its_reason() {
    let retained = |version| {
        let mut bytes = publish(version, &to("telemetry"), QoS::AtLeastOnce, 1, b"x");
        bytes[0] |= 1;
        bytes
    };
    let aliased = [&[0x30, 8][..], &[0, 1, b'a', 3, 0x23, 0, 1, b'x']].concat();
    for (version, bytes, wanted, reason) in [
        (Version::V5, publish(Version::V5, &to("telemetry"), QoS::ExactlyOnce, 1, b"x"), Close::QosNotSupported, 0x9b),
        (Version::V3, publish(Version::V3, &to("telemetry"), QoS::ExactlyOnce, 1, b"x"), Close::QosNotSupported, 0x9b),
        (Version::V5, retained(Version::V5), Close::RetainNotSupported, 0x9a),
        (Version::V5, aliased, Close::TopicAliasInvalid, 0x94),
        (Version::V5, connect_frame(5, CAR), Close::ProtocolError, 0x82),
        (Version::V3, connect_frame(4, CAR), Close::ProtocolError, 0x82),
        (Version::V5, vec![0x30, 0xff, 0xff, 0xff, 0x7f], Close::PacketTooLarge, 0x95),
        (Version::V3, vec![0x30, 0xff, 0xff, 0xff, 0x7f], Close::PacketTooLarge, 0x95),
        (Version::V5, vec![0x38, 4, 0, 1, b'a', 0], Close::ProtocolError, 0x82),
        (Version::V5, vec![0x00, 0], Close::Malformed, 0x81),
        (Version::V5, vec![0x62, 2, 0, 1], Close::ProtocolError, 0x82),
    ] {
        let mut driven = Driven::new(version, rules());
        assert_eq!(driven.feed(&bytes), Err(wanted), "{bytes:02x?}");
        assert!(driven.appended.is_empty());
        driven.session.say_goodbye(wanted, &mut driven.out);
        let out = driven.take_out();
        match version {
            Version::V3 => assert!(out.is_empty()),
            Version::V5 => assert_eq!((out[0], out[2]), (0xe0, reason), "{wanted:?}"),
        }
    }
    let mut v3 = Driven::new(Version::V3, rules());
    v3.feed(&retained(Version::V3)).unwrap();
    assert_eq!(v3.appended.len(), 1, "MQTT 3.1.1 can't be told: the flag is ignored");
}

#[test]
fn the_window_bounds_what_is_unacknowledged() {
    let mut v3 = Driven::new(Version::V3, rules());
    let mut v5 = Driven::new(Version::V5, rules());
    for id in 1..=4 {
        assert!(!v3.session.is_full(&v3.rules.limits));
        v3.feed(&publish(Version::V3, &to("telemetry"), QoS::AtLeastOnce, id, b"x")).unwrap();
        v5.feed(&publish(Version::V5, &to("telemetry"), QoS::AtLeastOnce, id, b"x")).unwrap();
    }
    assert!(v3.session.is_full(&v3.rules.limits), "its socket is not read");
    assert!(!v5.session.is_full(&v5.rules.limits), "it knows its bound, and may ping");
    v5.feed(&[0xc0, 0]).unwrap();
    let fifth = publish(Version::V5, &to("telemetry"), QoS::AtLeastOnce, 5, b"x");
    assert_eq!(v5.feed(&fifth), Err(Close::ReceiveMaximumExceeded));
    let mut qos0 = Driven::new(Version::V5, rules());
    for _ in 0..4 {
        qos0.feed(&publish(Version::V5, &to("telemetry"), QoS::AtMostOnce, 0, b"x")).unwrap();
    }
    assert!(qos0.session.is_full(&qos0.rules.limits), "QoS 0 has no bound in the protocol");
}

#[test]
fn connack_of_mqtt_5_says_what_is_offered() {
    let mut frame = connect_frame(5, "");
    frame[11] = 0; // keep-alive 0
    let Ok(Packet::Connect(connect)) = wire::decode(Version::V5, frame.as_slice().into()) else { panic!() };
    let rules = rules();
    let (session, answer) = Session::open(*connect, &rules, None, || "assigned-1".to_owned()).unwrap();
    let mut out = BytesMut::new();
    session.accept(answer, &rules, &mut out).unwrap();
    let Some((v5::Packet::ConnectAck(ack), _)) = v5::Codec::new(0, 0).decode(&mut out).unwrap() else { panic!() };
    assert_eq!(ack.reason_code, v5::ConnectAckReason::Success);
    assert_eq!((ack.max_qos, ack.receive_max.get(), ack.session_present), (QoS::AtLeastOnce, 4, false));
    assert_eq!((ack.max_packet_size, ack.retain_available), (Some(256 * 1024), false));
    assert_eq!(ack.assigned_client_id.as_deref(), Some("assigned-1"));
    assert_eq!(ack.server_keepalive_sec, Some(rules.limits.max_keep_alive_s()), "a client without keep-alive gets one");
    assert!(!ack.wildcard_subscription_available && !ack.shared_subscription_available);
}

fn open_with(will: Option<wire::Will>, version: Version, rules: &Rules) -> Result<Session, Refusal> {
    let connect = Connect {
        version,
        client_id: CAR.to_owned(),
        keep_alive_s: 60,
        will,
        receive_maximum: u16::MAX,
        max_packet_bytes: 0,
        keeps_session: false,
        authenticates: false,
    };
    Session::open(connect, rules, None, String::new).map(|(session, _)| session)
}

#[test]
fn a_will_is_a_status_of_the_car() {
    let will = |topic: &str, qos, retain, bytes: usize| {
        Some(wire::Will { topic: topic.to_owned(), payload: vec![b'x'; bytes].into(), qos, retain })
    };
    let strict = Rules { client_id: ClientIdRule::Vin, ..rules() };
    let (v3, v5) = (Version::V3, Version::V5);
    let (qos1, qos2) = (QoS::AtLeastOnce, QoS::ExactlyOnce);
    for (version, rules, will, wanted) in [
        (v5, rules(), will(&to("telemetry"), qos1, false, 1), Some(Refusal::WillTopic)),
        (v3, rules(), will("a/b", qos1, false, 1), Some(Refusal::WillTopic)),
        (v5, strict.clone(), will("vehicles/OTHER/status", qos1, false, 1), Some(Refusal::WillNotAuthorized)),
        (v5, rules(), will("vehicles/OTHER/status", qos1, false, 1), None),
        (v5, rules(), will(&to("status"), qos2, false, 1), Some(Refusal::WillQos)),
        (v3, rules(), will(&to("status"), qos2, true, 1), None),
        (v5, rules(), will(&to("status"), qos1, true, 1), Some(Refusal::WillRetain)),
        (v3, rules(), will(&to("status"), qos1, false, 1_025), Some(Refusal::WillTooLarge)),
        (v3, strict, will(&to("status"), qos1, false, 1_024), None),
    ] {
        assert_eq!(open_with(will, version, &rules).err(), wanted);
    }
    for (goodbye, left) in [(&[0xe0, 0][..], false), (&[0xe0, 1, 4], true)] {
        let mut driven = Driven::new(v5, rules());
        driven.session = open_with(will(&to("status"), qos1, false, 3), v5, &rules()).unwrap();
        assert_eq!(driven.feed(goodbye), Err(Close::Goodbye));
        let will = driven.session.take_will();
        assert_eq!(will.as_ref().map(|w| (w.kind, w.vin().to_owned())), left.then(|| (kind("status"), CAR.to_owned())));
        assert!(driven.session.take_will().is_none(), "once");
    }
}

#[test]
fn refusals_are_said_in_the_clients_version() {
    for (version, refusal, wanted) in [
        (None, Refusal::Version, &[0x20, 2, 0, 1][..]),
        (Some(Version::V3), Refusal::ClientId, &[0x20, 2, 0, 2]),
        (Some(Version::V3), Refusal::Busy, &[0x20, 2, 0, 3]),
        (Some(Version::V3), Refusal::WillTopic, &[0x20, 2, 0, 5]),
        (Some(Version::V3), Refusal::Malformed, &[]),
    ] {
        let mut out = BytesMut::new();
        refuse(version, refusal, &mut out);
        assert_eq!(out, wanted);
    }
    for (refusal, code) in [(Refusal::Busy, 0x89), (Refusal::ClientId, 0x85), (Refusal::Authentication, 0x8c)] {
        let mut out = BytesMut::new();
        refuse(Some(Version::V5), refusal, &mut out);
        assert_eq!((out[0], out[3]), (0x20, code));
    }
}

/// SUBSCRIBE (packet identifier 3) to these filters with QoS 1.
fn subscribe(version: Version, filters: &[&str]) -> Vec<u8> {
    let mut body = vec![0, 3];
    if version == Version::V5 {
        body.push(0);
    }
    for filter in filters {
        body.extend([0, filter.len() as u8]);
        body.extend(filter.as_bytes());
        body.push(1);
    }
    [vec![0x82, body.len() as u8], body].concat()
}

#[test]
fn a_car_may_subscribe_to_its_own_alerts_and_to_nothing_else() {
    let filters = [&to("alerts")[..], "vehicles/OTHER/alerts", "vehicles/+/alerts", "#", "$share/g/a", "x"];
    let mut v3 = Driven::new(Version::V3, rules());
    v3.feed(&subscribe(Version::V3, &filters)).unwrap();
    assert_eq!(v3.take_out(), [0x90, 8, 0, 3, 1, 0x80, 0x80, 0x80, 0x80, 0x80]);
    assert!(matches!(v3.steps[..], [Step::Subscribed]));
    let mut v5 = Driven::new(Version::V5, rules());
    v5.feed(&subscribe(Version::V5, &filters)).unwrap();
    assert_eq!(v5.take_out(), [0x90, 9, 0, 3, 0, 1, 0x87, 0xa2, 0xa2, 0x9e, 0x87]);
    let mut none = Driven::new(Version::V5, Rules { alerts: false, ..rules() });
    none.feed(&subscribe(Version::V5, &filters[..1])).unwrap();
    assert_eq!(none.take_out(), [0x90, 4, 0, 3, 0, 0x83], "a bridge without alerts says so");
    assert!(none.steps.is_empty());
}

#[test]
fn alerts_are_sent_acknowledged_and_stopped() {
    for version in BOTH {
        let mut driven = Driven::new(version, rules());
        let limits = driven.rules.limits;
        assert!(driven.session.queue_alert(Bytes::from_static(b"early"), &limits), "nobody has asked for it");
        driven.feed(&subscribe(version, &[&to("alerts")])).unwrap();
        driven.take_out();
        assert!(!driven.session.queue_alert(Bytes::from_static(b"{}"), &limits));
        assert_eq!(
            driven.session.send_alerts(&driven.rules, &mut driven.out),
            SentAlerts::default(),
            "QoS 1 waits for the PUBACK"
        );
        let sent = driven.take_out();
        assert_eq!(sent, publish(version, &to("alerts"), QoS::AtLeastOnce, 1, b"{}"));
        assert_eq!(driven.session.outstanding_alerts(), 1);
        driven.feed(&[0x40, 2, 0, 1, 0x40, 2, 0, 1]).unwrap();
        assert!(matches!(driven.steps[..], [Step::Subscribed, Step::AlertAcknowledged]), "{:?}", driven.steps);
        let unsubscribe = |filter: &str| {
            let mut frame = subscribe(version, &[filter]);
            frame.pop(); // no options
            (frame[0], frame[1]) = (0xa2, frame[1] - 1);
            frame
        };
        driven.feed(&unsubscribe("vehicles/+/alerts")).unwrap();
        driven.feed(&unsubscribe(&to("alerts"))).unwrap();
        let wanted = match version {
            Version::V3 => vec![0xb0, 2, 0, 3, 0xb0, 2, 0, 3],
            Version::V5 => vec![0xb0, 4, 0, 3, 0, 0x11, 0xb0, 4, 0, 3, 0, 0],
        };
        assert_eq!(driven.take_out(), wanted);
        assert!(matches!(driven.steps.last(), Some(Step::Unsubscribed)));
        assert!(driven.session.queue_alert(Bytes::from_static(b"late"), &limits));
    }
}

#[test]
fn a_client_that_does_not_read_is_sent_no_more_alerts() {
    let mut driven = Driven::new(Version::V3, rules());
    let limits = driven.rules.limits;
    driven.feed(&subscribe(Version::V3, &[&to("alerts")])).unwrap();
    driven.session.alerts.as_mut().unwrap().qos = QoS::AtMostOnce;
    driven.out = BytesMut::zeroed(MAX_OUT_BYTES); // not taken yet
    driven.session.queue_alert(Bytes::from_static(b"{}"), &limits);
    assert_eq!(driven.session.send_alerts(&driven.rules, &mut driven.out), SentAlerts::default());
    driven.out.clear();
    assert_eq!(driven.session.send_alerts(&driven.rules, &mut driven.out).delivered, 1);
}

#[test]
fn no_bytes_make_a_session_panic_or_acknowledge() {
    let mut random = Random::new(11);
    for round in 0..20_000u32 {
        let version = BOTH[round as usize % 2];
        let mut driven = Driven::new(version, rules());
        let topics = [to("telemetry"), to("alerts"), "x".to_owned()];
        let mut bytes = Vec::new();
        for _ in 0..1 + random.below(4) {
            let qos = *random.one_of(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce]);
            let id = if qos == QoS::AtMostOnce { 0 } else { 1 + random.below(5) as u16 };
            bytes.extend(publish(version, random.one_of(&topics).as_str(), qos, id, b"payload"));
            bytes.extend(subscribe(version, &[&topics[random.index(topics.len())]]));
        }
        for _ in 0..random.below(4) {
            let at = random.index(bytes.len());
            bytes[at] = random.next() as u8;
        }
        let cut = random.index(bytes.len());
        let fed = driven.feed(&bytes[..cut]).and_then(|()| driven.feed(&bytes[cut..]));
        if let Err(close) = fed {
            driven.session.say_goodbye(close, &mut driven.out);
        }
        let (found, _) = driven.session.acknowledge(&mut driven.out);
        assert_eq!(found.pubacks, 0, "nothing was committed");
    }
}
