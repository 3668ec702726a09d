//! From the stream to the session: reads, paid from the byte budget, whole packets, and what each of them leads to.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::{Connection, Unfinished};
use crate::close::{Close, Refusal};
use crate::input::{READ_BYTES, with_scratch};
use crate::session::{self, Session, Step};
use crate::stamp::Stamp;
use crate::transport::Transport;
use crate::wire::{self, Packet};

impl Connection {
    /// One read from the stream, and what follows from it.
    pub(super) fn poll_read<T: Transport>(&mut self, cx: &mut Context<'_>, stream: &mut T) -> Poll<Result<(), Close>> {
        match stream.poll_readable(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Close::Lost)),
            Poll::Pending => {
                self.budget.return_allowance(&self.shared); // who is idle holds nothing
                return Poll::Pending;
            }
        }
        if !self.budget.allow_read(&self.shared) {
            return Poll::Ready(Ok(()));
        }
        let result = if self.input.is_empty() {
            with_scratch(|scratch| {
                let read = self.read_into(cx, stream, scratch);
                let result = read.map(|stamp| stamp.and_then(|stamp| self.parse(scratch, &stamp)));
                if !scratch.is_empty() {
                    self.input = BytesMut::from(&scratch[..]);
                }
                self.note_unfinished();
                result
            })
        } else {
            let mut input = std::mem::take(&mut self.input);
            let read = self.read_into(cx, stream, &mut input);
            match read {
                Poll::Ready(Ok(stamp)) => Poll::Ready(self.parse_input(input, &stamp)),
                other => {
                    self.input = input;
                    other.map(|stamp| stamp.map(|_| ()))
                }
            }
        };
        self.budget.return_allowance(&self.shared);
        result
    }

    /// Reads at most [`READ_BYTES`], paid from the allowance.
    fn read_into<T: Transport>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut T,
        buffer: &mut BytesMut,
    ) -> Poll<Result<Stamp, Close>> {
        let before = buffer.len();
        let mut limited = bytes::BufMut::limit(&mut *buffer, READ_BYTES as usize);
        match ready!(pin!(stream.read_buf(&mut limited)).poll(cx)) {
            Ok(0) | Err(_) => Poll::Ready(Err(Close::Lost)),
            Ok(_) => {
                self.budget.spend((buffer.len() - before) as u32);
                let stamp = Stamp::now();
                self.last_read = stamp.instant.into();
                Poll::Ready(Ok(stamp))
            }
        }
    }

    /// Parses `input`, and keeps what is left over, in a buffer that is no larger than it has to be.
    pub(super) fn parse_input(&mut self, mut input: BytesMut, stamp: &Stamp) -> Result<(), Close> {
        let before = input.len();
        let parsed = self.parse(&mut input, stamp);
        self.input = match input.len() {
            0 => BytesMut::new(),
            left if left < before => BytesMut::from(&input[..]),
            _ => input,
        };
        self.note_unfinished();
        parsed
    }

    /// Notes what `input` holds of a packet whose end has not come.
    fn note_unfinished(&mut self) {
        let bytes = if self.backlog { 0 } else { self.input.len() };
        if bytes == 0 {
            return self.end_unfinished();
        }
        let packet = self.unfinished.get_or_insert_with(|| Unfinished { since: Instant::now(), bytes: 0 });
        self.shared.unfinished.fetch_add(bytes - packet.bytes, Ordering::Relaxed);
        packet.bytes = bytes;
    }

    /// The packet is whole, or the connection ends.
    pub(super) fn end_unfinished(&mut self) {
        if let Some(packet) = self.unfinished.take() {
            self.shared.unfinished.fetch_sub(packet.bytes, Ordering::Relaxed);
        }
    }

    /// Whether this connection has to wait for others whose packets are incomplete, too.
    pub(super) fn is_crowded(&self) -> bool {
        self.unfinished.is_some() && self.shared.unfinished.load(Ordering::Relaxed) > self.shared.max_unfinished
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
            let max_packet_bytes = self.shared.rules.limits.max_packet_bytes;
            let max_bytes = if self.session.is_none() { max_packet_bytes.min(READ_BYTES) } else { max_packet_bytes };
            match wire::frame_length(bytes, max_bytes) {
                Ok(Some(length)) if length <= bytes.len() => {
                    let frame = bytes.split_to(length);
                    self.end_unfinished();
                    self.budget.release(length as u32);
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
            Step::Append(message) => return self.append(message, bytes, stamp),
            Step::RefusedPublish(close) => {
                self.shared.metrics.refused_publish(close.label());
                self.shared.complaints.note(close.label(), "refused a publish", close.explanation());
            }
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
                Ok(Packet::Connect(connect)) => match self.arrival.refusal {
                    Some(refusal) => Err(refusal),
                    None => {
                        let car = self.arrival.car.take();
                        Session::open(*connect, &self.shared.rules, car, || self.shared.assigned_ids.assign())
                    }
                },
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
        let takes_over = self.shared.directory.enter(&session.directory_key(), &self.slot.mailbox);
        self.session = Some(session);
        self.claiming = Some(answer);
        if takes_over {
            // The earlier connection's will goes into the log before anything of ours: `predecessor_gone` comes then.
            self.shared.metrics.takeovers.inc();
            return Ok(());
        }
        self.accept()
    }
}
