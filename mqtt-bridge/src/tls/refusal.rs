//! Why a client fails the handshake: a word for metrics and a human-readable sentence.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_rustls::rustls::{CertificateError, Error};

/// One line a reason in this time: a fleet with a wrong certificate must not fill the disk.
const QUIET: Duration = Duration::from_secs(10);

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

/// Says why clients are refused, but not for each of them.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    by_reason: Mutex<HashMap<&'static str, Told>>,
}

#[derive(Debug)]
struct Told {
    at: Instant,
    /// Since then.
    untold: u64,
}

impl Complaints {
    /// Notes a refusal; logs it if it is the first of its kind for a while.
    pub(super) fn note(&self, failure: &Failure) {
        if failure.reason == LOST {
            return;
        }
        if let Some(untold) = self.count(failure.reason, Instant::now()) {
            let Failure { reason, sentence } = failure;
            let others = if untold > 0 { format!(" ({untold} more since the last such line)") } else { String::new() };
            tracing::warn!(reason, "a client was refused: {sentence}{others}");
        }
    }

    /// How many were not told of, if it is time to tell.
    fn count(&self, reason: &'static str, now: Instant) -> Option<u64> {
        let mut by_reason = self.by_reason.lock();
        match by_reason.get_mut(reason) {
            Some(told) if now.duration_since(told.at) < QUIET => {
                told.untold += 1;
                None
            }
            told => {
                let untold = told.map_or(0, |told| told.untold);
                by_reason.insert(reason, Told { at: now, untold: 0 });
                Some(untold)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_once_in_a_while_with_what_was_left_out() {
        let (complaints, now) = (Complaints::default(), Instant::now());
        assert_eq!(complaints.count("a", now), Some(0));
        assert_eq!(complaints.count("a", now + QUIET / 2), None);
        assert_eq!(complaints.count("b", now + QUIET / 2), Some(0), "another reason");
        assert_eq!(complaints.count("a", now + QUIET - Duration::from_millis(1)), None);
        assert_eq!(complaints.count("a", now + QUIET), Some(2));
        assert_eq!(complaints.count("a", now + QUIET * 3), Some(0));
    }
}
