//! MQTT 3.1.1 and 5 on the wire: frames out of bytes, packets out of frames, bytes out of answers.
//!
//! ```text
//! bytes ─► frame_length ─► decode (rmqtt-codec) ─► Packet     the same for both versions
//! ```
//!
//! Frames are found here rather than by the codec, since the codec reserves the announced length at once, whatever
//! arrives. What the codec lets pass although the standard forbids it is refused here. No state, no I/O.

use std::num::NonZeroU16;

use bytes::{BufMut, Bytes, BytesMut};
use rmqtt_codec::error::DecodeError;
use rmqtt_codec::types::{Publish, QoS};
use rmqtt_codec::{v3, v5};
use tokio_util::codec::{Decoder, Encoder};

/// The first byte of a CONNECT packet.
pub(crate) const CONNECT: u8 = 0x10;

const LEVEL_3_1_1: u8 = 4;
const LEVEL_5: u8 = 5;

/// The protocol that a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// 3.1.1
    V3,
    /// 5
    V5,
}

/// Why bytes are not a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// Not as the standard has it.
    Packet,
    /// As the standard has it, but not allowed here.
    Protocol,
    /// A CONNECT of a protocol version that the bridge does not speak.
    Version,
    /// MQTT 3.1.1: no client identifier, though a session should be kept.
    ClientId,
    /// Longer than is allowed.
    TooLarge,
}

/// A packet from a client, whichever version it speaks.
#[derive(Debug)]
pub(crate) enum Packet {
    Connect(Box<Connect>),
    Publish(Box<Publish>),
    /// The packet identifier.
    PubAck(NonZeroU16),
    Subscribe {
        packet_id: NonZeroU16,
        filters: Vec<(String, QoS)>,
        /// MQTT 5: whether it brings a subscription identifier.
        identified: bool,
    },
    Unsubscribe {
        packet_id: NonZeroU16,
        filters: Vec<String>,
    },
    Ping,
    Disconnect {
        /// MQTT 5: the will is to be published nevertheless.
        with_will: bool,
    },
    /// What only servers send, or what the bridge has not offered.
    Unexpected,
}

/// A CONNECT packet.
#[derive(Debug)]
pub(crate) struct Connect {
    pub(crate) version: Version,
    pub(crate) client_id: String,
    /// 0: none.
    pub(crate) keep_alive_s: u16,
    pub(crate) will: Option<Will>,
    /// How many PUBLISH packets the client takes before it has acknowledged one.
    pub(crate) receive_maximum: u16,
    /// The largest packet that the client takes; 0: any.
    pub(crate) max_packet_bytes: u32,
    /// Whether the client wants its session to outlive the connection.
    pub(crate) keeps_session: bool,
    /// Whether the client wants an authentication exchange.
    pub(crate) authenticates: bool,
}

/// What is to be published when the connection ends without a DISCONNECT.
#[derive(Debug)]
pub(crate) struct Will {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
}

impl Will {
    fn new(topic: &str, payload: Bytes, qos: QoS, retain: bool) -> Self {
        Self { topic: topic.to_owned(), payload, qos, retain }
    }
}

/// Length of the frame at the start of `bytes`, header included; `None` until the header is complete.
pub(crate) fn frame_length(bytes: &[u8], max_packet_bytes: u32) -> Result<Option<usize>, Malformed> {
    let mut remaining = 0usize;
    for (i, byte) in bytes.iter().skip(1).take(4).enumerate() {
        remaining |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            let length = 1 + (i + 1) + remaining;
            return if length > max_packet_bytes as usize { Err(Malformed::TooLarge) } else { Ok(Some(length)) };
        }
    }
    if bytes.len() >= 5 { Err(Malformed::Packet) } else { Ok(None) }
}

/// The version that a CONNECT frame asks for.
pub(crate) fn version(frame: &[u8]) -> Result<Version, Malformed> {
    let body = body_start(frame);
    let Some((name, rest)) = frame[body..].split_first_chunk::<6>() else { return Err(Malformed::Packet) };
    match (name, rest.first()) {
        (b"\0\x04MQTT", Some(&LEVEL_3_1_1)) => Ok(Version::V3),
        (b"\0\x04MQTT", Some(&LEVEL_5)) => Ok(Version::V5),
        (b"\0\x04MQTT", Some(_)) | (b"\0\x06MQIs", _) => Err(Malformed::Version),
        _ => Err(Malformed::Packet),
    }
}

/// Where the variable header begins, in a complete frame.
fn body_start(frame: &[u8]) -> usize {
    1 + frame.iter().skip(1).take(4).take_while(|byte| *byte & 0x80 != 0).count() + 1
}

/// Reads one complete frame.
pub(crate) fn decode(version: Version, mut frame: BytesMut) -> Result<Packet, Malformed> {
    let first = frame[0];
    let empty = frame.len() == 2;
    match first >> 4 {
        // MQTT-3.3.1-2: the codec takes DUP with QoS 0.
        3 if first & 0b1110 == 0b1000 => return Err(Malformed::Protocol),
        // The codec takes these with a body.
        12 | 13 if !empty => return Err(Malformed::Packet),
        14 if version == Version::V3 && !empty => return Err(Malformed::Packet),
        _ => {}
    }
    match version {
        Version::V3 => {
            let decoded = v3::Codec::new(0).decode(&mut frame).map_err(malformed)?;
            from_v3(decoded.ok_or(Malformed::Packet)?.0)
        }
        Version::V5 => {
            if first == CONNECT {
                set_clean_start(&mut frame);
            }
            let decoded = v5::Codec::new(0, 0).decode(&mut frame).map_err(malformed)?;
            from_v5(decoded.ok_or(Malformed::Packet)?.0)
        }
    }
}

/// The codec drops an MQTT 5 CONNECT that has no client identifier and doesn't ask for a clean start, which is
/// allowed. No sessions are kept here, so every start is a clean one.
fn set_clean_start(frame: &mut [u8]) {
    const NAME_AND_LEVEL_BYTES: usize = 7;
    let flags = body_start(frame) + NAME_AND_LEVEL_BYTES;
    if let Some(flags) = frame.get_mut(flags) {
        *flags |= 0b10;
    }
}

fn malformed(error: DecodeError) -> Malformed {
    match error {
        DecodeError::InvalidClientId => Malformed::ClientId,
        _ => Malformed::Packet,
    }
}

fn from_v3(packet: v3::Packet) -> Result<Packet, Malformed> {
    Ok(match packet {
        v3::Packet::Publish(publish) => Packet::Publish(publish),
        v3::Packet::PublishAck { packet_id } => Packet::PubAck(packet_id),
        v3::Packet::PingRequest => Packet::Ping,
        v3::Packet::Disconnect => Packet::Disconnect { with_will: false },
        v3::Packet::Subscribe { packet_id, topic_filters } => {
            let filters = topic_filters.into_iter().map(|(filter, qos)| (filter.to_string(), qos)).collect();
            Packet::Subscribe { packet_id, filters, identified: false }
        }
        v3::Packet::Unsubscribe { packet_id, topic_filters } => {
            let filters = topic_filters.into_iter().map(|filter| filter.to_string()).collect();
            Packet::Unsubscribe { packet_id, filters }
        }
        v3::Packet::Connect(connect) => {
            // MQTT-3.1.2-22: the codec takes a password without a user name.
            if connect.password.is_some() && connect.username.is_none() {
                return Err(Malformed::Packet);
            }
            let will = connect.last_will.map(|will| Will::new(&will.topic, will.message, will.qos, will.retain));
            Packet::Connect(Box::new(Connect {
                version: Version::V3,
                client_id: connect.client_id.to_string(),
                keep_alive_s: connect.keep_alive,
                will,
                receive_maximum: u16::MAX,
                max_packet_bytes: 0,
                keeps_session: !connect.clean_session,
                authenticates: false,
            }))
        }
        _ => Packet::Unexpected,
    })
}

fn from_v5(packet: v5::Packet) -> Result<Packet, Malformed> {
    Ok(match packet {
        v5::Packet::Publish(publish) => Packet::Publish(publish),
        v5::Packet::PublishAck(ack) => Packet::PubAck(ack.packet_id),
        v5::Packet::PingRequest => Packet::Ping,
        v5::Packet::Disconnect(disconnect) => {
            let with_will = disconnect.reason_code == v5::DisconnectReasonCode::DisconnectWithWillMessage;
            Packet::Disconnect { with_will }
        }
        v5::Packet::Subscribe(subscribe) => Packet::Subscribe {
            packet_id: subscribe.packet_id,
            filters: subscribe.topic_filters.into_iter().map(|(f, options)| (f.to_string(), options.qos)).collect(),
            identified: subscribe.id.is_some(),
        },
        v5::Packet::Unsubscribe(unsubscribe) => Packet::Unsubscribe {
            packet_id: unsubscribe.packet_id,
            filters: unsubscribe.topic_filters.into_iter().map(|filter| filter.to_string()).collect(),
        },
        v5::Packet::Connect(connect) => {
            let will = connect.last_will.map(|will| Will::new(&will.topic, will.message, will.qos, will.retain));
            Packet::Connect(Box::new(Connect {
                version: Version::V5,
                client_id: connect.client_id.to_string(),
                keep_alive_s: connect.keep_alive,
                will,
                receive_maximum: connect.receive_max.map_or(u16::MAX, NonZeroU16::get),
                max_packet_bytes: connect.max_packet_size.map_or(0, |max| max.get()),
                keeps_session: connect.session_expiry_interval_secs > 0,
                authenticates: connect.auth_method.is_some(),
            }))
        }
        _ => Packet::Unexpected,
    })
}

/// An answer did not fit what the client accepts.
#[derive(Debug)]
pub(crate) struct TooLargeForClient;

/// Writes an MQTT 3.1.1 packet.
pub(crate) fn put_v3(packet: v3::Packet, out: &mut BytesMut) {
    v3::Codec::new(0).encode(packet, out).expect("the bridge's own packets have identifiers and short strings");
}

/// Writes an MQTT 5 packet, unless it is larger than the client wants (`max_packet_bytes`; 0: any size).
pub(crate) fn put_v5(packet: v5::Packet, max_packet_bytes: u32, out: &mut BytesMut) -> Result<(), TooLargeForClient> {
    let mut codec = v5::Codec::new(0, 0);
    codec.set_max_outbound_size(max_packet_bytes);
    codec.encode(packet, out).map_err(|_| TooLargeForClient)
}

/// Writes a PUBACK. `reason`: MQTT 5 only, 0 is success; short forms as both standards allow.
pub(crate) fn put_puback(packet_id: u16, reason: u8, out: &mut BytesMut) {
    let [high, low] = packet_id.to_be_bytes();
    if reason == 0 {
        out.put_slice(&[0x40, 2, high, low]);
    } else {
        out.put_slice(&[0x40, 3, high, low, reason]);
    }
}

/// Writes a PINGRESP.
pub(crate) fn put_pong(out: &mut BytesMut) {
    out.put_slice(&[0xd0, 0]);
}

/// Writes a PUBLISH.
pub(crate) fn put_publish(
    version: Version,
    topic: &str,
    packet_id: Option<NonZeroU16>,
    payload: Bytes,
    max_packet_bytes: u32,
    out: &mut BytesMut,
) -> Result<(), TooLargeForClient> {
    let publish = Box::new(Publish {
        dup: false,
        retain: false,
        qos: if packet_id.is_some() { QoS::AtLeastOnce } else { QoS::AtMostOnce },
        topic: topic.to_owned().into(),
        packet_id,
        payload,
        properties: None,
    });
    match version {
        Version::V3 => {
            put_v3(v3::Packet::Publish(publish), out);
            Ok(())
        }
        Version::V5 => put_v5(v5::Packet::Publish(publish), max_packet_bytes, out),
    }
}

#[cfg(test)]
pub(crate) mod tests;
