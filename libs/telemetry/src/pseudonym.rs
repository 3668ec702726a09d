//! The pseudonym of a car: the first 16 bytes of HMAC-SHA256(site key, VIN), in lowercase hex.
//!
//! Keyed, because VINs can be enumerated: without the key nobody can try them all. 128 bits, so that two cars never
//! share one. The same key gives the same pseudonym at every site and restart; losing it cuts the link to the past.

use std::io::{self, ErrorKind};
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The shortest key: 16 bytes, as long as what it makes.
pub const MIN_KEY_BYTES: usize = 16;

/// The secret key of a site. `Debug` does not print it.
#[derive(Clone)]
pub struct PseudonymKey(Hmac<Sha256>);

/// The key is shorter than [`MIN_KEY_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a pseudonym key needs at least {MIN_KEY_BYTES} bytes, this one has {bytes}: make one with `openssl rand -hex 32`"
)]
pub struct KeyTooShort {
    /// What it has, without the line's end.
    pub bytes: usize,
}

/// A key file that cannot be used. The caller names the file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is no such file.
    #[error(
        "the file does not exist: it holds the site's secret key, made once for all its stages with: openssl rand -hex \
         32 > FILE"
    )]
    Missing,
    /// It is there, and cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    /// It holds too little.
    #[error(transparent)]
    TooShort(#[from] KeyTooShort),
}

impl PseudonymKey {
    /// Reads a key file.
    pub fn from_file(path: &Path) -> Result<Self, KeyFileError> {
        let bytes = std::fs::read(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => KeyFileError::Missing,
            _ => KeyFileError::Unreadable(error),
        })?;
        Ok(Self::from_bytes(&bytes)?)
    }

    /// Takes the bytes of a key file as they are, but for the line's end.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyTooShort> {
        let key = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let key = key.strip_suffix(b"\r").unwrap_or(key);
        if key.len() < MIN_KEY_BYTES {
            return Err(KeyTooShort { bytes: key.len() });
        }
        Ok(Self(Hmac::new_from_slice(key).expect("HMAC takes keys of any length")))
    }

    /// The pseudonym: 32 characters of lowercase hex.
    pub fn pseudonym(&self, vin: &str) -> String {
        let mut out = [0; 32];
        self.write(vin, &mut out).to_owned()
    }

    /// The same without an allocation.
    pub fn write<'a>(&self, vin: &str, out: &'a mut [u8; 32]) -> &'a str {
        let mut mac = self.0.clone();
        mac.update(vin.as_bytes());
        let tag = mac.finalize().into_bytes();
        hex::encode_to_slice(&tag[..16], out).expect("16 bytes are 32 characters");
        std::str::from_utf8(out).expect("hex is ASCII")
    }
}

impl std::fmt::Debug for PseudonymKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PseudonymKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_openssl() {
        // printf %s WVWZZZ1JZXW000001 | openssl dgst -sha256 -hmac 0123456789abcdef
        let key = PseudonymKey::from_bytes(b"0123456789abcdef\n").unwrap();
        assert_eq!(key.pseudonym("WVWZZZ1JZXW000001"), "ee286b2f41dda301e69c432b4cd1555b");
        assert_ne!(key.pseudonym("WVWZZZ1JZXW000002"), key.pseudonym("WVWZZZ1JZXW000001"));
    }

    #[test]
    fn the_lines_end_is_not_part_of_the_key() {
        let key = |bytes: &[u8]| PseudonymKey::from_bytes(bytes).unwrap().pseudonym("x");
        assert_eq!(key(b"0123456789abcdef"), key(b"0123456789abcdef\r\n"));
        assert_ne!(key(b"0123456789abcdef"), key(b"0123456789abcdef\n\n"));
    }

    #[test]
    fn a_short_key_is_refused_and_no_key_is_printed() {
        assert_eq!(PseudonymKey::from_bytes(b"0123456789abcde\n").unwrap_err(), KeyTooShort { bytes: 15 });
        let printed = format!("{:?}", PseudonymKey::from_bytes(b"0123456789abcdef").unwrap());
        assert!(!printed.contains("0123"), "{printed}");
    }
}
