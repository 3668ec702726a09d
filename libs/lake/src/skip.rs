//! Offsets that no sink has written, and that retention has removed from the log: the chain of objects continues after
//! them once an operator has decided so.
//!
//! ```text
//!  …/00000000000000000300.parquet   …390.parquet            …746.parquet
//!  offsets 300 to 390               "skipped", no rows      what the log still held
//! ```
//!
//! The decision is an object of the chain: it is created where nothing else may begin, only once, and it says in its
//! footer what is missing. So a sink resumes after it without knowing of it, and whoever reads finds a gap with its
//! reason.

use crate::listing::resolve;
use crate::object::ObjectReader;
use crate::rows::unusable;
use crate::{Error, Lake, ObjectName, ObjectWriter, OffsetRange};

impl Lake {
    /// Lets the chain of a partition continue at `skipped.end`. It must end at `skipped.start`, which
    /// [`next_offsets`](Self::next_offsets) returns. [`Error::Exists`] if they are skipped already.
    ///
    /// Only for offsets that no sink still has in memory: one that has could not write them any more.
    pub async fn skip(&self, skipped: &OffsetRange) -> Result<(), Error> {
        let OffsetRange { topic, partition, start, end } = skipped;
        let mut folders = self.folders(topic, &self.days(topic, None).await?).await?;
        folders.retain(|folder| folder.partition == *partition);
        let newest = resolve(self.newest_objects(folders).await?).parts.pop();
        let Some(last) = newest.map(|part| part.name) else {
            let (lake, topic, partition) = (self.url.to_string(), topic.clone(), *partition);
            return Err(Error::NotCovered { lake, topic, partition, missing_start: 0, missing_end: *start });
        };
        let bytes = self.get(&last.to_string()).await?;
        let (schema, encodings, reader) =
            ObjectReader::as_written(bytes).map_err(|what| unusable(self, &last, what))?;
        if reader.footer.end != *start {
            let what =
                format!("it ends at offset {}, so that nothing can be skipped from {start} on", reader.footer.end);
            return Err(unusable(self, &last, what));
        }
        // In the folder of the object before it: whoever skips the same offsets at another time meets the same name.
        let name = ObjectName { start: *start, end: None, erasures: 0, ..last };
        let writer = ObjectWriter::new(name, &schema, reader.footer.schema_id, encodings)?;
        self.put_object(&writer.finish_skipped(*end)?).await
    }
}
