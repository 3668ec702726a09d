//! A TCP proxy that breaks connections on demand.
//!
//! ```text
//! client ─► accept ─┬─► connect upstream, copy both ways     Pass
//!                   ├─► the same, later and slower           Slow
//!                   ├─► nothing goes on; nothing is closed   Hang    as when a cable is cut: packets vanish
//!                   └─► RST, and RST to those that are open  Refuse  the machine is up, its server is not
//! ```
//!
//! It copies bytes and knows no protocol. Bytes in transit when it hangs are delivered when it stops hanging, as TCP
//! itself would repeat them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// One read: small, so that hundreds of cars cost little and a slow link is slow evenly.
const CHUNK_BYTES: usize = 16 * 1024;

/// How a proxy treats its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As if the proxy were not there.
    Pass,
    /// Each chunk is delayed, and the rate is limited.
    Slow { delay: Duration, bytes_per_s: u32 },
    /// Nothing goes through, and no side is notified.
    Hang,
    /// Connections are reset, new ones too.
    Refuse,
}

#[derive(Debug, Clone, Copy)]
struct State {
    mode: Mode,
    /// Connections older than this are reset.
    generation: u64,
}

/// A listener in front of something. Stops listening when dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    state: watch::Sender<State>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Listens at a free port in front of `upstream`, which need not be there yet.
    pub(crate) fn start(runtime: &Handle, upstream: u16) -> anyhow::Result<Self> {
        let listener = runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .context("cannot listen at any port of 127.0.0.1")?;
        let port = listener.local_addr()?.port();
        let (state, states) = watch::channel(State { mode: Mode::Pass, generation: 0 });
        let upstream = SocketAddr::from((Ipv4Addr::LOCALHOST, upstream));
        let accepting = runtime.spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((client, _)) => drop(tokio::spawn(serve(client, upstream, states.clone()))),
                    // Out of files for a moment.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        });
        Ok(Self { port, state, accepting })
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Treats connections like this from now on.
    pub(crate) fn set(&self, mode: Mode) {
        self.state.send_modify(|state| {
            state.mode = mode;
            state.generation += u64::from(mode == Mode::Refuse);
        });
    }

    /// Resets every connection there is; new ones are welcome.
    pub(crate) fn reset_all(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One connection, from its accept to its end. Whatever is not a clean end of both sides is a reset for both.
async fn serve(mut client: TcpStream, upstream: SocketAddr, states: watch::Receiver<State>) {
    let born = states.borrow().generation;
    if states.borrow().mode == Mode::Refuse {
        let _ = client.set_zero_linger();
        return;
    }
    let mut doom = states.clone();
    let reset = async move {
        // The proxy itself is gone: reset as well.
        let _ = doom.wait_for(|state| state.generation != born).await;
    };
    tokio::pin!(reset);
    let connected = tokio::select! {
        () = &mut reset => None,
        connected = connect(upstream, states.clone()) => connected,
    };
    let Some(mut server) = connected else {
        let _ = client.set_zero_linger();
        return;
    };
    let ended_well = {
        let (client_reads, client_writes) = client.split();
        let (server_reads, server_writes) = server.split();
        let both = async {
            tokio::try_join!(
                pump(client_reads, server_writes, states.clone()),
                pump(server_reads, client_writes, states.clone()),
            )
        };
        tokio::select! {
            () = &mut reset => false,
            ended = both => ended.is_ok(),
        }
    };
    if !ended_well {
        // SO_LINGER 0: the close that follows is an RST.
        let _ = client.set_zero_linger();
        let _ = server.set_zero_linger();
    }
}

/// Connects once connections are not blocked. `None`: no server answers.
async fn connect(upstream: SocketAddr, mut states: watch::Receiver<State>) -> Option<TcpStream> {
    states.wait_for(|state| state.mode != Mode::Hang).await.ok()?;
    let server = TcpStream::connect(upstream).await.ok()?;
    let _ = server.set_nodelay(true);
    Some(server)
}

/// Copies one direction to its end.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut states: watch::Receiver<State>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let n = from.read(&mut buffer).await?;
        let passing = states.wait_for(|state| state.mode != Mode::Hang).await;
        let mode = passing.map_err(std::io::Error::other)?.mode;
        if n == 0 {
            return to.shutdown().await;
        }
        if let Mode::Slow { delay, bytes_per_s } = mode {
            let transfer = Duration::from_secs_f64(n as f64 / f64::from(bytes_per_s));
            tokio::time::sleep(delay + transfer).await;
        }
        to.write_all(&buffer[..n]).await?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{ErrorKind, Read, Write};
    use std::net::TcpStream;
    use std::time::Instant;

    use super::*;

    /// Says back what it hears.
    fn echo() -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut &stream));
            }
        });
        port
    }

    fn say(stream: &mut TcpStream, word: &[u8; 4]) -> std::io::Result<[u8; 4]> {
        stream.write_all(word)?;
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).map(|()| heard)
    }

    #[test]
    fn connections_pass_hang_go_on_are_reset_and_refused() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let proxy = Proxy::start(runtime.handle(), echo()).unwrap();
        let connect = || {
            let stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream
        };
        let mut first = connect();
        assert_eq!(say(&mut first, b"pass").unwrap(), *b"pass");

        proxy.set(Mode::Hang);
        first.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let silence = say(&mut first, b"hang").unwrap_err();
        assert!(matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence:?}");
        let mut second = connect();
        proxy.set(Mode::Slow { delay: Duration::from_millis(50), bytes_per_s: 1_000 });
        first.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut heard = [0; 4];
        first.read_exact(&mut heard).unwrap();
        assert_eq!(heard, *b"hang", "what was under way comes in the end");
        let began = Instant::now();
        assert_eq!(say(&mut second, b"slow").unwrap(), *b"slow");
        assert!(began.elapsed() >= Duration::from_millis(100), "50 ms there and 50 ms back: {:?}", began.elapsed());

        proxy.set(Mode::Pass);
        proxy.reset_all();
        assert_eq!(say(&mut first, b"gone").unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(say(&mut connect(), b"anew").unwrap(), *b"anew");
        proxy.set(Mode::Refuse);
        assert!(say(&mut connect(), b"none").is_err());
    }
}
