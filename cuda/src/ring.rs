//! [`PinnedRing`]: pinned buffers used in turn, so that the host fills one while the device still reads others.

use std::sync::Arc;

use crate::driver::{Context, CudaError, Event, PinnedMemory, Stream};

/// As many steps as may be on their way to the device, and one that is being written.
const NUM_ENTRIES: usize = 3;

/// Entries of one size. Each is given out again only after the copy from it is done.
#[derive(Debug)]
pub(crate) struct PinnedRing {
    entries: Vec<(PinnedMemory, Event)>,
    current: usize,
}

impl PinnedRing {
    pub(crate) fn new(context: &Arc<Context>, entry_bytes: usize) -> Result<Self, CudaError> {
        let entry = |_| Ok((PinnedMemory::alloc(context, entry_bytes)?, Event::new(context)?));
        Ok(Self { entries: (0..NUM_ENTRIES).map(entry).collect::<Result<_, CudaError>>()?, current: 0 })
    }

    /// The next entry to fill; waits if the device has not read it yet, which only happens when the host is
    /// further ahead than steps in flight allow.
    pub(crate) fn next(&mut self) -> Result<&mut PinnedMemory, CudaError> {
        self.current = (self.current + 1) % self.entries.len();
        let (memory, copied) = &mut self.entries[self.current];
        copied.synchronize()?;
        Ok(memory)
    }

    /// The entry that [`Self::next`] gave.
    pub(crate) fn current(&self) -> &PinnedMemory {
        &self.entries[self.current].0
    }

    /// The same, to fill: before the first copy from it is enqueued.
    pub(crate) fn current_mut(&mut self) -> &mut PinnedMemory {
        &mut self.entries[self.current].0
    }

    /// The copy from the current entry has been enqueued.
    pub(crate) fn copied(&self, stream: &Stream) -> Result<(), CudaError> {
        stream.record(&self.entries[self.current].1)
    }
}
