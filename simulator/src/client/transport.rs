//! What a connection runs over: TCP, or TLS on it. Nothing here waits: what does not go at once is `WouldBlock`.
//!
//! TLS is driven by the same readiness as everything else: what is written during the handshake is kept by the session
//! and follows it.

use std::io::{self, BufRead, Write};

use bytes::BytesMut;
use rustls::ClientConnection;
use tokio::net::TcpStream;

/// The connection to the server, below MQTT.
#[derive(Debug)]
pub(crate) enum Transport {
    Plain(TcpStream),
    /// Boxed: the lean one is the other.
    Tls(Box<TlsStream>),
}

#[derive(Debug)]
pub(crate) struct TlsStream {
    socket: TcpStream,
    session: ClientConnection,
}

impl Transport {
    /// Begins a handshake.
    pub(crate) fn tls(socket: TcpStream, session: ClientConnection) -> Self {
        Self::Tls(Box::new(TlsStream { socket, session }))
    }

    /// The socket itself, to wait for and to cut.
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &tls.socket,
        }
    }

    /// Whether what was written waits here, because the socket did not take it.
    pub(crate) fn has_unsent(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.session.wants_write(),
        }
    }

    /// Sends what waits here.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.flush(),
        }
    }

    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_write(bytes),
            Self::Tls(tls) => {
                // As much as the session's buffer holds, which is more than a socket takes.
                let written = tls.session.writer().write(bytes)?;
                tls.flush()?;
                if written > 0 { Ok(written) } else { Err(io::ErrorKind::WouldBlock.into()) }
            }
        }
    }

    pub(crate) fn try_read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_read_buf(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }

    /// Nothing more will be written.
    pub(crate) fn end(&mut self) {
        if let Self::Tls(tls) = self {
            tls.session.send_close_notify();
        }
    }
}

impl TlsStream {
    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Socket(&self.socket)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        loop {
            let mut reader = self.session.reader();
            match reader.fill_buf() {
                Ok(bytes) => {
                    let read = bytes.len();
                    buffer.extend_from_slice(bytes);
                    reader.consume(read);
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            self.session.read_tls(&mut Socket(&self.socket))?;
            let understood = self.session.process_new_packets();
            // An answer of the handshake; or, after an error, the alert that says so.
            let flushed = self.flush();
            understood.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            flushed?;
        }
    }
}

/// The socket, as a TLS session wants it.
struct Socket<'a>(&'a TcpStream);

impl io::Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl io::Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, bytes: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
