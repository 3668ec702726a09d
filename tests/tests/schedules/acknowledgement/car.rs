//! A car as the simulator has it: it keeps what is not acknowledged, and after every loss of the connection sends all
//! of that again, in order, under the same numbers. Its connection is the simulator's own.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use test_support::random::Random;
use tokio::net::TcpStream;
use tokio::sync::RwLock;

use super::connection::{Connection, Event};
use super::draw;
use super::log::World;
use super::transport::Transport;

/// The bridge's address, if one runs. A connecting car holds the lock, so that no other process or run has taken the
/// port meanwhile.
pub(crate) type Server = RwLock<Option<SocketAddr>>;

/// What a reading says, and what became of it.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) name: String,
    pub(crate) payload: Vec<u8>,
    /// How often it was sent.
    pub(crate) sent: u64,
}

/// A car, and what it has to send.
pub(crate) struct Car {
    pub(crate) vin: String,
    number: u64,
    window: usize,
    pub(crate) told: Mutex<Told>,
}

/// What the car knows.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) readings: Vec<Reading>,
    /// So many of them, from the first on, are acknowledged.
    pub(crate) acknowledged: usize,
    /// What should not have been said to it.
    pub(crate) findings: Vec<String>,
}

impl Car {
    /// The cars of a run.
    pub(crate) fn fleet(seed: u64) -> Vec<Arc<Self>> {
        let mut random = draw(seed, &[3]);
        (0..random.between(1, 3)).map(|number| Arc::new(Self::new(number, &mut random))).collect()
    }

    fn new(number: u64, random: &mut Random) -> Self {
        let vin = format!("car{number}");
        let mut readings = Vec::new();
        for boot in 1..=random.between(1, 2) {
            for seq in 0..random.between(5, 25) {
                let padding = "x".repeat(random.below(400) as usize);
                let payload = format!(r#"{{"vin":"{vin}","boot_id":{boot},"seq":{seq},"padding":"{padding}"}}"#);
                readings.push(Reading {
                    name: format!("{vin} boot {boot} seq {seq}"),
                    payload: payload.into(),
                    sent: 0,
                });
            }
        }
        let told = Mutex::new(Told { readings, ..Told::default() });
        Self { vin, number, window: random.between(1, 12) as usize, told }
    }

    /// The MQTT topic.
    pub(crate) fn topic(&self) -> String {
        format!("vehicles/{}/telemetry", self.vin)
    }

    /// Until everything is acknowledged.
    pub(crate) async fn drive(self: Arc<Self>, world: Arc<World>, server: Arc<Server>) {
        for number in 0.. {
            let mut random = draw(world.seed, &[4, self.number, number]);
            let cut_after = (number < 4 && random.chance(1, 4)).then(|| random.between(1, 12) as usize);
            let stream = loop {
                let address = server.read().await;
                if let Some(address) = *address {
                    break TcpStream::connect(address).await.unwrap();
                }
                drop(address);
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            let talked =
                async { self.talk(Connection::open(Transport::Plain(stream), &self.vin)?, cut_after, &world).await };
            match talked.await {
                Ok(()) => return,
                Err(error) => world.tell(&format!("{} has lost its connection: {error}", self.vin)),
            }
            tokio::time::sleep(Duration::from_micros(random.between(200, 3_000))).await;
        }
    }

    /// Sends what is not acknowledged, until all is, or the connection is lost.
    async fn talk(&self, mut connection: Connection, cut_after: Option<usize>, world: &World) -> std::io::Result<()> {
        let (mut accepted, mut sent) = (false, 0);
        // Packet identifiers; the first belongs to the first reading that is not acknowledged.
        let mut in_flight = VecDeque::new();
        loop {
            if accepted && connection.is_flushed() {
                let before = in_flight.len();
                self.send(&mut connection, &mut in_flight)?;
                sent += in_flight.len() - before;
            }
            if cut_after.is_some_and(|after| sent >= after) {
                world.fault("cut", 1);
                connection.cut();
                return Err(std::io::Error::other("the network is gone"));
            }
            let (socket, interest) = connection.readiness();
            socket.ready(interest).await?;
            let mut out_of_turn = None;
            let received = connection.receive(|event| match event {
                Event::Accepted => accepted = true,
                Event::Acknowledged(packet_id) if in_flight.front() == Some(&packet_id) => {
                    in_flight.pop_front();
                    self.acknowledged(world);
                }
                Event::Acknowledged(packet_id) => out_of_turn = Some(packet_id),
                Event::Received => {}
            });
            if let Some(packet_id) = out_of_turn {
                let mut told = self.told.lock().unwrap();
                let due = told.readings.get(told.acknowledged).map_or("nothing", |reading| &reading.name);
                let finding = format!("PUBACK {packet_id} came out of turn: {due} was due");
                told.findings.push(finding);
                return Err(std::io::Error::other("the server is not to be trusted"));
            }
            received?;
            let told = self.told.lock().unwrap();
            if told.acknowledged == told.readings.len() {
                break;
            }
        }
        connection.close().await
    }

    fn send(&self, connection: &mut Connection, in_flight: &mut VecDeque<u16>) -> std::io::Result<()> {
        let mut told = self.told.lock().unwrap();
        let first = told.acknowledged;
        connection.write(|writer| {
            for reading in told.readings[first..].iter_mut().take(self.window).skip(in_flight.len()) {
                in_flight.push_back(writer.publish(&self.topic(), &reading.payload, reading.sent > 0)?);
                reading.sent += 1;
            }
            Ok(())
        })
    }

    /// The first reading that was not acknowledged now is.
    fn acknowledged(&self, world: &World) {
        let mut told = self.told.lock().unwrap();
        let reading = &told.readings[told.acknowledged];
        world.tell(&format!("PUBACK for {}", reading.name));
        if !world.is_committed(&reading.payload) {
            let finding = format!("{} was acknowledged before the log had committed it", reading.name);
            told.findings.push(finding);
        }
        told.acknowledged += 1;
    }
}
