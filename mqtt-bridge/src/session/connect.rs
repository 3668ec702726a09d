//! CONNECT and CONNACK: which client is accepted, and the answer it gets.

use std::num::NonZeroU16;

use bytes::BytesMut;
use rmqtt_codec::types::QoS;
use rmqtt_codec::{v3, v5};

use super::{Message, Rules, Session, only_car};
use crate::close::{Close, Refusal};
use crate::topics::Topics;
use crate::window::Window;
use crate::wire::{self, Connect, Malformed, Version};

/// Long enough for {"vin":…,"status":"lost"}; held for as long as the connection, so it has to be short.
const MAX_WILL_BYTES: usize = 1_024;

/// MQTT allows 65,535 bytes; a VIN has 17.
const MAX_CLIENT_ID_BYTES: usize = 256;

impl Session {
    /// Takes a CONNECT packet, and says what CONNACK has to.
    ///
    /// `certified`: the VIN of the client's certificate; then that is the car it speaks for, whatever it is called.
    /// `assigned`: makes the client identifier of a client that has none.
    pub(crate) fn open(
        connect: Connect,
        rules: &Rules,
        certified: Option<Box<str>>,
        assigned: impl FnOnce() -> String,
    ) -> Result<(Self, ConnAck), Refusal> {
        if connect.authenticates {
            return Err(Refusal::Authentication);
        }
        if connect.client_id.len() > MAX_CLIENT_ID_BYTES || connect.client_id.contains('\0') {
            return Err(Refusal::ClientId);
        }
        let (client_id, assigned) = match connect.client_id {
            id if id.is_empty() => (assigned(), true),
            id => (id, false),
        };
        let will = match connect.will {
            Some(will) => {
                let only = only_car(certified.as_deref(), &client_id, rules);
                Some(Box::new(check_will(connect.version, will, only, &rules.topics)?))
            }
            None => None,
        };
        let keep_alive_s = match connect.keep_alive_s {
            0 => rules.limits.max_keep_alive_s(),
            wanted => wanted.min(rules.limits.max_keep_alive_s()),
        };
        let answer = ConnAck {
            assigned_client_id: assigned.then(|| client_id.clone()),
            keep_alive_s: (keep_alive_s != connect.keep_alive_s).then_some(keep_alive_s),
            ends_session: connect.keeps_session,
        };
        let session = Self {
            version: connect.version,
            client_id: client_id.into_boxed_str(),
            certified,
            keep_alive_s,
            max_packet_bytes: connect.max_packet_bytes,
            receive_maximum: connect.receive_maximum,
            window: Window::default(),
            will,
            alerts: None,
        };
        Ok((session, answer))
    }

    /// Writes the CONNACK that accepts the client.
    pub(crate) fn accept(&self, answer: ConnAck, rules: &Rules, out: &mut BytesMut) -> Result<(), Close> {
        match self.version {
            Version::V3 => {
                wire::put_v3(connack_v3(v3::ConnectAckReason::ConnectionAccepted), out);
                Ok(())
            }
            Version::V5 => {
                let packet = answer.into_v5(rules);
                wire::put_v5(packet, self.max_packet_bytes, out).map_err(|_| Close::PacketTooLarge)
            }
        }
    }
}

/// What an accepting CONNACK of MQTT 5 has to say beyond the usual.
#[derive(Debug)]
pub(crate) struct ConnAck {
    assigned_client_id: Option<String>,
    keep_alive_s: Option<u16>,
    ends_session: bool,
}

impl ConnAck {
    fn into_v5(self, rules: &Rules) -> v5::Packet {
        v5::ConnectAck {
            receive_max: NonZeroU16::new(rules.limits.max_in_flight).unwrap_or(NonZeroU16::MIN),
            max_qos: QoS::AtLeastOnce,
            max_packet_size: Some(rules.limits.max_packet_bytes),
            assigned_client_id: self.assigned_client_id.map(Into::into),
            retain_available: false,
            wildcard_subscription_available: false,
            subscription_identifiers_available: false,
            shared_subscription_available: false,
            server_keepalive_sec: self.keep_alive_s,
            session_expiry_interval_secs: self.ends_session.then_some(0),
            ..v5::ConnectAck::default()
        }
        .into()
    }
}

/// Writes the CONNACK that refuses a client. `version`: as far as it is known.
pub(crate) fn refuse(version: Option<Version>, refusal: Refusal, out: &mut BytesMut) {
    if version == Some(Version::V5) {
        let mut packet = v5::ConnectAck { reason_code: refusal.v5(), ..v5::ConnectAck::default() };
        packet.reason_string = Some(refusal.label().into());
        wire::put_v5(packet.into(), 0, out).expect("no bound");
    } else if let Some(reason) = refusal.v3() {
        // Also for versions nobody knows: MQTT 3.1 and 3.1.1 clients understand it.
        wire::put_v3(connack_v3(reason), out);
    }
}

fn connack_v3(return_code: v3::ConnectAckReason) -> v3::Packet {
    v3::Packet::ConnectAck(v3::ConnectAck { return_code, session_present: false })
}

/// A will has to be a car's status, and short. MQTT 3.1.1 can't be told that QoS 2 and retaining are not offered, so
/// there the one is lowered to QoS 1 and the other ignored.
fn check_will(version: Version, will: wire::Will, only_car: Option<&str>, topics: &Topics) -> Result<Message, Refusal> {
    if version == Version::V5 && will.qos == QoS::ExactlyOnce {
        return Err(Refusal::WillQos);
    }
    if version == Version::V5 && will.retain {
        return Err(Refusal::WillRetain);
    }
    let message = Message::of_will(will.topic, will.payload, topics).filter(|message| topics.takes_wills(message.kind));
    let message = message.ok_or(Refusal::WillTopic)?;
    if only_car.is_some_and(|only| only != message.vin()) {
        return Err(Refusal::WillNotAuthorized);
    }
    if message.payload.len() > MAX_WILL_BYTES {
        return Err(Refusal::WillTooLarge);
    }
    Ok(message.detached()) // not the whole read buffer for the life of a connection
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Version => Refusal::Version,
            Malformed::ClientId => Refusal::ClientId,
            Malformed::Packet | Malformed::Protocol | Malformed::TooLarge => Refusal::Malformed,
        }
    }
}
