//! The read buffer: one for each thread, as no connection keeps bytes between reads unless a packet is incomplete.

use std::cell::RefCell;

use bytes::BytesMut;

/// At most this much is read at once: some dozens of readings, and a fair share for others.
pub(crate) const READ_BYTES: u32 = 16 * 1_024;

thread_local! {
    static SCRATCH: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// Lends this thread's buffer, empty, with room for [`READ_BYTES`].
pub(crate) fn with_scratch<T>(work: impl FnOnce(&mut BytesMut) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        // Packets that were split off and are gone by now leave their room to be used again.
        scratch.reserve(READ_BYTES as usize);
        let done = work(scratch);
        scratch.clear();
        done
    })
}
