//! The time of a read: what everything read at once was received at.

use std::io::Write;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Decimal digits of an `i64`, and its sign.
const MAX_DIGITS: usize = 20;

/// A moment, on both clocks and as text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    /// For durations.
    pub(crate) instant: Instant,
    /// Milliseconds since the epoch.
    pub(crate) wall_ms: i64,
    text: [u8; MAX_DIGITS],
    digits: usize,
}

impl Stamp {
    /// Now.
    pub(crate) fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::at(Instant::now(), since_epoch.as_millis().try_into().unwrap_or(i64::MAX))
    }

    fn at(instant: Instant, wall_ms: i64) -> Self {
        let mut text = [0; MAX_DIGITS];
        let mut rest = &mut text[..];
        write!(rest, "{wall_ms}").expect("an i64 has at most 20 characters");
        let digits = MAX_DIGITS - rest.len();
        Self { instant, wall_ms, text, digits }
    }

    /// `wall_ms` in decimal digits.
    pub(crate) fn text(&self) -> &[u8] {
        &self.text[..self.digits]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_the_number() {
        for wall_ms in [0, 1_763_712_000_123, i64::MAX, i64::MIN] {
            assert_eq!(Stamp::at(Instant::now(), wall_ms).text(), wall_ms.to_string().as_bytes());
        }
    }
}
