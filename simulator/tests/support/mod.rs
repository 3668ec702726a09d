//! A small MQTT server of our own, which does what a test wants: acknowledges, cuts, stays silent, sends alerts.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

pub mod bridge;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rmqtt_codec::types::{Publish, QoS};
use rmqtt_codec::v3::{Codec, Connect, ConnectAck, ConnectAckReason, Packet, SubscribeReturnCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::{Decoder, Encoder};

/// What the server does with a connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Behaviour {
    /// Close after this many publishes …
    pub cut_after: Option<usize>,
    /// … leaving the last ones unacknowledged.
    pub unacknowledged: usize,
    /// Acknowledge the driver's record and nothing else.
    pub silent: bool,
    /// Close on a larger payload.
    pub max_payload: Option<usize>,
    /// Send this many alerts to each car that subscribes.
    pub alerts: u16,
}

/// A publish as it came.
#[derive(Debug, Clone)]
pub struct Received {
    pub client: String,
    pub topic: String,
    pub payload: Bytes,
    pub dup: bool,
}

/// What the server saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub connects: Vec<Connect>,
    pub sources: std::collections::BTreeSet<std::net::IpAddr>,
    pub publishes: Vec<Received>,
    pub alerts_acknowledged: usize,
    pub disconnects: usize,
}

pub struct Peer {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Peer {
    pub async fn start(behaviour: Behaviour) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), behaviour).await
    }

    pub async fn start_at(address: SocketAddr, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let shared = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                let (stream, source) = listener.accept().await.unwrap();
                let seen = Arc::clone(&shared);
                seen.lock().unwrap().sources.insert(source.ip());
                tokio::spawn(async move {
                    let _ = serve(stream, behaviour, &seen).await;
                });
            }
        });
        Self { address, seen, task }
    }

    pub fn publishes(&self) -> Vec<Received> {
        self.seen.lock().unwrap().publishes.clone()
    }
}

async fn serve(mut stream: TcpStream, behaviour: Behaviour, seen: &Mutex<Seen>) -> std::io::Result<()> {
    let mut codec = Codec::new(0);
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut client = String::new();
    let (mut publishes, mut withheld) = (0, false);
    let say = |packet, output: &mut BytesMut| Codec::new(0).encode(packet, output).unwrap();
    loop {
        // A car that waits for what is withheld sends nothing more: cut it then.
        let patience = Duration::from_millis(if withheld { 100 } else { 100_000 });
        match tokio::time::timeout(patience, stream.read_buf(&mut input)).await {
            Ok(Ok(1..)) => {}
            _ => return Ok(()),
        }
        while let Some((packet, _)) = codec.decode(&mut input).unwrap() {
            match packet {
                Packet::Connect(connect) => {
                    client = connect.client_id.to_string();
                    seen.lock().unwrap().connects.push(*connect);
                    let return_code = ConnectAckReason::ConnectionAccepted;
                    say(Packet::ConnectAck(ConnectAck { return_code, session_present: false }), &mut output);
                }
                Packet::Subscribe { packet_id, topic_filters } => {
                    assert_eq!(topic_filters[0].0, format!("vehicles/{client}/alerts"));
                    let status = vec![SubscribeReturnCode::Success(QoS::AtLeastOnce)];
                    say(Packet::SubscribeAck { packet_id, status }, &mut output);
                    for number in 1..=behaviour.alerts {
                        let alert = Publish {
                            dup: false,
                            retain: false,
                            qos: QoS::AtLeastOnce,
                            topic: topic_filters[0].0.clone(),
                            packet_id: number.try_into().ok(),
                            payload: Bytes::from_static(b"{}"),
                            properties: None,
                        };
                        say(alert.into(), &mut output);
                    }
                }
                Packet::Publish(publish) => {
                    if behaviour.max_payload.is_some_and(|max| publish.payload.len() > max) {
                        return Ok(());
                    }
                    let is_driver = publish.topic.ends_with("/drivers");
                    publishes += usize::from(!is_driver);
                    seen.lock().unwrap().publishes.push(Received {
                        client: client.clone(),
                        topic: publish.topic.to_string(),
                        payload: publish.payload.clone(),
                        dup: publish.dup,
                    });
                    let cut = behaviour.cut_after.is_some_and(|cut| publishes + behaviour.unacknowledged > cut);
                    withheld |= cut;
                    if is_driver || !(behaviour.silent || cut) {
                        say(Packet::PublishAck { packet_id: publish.packet_id.unwrap() }, &mut output);
                    }
                    if behaviour.cut_after.is_some_and(|cut| publishes >= cut) {
                        stream.write_all(&output).await?;
                        return Ok(());
                    }
                }
                Packet::PublishAck { .. } => seen.lock().unwrap().alerts_acknowledged += 1,
                Packet::PingRequest => say(Packet::PingResponse, &mut output),
                Packet::Disconnect => seen.lock().unwrap().disconnects += 1,
                other => panic!("a car said {other:?}"),
            }
        }
        stream.write_all(&output).await?;
        output.clear();
    }
}

/// A row of the ledger.
#[derive(Debug, Clone)]
pub struct Row {
    pub vin: String,
    pub boot_id: u64,
    pub seq: u32,
    pub payload: String,
    pub outcome: String,
    pub attempts: u32,
}

pub fn ledger(path: &std::path::Path) -> Vec<Row> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some("vin,boot_id,seq,payload,outcome,event_time_ms,first_sent_ms,acknowledged_ms,attempts")
    );
    lines
        .map(|line| {
            let cells: Vec<&str> = line.split(',').collect();
            assert_eq!(cells.len(), 9, "{line}");
            assert_eq!(cells[7].is_empty(), cells[4] != "acknowledged", "{line}");
            assert_eq!(cells[6].is_empty(), cells[8] == "0", "{line}");
            Row {
                vin: cells[0].to_owned(),
                boot_id: cells[1].parse().unwrap(),
                seq: cells[2].parse().unwrap(),
                payload: cells[3].to_owned(),
                outcome: cells[4].to_owned(),
                attempts: cells[8].parse().unwrap(),
            }
        })
        .collect()
}
