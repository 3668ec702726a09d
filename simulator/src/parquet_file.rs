//! Readings as Parquet: the payloads, decoded by the decoder that the preprocessor uses, in the columns of the raw
//! schema. Broken payloads have no row; how many there were is logged.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use contract::Contract;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use telemetry::json::JsonDecoder;

use crate::output::{Output, create};

/// Rows decoded before they are handed to the writer.
const BATCH_ROWS: usize = 8_192;

/// A Parquet file that is being written.
pub(crate) struct ParquetFile {
    decoder: JsonDecoder,
    writer: Option<ArrowWriter<File>>,
    path: String,
    broken: u64,
}

impl ParquetFile {
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let schema =
            Contract::builtin().schemas().file("telemetry_raw.avsc").context("no schema telemetry_raw.avsc")?;
        let mut decoder = JsonDecoder::new(schema);
        let shown = path.display().to_string();
        let file = create(path)?;
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
        let writer = ArrowWriter::try_new(file, decoder.finish().schema(), Some(properties))
            .with_context(|| format!("cannot write {shown}"))?;
        Ok(Self { decoder, writer: Some(writer), path: shown, broken: 0 })
    }

    fn write_batch(&mut self) -> anyhow::Result<()> {
        let batch = self.decoder.finish();
        if let Some(writer) = &mut self.writer {
            writer.write(&batch).with_context(|| format!("cannot write {}", self.path))?;
        }
        Ok(())
    }
}

impl Output for ParquetFile {
    fn reading(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        if self.decoder.decode(payload).is_err() {
            self.broken += 1;
        }
        if self.decoder.rows() >= BATCH_ROWS { self.write_batch() } else { Ok(()) }
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        self.write_batch()?;
        if let Some(writer) = self.writer.take() {
            writer.close().with_context(|| format!("cannot write {}", self.path))?;
        }
        if self.broken > 0 {
            tracing::info!(broken = self.broken, "broken payloads have no row in {}", self.path);
        }
        Ok(())
    }
}
