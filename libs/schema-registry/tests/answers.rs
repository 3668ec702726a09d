//! What becomes of each kind of answer, and of none. Against a socket that says what the test wants; the real registry
//! is asked in carstream/tests/schema_registry.rs.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use certificates::{Authority, KeyPem};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use schema_registry::{Error, Registry, SchemaRegistryArgs};
use service::Readiness;
use tokio_util::sync::CancellationToken;

const NO_SUBJECT: (u16, &str) = (404, r#"{"error_code":40401,"message":"Subject not found"}"#);

/// Answers one request after the other, each on a connection of its own, and then no more. Returns the requests.
fn answering(answers: &'static [(u16, &'static str)]) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/registry", listener.local_addr().unwrap());
    let served = move || {
        let answer = |(status, body): &(u16, &str)| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let (mut request, mut line, mut length) = (String::new(), String::new(), 0);
            while lines.read_line(&mut line).unwrap() > 2 {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                request.push_str(&std::mem::take(&mut line));
            }
            let mut body_bytes = vec![0; length];
            lines.read_exact(&mut body_bytes).unwrap();
            request.push_str(&String::from_utf8(body_bytes).unwrap());
            let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
            request
        };
        answers.iter().map(answer).collect()
    };
    (url, std::thread::spawn(served))
}

/// A certificate for 127.0.0.1 by an authority that no system knows, and that authority's own.
fn private_authority() -> (Arc<ServerConfig>, String) {
    let authority_key = KeyPem::generate();
    let authority = Authority::create(&authority_key).unwrap();
    let key = KeyPem::generate();
    let signed = Authority::from_pem(authority.as_bytes(), &authority_key).unwrap();
    let certificate = signed.server(&["127.0.0.1".to_owned()], &key).unwrap();
    let chain = certificates::from_pem(certificate.as_bytes()).unwrap();
    let private = PrivateKeyDer::from_pem_slice(key.0.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    (Arc::new(config.with_no_client_auth().with_single_cert(chain, private).unwrap()), authority)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_of_the_site_is_trusted_when_it_is_named() {
    let (config, authority) = private_authority();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream.unwrap());
            // A client that does not trust the certificate ends the connection here.
            if stream.read(&mut [0; 4096]).is_ok() {
                let body = r#"{"schema":"{}"}"#;
                let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    let stranger = asked(args(&url).connect().unwrap().unwrap(), |registry| registry.schema(1)).await;
    assert!(format!("{:#}", anyhow::Error::from(stranger.unwrap_err())).contains("certificate"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), authority).unwrap();
    let known = SchemaRegistryArgs { schema_registry_ca_file: Some(file.path().to_owned()), ..args(&url) };
    let schema = asked(known.connect().unwrap().unwrap(), |registry| registry.schema(1)).await;
    assert_eq!(schema.unwrap().as_deref(), Some("{}"));
}

fn args(url: &str) -> SchemaRegistryArgs {
    SchemaRegistryArgs { schema_registry: Some(url.parse().unwrap()), ..SchemaRegistryArgs::default() }
}

async fn asked<T: Send + 'static>(registry: Registry, ask: impl FnOnce(&Registry) -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(move || ask(&registry)).await.unwrap()
}

#[tokio::test]
async fn answers_are_told_apart() {
    let (url, requests) = answering(&[
        (200, r#"{"schema":"\"string\""}"#),
        (404, r#"{"error_code":40403,"message":"Schema not found"}"#),
        (404, "<html>no such page</html>"),
        (200, "<html>welcome</html>"),
        (503, r#"{"error_code":50003,"message":"no leader"}"#),
        (401, r#"{"error_code":40101,"message":"who are you"}"#),
        (409, r#"{"error_code":409,"message":"incompatible"}"#),
    ]);
    let directory = tempfile::tempdir().unwrap();
    let credentials = directory.path().join("credentials");
    std::fs::write(&credentials, "site:secret\n").unwrap();
    let args = SchemaRegistryArgs { schema_registry_credentials_file: Some(credentials), ..args(&url) };
    let registry = args.connect().unwrap().unwrap();
    let answers = asked(registry, |registry| {
        let mut answers: Vec<_> = (1..=6).map(|id| registry.schema(id)).collect();
        answers.push(registry.register("s-value", "{}").map(|()| None));
        answers
    })
    .await;
    let requests = requests.join().unwrap();
    assert!(matches!(&answers[0], Ok(Some(schema)) if schema == "\"string\""), "{answers:?}");
    assert!(matches!(&answers[1], Ok(None)), "{answers:?}");
    for (answer, retriable, said) in [
        (&answers[2], false, "is not a schema registry"),
        (&answers[3], false, "is not a schema registry"),
        (&answers[4], true, "cannot read schema id 5 at the schema registry"),
        (&answers[5], false, "refused to read schema id 6: 401: who are you"),
        (&answers[6], false, "refused to register a schema in s-value"),
    ] {
        let error = answer.as_ref().unwrap_err();
        assert_eq!(error.is_retriable(), retriable, "{error}");
        assert!(error.to_string().contains(said) && error.to_string().contains(&url), "{error}");
    }
    assert!(requests[0].starts_with("GET /registry/schemas/ids/1 HTTP/1.1\r\n"), "{}", requests[0]);
    assert!(requests[0].contains("authorization: Basic c2l0ZTpzZWNyZXQ="), "{}", requests[0]);
    assert!(requests[6].ends_with(r#"{"schema":"{}"}"#), "{}", requests[6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_not_ready_is_waited_for_and_an_empty_one_is_not() {
    let (url, requests) = answering(&[(503, ""), (500, ""), NO_SUBJECT, NO_SUBJECT]);
    let error = args(&url)
        .open(
            contract::Contract::builtin().schemas(),
            &[("telemetry", "telemetry.v2.avsc")],
            &Readiness::default(),
            &CancellationToken::new(),
        )
        .await
        .unwrap_err();
    assert!(matches!(&error, Error::Unfit { .. }), "{error}");
    let wanted =
        "subject telemetry-value does not hold telemetry.v2.avsc (of its versions it has none): run `carstream deploy`";
    assert!(error.to_string().contains(wanted), "{error}");
    assert_eq!(requests.join().unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_never_comes_is_waited_for_until_shutdown() {
    let nobody = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let readiness = Readiness::default();
    readiness.started();
    let opened = {
        let (shutdown, readiness, uses) = (shutdown.clone(), readiness.clone(), [("scores", "score.avsc")]);
        tokio::spawn(async move {
            args(&nobody).open(contract::Contract::builtin().schemas(), &uses, &readiness, &shutdown).await
        })
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while readiness.is_ready() {
        assert!(std::time::Instant::now() < deadline && !opened.is_finished());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(readiness.reasons()[0].starts_with("the schema registry http://127.0.0.1:"), "{:?}", readiness.reasons());
    shutdown.cancel();
    assert!(opened.await.unwrap().unwrap().is_none());
}

#[tokio::test]
async fn without_a_registry_the_ids_are_those_of_ids_json() {
    let opened = SchemaRegistryArgs::default()
        .open(contract::Contract::builtin().schemas(), &[], &Readiness::default(), &CancellationToken::new())
        .await;
    let schemas = opened.unwrap().unwrap();
    assert_eq!(schemas.schemas().file("telemetry.v2.avsc").unwrap().id, Some(2));
    let mut decoder = schemas.decoder("telemetry.v2.avsc").unwrap();
    schemas.resolve(&mut decoder, [&b"\0\0\0\0\x63rest"[..]]).unwrap();
    assert_eq!(decoder.decode(b"\0\0\0\0\x63rest").unwrap_err().reason, "unknown-schema");
}
