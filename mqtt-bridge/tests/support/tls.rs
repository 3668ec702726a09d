//! A site with an authority, a bridge that has a certificate, and clients that have one or not.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use certificates::{Authority, KeyPem};
use mqtt_bridge::{Args, Listen};
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use tempfile::TempDir;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use super::client::{Client, Connect, connect_packet};
use super::{PATIENCE, any_port};

/// A client that speaks TLS.
pub type TlsClient = Client<StreamOwned<ClientConnection, TcpStream>>;

/// A certificate and its key, in PEM.
pub type Pair = (String, String);

/// An authority and its files.
pub struct Site {
    directory: TempDir,
    authority: Authority,
    ca: Pair,
}

impl Site {
    /// An authority, and a bridge at `localhost`.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = KeyPem::generate();
        let certificate = Authority::create(&key).unwrap();
        let authority = Authority::from_pem(certificate.as_bytes(), &key).unwrap();
        let site = Self { directory, authority, ca: (certificate, key.0) };
        site.write("ca.crt", &site.ca.0);
        site.issue_server();
        site
    }

    /// The bridge of this site, with TLS.
    pub fn configure(&self, args: &mut Args) {
        args.tls.tls_listen = Some(any_port().into());
        args.tls.tls_cert = Some(self.path("mqtt-bridge.crt"));
        args.tls.tls_key = Some(self.path("mqtt-bridge.key"));
        args.tls.tls_client_ca = Some(self.path("ca.crt"));
        args.tls.tls_check = std::time::Duration::from_millis(20);
    }

    /// The same, and nothing else.
    pub fn configure_only(&self, args: &mut Args) {
        self.configure(args);
        args.listen = Listen::Nowhere;
    }

    /// A key and a certificate for the bridge, replacing the existing ones.
    pub fn issue_server(&self) {
        let key = KeyPem::generate();
        let certificate = self.authority.server(&["localhost".to_owned()], &key).unwrap();
        self.write("mqtt-bridge.key", &key.0);
        self.write("mqtt-bridge.crt", &certificate);
    }

    pub fn ca(&self) -> &str {
        &self.ca.0
    }

    pub fn ca_file(&self) -> PathBuf {
        self.path("ca.crt")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Writes a file, whole at once.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path("new"), text).unwrap();
        std::fs::rename(self.path("new"), self.path(name)).unwrap();
    }

    /// A car of this site.
    pub fn car(&self, vin: &str) -> Pair {
        let key = KeyPem::generate();
        (self.authority.car(vin, &key).unwrap(), key.0)
    }

    /// Files of a car of this site.
    pub fn car_files(&self, vin: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.car(vin);
        self.write("car.crt", &certificate);
        self.write("car.key", &key);
        (self.path("car.crt"), self.path("car.key"))
    }

    /// A client certificate as no authority should issue it.
    pub fn odd(&self, make: impl FnOnce(&mut CertificateParams)) -> Pair {
        let issuer = Issuer::from_ca_cert_pem(&self.ca.0, KeyPair::from_pem(&self.ca.1).unwrap()).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, super::CAR);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        make(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    }

    /// What a client needs that trusts this site.
    pub fn client(&self, pair: Option<&Pair>) -> Arc<ClientConfig> {
        self.client_of(pair, &[&TLS13, &TLS12])
    }

    /// The same with TLS 1.2 or 1.3.
    pub fn client_of(&self, pair: Option<&Pair>, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.0.as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(ring::default_provider().into())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match pair {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        })
    }
}

/// A connection without any packet.
pub fn silent(address: SocketAddr, level: u8, config: &Arc<ClientConfig>) -> TlsClient {
    let session = ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap();
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_nodelay(true).unwrap();
    Client::over(StreamOwned::new(session, socket), level)
}

/// Connected, and accepted.
pub fn connect(address: SocketAddr, level: u8, config: &Arc<ClientConfig>, client_id: &str) -> TlsClient {
    let mut client = silent(address, level, config);
    client.send(&connect_packet(&Connect { level, client_id, keep_alive_s: 60, will: None }));
    let answer = client.packet();
    assert_eq!((answer[0], answer[2], answer[3]), (0x20, 0, 0), "CONNACK: {answer:02x?}");
    client
}

/// Tries to connect, and says what TLS says to that: `None` if it lets the client in.
pub fn refusal(address: SocketAddr, config: &Arc<ClientConfig>) -> Option<String> {
    use std::io::{Read, Write};
    let mut client = silent(address, super::client::V5, config);
    let connect = Connect { level: super::client::V5, client_id: super::CAR, keep_alive_s: 60, will: None };
    let said = client.stream.write_all(&connect_packet(&connect)).and_then(|()| client.stream.read(&mut [0]));
    said.err().map(|error| error.to_string())
}
