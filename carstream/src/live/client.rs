//! Asks the box.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context;
use event_log::LogUrl;
use tokio_util::sync::CancellationToken;

use super::{Answer, Request, socket};

/// How late a shutdown is seen while the box works.
const POLL: Duration = Duration::from_millis(200);

/// Whether a box listens for commands on `log`.
pub(crate) fn is_served(log: &LogUrl) -> bool {
    socket(log).is_some_and(|socket| UnixStream::connect(socket).is_ok())
}

/// Has the box that has `log` open carry out the request. `None`: no box has it open. Blocking.
pub(crate) fn ask(log: &LogUrl, request: &Request, stop: &CancellationToken) -> anyhow::Result<Option<Answer>> {
    let Some(socket) = socket(log) else { return Ok(None) };
    let mut stream = match UnixStream::connect(&socket) {
        Ok(stream) => stream,
        // There is no socket, or only that of a box that was killed.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        // Longer than a socket's path may be: no box listens there either.
        Err(error) if error.kind() == ErrorKind::InvalidInput => return Ok(None),
        Err(error) => {
            let socket = socket.display();
            return Err(error).with_context(|| format!("cannot ask the edge box at {socket}: run as its user"));
        }
    };
    let lost = || format!("the edge box that has {log} open did not answer: is it stopping?");
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).with_context(lost)?;
    stream.set_read_timeout(Some(POLL))?;
    let (mut answer, mut piece) = (Vec::new(), [0; 8192]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Ok(Some(serde_json::from_slice(&answer).with_context(lost)?)),
            Ok(length) => answer.extend(&piece[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                anyhow::ensure!(!stop.is_cancelled(), "stopped before the edge box answered");
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(lost),
        }
    }
}
