//! Reads ranges, in steps.

use std::sync::Arc;
use std::time::Duration;

use event_log::{Error, Range, Read, Reader};

use super::log::FaultyLog;
use super::names::renamed;

pub(super) struct FaultyReader {
    log: FaultyLog,
    inner: Box<dyn Reader>,
    /// Names in the inner log, and as the caller knows them.
    names: Vec<(Arc<str>, Arc<str>)>,
}

impl FaultyReader {
    pub(super) fn new(log: FaultyLog, ranges: &[Range]) -> Result<Self, Error> {
        let of_log = log.clone();
        let turn = of_log.step(format_args!("opens a reader"))?;
        let known = &turn.world.clusters[log.cluster];
        let mut names: Vec<(Arc<str>, Arc<str>)> = Vec::new();
        let mut inside = |topic: &Arc<str>| match names.iter().find(|(_, outside)| outside == topic) {
            Some((inside, _)) => inside.clone(),
            None => {
                let inside = known.names.inside(topic);
                names.push((inside.clone(), topic.clone()));
                inside
            }
        };
        let inner: Vec<_> = ranges.iter().map(|range| Range { topic: inside(&range.topic), ..range.clone() }).collect();
        let inner = known.inner.clone().reader(inner).map_err(|e| known.names.outside(e))?;
        Ok(Self { log, inner, names })
    }

    fn named(&self, read: Read) -> Read {
        let Read::Batch(batch) = read else { return read };
        let name = self.names.iter().find(|(inside, _)| inside == batch.topic()).map(|(_, outside)| outside.clone());
        Read::Batch(renamed(&batch, name.expect("only topics of the ranges are read")))
    }
}

impl Reader for FaultyReader {
    fn next(&mut self, max_records: usize, timeout: Duration) -> Result<Read, Error> {
        let log = self.log.clone();
        let mut turn = log.step(format_args!("reads"))?;
        turn.trouble("read")?;
        let names = turn.world.clusters[log.cluster].names.clone();
        if !turn.stepped {
            drop(turn); // it may wait
            let read = self.inner.next(max_records, timeout).map_err(|e| names.outside(e))?;
            return Ok(self.named(read));
        }
        let most = turn.some_of(max_records);
        let read = self.inner.next(most, Duration::ZERO).map_err(|e| names.outside(e))?;
        let read = self.named(read);
        if let Read::Batch(batch) = &read {
            let (first, next) = (batch.get(0).offset, batch.next_offset().unwrap_or(0));
            let (topic, partition) = (batch.topic(), batch.partition());
            turn.world.note_of(log.task, format_args!("  gets {topic}/{partition} {first} to {next}"));
        }
        Ok(read)
    }
}
