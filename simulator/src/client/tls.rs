//! TLS for a fleet: which server it trusts, and the certificates of its cars.
//!
//! A real car gets its key and certificate in the factory, and keeps them where nobody can read them. Here the
//! simulator is the factory: with the key of the authority it signs, for each connection, a certificate for the car
//! that connects. All cars share one private key, made when the process starts and never written anywhere. This is what
//! makes it a simulator: a process with the authority's key can be any car.

use std::io;
use std::path::Path;
use std::sync::Arc;

use certificates::{Authority, CarKey, KeyPem};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::args::{RunArgs, Server};

/// What all cars of a process need for TLS.
#[derive(Debug)]
pub(crate) struct Tls {
    /// Without a certificate.
    config: Arc<ClientConfig>,
    server: ServerName<'static>,
    factory: Option<Factory>,
}

/// Where cars get their certificates.
#[derive(Debug)]
struct Factory {
    authority: Authority,
    key: CarKey,
    /// The same, as TLS wants it.
    signing: Arc<dyn SigningKey>,
}

impl Tls {
    /// Reads the files. `None`: the fleet uses no TLS.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub(crate) fn new(args: &RunArgs) -> Result<Option<Self>, String> {
        let server = Server::parse(&args.mqtt)?;
        let (true, Some(ca)) = (server.tls, &args.tls_ca) else { return Ok(None) };
        let provider = Arc::new(ring::default_provider());
        let authorities = read("--tls-ca", ca)?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates::from_pem(&authorities).map_err(|error| problem("--tls-ca", ca, error))? {
            roots.add(certificate).map_err(|error| problem("--tls-ca", ca, error))?;
        }
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("ring has suites for both")
            .with_root_certificates(roots)
            .with_no_client_auth();
        // The cars share the session cache: one car would resume another's session, and be taken for it.
        config.resumption = Resumption::disabled();
        let factory = match &args.tls_ca_key {
            Some(path) => Some(Factory::new(&authorities, path, &provider)?),
            None => None,
        };
        let server =
            ServerName::try_from(server.address.host).map_err(|_| format!("--mqtt {}: no host name", args.mqtt))?;
        Ok(Some(Self { config: config.into(), server, factory }))
    }

    /// A session for a car.
    pub(crate) fn session(&self, vin: &str) -> io::Result<ClientConnection> {
        let config = match &self.factory {
            None => self.config.clone(),
            Some(factory) => {
                let mut config = ClientConfig::clone(&self.config);
                config.client_auth_cert_resolver = Arc::new(factory.certificate(vin)?);
                config.into()
            }
        };
        ClientConnection::new(config, self.server.clone()).map_err(io::Error::other)
    }
}

impl Factory {
    fn new(authorities: &[u8], path: &Path, provider: &CryptoProvider) -> Result<Self, String> {
        const SETTING: &str = "--tls-ca-key";
        let pem = String::from_utf8(read(SETTING, path)?).map_err(|error| problem(SETTING, path, error))?;
        let authority =
            Authority::from_pem(authorities, &KeyPem(pem)).map_err(|error| problem(SETTING, path, error))?;
        let key = CarKey::generate();
        let signing = provider.key_provider.load_private_key(key.private()).expect("a key that was just made");
        Ok(Self { authority, key, signing })
    }

    fn certificate(&self, vin: &str) -> io::Result<SingleCertAndKey> {
        let certificate = self.authority.car_with_key(vin, &self.key).map_err(io::Error::other)?;
        Ok(CertifiedKey::new(vec![certificate], self.signing.clone()).into())
    }
}

fn read(setting: &str, path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| problem(setting, path, error))
}

fn problem(setting: &str, path: &Path, error: impl std::fmt::Display) -> String {
    format!("{setting} {}: {error}", path.display())
}
