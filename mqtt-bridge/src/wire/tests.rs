//! Frames and packets, from bytes as they may come.

use test_support::random::Random;

use super::*;

/// Connects as `id`: protocol level 4 or 5, clean start, keep-alive 60 s.
pub(crate) fn connect_frame(level: u8, id: &str) -> Vec<u8> {
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', level, 0b10, 0, 60];
    if level == 5 {
        body.push(0); // properties
    }
    body.extend([0, id.len() as u8]);
    body.extend(id.as_bytes());
    [vec![CONNECT, body.len() as u8], body].concat()
}

fn decode_bytes(version: Version, bytes: &[u8]) -> Result<Packet, Malformed> {
    let length = frame_length(bytes, u32::MAX)?.expect("a whole header");
    assert_eq!(length, bytes.len());
    decode(version, bytes.into())
}

#[test]
fn frames_are_found_byte_by_byte() {
    for remaining in [0usize, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152] {
        let mut header = BytesMut::from(&[0x30][..]);
        let mut rest = remaining;
        loop {
            let byte = (rest & 0x7f) as u8;
            rest >>= 7;
            header.put_u8(if rest > 0 { byte | 0x80 } else { byte });
            if rest == 0 {
                break;
            }
        }
        for short in 0..header.len() {
            assert_eq!(frame_length(&header[..short], u32::MAX), Ok(None), "{remaining} {short}");
        }
        let length = header.len() + remaining;
        assert_eq!(frame_length(&header, u32::MAX), Ok(Some(length)));
        assert_eq!(frame_length(&header, length as u32), Ok(Some(length)), "as large as allowed");
        if length > 2 {
            assert_eq!(frame_length(&header, length as u32 - 1), Err(Malformed::TooLarge));
        }
    }
    assert_eq!(frame_length(&[0x30, 0xff, 0xff, 0xff, 0xff], u32::MAX), Err(Malformed::Packet));
}

#[test]
fn the_version_is_what_connect_says() {
    assert_eq!(version(&connect_frame(4, "a")), Ok(Version::V3));
    assert_eq!(version(&connect_frame(5, "a")), Ok(Version::V5));
    assert_eq!(version(&connect_frame(6, "a")), Err(Malformed::Version));
    assert_eq!(version(&connect_frame(3, "a")), Err(Malformed::Version), "MQTT 3.1 is called MQIsdp");
    assert_eq!(version(b"\x10\x0e\0\x06MQIsdp\x03\x02\0\x3c\0\0"), Err(Malformed::Version));
    assert_eq!(version(b"\x10\x0c\0\x04MQTX\x04\x02\0\x3c\0\0"), Err(Malformed::Packet));
    assert_eq!(version(b"\x10\x00"), Err(Malformed::Packet));
    assert_eq!(version(b"\x10\x03\0\x04M"), Err(Malformed::Packet));
}

#[test]
fn packets_mean_the_same_in_both_versions() {
    for version in [Version::V3, Version::V5] {
        let v5 = version == Version::V5;
        // Properties of length 0 where MQTT 5 has them.
        let frame = |first: u8, before: &[u8], after: &[u8]| {
            let body = [before, if v5 { &[0][..] } else { &[] }, after].concat();
            [vec![first, body.len() as u8], body].concat()
        };
        let publish = decode_bytes(version, &frame(0x3b, b"\0\x03a/b\x12\x34", b"payload")).unwrap();
        let Packet::Publish(p) = publish else { panic!("{publish:?}") };
        assert_eq!(
            (&*p.topic, &p.payload[..], p.dup, p.retain, p.qos),
            ("a/b", &b"payload"[..], true, true, QoS::AtLeastOnce)
        );
        assert_eq!(p.packet_id, NonZeroU16::new(0x1234));

        let subscribe = decode_bytes(version, &frame(0x82, &[0, 9], b"\0\x01a\x01\0\x01b\x00")).unwrap();
        let Packet::Subscribe { packet_id, filters, identified: false } = subscribe else { panic!("{subscribe:?}") };
        assert_eq!(packet_id.get(), 9);
        assert_eq!(filters, [("a".to_owned(), QoS::AtLeastOnce), ("b".to_owned(), QoS::AtMostOnce)]);

        let unsubscribe = decode_bytes(version, &frame(0xa2, &[0, 9], b"\0\x01a")).unwrap();
        assert!(matches!(unsubscribe, Packet::Unsubscribe { filters, .. } if filters == ["a"]));
        assert!(matches!(decode_bytes(version, &[0x40, 2, 0, 7]), Ok(Packet::PubAck(id)) if id.get() == 7));
        assert!(matches!(decode_bytes(version, &[0xc0, 0]), Ok(Packet::Ping)));
        assert!(matches!(decode_bytes(version, &[0xe0, 0]), Ok(Packet::Disconnect { with_will: false })));
        for server_only in [&[0x20, 2, 0, 0][..], &[0xd0, 0], &[0x50, 2, 0, 1], &[0x62, 2, 0, 1], &[0x70, 2, 0, 1]] {
            let packet = decode_bytes(version, server_only);
            assert!(matches!(packet, Ok(Packet::Unexpected) | Err(Malformed::Packet)), "{packet:?}");
        }
    }
    assert!(matches!(decode_bytes(Version::V5, &[0xe0, 1, 4]), Ok(Packet::Disconnect { with_will: true })));
    assert!(matches!(decode_bytes(Version::V5, &[0xf0, 0]), Ok(Packet::Unexpected) | Err(_)));
}

#[test]
fn what_the_standard_forbids_is_malformed() {
    use Malformed::{ClientId, Packet as Bad, Protocol};
    for (version, bytes, wanted) in [
        (Version::V3, &b"\x38\x03\0\x01a"[..], Protocol),   // DUP with QoS 0
        (Version::V5, b"\x38\x04\0\x01a\0", Protocol),      // the same
        (Version::V3, b"\x36\x05\0\x01a\0\x01", Bad),       // QoS 3
        (Version::V3, b"\x32\x05\0\x01a\0\0", Bad),         // packet identifier 0
        (Version::V3, b"\x30\x05\0\x09a\0\x01", Bad),       // topic longer than the packet
        (Version::V3, b"\x30\x03\0\x01\xff", Bad),          // topic that is not UTF-8
        (Version::V3, b"\x82\x02\0\x01", Bad),              // SUBSCRIBE to nothing
        (Version::V3, b"\x80\x06\0\x01\0\x01a\0", Bad),     // SUBSCRIBE with wrong flags
        (Version::V3, b"\x82\x06\0\x01\0\x01a\x03", Bad),   // QoS 3
        (Version::V5, b"\x82\x07\0\x01\0\0\x01a\xc0", Bad), // reserved bits
        (Version::V3, b"\xa2\x02\0\x01", Bad),              // UNSUBSCRIBE from nothing
        (Version::V3, b"\xc0\x01\0", Bad),                  // PINGREQ with a body
        (Version::V3, b"\xe0\x01\0", Bad),                  // DISCONNECT with a body
        (Version::V5, b"\xe0\x01\x01", Bad),                // unknown reason
        (Version::V3, b"\x40\x03\0\x01\0", Bad),            // PUBACK too long
        (Version::V3, b"\x00\x00", Bad),                    // reserved packet type
        (Version::V3, b"\xf0\x00", Bad),                    // AUTH is MQTT 5
        (Version::V5, b"\x30\x05\0\x01a\x02\x99", Bad),     // property of another packet, cut short
        (Version::V3, b"\x10\x0c\0\x04MQTT\x04\x00\0\x3c\0\0", ClientId), // a session for nobody
        (Version::V3, b"\x10\x0c\0\x04MQTT\x04\x03\0\x3c\0\0", Bad), // reserved flag
        (Version::V3, b"\x10\x0c\0\x04MQTT\x04\x0a\0\x3c\0\0", Bad), // will QoS without a will
        (Version::V3, b"\x10\x0f\0\x04MQTT\x04\x42\0\x3c\0\0\0\x01p", Bad), // password without a user
    ] {
        assert_eq!(decode_bytes(version, bytes).err(), Some(wanted), "{version:?} {bytes:02x?}");
    }
}

#[test]
fn mqtt_5_takes_an_empty_client_id_whether_or_not_it_starts_clean() {
    for flags in [0, 0b10] {
        let mut frame = connect_frame(5, "");
        frame[9] = flags;
        assert!(matches!(decode_bytes(Version::V5, &frame), Ok(Packet::Connect(c)) if c.client_id.is_empty()));
    }
}

#[test]
fn connect_says_what_the_client_wants() {
    let properties = [0x11, 0, 0, 0, 9, 0x21, 0, 5, 0x27, 0, 0, 1, 0]; // session expiry, receive maximum, packet size
    let mut body = b"\0\x04MQTT\x05\x06\0\x1e".to_vec();
    body.push(properties.len() as u8);
    body.extend(properties);
    body.extend(b"\0\x03car\0\0\x01t\0\x01m"); // client id; will properties, topic, payload
    let frame = [vec![CONNECT, body.len() as u8], body].concat();
    let Packet::Connect(c) = decode_bytes(Version::V5, &frame).unwrap() else { panic!() };
    assert_eq!((&*c.client_id, c.keep_alive_s, c.receive_maximum, c.max_packet_bytes), ("car", 30, 5, 256));
    assert!(c.keeps_session && !c.authenticates);
    let will = c.will.unwrap();
    assert_eq!((&*will.topic, &will.payload[..], will.qos, will.retain), ("t", &b"m"[..], QoS::AtMostOnce, false));
}

#[test]
fn pubacks_are_read_by_the_codec() {
    for (reason, wanted) in [(0, v5::PublishAckReason::Success), (0x90, v5::PublishAckReason::TopicNameInvalid)] {
        let mut out = BytesMut::new();
        put_puback(0x1234, reason, &mut out);
        let Some((v5::Packet::PublishAck(ack), _)) = v5::Codec::new(0, 0).decode(&mut out).unwrap() else { panic!() };
        assert_eq!((ack.packet_id.get(), ack.reason_code), (0x1234, wanted));
    }
    let mut out = BytesMut::new();
    put_puback(7, 0, &mut out);
    let decoded = v3::Codec::new(0).decode(&mut out).unwrap();
    assert!(matches!(decoded, Some((v3::Packet::PublishAck { packet_id }, _)) if packet_id.get() == 7));
}

#[test]
fn no_bytes_make_the_decoder_panic() {
    let mut random = Random::new(7);
    for _ in 0..200_000 {
        let remaining = random.index(60);
        let mut frame = random.bytes(remaining + 2);
        // Often a packet type that exists with few flags, and lengths that fit.
        if random.chance(3, 4) {
            frame[0] = *random.one_of(&[0x10, 0x30, 0x32, 0x40, 0x82, 0xa2, 0xc0, 0xe0, 0xf0]);
            frame.iter_mut().skip(2).filter(|b| **b % 3 == 0).for_each(|b| *b %= 8);
        }
        frame[1] = remaining as u8;
        let _ = version(&frame);
        let _ = decode(Version::V3, frame.as_slice().into());
        let _ = decode(Version::V5, frame.as_slice().into());
    }
    // A valid packet with a few bytes wrong gets further.
    for i in 0..100_000 {
        let mut frame = connect_frame(if i % 2 == 0 { 4 } else { 5 }, "WVWZZZ1JZXW000001");
        for _ in 0..1 + random.below(3) {
            let at = random.index(frame.len() - 2) + 2;
            frame[at] = random.next() as u8;
        }
        let _ = version(&frame).and_then(|version| decode(version, frame.as_slice().into()));
    }
}
