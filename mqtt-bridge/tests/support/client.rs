//! An MQTT client by hand: what it sends and gets are bytes, written out as the standard has them.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::{A_MOMENT, PATIENCE};

/// MQTT 3.1.1 or 5, as protocol level.
pub const V3: u8 = 4;
/// MQTT 5.
pub const V5: u8 = 5;

/// A connection, over TCP unless told otherwise.
pub struct Client<S = TcpStream> {
    pub stream: S,
    pub level: u8,
    received: Vec<u8>,
}

/// What a client wants to be.
pub struct Connect<'a> {
    pub level: u8,
    pub client_id: &'a str,
    pub keep_alive_s: u16,
    /// Topic and payload.
    pub will: Option<(&'a str, &'a str)>,
}

impl Client {
    /// A TCP connection without any packet.
    pub fn silent(address: SocketAddr, level: u8) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream, level)
    }

    /// Connected, and accepted.
    pub fn connect(address: SocketAddr, level: u8, client_id: &str) -> Self {
        Self::connect_as(address, &Connect { level, client_id, keep_alive_s: 60, will: None })
    }

    /// The same with more wishes.
    pub fn connect_as(address: SocketAddr, connect: &Connect<'_>) -> Self {
        let mut client = Self::silent(address, connect.level);
        client.send(&connect_packet(connect));
        let answer = client.packet();
        assert_eq!((answer[0], answer[2], answer[3]), (0x20, 0, 0), "CONNACK: {answer:02x?}");
        client
    }

    /// Expects that nothing comes for a moment, and that the connection stays.
    pub fn expect_silence(&mut self) {
        assert!(self.received.is_empty(), "{:02x?}", self.received);
        self.stream.set_read_timeout(Some(A_MOMENT)).unwrap();
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            other => panic!("{other:?} {byte:02x?}"),
        }
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
}

impl<S: Read + Write> Client<S> {
    /// A client that has said nothing.
    pub fn over(stream: S, level: u8) -> Self {
        Self { stream, level, received: Vec::new() }
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Publishes; QoS 1 if there is a packet identifier.
    pub fn publish(&mut self, topic: &str, packet_id: u16, payload: &[u8]) {
        let packet = publish_packet(self.level, topic, packet_id, payload);
        self.send(&packet);
    }

    /// The next packet, whole. Empty if the connection has ended.
    pub fn packet(&mut self) -> Vec<u8> {
        loop {
            if let Some(length) = frame_length(&self.received) {
                let rest = self.received.split_off(length);
                return std::mem::replace(&mut self.received, rest);
            }
            let mut buffer = [0; 4_096];
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    assert!(self.received.is_empty(), "half a packet: {:02x?}", self.received);
                    return Vec::new();
                }
                Ok(read) => self.received.extend(&buffer[..read]),
                // TLS: ended without a word of TLS.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => {
                    return Vec::new();
                }
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    /// Expects PUBACKs (success) for these packet identifiers, in this order.
    pub fn expect_pubacks(&mut self, packet_ids: impl IntoIterator<Item = u16>) {
        for packet_id in packet_ids {
            let [high, low] = packet_id.to_be_bytes();
            assert_eq!(self.packet(), [0x40, 2, high, low], "PUBACK {packet_id}");
        }
    }

    /// Expects that the connection ends; in MQTT 5 with a DISCONNECT of this reason.
    pub fn expect_end(&mut self, reason: u8) {
        if self.level == V5 {
            let packet = self.packet();
            assert!(packet.len() > 2, "no DISCONNECT: {packet:02x?}");
            assert_eq!((packet[0], packet[2]), (0xe0, reason), "DISCONNECT: {packet:02x?}");
        }
        assert!(self.packet().is_empty(), "the end");
    }

    /// Subscribes (packet identifier 3, QoS 1). Returns the answer for the filter.
    pub fn subscribe(&mut self, filter: &str) -> u8 {
        let mut body = vec![0, 3];
        body.extend(properties(self.level));
        body.extend(string(filter));
        body.push(1);
        self.send(&packet(0x82, &body));
        let answer = self.packet();
        assert_eq!(answer[0], 0x90, "SUBACK: {answer:02x?}");
        answer[answer.len() - 1]
    }

    /// Says DISCONNECT.
    pub fn disconnect(mut self) {
        self.send(&[0xe0, 0]);
        assert!(self.packet().is_empty());
    }
}

/// A CONNECT packet, with a clean start.
pub fn connect_packet(connect: &Connect<'_>) -> Vec<u8> {
    let will_flag = if connect.will.is_some() { 0b100 } else { 0 };
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', connect.level, 0b10 | will_flag];
    body.extend(connect.keep_alive_s.to_be_bytes());
    body.extend(properties(connect.level));
    body.extend(string(connect.client_id));
    if let Some((topic, payload)) = connect.will {
        body.extend(properties(connect.level));
        body.extend(string(topic));
        body.extend(string(payload));
    }
    packet(0x10, &body)
}

/// A PUBLISH packet; QoS 1 if there is a packet identifier.
pub fn publish_packet(level: u8, topic: &str, packet_id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = string(topic);
    if packet_id != 0 {
        body.extend(packet_id.to_be_bytes());
    }
    body.extend(properties(level));
    body.extend(payload);
    packet(if packet_id == 0 { 0x30 } else { 0x32 }, &body)
}

/// A packet of this first byte and this body.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut rest = body.len();
    loop {
        let byte = (rest & 0x7f) as u8;
        rest >>= 7;
        packet.push(if rest > 0 { byte | 0x80 } else { byte });
        if rest == 0 {
            packet.extend(body);
            return packet;
        }
    }
}

/// No properties, where the version has some.
fn properties(level: u8) -> &'static [u8] {
    if level == V5 { &[0] } else { &[] }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat()
}

fn frame_length(bytes: &[u8]) -> Option<usize> {
    let mut remaining = 0;
    for (i, byte) in bytes.iter().skip(1).take(4).enumerate() {
        remaining |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            let length = 2 + i + remaining;
            return (bytes.len() >= length).then_some(length);
        }
    }
    None
}
