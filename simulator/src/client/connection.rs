//! One MQTT 3.1.1 connection of one car: framing, handshake, keep-alive. What is published, and what follows from an
//! acknowledgement, is the business of [`super::link`].
//!
//! ```text
//! CONNECT (will) ─► CONNACK ─► SUBSCRIBE own alerts ─► PUBLISH …        bytes ─► scratch of the thread ─► socket
//! ```
//!
//! Lean: a connection has no buffers of its own. Bytes pass through a scratch that the cars of a thread share; only
//! what the socket did not take, or half a packet, stays with the connection. Sessions are clean: what has to be
//! repeated is known by the car, not by the session.

use std::cell::RefCell;
use std::io;
use std::num::NonZeroU16;

use bytes::{Bytes, BytesMut};
use rmqtt_codec::types::{Protocol, Publish, QoS};
use rmqtt_codec::v3::{Codec, Connect, ConnectAckReason, LastWill, Packet};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::codec::{Decoder, Encoder};

use super::transport::Transport;

/// The server closes a connection on which it heard nothing for 1.5 times this.
pub(crate) const KEEP_ALIVE_S: u16 = 90;

/// The largest packet that a car accepts: alerts are below 1 KB.
const MAX_PACKET_BYTES: u32 = 64 * 1_024;

const READ_BYTES: usize = 16 * 1_024;

/// MQTT 3.1.1, in the words of the protocol: level 4.
const MQTT_3_1_1: Protocol = Protocol(4);

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    read: BytesMut,
    write: BytesMut,
}

/// What a server said.
#[derive(Debug)]
pub(crate) enum Event {
    Accepted,
    /// A publish of ours is acknowledged.
    Acknowledged(u16),
    /// A publish of the server's; has been acknowledged.
    Received,
}

/// A connection. It is accepted once [`Event::Accepted`] came.
#[derive(Debug)]
pub(crate) struct Connection {
    transport: Transport,
    codec: Codec,
    /// Half a packet.
    unread: BytesMut,
    /// What the socket did not take.
    unwritten: BytesMut,
    next_packet_id: u16,
    pub(crate) last_sent: Instant,
    pub(crate) last_heard: Instant,
    pub(crate) pinged: bool,
}

impl Connection {
    /// Says CONNECT, with a will on the car's status topic.
    pub(crate) fn open(transport: Transport, vin: &str) -> io::Result<Self> {
        let now = Instant::now();
        let mut connection = Self {
            transport,
            codec: Codec::new(MAX_PACKET_BYTES),
            unread: BytesMut::new(),
            unwritten: BytesMut::new(),
            next_packet_id: 0,
            last_sent: now,
            last_heard: now,
            pinged: false,
        };
        let will = LastWill {
            qos: QoS::AtLeastOnce,
            retain: false,
            topic: format!("vehicles/{vin}/status").into(),
            message: Bytes::from(format!(r#"{{"vin":"{vin}","status":"lost"}}"#)),
        };
        let connect = Connect {
            protocol: MQTT_3_1_1,
            clean_session: true,
            keep_alive: KEEP_ALIVE_S,
            last_will: Some(will),
            client_id: vin.into(),
            username: None,
            password: None,
            cert: None,
        };
        connection.write(|writer| writer.packet(connect.into()))?;
        Ok(connection)
    }

    /// The events to wait for: something to read, and room to write pending bytes.
    pub(crate) fn readiness(&self) -> (&TcpStream, Interest) {
        let interest = if self.is_flushed() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        (self.transport.socket(), interest)
    }

    /// Whether the socket took everything so far; if not, nothing more should be written.
    pub(crate) fn is_flushed(&self) -> bool {
        self.unwritten.is_empty() && !self.transport.has_unsent()
    }

    /// Writes packets in one go.
    pub(crate) fn write<T>(&mut self, compose: impl FnOnce(&mut Writer<'_>) -> io::Result<T>) -> io::Result<T> {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.write.clear();
            if !self.unwritten.is_empty() {
                scratch.write.extend_from_slice(&self.unwritten);
                self.unwritten = BytesMut::new();
            }
            let mut writer =
                Writer { codec: &mut self.codec, out: &mut scratch.write, next_packet_id: &mut self.next_packet_id };
            let composed = compose(&mut writer)?;
            self.flush(&mut scratch.write)?;
            Ok(composed)
        })
    }

    fn flush(&mut self, out: &mut BytesMut) -> io::Result<()> {
        self.transport.flush()?;
        let mut written = 0;
        while written < out.len() {
            match self.transport.try_write(&out[written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if written > 0 {
            self.last_sent = Instant::now();
        }
        self.unwritten = BytesMut::from(&out[written..]);
        Ok(())
    }

    /// Writes pending bytes, and reads available ones. Calls `event` for each message of the server.
    pub(crate) fn receive(&mut self, mut event: impl FnMut(Event)) -> io::Result<()> {
        if !self.is_flushed() {
            self.write(|_| Ok(()))?;
        }
        let mut received = 0_usize;
        let mut answers: Vec<Packet> = Vec::new();
        SCRATCH.with_borrow_mut(|scratch| {
            let buffer = &mut scratch.read;
            buffer.clear();
            buffer.extend_from_slice(&self.unread);
            self.unread = BytesMut::new();
            loop {
                buffer.reserve(READ_BYTES);
                match self.transport.try_read(buffer) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(n) => received += n,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
                while let Some((packet, _)) = self.codec.decode(buffer).map_err(io::Error::other)? {
                    if let Some(answer) = understand(packet, &mut event)? {
                        answers.push(answer);
                    }
                }
            }
            self.unread = BytesMut::from(&buffer[..]);
            Ok(())
        })?;
        if received > 0 {
            self.last_heard = Instant::now();
            self.pinged = false;
        }
        if !answers.is_empty() {
            self.write(|writer| answers.into_iter().try_for_each(|answer| writer.packet(answer)))?;
        }
        Ok(())
    }

    /// Says that the car is still there.
    pub(crate) fn ping(&mut self) -> io::Result<()> {
        self.pinged = true;
        self.write(|writer| writer.packet(Packet::PingRequest))
    }

    /// The network is suddenly gone: no packet is sent, none waits in the kernel.
    pub(crate) fn cut(self) {
        // If this fails, the connection is closed in order instead: nothing depends on it.
        let _ = self.transport.socket().set_zero_linger();
    }

    /// Says DISCONNECT, and closes in order.
    pub(crate) async fn close(mut self) -> io::Result<()> {
        self.write(|writer| writer.packet(Packet::Disconnect))?;
        self.transport.end();
        loop {
            self.write(|_| Ok(()))?;
            if self.is_flushed() {
                return Ok(());
            }
            self.transport.socket().writable().await?;
        }
    }
}

/// Packets on their way into a buffer.
pub(crate) struct Writer<'a> {
    codec: &'a mut Codec,
    out: &'a mut BytesMut,
    next_packet_id: &'a mut u16,
}

impl Writer<'_> {
    pub(crate) fn packet(&mut self, packet: Packet) -> io::Result<()> {
        self.codec.encode(packet, self.out).map_err(io::Error::other)
    }

    /// SUBSCRIBE to one topic, QoS 1.
    pub(crate) fn subscribe(&mut self, topic: String) -> io::Result<()> {
        let packet_id = self.packet_id();
        self.packet(Packet::Subscribe { packet_id, topic_filters: vec![(topic.into(), QoS::AtLeastOnce)] })
    }

    /// PUBLISH, QoS 1; gives the packet id.
    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8], repeated: bool) -> io::Result<u16> {
        let packet_id = self.packet_id();
        self.packet(Packet::Publish(Box::new(Publish {
            dup: repeated,
            retain: false,
            qos: QoS::AtLeastOnce,
            topic: topic.into(),
            packet_id: Some(packet_id),
            payload: Bytes::copy_from_slice(payload),
            properties: None,
        })))?;
        Ok(packet_id.get())
    }

    /// 1, 2, … 65535, 1, …: windows are far smaller, so that none is used twice at a time.
    fn packet_id(&mut self) -> NonZeroU16 {
        *self.next_packet_id = self.next_packet_id.checked_add(1).unwrap_or(1);
        NonZeroU16::new(*self.next_packet_id).unwrap_or(NonZeroU16::MIN)
    }
}

/// Turns a packet into an event; gives what has to be answered.
fn understand(packet: Packet, event: &mut impl FnMut(Event)) -> io::Result<Option<Packet>> {
    match packet {
        Packet::ConnectAck(ack) if ack.return_code == ConnectAckReason::ConnectionAccepted => event(Event::Accepted),
        Packet::ConnectAck(ack) => return Err(io::Error::other(ack.return_code.reason())),
        Packet::PublishAck { packet_id } => event(Event::Acknowledged(packet_id.get())),
        Packet::Publish(publish) => {
            event(Event::Received);
            return Ok(publish.packet_id.map(|packet_id| Packet::PublishAck { packet_id }));
        }
        Packet::SubscribeAck { .. } | Packet::PingResponse => {}
        other => return Err(io::Error::other(format!("unexpected packet of type {:#04x}", other.packet_type()))),
    }
    Ok(None)
}
