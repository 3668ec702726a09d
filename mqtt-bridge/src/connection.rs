//! One connection: a socket, a session, and their bounds.
//!
//! ```text
//!         ┌── gate: open? ──┐ bytes ≤ 16 KiB a read, paid from the byte budget
//! stream ─┤ window, budget, ├──► frames ─► Session ─► Appender ─► (log) ─► Mailbox ─► Session ─► PUBACK ─► stream
//!         │ log, client     │       └ what is left over waits in `input`
//!         └─ closed: TCP pushes back; keep-alive rests; at most --max-pause
//! ```
//!
//! The task outlives its socket until the log has decided on everything that it was given: only then are its bytes
//! given back to the budget and its slot to others.

mod budget;
mod ending;
mod gate;
mod reading;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use event_log::{AppendError, Error, Record};
use tokio::time::Instant;

use crate::alerts::parse_pseudonym;
use crate::clients::{Mail, Mailbox, Slot};
use crate::close::{Close, Refusal};
use crate::input::READ_BYTES;
use crate::session::{ConnAck, Message, Session};
use crate::shared::{Place, Shared};
use crate::stamp::Stamp;
use crate::transport::Transport;
use crate::window::Fate;
use crate::wire;
use budget::Budget;
pub(crate) use ending::farewell;
use gate::Gate;

/// How soon a connection that waits for room looks again, should it not be told: in the append queue, or among the
/// incomplete packets.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What is known of a client before it says CONNECT.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// When it came: the connect timeout runs from here, a TLS handshake included.
    pub(crate) opened: Instant,
    /// Whether it is to be told no, and why.
    pub(crate) refusal: Option<Refusal>,
    /// The car that it has proved to be, by a certificate. Then it speaks for this car and no other.
    pub(crate) car: Option<Box<str>>,
    /// Its place among the connections of that car.
    pub(crate) place: Option<Place>,
}

/// Serves one client until it has gone and everything it sent is decided.
pub(crate) async fn serve<T: Transport>(shared: Arc<Shared>, slot: Slot, mut stream: T, arrival: Arrival) {
    let mut connection = Connection::new(shared, slot, arrival);
    let close = connection.talk(&mut stream).await;
    connection.end(stream, close).await;
}

/// A packet of which the end has not come.
#[derive(Debug)]
struct Unfinished {
    since: Instant,
    bytes: usize,
}

struct Connection {
    shared: Arc<Shared>,
    slot: Slot,
    session: Option<Session>,
    /// The answer to CONNECT, while the client's earlier connection has not gone.
    claiming: Option<ConnAck>,
    /// Bytes not yet parsed: an incomplete packet, or bytes received before the gate closed.
    input: BytesMut,
    /// Whether `input` may hold a whole packet, since the gate shut before it.
    backlog: bool,
    /// The incomplete packet in `input`.
    unfinished: Option<Unfinished>,
    out: BytesMut,
    mail: Mail,
    /// A message that the append queue had no room for, and its size on the wire.
    held: Option<(Message, u32)>,
    budget: Budget,
    arrival: Arrival,
    /// Set while the bridge stops: by when this connection has to end.
    drain_by: Option<Instant>,
    successor: Option<Arc<Mailbox>>,
    /// The pseudonym of the car, while it wants its alerts.
    car: Option<u128>,
    last_read: Instant,
    paused_since: Option<Instant>,
}

impl Connection {
    fn new(shared: Arc<Shared>, slot: Slot, arrival: Arrival) -> Self {
        shared.metrics.connections.inc();
        Self {
            shared,
            slot,
            session: None,
            claiming: None,
            input: BytesMut::new(),
            backlog: false,
            unfinished: None,
            out: BytesMut::new(),
            mail: Mail::default(),
            held: None,
            budget: Budget::default(),
            arrival,
            drain_by: None,
            successor: None,
            car: None,
            last_read: Instant::now(),
            paused_since: None,
        }
    }

    /// Until the client goes or has to go.
    async fn talk<T: Transport>(&mut self, stream: &mut T) -> Close {
        let shared = self.shared.clone();
        let mailbox = self.slot.mailbox.clone();
        let mut timer = pin!(tokio::time::sleep_until(self.deadline(Gate::Open)));
        loop {
            if let Err(close) = self.advance() {
                return close;
            }
            // Waits for nothing: what the socket does not take now is written below, when it does.
            if let Poll::Ready(Err(close)) = poll_fn(|cx| Poll::Ready(self.poll_flush(cx, stream))).await {
                return close;
            }
            let gate = self.gate();
            self.note_pause(gate);
            if gate == Gate::Open && self.backlog {
                continue; // acknowledging or flushing has made room for packets that are here already
            }
            // The timer is only ever moved closer here; when it fires too early it is set anew below.
            let deadline = self.deadline(gate);
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            tokio::select! {
                biased;
                () = mailbox.arrived() => {}
                moved = poll_fn(|cx| self.poll_move(cx, stream, gate)) => {
                    if let Err(close) = moved {
                        return close;
                    }
                }
                Ok(permit) = shared.budget.acquire_many(READ_BYTES), if gate == Gate::Budget => {
                    self.budget.grant(permit);
                }
                () = shared.room.wait(), if gate == Gate::Room => {}
                () = &mut timer => {
                    if let Some(close) = self.expired(gate) {
                        return close;
                    }
                    timer.as_mut().reset(self.deadline(gate));
                }
            }
        }
    }

    /// Everything that can be done without waiting.
    fn advance(&mut self) -> Result<(), Close> {
        self.take_mail()?;
        if self.claiming.is_some() && self.mail.predecessor_gone {
            self.mail.predecessor_gone = false;
            self.accept()?;
        }
        let stamp = Stamp::now();
        if let Some((message, bytes)) = self.held.take() {
            self.budget.release(bytes);
            let kept = self.append(message, bytes, &stamp);
            self.shared.give_back(bytes - kept.unwrap_or(0));
            kept?;
        }
        if !self.input.is_empty() && !self.is_shut() {
            let input = std::mem::take(&mut self.input);
            self.parse_input(input, &stamp)?;
        }
        self.acknowledge()?;
        if let Some(session) = &mut self.session {
            let sent = session.send_alerts(&self.shared.rules, &mut self.out);
            self.shared.metrics.alerts_delivered.inc_by(sent.delivered);
            self.shared.metrics.alerts_dropped.inc_by(sent.dropped);
        }
        let Some(drain_by) = self.drain_by else { return Ok(()) };
        // Nothing more will be decided, or not in time.
        let over = self.shared.abandon.is_cancelled() || drain_by <= Instant::now();
        if over || self.undecided() == 0 { Err(Close::Draining) } else { Ok(()) }
    }

    fn take_mail(&mut self) -> Result<(), Close> {
        self.slot.mailbox.fetch(&mut self.mail);
        let Mail { completions, alerts, successor, drain, .. } = &mut self.mail;
        if std::mem::take(drain) && self.drain_by.is_none() {
            self.drain_by = Some(Instant::now() + self.shared.rules.limits.drain.timeout);
        }
        if let Some(session) = &mut self.session {
            let mut decided = 0;
            for (sequence, durable) in completions.drain(..) {
                decided += i64::from(session.window().complete(sequence, durable));
            }
            self.shared.metrics.in_flight.dec_by(decided);
            for alert in alerts.drain(..) {
                let dropped = session.queue_alert(alert, &self.shared.rules.limits);
                self.shared.metrics.alerts_dropped.inc_by(dropped.into());
            }
        }
        match successor.take() {
            Some(successor) => {
                self.successor = Some(successor);
                Err(Close::TakenOver)
            }
            None => Ok(()),
        }
    }

    /// Writes the PUBACKs that are due.
    fn acknowledge(&mut self) -> Result<(), Close> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let (found, result) = session.acknowledge(&mut self.out);
        let metrics = &self.shared.metrics;
        metrics.pubacks.inc_by(found.pubacks);
        if let Some(oldest) = found.oldest {
            metrics.append_seconds.observe(oldest.elapsed().as_secs_f64());
        }
        self.shared.give_back(found.bytes);
        result
    }

    /// Records that the log has not decided on.
    fn undecided(&mut self) -> usize {
        self.session.as_mut().map_or(0, |session| session.window().len())
    }

    /// Moves bytes, in or out, as soon as the socket and the gate allow.
    fn poll_move<T: Transport>(&mut self, cx: &mut Context<'_>, stream: &mut T, gate: Gate) -> Poll<Result<(), Close>> {
        if (!self.out.is_empty() || stream.has_unsent())
            && let Poll::Ready(flushed) = self.poll_flush(cx, stream)
        {
            return Poll::Ready(flushed);
        }
        if gate == Gate::Open { self.poll_read(cx, stream) } else { Poll::Pending }
    }

    /// Writes what the socket takes. Ready when that is everything.
    fn poll_flush<T: Transport>(&mut self, cx: &mut Context<'_>, stream: &mut T) -> Poll<Result<(), Close>> {
        loop {
            // First what is encrypted already, so that no more than one write of it ever waits.
            if stream.has_unsent() {
                ready!(Pin::new(&mut *stream).poll_flush(cx)).map_err(|_| Close::Lost)?;
            }
            if self.out.is_empty() {
                break;
            }
            let written = ready!(Pin::new(&mut *stream).poll_write(cx, &self.out)).map_err(|_| Close::Lost)?;
            self.out.advance(written);
        }
        self.out = BytesMut::new(); // an idle connection holds no buffers
        Poll::Ready(Ok(()))
    }

    fn accept(&mut self) -> Result<(), Close> {
        let (Some(session), Some(answer)) = (&self.session, self.claiming.take()) else { return Ok(()) };
        session.accept(answer, &self.shared.rules, &mut self.out)?;
        self.last_read = Instant::now();
        self.shared.metrics.connected(match session.version() {
            wire::Version::V3 => "3.1.1",
            wire::Version::V5 => "5",
        });
        Ok(())
    }

    /// Gives a message to the log; holds it if there is no room. Returns how much of its cost stays with it.
    fn append(&mut self, message: Message, bytes: u32, stamp: &Stamp) -> Result<u32, Close> {
        let Some(session) = &mut self.session else { return Ok(0) };
        let shared = &self.shared;
        let token = self.slot.token(session.window().next_sequence());
        let record = Record {
            key: message.vin().as_bytes(),
            value: Some(&message.payload),
            headers: &[(contract::RECEIVED_MS, stamp.text()), ("mqtt_topic", message.topic().as_bytes())],
            timestamp_ms: stamp.wall_ms,
        };
        let kind = &shared.kinds[message.kind.index()];
        match shared.appender.append(&kind.topic, &record, token) {
            Ok(()) => {
                session.window().push(message.packet_id, Fate::Pending, bytes, stamp.instant);
                kind.published.inc();
                shared.metrics.publish_bytes.inc_by(message.payload.len() as u64);
                shared.metrics.in_flight.inc();
                Ok(bytes)
            }
            Err(AppendError::Full) => {
                self.budget.charge(bytes);
                self.held = Some((message.detached(), bytes));
                Ok(bytes)
            }
            // It would be refused again: this is about this message, and nobody else's.
            Err(AppendError::Refused(error @ Error::TooLarge { .. })) => {
                let close = Close::TooLargeForLog;
                shared.metrics.refused_publish(close.label());
                shared.complaints.note(close.label(), "refused a publish", &error.to_string());
                session.refuse(message.packet_id, close, stamp.instant).map(|()| 0)
            }
            Err(AppendError::Refused(error)) => {
                shared.note_log_trouble(&error);
                Err(Close::LogRefused)
            }
        }
    }

    fn subscribed(&mut self) {
        let (Some(key), Some(session)) = (&self.shared.key, &self.session) else { return };
        let Some(car) = parse_pseudonym(key.pseudonym(session.car()).as_bytes()) else { return };
        self.shared.directory.subscribe(car, &self.slot.mailbox);
        self.car = Some(car);
    }

    fn unsubscribed(&mut self) {
        if let Some(car) = self.car.take() {
            self.shared.directory.unsubscribe(car, &self.slot.mailbox);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_bytes<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    fn tls_future_bytes<A, B, C, D, E, F: Future>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_stays_lean() {
        let bytes = future_bytes(serve::<tokio::net::TcpStream>);
        assert!(bytes <= 1_536, "{bytes} bytes per connection, before what it allocates");
        let bytes = tls_future_bytes(crate::tls::serve);
        assert!(bytes <= 1_536, "{bytes} bytes per connection with TLS, before what it allocates");
    }
}
