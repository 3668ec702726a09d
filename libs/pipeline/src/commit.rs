//! The transactions of a loop: what is pending, and snapshots of the state.

use std::time::Instant;

use event_log::{Outcome, Outputs, Position, TopicPartition};

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
                self.pass_empty(true, transform, metrics)
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
        let outcome = self.commit_to_log(&emitted.outputs, &positions, transform, metrics)?;
        if outcome == Outcome::Committed {
            metrics.committed(records, &emitted, began.elapsed());
            let now_ms = service::now_ms();
            for (partition, of) in &pending {
                metrics.waited(&partition.topic, now_ms - of.oldest_ms);
            }
        }
        Ok(outcome)
    }

    /// Snapshots, each a transaction of its own; nothing is pending, so the state is that of the committed positions.
    pub(crate) fn commit_snapshots(
        &mut self,
        at_stop: bool,
        transform: &mut dyn Transform,
        metrics: &Metrics,
    ) -> anyhow::Result<()> {
        for of in self.state.due(at_stop) {
            let began = Instant::now();
            let Some(due) = self.state.take(&of, &*transform) else { continue };
            let position = std::slice::from_ref(&due.position);
            if self.commit_to_log(&due.outputs, position, transform, metrics)? == Outcome::RolledBack {
                return Ok(());
            }
            self.state.taken(&of, &due);
            metrics.snapshot(due.bytes, began.elapsed());
        }
        Ok(())
    }

    pub(crate) fn commit_to_log(
        &mut self,
        outputs: &Outputs,
        positions: &[Position],
        transform: &mut dyn Transform,
        metrics: &Metrics,
    ) -> anyhow::Result<Outcome> {
        let outcome = self.processor.commit(outputs, positions)?;
        match outcome {
            Outcome::Committed => {
                self.state.committed(positions);
                self.committed = true;
            }
            Outcome::RolledBack => {
                // It came from records that are read again.
                self.state.reset_all(transform);
                metrics.rollbacks.inc();
            }
        }
        Ok(outcome)
    }
}
