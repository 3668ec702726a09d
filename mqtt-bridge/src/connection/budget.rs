//! What one connection has of the byte budget that all connections share.
//!
//! ```text
//! shared ── permit of 16 KiB ─► allowance ── bytes read ─► charged ── whole packets ─► window ── decided ─► shared
//!               ▲                   └── not used ─► shared     ▲ └── no room: held ──┐
//!               └ none left: starved, the gate shuts           └─────────────────────┘
//! ```

use tokio::sync::SemaphorePermit;

use crate::input::READ_BYTES;
use crate::shared::Shared;

/// The part of the budget that a connection's unparsed input, its held message and its next read have.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// What the input and the held message have.
    charged: u32,
    /// What the next read may take.
    allowance: u32,
    starved: bool,
}

impl Budget {
    /// Whether a read has to wait for the shared budget.
    pub(super) fn is_starved(&self) -> bool {
        self.starved
    }

    /// Gets an allowance for one read, if the shared budget has it. Otherwise the connection is starved.
    pub(super) fn allow_read(&mut self, shared: &Shared) -> bool {
        if self.allowance == 0 {
            match shared.budget.try_acquire_many(READ_BYTES) {
                Ok(permit) => self.grant(permit),
                Err(_) => self.starved = true,
            }
        }
        self.allowance > 0
    }

    /// Takes an allowance for one read: a permit of [`READ_BYTES`].
    pub(super) fn grant(&mut self, permit: SemaphorePermit<'_>) {
        permit.forget();
        self.allowance = READ_BYTES;
        self.starved = false;
    }

    /// Gives back what the last read did not use.
    pub(super) fn return_allowance(&mut self, shared: &Shared) {
        shared.give_back(std::mem::take(&mut self.allowance));
    }

    /// So many bytes were read.
    pub(super) fn spend(&mut self, bytes: u32) {
        self.allowance -= bytes;
        self.charge(bytes);
    }

    /// So many bytes are kept here.
    pub(super) fn charge(&mut self, bytes: u32) {
        self.charged += bytes;
    }

    /// So many bytes leave the input or the held message; the caller accounts for them from now on.
    pub(super) fn release(&mut self, bytes: u32) {
        self.charged -= bytes;
    }

    /// Gives everything back.
    pub(super) fn return_all(&mut self, shared: &Shared) {
        shared.give_back(std::mem::take(&mut self.charged));
        self.return_allowance(shared);
    }
}
