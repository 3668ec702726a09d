//! The connected clients, and how to reach them from other threads.
//!
//! ```text
//!  log's thread ── completions ──► Slots: token → mailbox ─┐
//!  follower ────── alerts ───────► Directory: pseudonym ───┼─► Mailbox ─► the connection's task, woken once
//!  a newcomer ──── takeover ─────► Directory: client id ───┘
//! ```
//!
//! A completion token is (slot, sequence number). A slot is given back only when the log has decided on everything that
//! was appended under it, so a token never reaches a stranger.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use bytes::Bytes;
use event_log::Completion;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

/// What waits for a connection's task.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    /// Sequence numbers, and whether the record is durable.
    pub(crate) completions: Vec<(u32, bool)>,
    /// Alerts for the car.
    pub(crate) alerts: Vec<Bytes>,
    /// A connection with the same client identifier has come, and wants to know when this one has gone.
    pub(crate) successor: Option<Arc<Mailbox>>,
    /// The connection that this one takes over from has gone.
    pub(crate) predecessor_gone: bool,
    /// The bridge is stopping.
    pub(crate) drain: bool,
}

/// Where other threads leave things for a connection.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    mail: Mutex<Mail>,
    arrived: Notify,
}

/// Alerts that a task has not fetched; the session has a bound of its own.
const MAX_ALERTS_UNFETCHED: usize = 64;

impl Mailbox {
    /// Resolves when something has arrived since the last time.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Takes all mail, into `into`, which must have been emptied.
    pub(crate) fn fetch(&self, into: &mut Mail) {
        std::mem::swap(&mut *self.mail.lock(), into);
    }

    /// Leaves an alert, unless too many lie there: then it is dropped, and the answer is `false`.
    pub(crate) fn put_alert(&self, alert: Bytes) -> bool {
        let mut mail = self.mail.lock();
        let room = mail.alerts.len() < MAX_ALERTS_UNFETCHED;
        if room {
            mail.alerts.push(alert);
            drop(mail);
            self.arrived.notify_one();
        }
        room
    }

    /// Tells a connection that another one takes over.
    fn take_over(&self, successor: Arc<Mailbox>) {
        self.put(|mail| mail.successor = Some(successor));
    }

    /// Tells a connection that the one it takes over from has gone.
    pub(crate) fn predecessor_gone(&self) {
        self.put(|mail| mail.predecessor_gone = true);
    }

    /// Tells a connection to finish.
    pub(crate) fn drain(&self) {
        self.put(|mail| mail.drain = true);
    }

    fn put(&self, leave: impl FnOnce(&mut Mail)) {
        leave(&mut self.mail.lock());
        self.arrived.notify_one();
    }

    /// Leaves a completion. Returns whether it is the first one since the last fetch.
    fn put_completion(&self, sequence: u32, durable: bool) -> bool {
        let mut mail = self.mail.lock();
        mail.completions.push((sequence, durable));
        mail.completions.len() == 1
    }
}

/// The mailboxes by the number that completion tokens carry.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    inner: RwLock<SlotTable>,
}

#[derive(Debug, Default)]
struct SlotTable {
    mailboxes: Vec<Option<Arc<Mailbox>>>,
    free: Vec<u32>,
}

/// A connection's slot, given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    number: u32,
    pub(crate) mailbox: Arc<Mailbox>,
}

impl Slots {
    /// A slot with a new mailbox.
    pub(crate) fn take(self: &Arc<Self>) -> Slot {
        let mailbox = Arc::new(Mailbox::default());
        let mut table = self.inner.write();
        let number = match table.free.pop() {
            Some(number) => {
                table.mailboxes[number as usize] = Some(mailbox.clone());
                number
            }
            None => {
                table.mailboxes.push(Some(mailbox.clone()));
                (table.mailboxes.len() - 1) as u32
            }
        };
        Slot { slots: self.clone(), number, mailbox }
    }

    /// Hands completions to their connections; wakes each of them once. Never blocks on anything slow.
    pub(crate) fn complete(&self, completions: &[Completion]) {
        let table = self.inner.read();
        let mut last: Option<(u32, &Mailbox)> = None;
        for completion in completions {
            let (number, sequence) = split_token(completion.token);
            let mailbox = match last {
                Some((last, mailbox)) if last == number => mailbox,
                _ => match table.mailboxes.get(number as usize) {
                    Some(Some(mailbox)) => mailbox,
                    _ => continue,
                },
            };
            last = Some((number, mailbox));
            if mailbox.put_completion(sequence, completion.durable) {
                mailbox.arrived.notify_one();
            }
        }
    }

    /// All mailboxes.
    pub(crate) fn all(&self) -> Vec<Arc<Mailbox>> {
        let table = self.inner.read();
        table.mailboxes.iter().flatten().cloned().collect()
    }
}

impl Slot {
    /// The completion token of a sequence number.
    pub(crate) fn token(&self, sequence: u32) -> u64 {
        u64::from(self.number) << 32 | u64::from(sequence)
    }

    /// The slot's number, which logs may name, unlike a VIN.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }
}

fn split_token(token: u64) -> (u32, u32) {
    ((token >> 32) as u32, token as u32)
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut table = self.slots.inner.write();
        table.mailboxes[self.number as usize] = None;
        // After a panic completions may still be under way: such a number is not used again.
        if !std::thread::panicking() {
            table.free.push(self.number);
        }
    }
}

/// The connected clients by client identifier, and the subscribed cars by pseudonym.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    by_client_id: Mutex<HashMap<Box<str>, Arc<Mailbox>>>,
    by_pseudonym: Mutex<HashMap<u128, Arc<Mailbox>>>,
}

impl Directory {
    /// Enters a client. Notifies the client that had the identifier until now; returns whether one existed.
    pub(crate) fn enter(&self, client_id: &str, mailbox: &Arc<Mailbox>) -> bool {
        let mut clients = self.by_client_id.lock();
        let earlier = clients.insert(client_id.into(), mailbox.clone());
        // Notified under the lock: a leaving client checks its mailbox afterwards, so that its successor never waits
        // forever.
        earlier.inspect(|earlier| earlier.take_over(mailbox.clone())).is_some()
    }

    /// Removes a client, unless another connection has its identifier by now.
    pub(crate) fn leave(&self, client_id: &str, mailbox: &Arc<Mailbox>) {
        remove_own(&mut self.by_client_id.lock(), client_id.into(), mailbox);
    }

    /// Enters a car that wants its alerts.
    pub(crate) fn subscribe(&self, car: u128, mailbox: &Arc<Mailbox>) {
        self.by_pseudonym.lock().insert(car, mailbox.clone());
    }

    /// Removes a car, unless another connection is the car by now.
    pub(crate) fn unsubscribe(&self, car: u128, mailbox: &Arc<Mailbox>) {
        remove_own(&mut self.by_pseudonym.lock(), car, mailbox);
    }

    /// Where a car's alerts go, if it wants them.
    pub(crate) fn subscribed(&self, car: u128) -> Option<Arc<Mailbox>> {
        self.by_pseudonym.lock().get(&car).cloned()
    }
}

fn remove_own<K: Hash + Eq>(map: &mut HashMap<K, Arc<Mailbox>>, key: K, mailbox: &Arc<Mailbox>) {
    if let Entry::Occupied(entry) = map.entry(key)
        && Arc::ptr_eq(entry.get(), mailbox)
    {
        entry.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completions(tokens: &[u64]) -> Vec<Completion> {
        tokens.iter().map(|&token| Completion { token, durable: token % 2 == 0 }).collect()
    }

    #[test]
    fn completions_find_their_connection_and_only_it() {
        let slots = Arc::new(Slots::default());
        let (a, b) = (slots.take(), slots.take());
        slots.complete(&completions(&[a.token(4), b.token(5), a.token(6), b.token(u32::MAX), 99 << 32]));
        let fetch = |slot: &Slot| {
            let mut mail = Mail::default();
            slot.mailbox.fetch(&mut mail);
            mail.completions
        };
        assert_eq!(fetch(&a), [(4, true), (6, true)]);
        assert_eq!(fetch(&b), [(5, false), (u32::MAX, false)]);
        let late = b.token(8);
        let number = b.number();
        drop(b);
        slots.complete(&completions(&[late]));
        let again = slots.take();
        assert_eq!(again.number(), number, "numbers are used again");
        assert_eq!(fetch(&again), []);
        assert_eq!(slots.all().len(), 2);
    }

    #[test]
    fn who_was_replaced_removes_nobody() {
        let directory = Directory::default();
        let (old, new) = (Arc::new(Mailbox::default()), Arc::new(Mailbox::default()));
        assert!(!directory.enter("car", &old));
        assert!(directory.enter("car", &new));
        let mut mail = Mail::default();
        old.fetch(&mut mail);
        assert!(mail.successor.is_some_and(|successor| Arc::ptr_eq(&successor, &new)));
        directory.leave("car", &old);
        directory.subscribe(7, &new);
        directory.unsubscribe(7, &old);
        assert!(directory.subscribed(7).is_some());
        directory.leave("car", &new);
        directory.unsubscribe(7, &new);
        assert!(!directory.enter("car", &old));
        assert!(directory.subscribed(7).is_none());
    }
}
