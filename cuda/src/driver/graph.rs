//! [`Graph`]: a recorded sequence of work that the device can repeat with one launch.

use std::sync::Arc;

use cudarc::driver::result::graph;
use cudarc::driver::sys;

use super::context::Context;
use super::error::{CudaError, Named};

/// Work recorded by [`super::Stream::begin_capture`], with the parameters it had then.
#[derive(Debug)]
pub struct Graph {
    context: Arc<Context>,
    pub(super) executable: sys::CUgraphExec,
}

// SAFETY: the driver's handles may be used from any thread, one at a time.
#[allow(unsafe_code)]
unsafe impl Send for Graph {}

impl Graph {
    pub(super) fn instantiate(context: &Arc<Context>, recorded: sys::CUgraph) -> Result<Self, CudaError> {
        let mut executable = std::ptr::null_mut();
        // SAFETY: `recorded` was just captured; the executable does not need it once it exists.
        #[allow(unsafe_code)]
        let result = unsafe {
            let result = sys::cuGraphInstantiateWithFlags(&raw mut executable, recorded, 0).result();
            graph::destroy(recorded).and(result)
        };
        result.named("cuGraphInstantiateWithFlags")?;
        Ok(Self { context: context.clone(), executable })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: instantiated above, destroyed once.
            #[allow(unsafe_code)]
            let _ = unsafe { graph::exec_destroy(self.executable) };
        }
    }
}
