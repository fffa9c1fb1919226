//! [`Event`]: a mark in a stream that the host can wait for.

use std::sync::Arc;

use cudarc::driver::result::event;
use cudarc::driver::sys;

use super::context::Context;
use super::error::{CudaError, Named};

/// A mark in a stream. Waiting for it sleeps rather than spins: the engine thread has a core's worth of
/// neighbours.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    pub(super) event: sys::CUevent,
}

// SAFETY: the driver's handles may be used from any thread.
#[allow(unsafe_code)]
unsafe impl Send for Event {}

impl Event {
    /// A mark that was never set; waiting for it returns at once.
    pub fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        let flags = sys::CUevent_flags_enum::CU_EVENT_BLOCKING_SYNC;
        Self::with_flags(context, flags)
    }

    /// Sleeps until the stream has come past the mark.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the event is alive.
        #[allow(unsafe_code)]
        unsafe { event::synchronize(self.event) }.named("cuEventSynchronize")
    }

    /// Milliseconds of the device's time since `start`; both must have been passed.
    pub fn elapsed_ms(&self, start: &Self) -> Result<f32, CudaError> {
        // SAFETY: both events are alive.
        #[allow(unsafe_code)]
        unsafe { event::elapsed(start.event, self.event) }.named("cuEventElapsedTime")
    }

    fn with_flags(context: &Arc<Context>, flags: sys::CUevent_flags) -> Result<Self, CudaError> {
        context.bind()?;
        let event = event::create(flags).named("cuEventCreate")?;
        Ok(Self { context: context.clone(), event })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made in `new`, destroyed once.
            #[allow(unsafe_code)]
            let _ = unsafe { event::destroy(self.event) };
        }
    }
}
