//! What a connection runs over: TCP, or TLS on it.
//!
//! The connection is compiled for either. It asks for readiness before it reads, since a read is paid from the byte
//! budget and who is idle should hold nothing of it; so that is what this adds to tokio's traits.

use std::io;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// A stream and the socket under it.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// The socket itself.
    fn socket(&self) -> &TcpStream;

    /// Ready if a read may give something: bytes, the end or an error.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket().poll_read_ready(cx)
    }

    /// Whether bytes that were written wait here because the socket did not take them; a flush takes them on.
    fn has_unsent(&self) -> bool {
        false
    }
}

impl Transport for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

/// Boxed: a TLS session has more than 1 KB, which connections without TLS should not be as large as.
impl Transport for Box<TlsStream<TcpStream>> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (socket, session) = self.get_ref();
        // What is decrypted already is nothing that the socket knows of.
        if session.wants_read() { socket.poll_read_ready(cx) } else { Poll::Ready(Ok(())) }
    }

    fn has_unsent(&self) -> bool {
        self.get_ref().1.wants_write()
    }
}
