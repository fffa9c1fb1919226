//! [`Packet`]: all that a step tells the device, in one copy.

use std::sync::Arc;

use crate::driver::{Context, CudaError, DeviceMemory, Stream};
use crate::ring::PinnedRing;

/// Words that are pushed one section after another and sent together. The first section is always at the same
/// address, so recorded work may refer to it.
#[derive(Debug)]
pub struct Packet {
    ring: PinnedRing,
    image: DeviceMemory,
    /// Words pushed so far.
    len: usize,
}

impl Packet {
    /// For sections of `max_words` together.
    pub fn new(context: &Arc<Context>, max_words: usize) -> Result<Self, CudaError> {
        let bytes = 4 * max_words;
        Ok(Self {
            ring: PinnedRing::new(context, bytes)?,
            image: DeviceMemory::alloc(context, bytes)?,
            len: 0,
        })
    }

    /// Where the first section is on the device.
    pub fn address(&self) -> u64 {
        self.image.address()
    }

    /// Starts the next packet. What was sent before may still be under way.
    pub fn begin(&mut self) -> Result<(), CudaError> {
        self.len = 0;
        self.ring.next().map(|_| ())
    }

    /// The next section, to be filled, and where it will be on the device.
    ///
    /// # Panics
    /// If the packet is full: its size follows from the limits of a step.
    pub fn push(&mut self, words: usize) -> (&mut [u32], u64) {
        let first = self.len;
        self.len += words;
        (
            &mut self.ring.current_mut().words_mut()[first..first + words],
            self.image.address() + 4 * first as u64,
        )
    }

    /// Enqueues the copy.
    pub fn send(&mut self, stream: &Stream) -> Result<(), CudaError> {
        stream.copy_to_device(self.image.address(), self.ring.current(), 0..4 * self.len)?;
        self.ring.copied(stream)
    }
}
