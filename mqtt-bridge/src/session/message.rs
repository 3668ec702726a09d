//! A message on its way to the log.

use std::num::NonZeroU16;
use std::ops::Range;

use bytes::Bytes;
use rmqtt_codec::types::Publish;

use crate::topics::{self, Kind, Topics};

/// A message for the log.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    topic: Topic,
    /// Where the VIN is in the topic.
    vin: Range<usize>,
    pub(crate) payload: Bytes,
    /// 0: nothing to acknowledge.
    pub(crate) packet_id: u16,
}

/// The MQTT topic of a message, as it was sent.
#[derive(Debug)]
enum Topic {
    /// Still in the packet it came in.
    Packet(Box<Publish>),
    /// On its own.
    Owned(Box<str>),
}

impl Message {
    /// The message of a PUBLISH packet. `None`: its topic is not one that a car may publish to.
    pub(super) fn of_packet(publish: Box<Publish>, topics: &Topics) -> Option<Self> {
        let (vin, kind) = parse(topics, &publish.topic)?;
        let packet_id = publish.packet_id.map_or(0, NonZeroU16::get);
        Some(Self { kind, vin, payload: publish.payload.clone(), packet_id, topic: Topic::Packet(publish) })
    }

    /// The message of a will.
    pub(super) fn of_will(topic: String, payload: Bytes, topics: &Topics) -> Option<Self> {
        let (vin, kind) = parse(topics, &topic)?;
        Some(Self { kind, vin, payload, packet_id: 0, topic: Topic::Owned(topic.into_boxed_str()) })
    }

    /// The MQTT topic: `vehicles/{vin}/…`.
    pub(crate) fn topic(&self) -> &str {
        match &self.topic {
            Topic::Packet(publish) => &publish.topic,
            Topic::Owned(topic) => topic,
        }
    }

    /// The VIN: the key in the log.
    pub(crate) fn vin(&self) -> &str {
        &self.topic()[self.vin.clone()]
    }

    /// The same, without the read buffer that the packet came in.
    pub(crate) fn detached(self) -> Self {
        Self { topic: Topic::Owned(self.topic().into()), payload: Bytes::copy_from_slice(&self.payload), ..self }
    }
}

/// Where the VIN is in the topic of a car, and the kind.
fn parse(topics: &Topics, topic: &str) -> Option<(Range<usize>, Kind)> {
    let (vin, kind) = topics.parse(topic)?;
    let start = topics::PREFIX.len();
    Some((start..start + vin.len(), kind))
}
