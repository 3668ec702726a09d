//! Reading without a group: ranges to their ends ([`batches`]), or a topic as it grows ([`Tail`]).
//!
//! ```text
//!            ├──── batches ────►│                   once, up to the ends that were asked for
//!  topic ────┴──────────────────┴──────┬─────►
//!                               ├──────►│ catch_up  what was added since the last time, up to the end as of now
//!                               ├─ next ─ next ─►   as it comes
//! ```
//!
//! Neither commits anything: whoever reads again reads the same again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{Batch, Error, Log, Range, Read, Reader, progress};

/// How late a stop may be noticed.
const POLL: Duration = Duration::from_millis(100);
/// How often a [`Tail`] that follows a topic looks for partitions that were added.
const LOOK_FOR_PARTITIONS: Duration = Duration::from_secs(30);

/// Reads ranges, all with an end, in batches of at most `max_records`.
///
/// ```
/// # fn count(log: std::sync::Arc<dyn event_log::Log>) -> Result<usize, event_log::Error> {
/// let described = log.describe("telemetry")?;
/// let mut records = 0;
/// for batch in event_log::batches(&log, event_log::progress::held("telemetry", &described.partitions), 1000)? {
///     records += batch?.len();
/// }
/// # Ok(records)
/// # }
/// ```
pub fn batches(log: &Arc<dyn Log>, ranges: Vec<Range>, max_records: usize) -> Result<Batches<'static>, Error> {
    let reader = log.clone().reader(ranges)?;
    let (log, heard) = (log.url().to_string(), Instant::now());
    Ok(Batches { reader, max_records, stop: None, patience: None, heard, log })
}

/// The batches of ranges, up to their ends. Blocking.
///
/// After a retriable error the next call resumes where it stopped.
pub struct Batches<'s> {
    reader: Box<dyn Reader>,
    max_records: usize,
    stop: Option<&'s dyn Fn() -> bool>,
    patience: Option<Duration>,
    heard: Instant,
    log: String,
}

impl<'s> Batches<'s> {
    /// Ends early once `stop` is true.
    #[must_use]
    pub fn until(self, stop: &'s dyn Fn() -> bool) -> Self {
        Self { stop: Some(stop), ..self }
    }

    /// Fails with [`Error::Unavailable`] when neither a record nor the end has arrived for this long. Without it the
    /// call waits for a log that does not answer, unless the log itself reports an error.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self }
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.stop.is_some_and(|stop| stop()) {
                return None;
            }
            match self.reader.next(self.max_records, POLL) {
                Ok(Read::Batch(batch)) => {
                    self.heard = Instant::now();
                    return Some(Ok(batch));
                }
                Ok(Read::End) => return None,
                Err(error) => return Some(Err(error)),
                Ok(Read::Idle) => match self.patience {
                    Some(patience) if self.heard.elapsed() > patience => {
                        let source = format!("nothing came for {} s", patience.as_secs()).into();
                        let (operation, log) = ("read a range", self.log.clone());
                        return Some(Err(Error::Unavailable { operation, log, source }));
                    }
                    _ => {}
                },
            }
        }
    }
}

/// Follows a topic from its first record on, or from where [`skip_to_end`](Tail::skip_to_end) has put it.
pub struct Tail {
    log: Arc<dyn Log>,
    topic: Arc<str>,
    /// The next offset of each partition; none before the topic was looked at.
    positions: Vec<u64>,
    /// Of [`Tail::next`].
    reader: Option<Box<dyn Reader>>,
    /// When the partitions were counted last.
    counted: Instant,
}

impl Tail {
    /// Begins with the first record that the topic holds. The topic need not exist yet.
    pub fn new(log: Arc<dyn Log>, topic: Arc<str>) -> Self {
        Self { log, topic, positions: Vec::new(), reader: None, counted: Instant::now() }
    }

    /// The log.
    pub fn log(&self) -> &Arc<dyn Log> {
        &self.log
    }

    /// The topic.
    pub fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// Leaves out everything that the topic holds now.
    pub fn skip_to_end(&mut self) -> Result<(), Error> {
        self.positions = progress::ends(self.log.as_ref(), &self.topic)?;
        self.reader = None;
        Ok(())
    }

    /// The next records, of one partition; `None` after `timeout` without any. Partitions that are added later are
    /// noticed within half a minute, and read from their beginning.
    ///
    /// After an error the next call resumes where it stopped. [`Error::OutOfRange`]: retention has removed records that
    /// were not read, and [`skip_to_end`](Self::skip_to_end) continues without them.
    pub fn next(&mut self, max_records: usize, timeout: Duration) -> Result<Option<Batch>, Error> {
        if self.counted.elapsed() > LOOK_FOR_PARTITIONS {
            self.count_partitions();
        }
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => self.open()?,
        };
        // After an error it is opened anew.
        let read = reader.next(max_records, timeout)?;
        self.reader = Some(reader);
        match read {
            Read::Batch(batch) => {
                self.advance(&batch);
                Ok(Some(batch))
            }
            Read::Idle | Read::End => Ok(None),
        }
    }

    /// Gives `take` what was added since the last call, up to the end as of now; at the first call, all.
    ///
    /// For compacted topics: a record that compaction removes before it is read has a successor, which is still to
    /// come. If the position is no longer in the log, or the topic was recreated, reading continues with the first
    /// available record.
    pub fn catch_up<E: From<Error>>(
        &mut self,
        max_records: usize,
        mut take: impl FnMut(&Batch) -> Result<(), E>,
    ) -> Result<(), E> {
        self.reader = None;
        'described: loop {
            let partitions = self.log.describe(&self.topic)?.partitions;
            self.positions.resize(partitions.len(), 0);
            for (position, bounds) in self.positions.iter_mut().zip(&partitions) {
                if !(bounds.first..=bounds.next).contains(position) {
                    *position = bounds.first;
                }
            }
            let positions: Vec<_> = self.positions.iter().copied().map(Some).collect();
            let added = progress::behind(&self.topic, &partitions, &positions);
            if added.is_empty() {
                return Ok(());
            }
            for batch in batches(&self.log, added, max_records)? {
                match batch {
                    Ok(batch) => {
                        take(&batch)?;
                        self.advance(&batch);
                    }
                    // Compaction went on meanwhile.
                    Err(Error::OutOfRange { offset, first, .. }) if first > offset => continue 'described,
                    Err(error) => return Err(error.into()),
                }
            }
            // Behind the last record there may be offsets without one.
            self.positions = partitions.iter().map(|bounds| bounds.next).collect();
            return Ok(());
        }
    }

    /// Follows added partitions as well. If the log does not answer, the reader says so.
    fn count_partitions(&mut self) {
        self.counted = Instant::now();
        let Ok(described) = self.log.describe(&self.topic) else { return };
        if !self.positions.is_empty() && described.partitions.len() > self.positions.len() {
            let (log, topic, count) = (self.log.url(), &self.topic, described.partitions.len());
            tracing::warn!(%log, %topic, "topic {topic} has {count} partitions now, and had {}", self.positions.len());
            self.positions.resize(count, 0);
            self.reader = None;
        }
    }

    fn open(&mut self) -> Result<Box<dyn Reader>, Error> {
        if self.positions.is_empty() {
            self.positions = self.log.describe(&self.topic)?.partitions.iter().map(|bounds| bounds.first).collect();
        }
        let range = |(partition, start): (usize, &u64)| Range {
            topic: self.topic.clone(),
            partition: partition as u32,
            start: *start,
            end: None,
        };
        self.log.clone().reader(self.positions.iter().enumerate().map(range).collect())
    }

    fn advance(&mut self, batch: &Batch) {
        let position = self.positions.get_mut(batch.partition() as usize);
        if let (Some(position), Some(next)) = (position, batch.next_offset()) {
            *position = next;
        }
    }
}
