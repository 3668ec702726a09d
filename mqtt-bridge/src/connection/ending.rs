//! The end of a connection: the will, the last words, and the wait for what the log has not decided on.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;

use super::{Connection, LOOK_AGAIN};
use crate::close::Close;
use crate::session::Message;
use crate::stamp::Stamp;
use crate::transport::Transport;

/// How long a client may take to read why it is disconnected.
const FAREWELL_MS: u64 = 1_000;

impl Connection {
    /// After the talk: the will, the last words, and the wait for what the log has not decided on.
    pub(super) async fn end<T: Transport>(&mut self, stream: T, close: Close) {
        let shared = self.shared.clone();
        shared.metrics.closed(close.label());
        shared.metrics.connections.dec();
        shared.closed_one();
        if self.paused_since.take().is_some() {
            shared.metrics.paused.dec();
        }
        tracing::debug!(slot = self.slot.number(), reason = close.label(), "connection ended");
        if close.is_of_client() {
            shared.complaints.note(close.label(), "disconnected", close.explanation());
        }
        self.unsubscribed();
        self.arrival.place = None;
        self.end_unfinished();
        self.input = BytesMut::new();
        self.held = None;
        self.budget.return_all(&shared);
        let mut will = None;
        if let Some(session) = &mut self.session {
            shared.directory.leave(&session.directory_key(), &self.slot.mailbox);
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
                () = tokio::time::sleep(LOOK_AGAIN) => {}
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

    /// Until the log has confirmed or refused everything: no client is notified any more, but bytes and slot are
    /// released.
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

/// Sends the last bytes and closes. For a moment it reads and discards what the client is still sending: otherwise the
/// kernel answers with a reset, and the client never reads why it was disconnected.
pub(crate) async fn farewell<T: Transport>(mut stream: T, close: Close, out: BytesMut) {
    if matches!(close, Close::Lost | Close::Goodbye) && out.is_empty() {
        return;
    }
    let last_words = async {
        if stream.write_all(&out).await.is_err() || stream.shutdown().await.is_err() {
            return;
        }
        let socket = stream.socket(); // with TLS as well: nobody wants to know what it is
        while socket.readable().await.is_ok() {
            let mut sink = [0; 4_096]; // on the stack: not in the memory of every connection
            match socket.try_read(&mut sink) {
                Ok(1..) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return,
            }
        }
    };
    // Whether the client heard it or not, it is over.
    let _ = tokio::time::timeout(Duration::from_millis(FAREWELL_MS), last_words).await;
}
