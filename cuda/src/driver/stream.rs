//! [`Stream`]: the queue of work for the device. Everything goes through one, so order is the order of calls.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::result::{self, event, graph, stream};
use cudarc::driver::sys;

use super::context::Context;
use super::error::{CudaError, Named};
use super::event::Event;
use super::graph::Graph;
use super::memory::PinnedMemory;
use super::module::Function;

/// A queue of work. Calls return at once, but for those that say otherwise.
#[derive(Debug)]
pub struct Stream {
    context: Arc<Context>,
    stream: sys::CUstream,
}

// SAFETY: the driver's handles may be used from any thread.
#[allow(unsafe_code)]
unsafe impl Send for Stream {}

impl Stream {
    /// An empty queue.
    pub fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        context.bind()?;
        let stream = stream::create(stream::StreamKind::NonBlocking).named("cuStreamCreate")?;
        Ok(Self { context: context.clone(), stream })
    }

    /// The device.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// For libraries that enqueue work of their own.
    pub(crate) fn handle(&self) -> sys::CUstream {
        self.stream
    }

    /// Waits until all is done.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream is alive.
        #[allow(unsafe_code)]
        unsafe { stream::synchronize(self.stream) }.named("cuStreamSynchronize")
    }

    /// Launches a kernel with its one parameter. `params` must be the mirror of the kernel's struct.
    pub fn launch<P: Copy>(
        &self,
        function: &Function,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        params: &P,
    ) -> Result<(), CudaError> {
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        let grid = (grid[0], grid[1], grid[2]);
        // SAFETY: the driver copies the parameters before it returns; it reads as many bytes as the kernel's
        // parameter has, which static assertions on both sides keep at size_of::<P>().
        #[allow(unsafe_code)]
        unsafe {
            result::launch_kernel(
                function.0,
                grid,
                (threads, 1, 1),
                shared_bytes,
                self.stream,
                &mut arguments,
            )
        }
        .named("cuLaunchKernel")
    }

    /// Copies a range of pinned bytes to the device.
    pub fn copy_to_device(&self, to: u64, from: &PinnedMemory, range: Range<usize>) -> Result<(), CudaError> {
        // SAFETY: the range is checked by slicing; the memory's rule keeps its owner from writing meanwhile.
        #[allow(unsafe_code)]
        unsafe { result::memcpy_htod_async(to, &from.bytes()[range], self.stream) }.named("cuMemcpyHtoDAsync")
    }

    /// Copies bytes of the device to the beginning of a range of pinned memory, as many as the range has.
    pub fn copy_to_host(
        &self,
        to: &mut PinnedMemory,
        range: Range<usize>,
        from: u64,
    ) -> Result<(), CudaError> {
        // SAFETY: the range is checked by slicing; the memory's rule keeps its owner from reading meanwhile.
        #[allow(unsafe_code)]
        unsafe { result::memcpy_dtoh_async(&mut to.bytes_mut()[range], from, self.stream) }
            .named("cuMemcpyDtoHAsync")
    }

    /// Copies `len` bytes within the device.
    pub fn copy_on_device(&self, to: u64, from: u64, len: usize) -> Result<(), CudaError> {
        // SAFETY: addresses are the device's business; see the module.
        #[allow(unsafe_code)]
        unsafe { result::memcpy_dtod_async(to, from, len, self.stream) }.named("cuMemcpyDtoDAsync")
    }

    /// Sets `len` bytes on the device.
    pub fn fill(&self, address: u64, byte: u8, len: usize) -> Result<(), CudaError> {
        // SAFETY: addresses are the device's business; see the module.
        #[allow(unsafe_code)]
        unsafe { result::memset_d8_async(address, byte, len, self.stream) }.named("cuMemsetD8Async")
    }

    /// Writes bytes to the device and waits. For loading and for tests, not for steps.
    pub fn write_bytes(&self, to: u64, bytes: &[u8]) -> Result<(), CudaError> {
        // SAFETY: the call waits below, so `bytes` outlives the copy.
        #[allow(unsafe_code)]
        unsafe { result::memcpy_htod_async(to, bytes, self.stream) }.named("cuMemcpyHtoDAsync")?;
        self.synchronize()
    }

    /// Waits for everything before, then reads bytes from the device. For tests, not for steps.
    pub fn read_bytes(&self, from: u64, bytes: &mut [u8]) -> Result<(), CudaError> {
        // SAFETY: the call waits below, so `bytes` outlives the copy.
        #[allow(unsafe_code)]
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream) }.named("cuMemcpyDtoHAsync")?;
        self.synchronize()
    }

    /// Sets the mark behind the work so far.
    pub fn record(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: both are alive.
        #[allow(unsafe_code)]
        unsafe { event::record(event.event, self.stream) }.named("cuEventRecord")
    }

    /// From here on work is recorded instead of done, until [`Self::end_capture`].
    pub fn begin_capture(&self) -> Result<(), CudaError> {
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        #[allow(unsafe_code)]
        unsafe { stream::begin_capture(self.stream, mode) }.named("cuStreamBeginCapture")
    }

    /// What was recorded.
    pub fn end_capture(&self) -> Result<Graph, CudaError> {
        // SAFETY: the stream is alive; the graph is ours.
        #[allow(unsafe_code)]
        let recorded = unsafe { stream::end_capture(self.stream) }.named("cuStreamEndCapture")?;
        Graph::instantiate(&self.context, recorded)
    }

    /// Repeats recorded work.
    pub fn launch_graph(&self, recorded: &Graph) -> Result<(), CudaError> {
        // SAFETY: both are alive; what the graph refers to is owned by whoever keeps the graph.
        #[allow(unsafe_code)]
        unsafe { graph::launch(recorded.executable, self.stream) }.named("cuGraphLaunch")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made in `new`, destroyed once.
            #[allow(unsafe_code)]
            let _ = unsafe { stream::destroy(self.stream) };
        }
    }
}
