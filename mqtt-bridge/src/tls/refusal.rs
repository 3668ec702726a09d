//! Why a client fails the handshake: a word for metrics and a human-readable sentence.

use std::io;

use tokio_rustls::rustls::{CertificateError, Error};

/// It went away: a port scanner, a health check, a tunnel. Counted, and nothing to act on.
pub(super) const LOST: &str = "tls-lost";

/// What an operator looks for, counted from 0.
pub(super) const USUAL: [&str; 5] =
    ["tls-no-certificate", "tls-unknown-ca", "tls-expired", "tls-refused-by-client", "no-vin"];

/// Why a handshake failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// The word in metrics.
    pub(super) reason: &'static str,
    /// For the log. Names no client: it would be a car.
    pub(super) sentence: String,
}

impl Failure {
    pub(super) fn new(reason: &'static str, sentence: impl Into<String>) -> Self {
        Self { reason, sentence: sentence.into() }
    }
}

impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Self {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
        let Some(cause) = cause else {
            return Self::new(LOST, format!("it went away during the handshake: {error}"));
        };
        let (reason, sentence) = match cause {
            Error::NoCertificatesPresented => (
                "tls-no-certificate",
                "it has no certificate; every client of this port needs one signed by \
                    --tls-client-ca",
            ),
            Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                ("tls-unknown-ca", "its certificate is signed by an authority that is not in --tls-client-ca")
            }
            Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
                ("tls-expired", "its certificate has expired")
            }
            Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
                ("tls-not-yet-valid", "its certificate is not valid yet: is a clock wrong?")
            }
            Error::InvalidCertificate(error) => {
                return Self::new("tls-certificate", format!("its certificate cannot be used: {error}"));
            }
            Error::AlertReceived(alert) => {
                let sentence = format!(
                    "it refuses the bridge ({alert:?}): does it trust the authority of --tls-cert, and is the name \
                     that it connects to in the certificate?"
                );
                return Self::new("tls-refused-by-client", sentence);
            }
            error => {
                return Self::new("tls-protocol", format!("it does not speak valid TLS 1.2 or 1.3: {error}"));
            }
        };
        Self::new(reason, sentence)
    }
}
