//! Three PEM files and the TLS settings that they make.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::metrics::{CertificateLabel, Metrics};

/// Where they are.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) client_ca: PathBuf,
}

/// What they hold. `Debug` does not print it.
#[derive(PartialEq, Eq)]
pub(super) struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Vec<u8>,
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Contents(…)")
    }
}

/// What they make.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) config: Arc<ServerConfig>,
    /// When the bridge's own certificate expires, in seconds since 1970.
    server_not_after_s: i64,
    /// When the first one of the clients' authorities does.
    client_ca_not_after_s: i64,
}

impl Loaded {
    /// Tells the metrics when the certificates expire.
    pub(super) fn show(&self, metrics: &Metrics) {
        let expiry = |certificate| metrics.certificate_expiry.get_or_create(&CertificateLabel { certificate }).clone();
        expiry("server").set(self.server_not_after_s);
        expiry("client-ca").set(self.client_ca_not_after_s);
    }
}

impl Files {
    /// Reads them; the error: what is wrong with each.
    pub(super) fn read(&self) -> Result<Contents, Vec<String>> {
        let read = |setting, path: &Path| std::fs::read(path).map_err(|error| problem(setting, path, error));
        match (read(CERT, &self.cert), read(KEY, &self.key), read(CLIENT_CA, &self.client_ca)) {
            (Ok(cert), Ok(key), Ok(client_ca)) => Ok(Contents { cert, key, client_ca }),
            (cert, key, client_ca) => Err([cert, key, client_ca].into_iter().filter_map(Result::err).collect()),
        }
    }

    /// Makes settings of what they hold; the error: what is wrong with each.
    pub(super) fn load(&self, contents: &Contents) -> Result<Loaded, Vec<String>> {
        let certificates = chain(CERT, &self.cert, &contents.cert);
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|_| problem(KEY, &self.key, "it holds no private key in PEM (-----BEGIN … PRIVATE KEY-----)"));
        let authorities = chain(CLIENT_CA, &self.client_ca, &contents.client_ca);
        let (certificates, key, authorities) = match (certificates, key, authorities) {
            (Ok(certificates), Ok(key), Ok(authorities)) => (certificates, key, authorities),
            (certificates, key, authorities) => {
                return Err([certificates.err(), key.err(), authorities.err()].into_iter().flatten().collect());
            }
        };
        let config =
            self.config(certificates.certificates, key, authorities.certificates).map_err(|error| vec![error])?;
        Ok(Loaded {
            config: Arc::new(config),
            server_not_after_s: certificates.first_not_after_s,
            client_ca_not_after_s: authorities.earliest_not_after_s,
        })
    }

    fn config(
        &self,
        certificates: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<ServerConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(|error| problem(CLIENT_CA, &self.client_ca, error))?;
        }
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .build()
            .map_err(|error| problem(CLIENT_CA, &self.client_ca, error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("ring has suites for both")
            .with_client_cert_verifier(clients)
            .with_single_cert(certificates, key)
            .map_err(|error| {
                let which = format!("{} and --tls-key {}", self.cert.display(), self.key.display());
                problem(CERT, Path::new(&which), error)
            })?;
        // See the module above: no session is resumed.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

const CERT: &str = "--tls-cert";
const KEY: &str = "--tls-key";
const CLIENT_CA: &str = "--tls-client-ca";

fn problem(setting: &str, path: &Path, error: impl std::fmt::Display) -> String {
    format!("{setting} {}: {error}", path.display())
}

struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    first_not_after_s: i64,
    earliest_not_after_s: i64,
}

fn chain(setting: &str, path: &Path, pem: &[u8]) -> Result<Chain, String> {
    let read = || {
        let certificates = certificates::from_pem(pem)?;
        let times = certificates.iter().map(|certificate| certificates::not_after_s(certificate));
        let times: Vec<i64> = times.collect::<Result<_, _>>()?;
        let earliest_not_after_s = times.iter().copied().min().unwrap_or_default();
        Ok(Chain { first_not_after_s: times[0], earliest_not_after_s, certificates })
    };
    read().map_err(|error: certificates::Error| problem(setting, path, error))
}
