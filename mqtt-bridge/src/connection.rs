//! One connection: a socket, a session, and their bounds.
//!
//! ```text
//!         ┌── gate: open? ──┐ bytes ≤ 16 KiB a read, paid from the byte budget
//! socket ─┤ window, budget, ├──► frames ─► Session ─► Appender ─► (log) ─► Mailbox ─► Session ─► PUBACK ─► socket
//!         │ log, client     │       └ what is left over waits in `input`
//!         └─ closed: TCP pushes back; keep-alive rests; at most --max-pause-s
//! ```
//!
//! The task outlives its socket until the log has decided on everything that it was given: only then are its bytes given
//! back to the budget and its slot to others.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use event_log::{AppendError, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::Instant;

use crate::alerts::parse_pseudonym;
use crate::bridge::Shared;
use crate::clients::{Mail, Mailbox, Slot};
use crate::close::{Close, Refusal};
use crate::input::{READ_BYTES, with_scratch};
use crate::session::{self, ConnAck, MAX_OUT_BYTES, Message, Session, Step};
use crate::stamp::Stamp;
use crate::window::Fate;
use crate::wire::{self, Packet};

/// How soon a connection that waits for room in the append queue looks again, should it not be told.
const ROOM_CHECK_MS: u64 = 50;

/// How long a client that was told why it is disconnected may take to read that.
const FAREWELL_MS: u64 = 1_000;

/// Serves one client until it has gone and everything it sent is decided.
pub(crate) async fn serve(shared: Arc<Shared>, slot: Slot, mut stream: TcpStream, over_limit: bool) {
    let mut connection = Connection::new(shared, slot, over_limit);
    let close = connection.talk(&mut stream).await;
    connection.end(stream, close).await;
}

/// Why nothing is read, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// Read.
    Open,
    /// Wait for the byte budget.
    Budget,
    /// Wait for room in the append queue.
    Room,
    /// Wait for mail or for the client to take what it was sent.
    Shut,
}

struct Connection {
    shared: Arc<Shared>,
    slot: Slot,
    session: Option<Session>,
    /// The answer to CONNECT, while the client's earlier connection has not gone.
    claiming: Option<ConnAck>,
    /// Bytes that are not parsed: an incomplete packet, or what came before the gate shut.
    input: BytesMut,
    /// Whether `input` may hold a whole packet, since the gate shut before it.
    backlog: bool,
    out: BytesMut,
    mail: Mail,
    /// A message that the append queue had no room for, and its size on the wire.
    held: Option<(Message, u32)>,
    /// What `input` and `held` have of the byte budget.
    charged: u32,
    /// What a read may take of the byte budget, if that had to be waited for.
    allowance: u32,
    starved: bool,
    over_limit: bool,
    /// Set while the bridge stops: by when this connection has to end.
    drain_by: Option<Instant>,
    successor: Option<Arc<Mailbox>>,
    /// The pseudonym of the car, while it wants its alerts.
    car: Option<u128>,
    opened: Instant,
    last_read: Instant,
    paused_since: Option<Instant>,
}

impl Connection {
    fn new(shared: Arc<Shared>, slot: Slot, over_limit: bool) -> Self {
        let now = Instant::now();
        shared.metrics.connections.inc();
        Self {
            shared,
            slot,
            session: None,
            claiming: None,
            input: BytesMut::new(),
            backlog: false,
            out: BytesMut::new(),
            mail: Mail::default(),
            held: None,
            charged: 0,
            allowance: 0,
            starved: false,
            over_limit,
            drain_by: None,
            successor: None,
            car: None,
            opened: now,
            last_read: now,
            paused_since: None,
        }
    }

    /// Until the client goes or has to go.
    async fn talk(&mut self, stream: &mut TcpStream) -> Close {
        let shared = self.shared.clone();
        let mailbox = self.slot.mailbox.clone();
        let (mut reader, writer) = stream.split();
        let mut timer = pin!(tokio::time::sleep_until(self.deadline(Gate::Open)));
        loop {
            if let Err(close) = self.advance().and_then(|()| self.flush(&writer)) {
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
                read = poll_fn(|cx| self.poll_read(cx, &mut reader)), if gate == Gate::Open => {
                    if let Err(close) = read {
                        return close;
                    }
                }
                Ok(permit) = shared.budget.acquire_many(READ_BYTES), if gate == Gate::Budget => {
                    permit.forget();
                    self.allowance = READ_BYTES;
                    self.starved = false;
                }
                () = shared.room.wait(), if gate == Gate::Room => {}
                _ = writer.writable(), if !self.out.is_empty() => {}
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
            self.charged -= bytes;
            self.append(message, bytes, &stamp)?;
        }
        if !self.input.is_empty() && !self.is_shut() {
            let input = std::mem::take(&mut self.input);
            self.parse_input(input, &stamp)?;
        }
        self.acknowledge()?;
        if let Some(session) = &mut self.session {
            let sent = session.send_alerts(&mut self.out);
            self.shared.metrics.alerts_delivered.inc_by(sent.delivered);
            self.shared.metrics.alerts_dropped.inc_by(sent.dropped);
        }
        let Some(drain_by) = self.drain_by else { return Ok(()) };
        if self.undecided() == 0 || drain_by <= Instant::now() { Err(Close::Draining) } else { Ok(()) }
    }

    fn take_mail(&mut self) -> Result<(), Close> {
        self.slot.mailbox.fetch(&mut self.mail);
        let Mail { completions, alerts, successor, drain, .. } = &mut self.mail;
        if std::mem::take(drain) && self.drain_by.is_none() {
            let timeout = Duration::from_secs(self.shared.rules.limits.drain_timeout_s.into());
            self.drain_by = Some(Instant::now() + timeout);
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

    /// Writes what the socket takes.
    fn flush(&mut self, writer: &WriteHalf<'_>) -> Result<(), Close> {
        while !self.out.is_empty() {
            match writer.try_write(&self.out) {
                Ok(written) => self.out.advance(written),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(Close::Lost),
            }
        }
        self.out = BytesMut::new(); // an idle connection holds no buffers
        Ok(())
    }

    /// Whether a bound of this connection is reached.
    fn is_shut(&self) -> bool {
        self.claiming.is_some()
            || self.drain_by.is_some()
            || self.held.is_some()
            || self.out.len() >= MAX_OUT_BYTES
            || self.session.as_ref().is_some_and(|session| session.is_full(&self.shared.rules.limits))
    }

    fn gate(&self) -> Gate {
        if self.held.is_some() && self.drain_by.is_none() {
            Gate::Room
        } else if self.is_shut() {
            Gate::Shut
        } else if self.starved {
            Gate::Budget
        } else {
            Gate::Open
        }
    }

    fn note_pause(&mut self, gate: Gate) {
        match (gate, self.paused_since) {
            (Gate::Open, Some(_)) => {
                self.paused_since = None;
                self.shared.metrics.paused.dec();
                self.last_read = Instant::now(); // the client has not been silent: it was not heard
            }
            (Gate::Budget | Gate::Room | Gate::Shut, None) => {
                self.paused_since = Some(Instant::now());
                self.shared.metrics.paused.inc();
            }
            _ => {}
        }
    }

    fn deadline(&self, gate: Gate) -> Instant {
        let limits = &self.shared.rules.limits;
        let seconds = |s: u16| Duration::from_secs(s.into());
        let mut deadline = match (&self.session, self.paused_since) {
            (None, _) => self.opened + seconds(limits.connect_timeout_s),
            (Some(_), _) if self.claiming.is_some() => self.opened + seconds(limits.connect_timeout_s),
            (Some(_), Some(since)) => since + seconds(limits.max_pause_s),
            (Some(session), None) => self.last_read + seconds(session.keep_alive_s()) * 3 / 2,
        };
        if gate == Gate::Room {
            deadline = deadline.min(Instant::now() + Duration::from_millis(ROOM_CHECK_MS));
        }
        self.drain_by.map_or(deadline, |by| deadline.min(by))
    }

    fn expired(&self, gate: Gate) -> Option<Close> {
        if self.drain_by.is_some() {
            return None; // `advance` ends the connection
        }
        let looks_again = gate == Gate::Room;
        let deadline = if looks_again { self.deadline(Gate::Shut) } else { self.deadline(gate) };
        (deadline <= Instant::now()).then(|| match &self.session {
            Some(_) if self.claiming.is_none() => {
                if self.paused_since.is_some() {
                    Close::PausedTooLong
                } else {
                    Close::KeepAlive
                }
            }
            _ => Close::ConnectTimeout,
        })
    }

    /// One read from the socket, and what follows from it.
    fn poll_read(&mut self, cx: &mut Context<'_>, reader: &mut ReadHalf<'_>) -> Poll<Result<(), Close>> {
        match reader.as_ref().poll_read_ready(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Close::Lost)),
            Poll::Pending => {
                self.shared.give_back(std::mem::take(&mut self.allowance)); // who is idle holds nothing
                return Poll::Pending;
            }
        }
        if self.allowance == 0 {
            match self.shared.budget.try_acquire_many(READ_BYTES) {
                Ok(permit) => {
                    permit.forget();
                    self.allowance = READ_BYTES;
                }
                Err(_) => {
                    self.starved = true;
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let result = if self.input.is_empty() {
            with_scratch(|scratch| {
                let read = self.read_into(cx, reader, scratch);
                let result = read.map(|stamp| stamp.and_then(|stamp| self.parse(scratch, &stamp)));
                if !scratch.is_empty() {
                    self.input = BytesMut::from(&scratch[..]);
                }
                result
            })
        } else {
            let mut input = std::mem::take(&mut self.input);
            let read = self.read_into(cx, reader, &mut input);
            match read {
                Poll::Ready(Ok(stamp)) => Poll::Ready(self.parse_input(input, &stamp)),
                other => {
                    self.input = input;
                    other.map(|stamp| stamp.map(|_| ()))
                }
            }
        };
        self.shared.give_back(std::mem::take(&mut self.allowance));
        result
    }

    /// Reads at most [`READ_BYTES`], and moves their cost from the allowance to `charged`.
    fn read_into(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut ReadHalf<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<Result<Stamp, Close>> {
        let before = buffer.len();
        let mut limited = bytes::BufMut::limit(&mut *buffer, READ_BYTES as usize);
        match ready!(pin!(reader.read_buf(&mut limited)).poll(cx)) {
            Ok(0) | Err(_) => Poll::Ready(Err(Close::Lost)),
            Ok(_) => {
                let read = (buffer.len() - before) as u32;
                self.allowance -= read;
                self.charged += read;
                let stamp = Stamp::now();
                self.last_read = stamp.instant.into();
                Poll::Ready(Ok(stamp))
            }
        }
    }

    /// Parses `input`, and keeps what is left over, in a buffer that is no larger than it has to be.
    fn parse_input(&mut self, mut input: BytesMut, stamp: &Stamp) -> Result<(), Close> {
        let before = input.len();
        let parsed = self.parse(&mut input, stamp);
        self.input = match input.len() {
            0 => BytesMut::new(),
            left if left < before => BytesMut::from(&input[..]),
            _ => input,
        };
        parsed
    }

    /// Takes whole packets from the front of `bytes`, until the gate shuts.
    fn parse(&mut self, bytes: &mut BytesMut, stamp: &Stamp) -> Result<(), Close> {
        let mut done = 0; // of the budget
        let mut result = Ok(());
        while result.is_ok() && !self.is_shut() && !bytes.is_empty() {
            if self.session.is_none() && bytes[0] != wire::CONNECT {
                result = Err(Close::Malformed); // whatever this is, it isn't MQTT
                break;
            }
            match wire::frame_length(bytes, self.shared.rules.limits.max_packet_bytes) {
                Ok(Some(length)) if length <= bytes.len() => {
                    let frame = bytes.split_to(length);
                    self.charged -= length as u32;
                    match self.take_frame(frame, stamp) {
                        Ok(kept) => done += length as u32 - kept,
                        Err(close) => {
                            done += length as u32;
                            result = Err(close);
                        }
                    }
                }
                Ok(_) => break,
                Err(malformed) => result = Err(malformed.into()),
            }
        }
        self.backlog = self.is_shut() && !bytes.is_empty();
        self.shared.give_back(done);
        result
    }

    /// Takes one packet. Returns how much of its cost stays with the session's window, or with `held`.
    fn take_frame(&mut self, frame: BytesMut, stamp: &Stamp) -> Result<u32, Close> {
        let bytes = frame.len() as u32;
        let Some(session) = &mut self.session else {
            self.connect(frame)?;
            return Ok(0);
        };
        let packet = wire::decode(session.version(), frame)?;
        match session.receive(packet, &self.shared.rules, stamp.instant, &mut self.out)? {
            Step::Done => {}
            Step::Append(message) => {
                self.append(message, bytes, stamp)?;
                return Ok(bytes);
            }
            Step::RefusedPublish(close) => self.shared.metrics.refused_publish(close.label()),
            Step::Subscribed => self.subscribed(),
            Step::Unsubscribed => self.unsubscribed(),
            Step::AlertAcknowledged => {
                self.shared.metrics.alerts_delivered.inc();
            }
        }
        Ok(0)
    }

    fn connect(&mut self, frame: BytesMut) -> Result<(), Close> {
        let version = wire::version(&frame);
        let opened = match version {
            Ok(version) => match wire::decode(version, frame) {
                Ok(Packet::Connect(connect)) if !self.over_limit => {
                    Session::open(*connect, &self.shared.rules, || self.shared.assigned_client_id())
                }
                Ok(Packet::Connect(_)) => Err(Refusal::Busy),
                Ok(_) => Err(Refusal::Malformed),
                Err(malformed) => Err(malformed.into()),
            },
            Err(malformed) => Err(malformed.into()),
        };
        let (session, answer) = opened.map_err(|refusal| {
            self.shared.metrics.refused_connect(refusal.label());
            session::refuse(version.ok(), refusal, &mut self.out);
            Close::Refused
        })?;
        let takes_over = self.shared.directory.enter(session.client_id(), &self.slot.mailbox);
        self.session = Some(session);
        self.claiming = Some(answer);
        if takes_over {
            // The earlier connection's will goes into the log before anything of ours: `predecessor_gone` comes then.
            self.shared.metrics.takeovers.inc();
            return Ok(());
        }
        self.accept()
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

    /// Gives a message to the log; holds it if there is no room.
    fn append(&mut self, message: Message, bytes: u32, stamp: &Stamp) -> Result<(), Close> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let shared = &self.shared;
        let token = self.slot.token(session.window().next_sequence());
        let record = Record {
            key: message.vin().as_bytes(),
            value: Some(&message.payload),
            headers: &[("received_ms", stamp.text()), ("mqtt_topic", message.topic().as_bytes())],
            timestamp_ms: stamp.wall_ms,
        };
        match shared.appender.append(&shared.topics[message.kind as usize], &record, token) {
            Ok(()) => {
                session.window().push(message.packet_id, Fate::Pending, bytes, stamp.instant);
                shared.metrics.publishes[message.kind as usize].inc();
                shared.metrics.publish_bytes.inc_by(message.payload.len() as u64);
                shared.metrics.in_flight.inc();
                Ok(())
            }
            Err(AppendError::Full) => {
                self.charged += bytes;
                self.held = Some((message.detached(), bytes));
                Ok(())
            }
            Err(AppendError::Refused(error)) => {
                shared.note_log_trouble(&error);
                shared.give_back(bytes);
                Err(Close::LogRefused)
            }
        }
    }

    fn subscribed(&mut self) {
        let (Some(key), Some(session)) = (&self.shared.key, &self.session) else { return };
        let Some(car) = parse_pseudonym(key.pseudonym(session.client_id()).as_bytes()) else { return };
        self.shared.directory.subscribe(car, &self.slot.mailbox);
        self.car = Some(car);
    }

    fn unsubscribed(&mut self) {
        if let Some(car) = self.car.take() {
            self.shared.directory.unsubscribe(car, &self.slot.mailbox);
        }
    }

    /// After the talk: the will, the last words, and the wait for what the log has not decided on.
    async fn end(&mut self, stream: TcpStream, close: Close) {
        let shared = self.shared.clone();
        shared.metrics.closed(close.label());
        shared.metrics.connections.dec();
        shared.closed_one();
        if self.paused_since.take().is_some() {
            shared.metrics.paused.dec();
        }
        tracing::debug!(slot = self.slot.number(), reason = close.label(), "connection ended");
        self.unsubscribed();
        self.input = BytesMut::new();
        self.held = None;
        shared.give_back(std::mem::take(&mut self.charged) + std::mem::take(&mut self.allowance));
        let mut will = None;
        if let Some(session) = &mut self.session {
            shared.directory.leave(session.client_id(), &self.slot.mailbox);
            shared.metrics.alerts_dropped.inc_by(session.outstanding_alerts() as u64);
            // A client that was never accepted leaves no will.
            will = session.take_will().filter(|_| self.claiming.is_none());
            session.say_goodbye(close, &mut self.out);
        }
        will = self.append_will(will);
        if will.is_none() {
            self.tell_successor();
        }
        farewell(stream, close, std::mem::take(&mut self.out)).await;
        while will.is_some() && !shared.abandon.is_cancelled() {
            tokio::select! {
                () = shared.room.wait() => {}
                () = tokio::time::sleep(Duration::from_millis(ROOM_CHECK_MS)) => {}
            }
            will = self.append_will(will);
        }
        self.tell_successor();
        self.linger().await;
    }

    /// Gives the will to the log. Returns it if there is no room.
    fn append_will(&mut self, will: Option<Message>) -> Option<Message> {
        let will = will?;
        // Without cost: it is short, and the budget may be what keeps others from ending.
        if self.append(will, 0, &Stamp::now()).is_err() {
            return None; // refused and said so
        }
        let held = self.held.take().map(|(will, _)| will);
        if held.is_none() {
            self.shared.metrics.wills.inc();
        }
        held
    }

    fn tell_successor(&mut self) {
        if let Some(successor) = self.successor.take() {
            successor.predecessor_gone();
        }
    }

    /// Until the log has decided on everything: nobody is told any more, but bytes and slot are given back.
    async fn linger(&mut self) {
        let mailbox = self.slot.mailbox.clone();
        loop {
            // A successor that comes now need not wait: the will, if there was one, is on its way.
            if self.take_mail().is_err() {
                self.tell_successor();
            }
            if let Some(session) = &mut self.session {
                let mut bytes = 0;
                while let Some(entry) = session.window().pop_decided() {
                    bytes += entry.bytes;
                }
                self.shared.give_back(bytes);
            }
            if self.undecided() == 0 {
                return;
            }
            tokio::select! {
                () = mailbox.arrived() => {}
                () = self.shared.abandon.cancelled() => return,
            }
        }
    }
}

/// Sends the last bytes and closes. What the client is still sending is read and thrown away for a moment: otherwise
/// the kernel answers it with a reset, and the client never reads why it was disconnected.
async fn farewell(mut stream: TcpStream, close: Close, out: BytesMut) {
    if matches!(close, Close::Lost | Close::Goodbye) && out.is_empty() {
        return;
    }
    let last_words = async {
        if stream.write_all(&out).await.is_err() || stream.shutdown().await.is_err() {
            return;
        }
        while stream.readable().await.is_ok() {
            let mut sink = [0; 4_096]; // on the stack: not in the memory of every connection
            match stream.try_read(&mut sink) {
                Ok(1..) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return,
            }
        }
    };
    // Whether the client heard it or not, it is over.
    let _ = tokio::time::timeout(Duration::from_millis(FAREWELL_MS), last_words).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_bytes<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_stays_lean() {
        let bytes = future_bytes(serve);
        assert!(bytes <= 1_536, "{bytes} bytes per connection, before what it allocates");
    }
}
