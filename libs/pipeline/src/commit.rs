//! The transactions of a loop: what is pending, and snapshots of the state.

use std::time::Instant;

use event_log::{Batch, Outcome, Outputs, Position, TopicPartition};

use crate::snapshot::PIECE_BYTES;
use crate::state::Piece;
use crate::{Metrics, Pending, Stage, Transform};

impl Stage<'_> {
    /// Commits what is pending, and then the snapshots that are due. What is rolled back is assigned again, at the
    /// positions that hold.
    pub(crate) fn commit(&mut self, transform: &mut dyn Transform, metrics: &Metrics) -> anyhow::Result<()> {
        match self.commit_pending(transform, metrics)? {
            Outcome::Committed => self.commit_snapshots(false, transform, metrics),
            Outcome::RolledBack => Ok(()),
        }
    }

    /// Commits what is pending and snapshots of all state. What is rolled back is left to the next start.
    pub(crate) fn stop(&mut self, transform: &mut dyn Transform, metrics: &Metrics) -> anyhow::Result<()> {
        match self.commit_pending(transform, metrics)? {
            Outcome::Committed => {
                self.commit_snapshots(true, transform, metrics)?;
                self.pass_empty(true, metrics)
            }
            Outcome::RolledBack => Ok(()),
        }
    }

    pub(crate) fn commit_pending(
        &mut self,
        transform: &mut dyn Transform,
        metrics: &Metrics,
    ) -> anyhow::Result<Outcome> {
        if self.pending.is_empty() {
            return Ok(Outcome::Committed);
        }
        let pending = std::mem::take(&mut self.pending);
        let position = |(p, of): (&TopicPartition, &Pending)| Position {
            topic: p.topic.clone(),
            partition: p.partition,
            offset: of.next_offset,
        };
        let positions: Vec<_> = pending.iter().map(position).collect();
        let records = std::mem::take(&mut self.records);
        let emitted = self.emit.take();
        let began = Instant::now();
        let outcome = self.commit_to_log(&emitted.outputs, &positions, metrics)?;
        if outcome == Outcome::RolledBack {
            // The state of these comes from records that are read again; that of others is as it was.
            positions.iter().for_each(|p| self.state.reset(&p.at(), transform));
        }
        if outcome == Outcome::Committed {
            metrics.committed(records, &emitted, began.elapsed());
            let now_ms = service::now_ms();
            for (partition, of) in &pending {
                metrics.waited(&partition.topic, now_ms - of.oldest_ms);
            }
        }
        Ok(outcome)
    }

    /// The snapshots that are due, in transactions of their own; nothing is pending, so the state is that of the
    /// committed positions. Of a large one only a piece; at a stop, all.
    pub(crate) fn commit_snapshots(
        &mut self,
        at_stop: bool,
        transform: &mut dyn Transform,
        metrics: &Metrics,
    ) -> anyhow::Result<()> {
        let mut bytes = 0;
        while at_stop || bytes < PIECE_BYTES {
            let Some(piece) = self.state.next_piece(at_stop, &*transform) else { break };
            bytes += piece.outputs.batches().map(Batch::bytes).sum::<usize>();
            if self.commit_piece(&piece, metrics)? == Outcome::RolledBack {
                break;
            }
        }
        Ok(())
    }

    /// Commits the snapshot that is under way, all of it. Nothing may be pending.
    pub(crate) fn commit_snapshot(
        &mut self,
        transform: &mut dyn Transform,
        metrics: &Metrics,
    ) -> anyhow::Result<Outcome> {
        while self.state.is_writing() {
            let Some(piece) = self.state.next_piece(false, &*transform) else { break };
            if self.commit_piece(&piece, metrics)? == Outcome::RolledBack {
                return Ok(Outcome::RolledBack);
            }
        }
        Ok(Outcome::Committed)
    }

    fn commit_piece(&mut self, piece: &Piece, metrics: &Metrics) -> anyhow::Result<Outcome> {
        let outcome = self.commit_to_log(&piece.outputs, std::slice::from_ref(&piece.position), metrics)?;
        match outcome {
            Outcome::Committed => self.state.wrote(piece, metrics),
            Outcome::RolledBack => self.state.failed(),
        }
        Ok(outcome)
    }

    /// After [`Outcome::RolledBack`] all partitions are assigned again.
    pub(crate) fn commit_to_log(
        &mut self,
        outputs: &Outputs,
        positions: &[Position],
        metrics: &Metrics,
    ) -> anyhow::Result<Outcome> {
        let outcome = self.processor.commit(outputs, positions)?;
        match outcome {
            Outcome::Committed => {
                self.state.committed(positions);
                self.committed = true;
            }
            Outcome::RolledBack => {
                metrics.rollbacks.inc();
            }
        }
        Ok(outcome)
    }
}
