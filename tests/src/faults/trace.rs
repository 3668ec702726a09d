//! What happened, step by step: its hash always, its text on demand.

use std::fmt::{Arguments, Write as _};

/// FNV-1a, 64 bits: <http://www.isthe.com/chongo/tech/comp/fnv/>.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

pub(super) struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
    line: String,
}

impl Trace {
    pub(super) fn new(keep: bool) -> Self {
        Self { hash: FNV_OFFSET, lines: keep.then(Vec::new), line: String::new() }
    }

    pub(super) fn note(&mut self, what: Arguments<'_>) {
        self.line.clear();
        // Writing to a string does not fail.
        let _ = self.line.write_fmt(what);
        for byte in self.line.bytes().chain([b'\n']) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(self.line.clone());
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn take_lines(&mut self) -> Vec<String> {
        self.lines.take().unwrap_or_default()
    }
}
