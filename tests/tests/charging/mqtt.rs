//! One MQTT 3.1.1 publish with QoS 1, by hand.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Publishes, and waits for the PUBACK. The error: the connection was closed without one.
pub(crate) fn publish(address: &str, topic: &str, payload: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    // CONNECT: protocol MQTT level 4, a clean session, keep-alive 60 s, client id "test".
    stream.write_all(b"\x10\x10\0\x04MQTT\x04\x02\0\x3c\0\x04test")?;
    let mut connack = [0; 4];
    stream.read_exact(&mut connack)?;
    let mut body = (topic.len() as u16).to_be_bytes().to_vec();
    body.extend_from_slice(topic.as_bytes());
    body.extend_from_slice(&[0, 1]); // packet id
    body.extend_from_slice(payload);
    let mut packet = vec![0x32];
    let mut left = body.len();
    loop {
        let more = left > 127;
        packet.push((left % 128) as u8 | if more { 0x80 } else { 0 });
        left /= 128;
        if !more {
            break;
        }
    }
    packet.extend_from_slice(&body);
    stream.write_all(&packet)?;
    let mut puback = [0; 4];
    stream.read_exact(&mut puback)?;
    match puback {
        [0x40, 2, 0, 1] => Ok(()),
        other => Err(Error::new(ErrorKind::InvalidData, format!("not the PUBACK: {other:?}"))),
    }
}
