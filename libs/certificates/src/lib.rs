//! A site's certificates: an authority that signs, its bridge, its cars; and what a certificate says of its holder.
//!
//! ```text
//!  Authority ──► server: the names it is reached by        read ──► common name (of a car: its VIN), names, expiry
//!            └─► car: CN = VIN, for clients only
//! ```
//!
//! Both ends of "the VIN is in the certificate" are here, so that writer and reader agree. Keys are ECDSA P-256: small,
//! fast to sign with, and known to every TLS stack; a site's own authority may use another kind.
//!
//! What it deliberately does not do: files, and checking signatures, which is the TLS library's at each handshake.

mod authority;
mod read;

pub use authority::{Authority, CarKey, KeyPem};
pub use read::{common_name, from_pem, names, not_after_s};

/// What cannot be read or signed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no certificate in a file.
    #[error("it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// What should be a certificate is none.
    #[error("its certificate cannot be read: {0}")]
    Unreadable(String),
    /// What should be a private key is none, or one of another format.
    #[error(
        "it holds no private key as PKCS #8 in PEM (-----BEGIN PRIVATE KEY-----); `openssl pkcs8 -topk8 -nodes` makes \
         one of other formats"
    )]
    Key(#[source] rcgen::Error),
    /// The key of an authority belongs to none of the certificates.
    #[error("the key belongs to none of the authority's certificates")]
    NotItsKey,
    /// A certificate that may not sign others.
    #[error("the certificate of this key is not an authority's (CA:TRUE)")]
    NotAnAuthority,
    /// Signing failed: a name that is none, for example.
    #[error("cannot sign a certificate for {holder}")]
    Sign {
        /// For whom.
        holder: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
}
