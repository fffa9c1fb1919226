//! Compiled kernels on the device: [`Module`] and [`Function`].

use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::result::{function, module};
use cudarc::driver::sys;

use super::context::Context;
use super::error::{CudaError, Named};

/// An image (cubin or fatbin) loaded onto the device; stays loaded for the life of the process, as functions
/// taken from it are plain handles.
#[derive(Debug)]
pub struct Module {
    module: sys::CUmodule,
    _context: Arc<Context>,
}

// SAFETY: the driver's handles may be used from any thread.
#[allow(unsafe_code)]
unsafe impl Send for Module {}

/// One kernel, ready to be launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function(pub(super) sys::CUfunction);

// SAFETY: the driver's handles may be used from any thread.
#[allow(unsafe_code)]
unsafe impl Send for Function {}
// SAFETY: a handle without state of its own.
#[allow(unsafe_code)]
unsafe impl Sync for Function {}

impl Module {
    /// Loads an image that was made for this device.
    pub fn load(context: &Arc<Context>, image: &[u8]) -> Result<Self, CudaError> {
        context.bind()?;
        // SAFETY: the image describes its own length in its header, and comes from a compiler.
        #[allow(unsafe_code)]
        let module = unsafe { module::load_data(image.as_ptr().cast()) }.named("cuModuleLoadData")?;
        Ok(Self { module, _context: context.clone() })
    }

    /// The kernel of that name; `None` if the image has none.
    pub fn function(&self, name: &str) -> Result<Option<Function>, CudaError> {
        let name = CString::new(name).expect("names of kernels have no NUL");
        // SAFETY: the module is loaded and never unloaded.
        #[allow(unsafe_code)]
        let function = match unsafe { module::get_function(self.module, name) } {
            Ok(function) => function,
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_FOUND => return Ok(None),
            Err(error) => return Err(CudaError::new("cuModuleGetFunction", error)),
        };
        // Left alone, the driver would bring the code over at the first launch, which may be within a recording.
        // SAFETY: the function was just found in a loaded module.
        #[allow(unsafe_code)]
        unsafe { sys::cuFuncLoad(function) }.result().named("cuFuncLoad")?;
        Ok(Some(Function(function)))
    }
}

impl Function {
    /// Permits launches with up to `bytes` of shared memory; needed above 48 KiB.
    pub fn allow_shared_bytes(&self, bytes: u32) -> Result<(), CudaError> {
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function belongs to a loaded module.
        #[allow(unsafe_code)]
        unsafe { function::set_function_attribute(self.0, attribute, bytes as i32) }
            .named("cuFuncSetAttribute")
    }

    /// Blocks of this size that fit on a multiprocessor at the same time.
    pub fn blocks_per_sm(&self, threads: u32, shared_bytes: u32) -> Result<u32, CudaError> {
        use cudarc::driver::result::occupancy::max_active_block_per_multiprocessor as occupancy;
        // SAFETY: the function belongs to a loaded module.
        #[allow(unsafe_code)]
        let blocks = unsafe { occupancy(self.0, threads as i32, shared_bytes as usize) };
        blocks.named("cuOccupancyMaxActiveBlocksPerMultiprocessor").map(|blocks| blocks as u32)
    }
}
