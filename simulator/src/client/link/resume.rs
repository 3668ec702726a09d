//! Going on with a run: a car lives through its past again, and sends what of it is not settled.

use super::Link;
use crate::car::Coverage;
use crate::client::queue::Item;
use crate::samples;

/// Readings of the past that a car takes before it lets others run.
const PAST_READINGS: u64 = 256;

impl Link {
    /// Takes the readings up to the point that the run had reached. Readings with a known outcome in the ledger are
    /// skipped; the rest waits in the queue, beyond its bound if necessary: the server may have all of them, so none is
    /// dropped.
    ///
    /// Findings and samples of other streams are sent again: their copies have the same boot id and number, by which a
    /// repeat is known.
    ///
    /// `false`: the run was stopped before the car had caught up.
    pub(super) async fn catch_up(&mut self) -> bool {
        let Some(mut rows) = self.earlier.take() else { return true };
        let shared = self.shared.clone();
        let end_ms = shared.args.fleet.end_ms().unwrap_or(i64::MAX);
        while self.car.next_time_ms() <= shared.start_ms && self.car.next_time_ms() < end_ms {
            if shared.shutdown.is_cancelled() {
                return false;
            }
            let (reading, broken) = self.take_reading();
            let samples = samples::with(&reading, shared.samples.len());
            self.covered = reading.coverage == Coverage::Online;
            if !rows.take(reading.boot_id, reading.seq) {
                self.queue.push(Item::Reading { reading, broken }, usize::MAX);
            }
            for sample in samples {
                self.queue.push(Item::Sample(sample), usize::MAX);
            }
            if let Some(fault) = self.car.take_finding() {
                self.report(fault);
            }
            if self.totals.readings.is_multiple_of(PAST_READINGS) {
                tokio::task::yield_now().await;
            }
        }
        self.totals.foreign_rows = rows.left();
        true
    }
}
