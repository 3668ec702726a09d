//! What a car and its server say to each other, and what becomes of each item.

use std::io;

use super::{DriverRecord, Link};
use crate::client::connection::Event;
use crate::client::queue::{Item, Pending};
use crate::ledger::{Outcome, Row};
use crate::payload::{faults_topic, telemetry_topic, write_driver, write_finding};

impl Link {
    /// The server accepted the connection: subscribe, and introduce the driver the first time.
    pub(super) fn introduce(&mut self) -> io::Result<()> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let vin = self.car.vin();
        self.driver = connection.write(|writer| {
            writer.subscribe(format!("vehicles/{vin}/alerts"))?;
            if self.driver == DriverRecord::Acknowledged {
                return Ok(DriverRecord::Acknowledged);
            }
            let mut payload = Vec::new();
            write_driver(&self.car, &mut payload);
            writer.publish(&format!("vehicles/{vin}/drivers"), &payload, false).map(DriverRecord::InFlight)
        })?;
        self.accepted = true;
        self.failures = 0;
        self.connections += 1;
        self.shared.server_is_there();
        self.shared.metrics.cars_connected.inc();
        if self.connections > 1 {
            self.shared.metrics.reconnects.inc();
        }
        Ok(())
    }

    /// Sends what the window allows.
    pub(super) fn send(&mut self) {
        let in_flight = self.queue.in_flight();
        let window = self.shared.args.in_flight;
        if !self.accepted || in_flight >= window || in_flight == self.queue.len() {
            return;
        }
        let Self { connection: Some(connection), queue, car, shared, totals, driver, .. } = self else { return };
        if *driver != DriverRecord::Acknowledged || !connection.is_flushed() {
            return;
        }
        let (sent_before, repeated_before) = (totals.sent, totals.repeated);
        let sent_ms = service::now_ms();
        let telemetry = telemetry_topic(car.vin());
        let mut payload = Vec::with_capacity(1_024);
        let written = connection.write(|writer| {
            while let Some(pending) = queue.send_next(window) {
                payload.clear();
                let topic = match &pending.item {
                    Item::Reading { reading, .. } => {
                        shared.breaker.write(car, reading, &mut payload);
                        totals.sent += u64::from(pending.attempts == 0);
                        &telemetry
                    }
                    Item::Finding(fault) => {
                        write_finding(car, fault, &mut payload);
                        &faults_topic(car.vin())
                    }
                    Item::Sample(sample) => {
                        let samples = &shared.samples[sample.stream];
                        samples.write(car.vin(), sample, &mut payload);
                        &samples.topic(car.vin())
                    }
                };
                pending.packet_id = writer.publish(topic, &payload, pending.attempts > 0)?;
                totals.repeated += u64::from(pending.attempts > 0);
                pending.attempts = pending.attempts.saturating_add(1);
                if pending.first_sent_ms == 0 {
                    pending.first_sent_ms = sent_ms;
                }
            }
            Ok(())
        });
        shared.metrics.sent.inc_by(totals.sent - sent_before);
        shared.metrics.repeated.inc_by(totals.repeated - repeated_before);
        if let Err(error) = written {
            self.lost(&error);
        }
    }

    /// Reads what the server said.
    pub(super) fn receive(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let (queue, driver) = (&mut self.queue, &mut self.driver);
        let (mut accepted, mut alerts, mut settled) = (false, 0, Vec::new());
        let read = connection.receive(|event| match event {
            Event::Accepted => accepted = true,
            Event::Acknowledged(packet_id) if *driver == DriverRecord::InFlight(packet_id) => {
                *driver = DriverRecord::Acknowledged;
            }
            Event::Acknowledged(packet_id) => queue.acknowledge(packet_id, |pending| settled.push(pending)),
            Event::Received => alerts += 1,
        });
        if alerts > 0 {
            self.totals.alerts += alerts;
            self.shared.metrics.alerts.inc_by(alerts);
        }
        for pending in settled {
            self.settle(pending, Outcome::Acknowledged);
        }
        let introduced = read.and_then(|()| if accepted { self.introduce() } else { Ok(()) });
        if let Err(error) = introduced {
            self.lost(&error);
        }
    }

    /// The fate of an item is known.
    pub(super) fn settle(&mut self, pending: Pending, outcome: Outcome) {
        let (reading, broken) = match &pending.item {
            Item::Reading { reading, broken } => (reading, broken),
            Item::Finding(_) => {
                self.totals.unreported_faults += u64::from(outcome != Outcome::Acknowledged);
                return;
            }
            Item::Sample(_) => return,
        };
        match outcome {
            Outcome::Acknowledged => {
                self.totals.acknowledged += 1;
                self.shared.metrics.acknowledged.inc();
            }
            Outcome::Unacknowledged => self.totals.unacknowledged += 1,
            Outcome::Dropped => {
                self.totals.dropped += 1;
                self.shared.metrics.dropped.inc();
            }
        }
        if self.shared.ledger.is_none() {
            return;
        }
        self.rows.push(Row {
            vin: self.car.vin_bytes(),
            boot_id: reading.boot_id,
            seq: reading.seq,
            broken: *broken,
            outcome,
            event_time_ms: reading.event_time_ms,
            first_sent_ms: (pending.attempts > 0).then_some(pending.first_sent_ms),
            acknowledged_ms: (outcome == Outcome::Acknowledged).then(service::now_ms),
            attempts: pending.attempts,
        });
    }

    pub(super) async fn write_rows(&mut self) {
        if let Some(ledger) = &self.shared.ledger
            && !self.rows.is_empty()
        {
            // Fails only if the writer failed; it has stopped the run, and its error is the run's.
            let _ = ledger.send(std::mem::take(&mut self.rows)).await;
        }
    }

    /// Brings the gauges up to date.
    pub(super) fn show(&mut self) {
        let shown = (self.queue.in_flight() as i64, self.queue.len() as i64);
        self.shared.metrics.in_flight.inc_by(shown.0 - self.shown.0);
        self.shared.metrics.buffered.inc_by(shown.1 - self.shown.1);
        self.shown = shown;
    }
}
