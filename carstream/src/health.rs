//! `carstream health`: the health check of a container that has no shell and no curl.
//!
//! Asks one URL of an admin port and says what it answered. Speaks plain HTTP only: an admin port has nothing else.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use service::{HostPort, values};

/// Ask a stage's admin port whether it is ready: for the health check of a container.
///
/// Exit code 0: the answer is 200; 1: it is another, or none.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Ask this URL of an admin port.
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:9100/readyz")]
    pub url: AdminUrl,
    /// Wait at most this long for the answer.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = values::positive_duration)]
    pub timeout: Duration,
}

/// http://HOST:PORT/PATH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminUrl {
    address: HostPort,
    path: String,
}

impl FromStr for AdminUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("http://").unwrap_or_default();
        let (authority, path) = rest.split_once('/').unwrap_or((rest, "readyz"));
        let address = authority.parse().map_err(|_| format!("{text:?} is not http://HOST:PORT/PATH"))?;
        Ok(Self { address, path: format!("/{path}") })
    }
}

/// The most that is read of an answer.
const ANSWER_BYTES: u64 = 4096;

/// Asks; prints what was answered.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let AdminUrl { address, path } = &args.url;
    let answer = ask(args).with_context(|| {
        format!("no answer from http://{address}{path}: is the stage running, with --admin {address}?")
    })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    anyhow::ensure!(status.split(' ').nth(1) == Some("200"), "{status}: {}", body.trim());
    println!("{}", body.trim());
    Ok(())
}

fn ask(args: &Args) -> anyhow::Result<String> {
    let AdminUrl { address, path } = &args.url;
    let found = address.as_pair().to_socket_addrs()?.next().context("the host has no address")?;
    let mut stream = TcpStream::connect_timeout(&found, args.timeout)?;
    stream.set_read_timeout(Some(args.timeout))?;
    stream.set_write_timeout(Some(args.timeout))?;
    // In one piece: write! would send each part by itself.
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn asked(answer: &'static str) -> anyhow::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/readyz", listener.local_addr().expect("bound"));
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 1024];
            let length = stream.read(&mut request).expect("a request");
            stream.write_all(answer.as_bytes()).expect("the client waits");
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let result = run(&Args { url: url.parse().expect("valid"), timeout: Duration::from_secs(30) });
        assert!(server.join().expect("no panic").starts_with("GET /readyz HTTP/1.1\r\n"));
        result
    }

    #[test]
    fn only_200_is_healthy_and_anything_else_says_why() {
        asked("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n").expect("healthy");
        let waiting = asked("HTTP/1.1 503 Service Unavailable\r\n\r\nwaits for the log\n").expect_err("not ready");
        assert_eq!(waiting.to_string(), "HTTP/1.1 503 Service Unavailable: waits for the log");
        asked("").expect_err("closed");
        let nobody =
            Args { url: "http://127.0.0.1:1/readyz".parse().expect("valid"), timeout: Duration::from_secs(30) };
        assert!(run(&nobody).expect_err("nobody listens").to_string().contains("127.0.0.1:1/readyz"));
    }

    #[test]
    fn a_url_has_a_host_and_a_port() {
        assert_eq!(
            "http://h:1".parse(),
            Ok(AdminUrl { address: "h:1".parse().expect("valid"), path: "/readyz".to_owned() })
        );
        for bad in ["", "h:1", "http://", "http://h", "http://:1", "http://h:x/readyz", "https://h:1/"] {
            assert!(bad.parse::<AdminUrl>().is_err(), "{bad}");
        }
    }
}
