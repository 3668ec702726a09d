//! Work that is done again and again, from beside everything else.

use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// A thread that does its work every so often, until this is dropped or the work says that it is over.
///
/// The thread is not joined: a broker that does not answer must not hold up a stop.
#[derive(Debug)]
pub struct Periodic {
    /// Dropping the sender ends the pause between two times.
    _ends: mpsc::Sender<()>,
}

impl Periodic {
    /// Does `work` at once, and then each time `pause` after it was done.
    pub fn start(
        name: &str,
        pause: Duration,
        mut work: impl FnMut() -> ControlFlow<()> + Send + 'static,
    ) -> io::Result<Self> {
        let (ends, ended) = mpsc::channel();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while work().is_continue() && ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {}
        })?;
        Ok(Self { _ends: ends })
    }
}
