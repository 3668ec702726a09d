//! Where `simulator generate` writes payloads: as lines of JSON here, as Parquet in `parquet_file`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;

/// Bytes gathered before they are written.
const WRITE_BUFFER_BYTES: usize = 1 << 20;

/// A format that payloads are written in.
pub(crate) trait Output {
    /// Writes one payload.
    fn reading(&mut self, payload: &[u8]) -> anyhow::Result<()>;
    /// Writes what is still buffered. The last call.
    fn finish(&mut self) -> anyhow::Result<()>;
}

/// The payloads, a line each.
pub(crate) struct Ndjson<W: Write> {
    to: BufWriter<W>,
}

impl<W: Write> Ndjson<W> {
    pub(crate) fn new(to: W) -> Self {
        Self { to: buffered(to) }
    }
}

impl<W: Write> Output for Ndjson<W> {
    fn reading(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        self.to.write_all(payload)?;
        Ok(self.to.write_all(b"\n")?)
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        Ok(self.to.flush()?)
    }
}

/// Creates a file, or empties the one there.
pub(crate) fn create(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("cannot create {}", path.display()))
}

/// Gathers writes into large ones.
pub(crate) fn buffered<W: Write>(to: W) -> BufWriter<W> {
    BufWriter::with_capacity(WRITE_BUFFER_BYTES, to)
}
