//! One client's side of the protocol, from CONNECT on: what a packet means, what is answered, what is remembered.
//!
//! ```text
//! Packet ─► receive ─► Step::Append ──► (connection gives it to the log) ──► Window ─► acknowledge ─► PUBACK
//!                  ├─► bytes in `out`: SUBACK, UNSUBACK, PINGRESP
//!                  └─► Close
//! ```
//!
//! Bytes in, bytes out: no sockets, no clocks, no log. A session lasts as long as its connection. Nothing is kept for a
//! client that comes back (CONNACK: session present 0), because nothing is needed: acknowledged messages are in the
//! log, and the car repeats the others, as MQTT requires for new and for old sessions.

mod connect;
mod message;

use std::borrow::Cow;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use rmqtt_codec::types::{Publish, QoS};
use rmqtt_codec::{v3, v5};

use crate::alerts::AlertQueue;
use crate::args::{ClientIdRule, Limits};
use crate::close::Close;
use crate::topics::Topics;
use crate::window::{Fate, Window};
use crate::wire::{self, Packet, Version};

pub(crate) use connect::{ConnAck, refuse};
pub(crate) use message::Message;

/// Bytes that a client has not taken yet. Beyond that nothing is read from it, and it is sent no more alerts.
pub(crate) const MAX_OUT_BYTES: usize = 16 * 1_024;

/// What all sessions have in common.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) topics: Arc<Topics>,
    pub(crate) client_id: ClientIdRule,
    pub(crate) limits: Limits,
    /// Whether clients may subscribe to their alerts.
    pub(crate) alerts: bool,
}

/// What is to be done after a packet.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing more.
    Done,
    /// Give this to the log.
    Append(Message),
    /// The publish was refused, and its PUBACK (MQTT 5) says so in its turn.
    RefusedPublish(Close),
    /// The client wants its alerts from now on.
    Subscribed,
    /// The client does not want its alerts any more.
    Unsubscribed,
    /// An alert has arrived at the client.
    AlertAcknowledged,
}

/// What `acknowledge` found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    /// PUBACKs that say success.
    pub(crate) pubacks: u64,
    /// Records the log has decided on.
    pub(crate) decided: u64,
    /// What they held of the byte budget.
    pub(crate) bytes: u32,
    /// When the first of them was given to the log.
    pub(crate) oldest: Option<Instant>,
}

/// What `send_alerts` did that is final.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SentAlerts {
    /// Sent with QoS 0: nothing more will be heard of them.
    pub(crate) delivered: u64,
    /// Larger than the client takes.
    pub(crate) dropped: u64,
}

/// One client, from an accepted CONNECT to the end of the connection.
#[derive(Debug)]
pub(crate) struct Session {
    version: Version,
    client_id: Box<str>,
    /// The VIN of its certificate, if it has one.
    certified: Option<Box<str>>,
    keep_alive_s: u16,
    max_packet_bytes: u32,
    receive_maximum: u16,
    window: Window,
    will: Option<Box<Message>>,
    alerts: Option<Box<AlertQueue>>,
}

impl Session {
    /// The VIN of the car whose alerts the client may have: that of its certificate, else its identifier.
    pub(crate) fn car(&self) -> &str {
        self.certified.as_deref().unwrap_or(&self.client_id)
    }

    /// Under which a later connection replaces this one. With a certificate that takes the same car: no identifier
    /// lets one car end another one's connection. NUL: no client that is asked for no certificate can have such a name.
    pub(crate) fn directory_key(&self) -> Cow<'_, str> {
        match &self.certified {
            Some(vin) => format!("{vin}\0{}", self.client_id).into(),
            None => (&*self.client_id).into(),
        }
    }

    /// The protocol it speaks.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// The keep-alive in force, in seconds.
    pub(crate) fn keep_alive_s(&self) -> u16 {
        self.keep_alive_s
    }

    /// The publishes that are not answered yet.
    pub(crate) fn window(&mut self) -> &mut Window {
        &mut self.window
    }

    /// Whether too much is unacknowledged to read the socket.
    ///
    /// An MQTT 5 client knows how many QoS 1 publishes it may send, so it is read on (it may ping); one that knows
    /// no bounds is not.
    pub(crate) fn is_full(&self, limits: &Limits) -> bool {
        let bounded = match self.version {
            Version::V3 => self.window.len(),
            Version::V5 => self.window.len() - self.window.to_acknowledge(),
        };
        bounded >= usize::from(limits.max_in_flight)
    }

    /// Takes one packet.
    pub(crate) fn receive(
        &mut self,
        packet: Packet,
        rules: &Rules,
        now: Instant,
        out: &mut BytesMut,
    ) -> Result<Step, Close> {
        match packet {
            Packet::Publish(publish) => self.publish(publish, rules, now),
            Packet::PubAck(packet_id) => {
                // An unknown one: of an alert from before UNSUBSCRIBE, or of none.
                let known = self.alerts.as_mut().is_some_and(|queue| queue.acknowledge(packet_id));
                Ok(if known { Step::AlertAcknowledged } else { Step::Done })
            }
            Packet::Ping => {
                wire::put_pong(out);
                Ok(Step::Done)
            }
            Packet::Subscribe { packet_id, filters, identified } => {
                self.subscribe(packet_id, &filters, identified, rules, out)
            }
            Packet::Unsubscribe { packet_id, filters } => self.unsubscribe(packet_id, &filters, rules, out),
            Packet::Disconnect { with_will } => {
                if !with_will {
                    self.will = None;
                }
                Err(Close::Goodbye)
            }
            Packet::Connect(_) | Packet::Unexpected => Err(Close::ProtocolError),
        }
    }

    fn publish(&mut self, publish: Box<Publish>, rules: &Rules, now: Instant) -> Result<Step, Close> {
        if publish.qos == QoS::ExactlyOnce {
            return Err(Close::QosNotSupported);
        }
        if self.version == Version::V5 {
            if publish.retain {
                return Err(Close::RetainNotSupported);
            }
            if publish.properties.as_ref().is_some_and(|p| p.topic_alias.is_some()) {
                return Err(Close::TopicAliasInvalid);
            }
            if publish.packet_id.is_some() && self.window.to_acknowledge() >= usize::from(rules.limits.max_in_flight) {
                return Err(Close::ReceiveMaximumExceeded);
            }
        }
        let packet_id = publish.packet_id;
        let refused = match Message::of_packet(publish, &rules.topics) {
            None => Close::TopicInvalid,
            Some(message) if self.only_car(rules).is_some_and(|only| only != message.vin()) => Close::NotAuthorized,
            Some(message) => return Ok(Step::Append(message)),
        };
        self.refuse(packet_id.map_or(0, NonZeroU16::get), refused, now).map(|()| Step::RefusedPublish(refused))
    }

    /// Refuses a publish. Only a PUBACK of MQTT 5 can say no. MQTT 3.1.1 (3.3.5) and QoS 0 leave closing the
    /// connection; acknowledging would claim that the log has it.
    pub(crate) fn refuse(&mut self, packet_id: u16, refused: Close, now: Instant) -> Result<(), Close> {
        match (self.version, packet_id, refused.disconnect_reason()) {
            (Version::V5, 1.., Some(reason)) => {
                self.window.push(packet_id, Fate::Refused(reason.into()), 0, now);
                Ok(())
            }
            _ => Err(refused),
        }
    }

    fn only_car(&self, rules: &Rules) -> Option<&str> {
        only_car(self.certified.as_deref(), &self.client_id, rules)
    }

    /// Writes the PUBACKs of the publishes at the front of the window that are decided.
    ///
    /// # Errors
    /// [`Close::NotDurable`] at the first one that is not durable; those before it are acknowledged.
    pub(crate) fn acknowledge(&mut self, out: &mut BytesMut) -> (Acknowledged, Result<(), Close>) {
        let mut found = Acknowledged::default();
        while let Some(entry) = self.window.pop_decided() {
            found.bytes += entry.bytes;
            let reason = match entry.fate {
                Fate::Refused(reason) => reason,
                Fate::Durable => 0,
                Fate::Pending | Fate::Failed => {
                    found.decided += 1;
                    return (found, Err(Close::NotDurable));
                }
            };
            if reason == 0 {
                found.decided += 1;
                found.oldest = found.oldest.or(Some(entry.since));
            }
            if entry.packet_id != 0 {
                wire::put_puback(entry.packet_id, reason, out);
                found.pubacks += u64::from(reason == 0);
            }
        }
        (found, Ok(()))
    }

    fn subscribe(
        &mut self,
        packet_id: NonZeroU16,
        filters: &[(String, QoS)],
        identified: bool,
        rules: &Rules,
        out: &mut BytesMut,
    ) -> Result<Step, Close> {
        use v5::SubscribeAckReason as Reason;
        let mut subscribed = false;
        let mut answers = Vec::with_capacity(filters.len());
        for (filter, wanted) in filters {
            let answer = if identified {
                Reason::SubscriptionIdentifiersNotSupported
            } else if !rules.alerts {
                Reason::ImplementationSpecificError
            } else {
                match rules.topics.parse_alerts(filter) {
                    Some(vin) if vin == self.car() => {
                        let qos = wanted.less_value(QoS::AtLeastOnce);
                        self.alerts.get_or_insert_default().qos = qos;
                        subscribed = true;
                        if qos == QoS::AtLeastOnce { Reason::GrantedQos1 } else { Reason::GrantedQos0 }
                    }
                    _ if filter.starts_with("$share/") => Reason::SharedSubscriptionNotSupported,
                    _ if filter.contains(['+', '#']) => Reason::WildcardSubscriptionsNotSupported,
                    _ => Reason::NotAuthorized,
                }
            };
            answers.push(answer);
        }
        match self.version {
            Version::V3 => {
                let status = answers.into_iter().map(v3_answer).collect();
                wire::put_v3(v3::Packet::SubscribeAck { packet_id, status }, out);
            }
            Version::V5 => {
                let ack = v5::SubscribeAck { packet_id, properties: Vec::new(), reason_string: None, status: answers };
                wire::put_v5(ack.into(), self.max_packet_bytes, out).map_err(|_| Close::PacketTooLarge)?;
            }
        }
        Ok(if subscribed { Step::Subscribed } else { Step::Done })
    }

    fn unsubscribe(
        &mut self,
        packet_id: NonZeroU16,
        filters: &[String],
        rules: &Rules,
        out: &mut BytesMut,
    ) -> Result<Step, Close> {
        use v5::UnsubscribeAckReason as Reason;
        let mut unsubscribed = false;
        let mut status = Vec::with_capacity(filters.len());
        for filter in filters {
            let own = rules.topics.parse_alerts(filter).is_some_and(|vin| vin == self.car());
            let had = own && self.alerts.take().is_some();
            unsubscribed |= had;
            status.push(if had { Reason::Success } else { Reason::NoSubscriptionExisted });
        }
        match self.version {
            Version::V3 => wire::put_v3(v3::Packet::UnsubscribeAck { packet_id }, out),
            Version::V5 => {
                let ack = v5::UnsubscribeAck { packet_id, properties: Vec::new(), reason_string: None, status };
                wire::put_v5(ack.into(), self.max_packet_bytes, out).map_err(|_| Close::PacketTooLarge)?;
            }
        }
        Ok(if unsubscribed { Step::Unsubscribed } else { Step::Done })
    }

    /// Queues an alert. Returns whether one was dropped: the oldest for lack of room, or this one for nobody wants it.
    pub(crate) fn queue_alert(&mut self, alert: Bytes, limits: &Limits) -> bool {
        self.alerts.as_mut().is_none_or(|queue| queue.push(alert, limits.max_alerts))
    }

    /// Sends the alerts that may be sent. Does nothing while the client does not take what it was sent before.
    pub(crate) fn send_alerts(&mut self, rules: &Rules, out: &mut BytesMut) -> SentAlerts {
        let mut sent = SentAlerts::default();
        let Some(queue) = self.alerts.as_mut().filter(|queue| queue.outstanding() > 0) else { return sent };
        let topic = rules.topics.alerts_topic(self.certified.as_deref().unwrap_or(&self.client_id));
        while out.len() < MAX_OUT_BYTES {
            let Some((packet_id, payload)) = queue.next(self.receive_maximum) else { break };
            match wire::put_publish(self.version, &topic, packet_id, payload, self.max_packet_bytes, out) {
                Ok(()) => sent.delivered += u64::from(packet_id.is_none()),
                Err(wire::TooLargeForClient) => {
                    sent.dropped += 1;
                    packet_id.map(|id| queue.acknowledge(id));
                }
            }
        }
        sent
    }

    /// Alerts that will not reach the client if the connection ends now.
    pub(crate) fn outstanding_alerts(&self) -> usize {
        self.alerts.as_ref().map_or(0, |queue| queue.outstanding())
    }

    /// The will, which is published once, when the connection has ended without a DISCONNECT.
    pub(crate) fn take_will(&mut self) -> Option<Message> {
        self.will.take().map(|will| *will)
    }

    /// Writes the DISCONNECT that MQTT 5 has for this end. MQTT 3.1.1 has none: there the connection just closes.
    pub(crate) fn say_goodbye(&self, close: Close, out: &mut BytesMut) {
        let (Version::V5, Some(reason)) = (self.version, close.disconnect_reason()) else { return };
        let mut disconnect = v5::Disconnect::new(reason);
        disconnect.reason_string = Some(close.explanation().into());
        if wire::put_v5(disconnect.into(), self.max_packet_bytes, out).is_err() {
            // Without the sentence it is four bytes. A client that takes less than that gets nothing.
            let _ = wire::put_v5(v5::Disconnect::new(reason).into(), self.max_packet_bytes, out);
        }
    }
}

fn v3_answer(answer: v5::SubscribeAckReason) -> v3::SubscribeReturnCode {
    match answer {
        v5::SubscribeAckReason::GrantedQos0 => v3::SubscribeReturnCode::Success(QoS::AtMostOnce),
        v5::SubscribeAckReason::GrantedQos1 => v3::SubscribeReturnCode::Success(QoS::AtLeastOnce),
        _ => v3::SubscribeReturnCode::Failure,
    }
}

/// The one car that a client may publish for; `None`: any.
fn only_car<'a>(certified: Option<&'a str>, client_id: &'a str, rules: &Rules) -> Option<&'a str> {
    certified.or((rules.client_id == ClientIdRule::Vin).then_some(client_id))
}

#[cfg(test)]
mod tests;
