//! [`Context`]: one GPU, opened.

use std::sync::Arc;

use cudarc::driver::result::{ctx, device, init, mem_get_info, primary_ctx};
use cudarc::driver::sys;

use super::error::{CudaError, Named};

/// A device's primary context. Everything made from it holds on to it.
#[derive(Debug)]
pub struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    attributes: DeviceAttributes,
}

/// What the code needs to know of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceAttributes {
    /// Such as "NVIDIA H200".
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub num_sms: u32,
    /// Shared memory that a block may have at most, if its function allows it, in bytes.
    pub shared_bytes_per_block_max: u32,
    /// Level 2 cache, in bytes.
    pub l2_bytes: u32,
    /// Memory of the device, in bytes.
    pub total_bytes: u64,
}

// SAFETY: the handles are the driver's, which may be used from any thread; which context is current is a
// property of threads, and `bind` sets it.
#[allow(unsafe_code)]
unsafe impl Send for Context {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Context {}

/// Whether the driver's library (libcuda.so.1) can be opened on this machine. Nothing else of this module may
/// be called where it cannot.
pub fn is_driver_present() -> bool {
    // SAFETY: opens a library and looks up nothing.
    #[allow(unsafe_code)]
    unsafe {
        sys::is_culib_present()
    }
}

/// Version of CUDA that the driver supports: 13000 is 13.0.
pub fn driver_version() -> Result<u32, CudaError> {
    let mut version = 0;
    // SAFETY: writes one int.
    #[allow(unsafe_code)]
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().named("cuDriverGetVersion")?;
    Ok(version as u32)
}

impl Context {
    /// GPUs that the driver sees.
    pub fn count() -> Result<usize, CudaError> {
        init().named("cuInit")?;
        Ok(device::get_count().named("cuDeviceGetCount")? as usize)
    }

    /// Opens GPU number `ordinal` and makes it current on this thread.
    pub fn new(ordinal: usize) -> Result<Arc<Self>, CudaError> {
        init().named("cuInit")?;
        let device = device::get(ordinal as i32).named("cuDeviceGet")?;
        let attributes = read_attributes(device)?;
        // SAFETY: the device is valid; released when the context is dropped.
        #[allow(unsafe_code)]
        let context = unsafe { primary_ctx::retain(device) }.named("cuDevicePrimaryCtxRetain")?;
        let context = Arc::new(Self { device, context, attributes });
        context.bind()?;
        Ok(context)
    }

    /// Makes this context the calling thread's. Cheap; every other call needs it on its thread.
    pub fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context is alive as long as `self`.
        #[allow(unsafe_code)]
        unsafe { ctx::set_current(self.context) }.named("cuCtxSetCurrent")
    }

    /// What this GPU is.
    pub fn attributes(&self) -> &DeviceAttributes {
        &self.attributes
    }

    /// Bytes of the device's memory that are free, and all of them.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        self.bind()?;
        let (free, total) = mem_get_info().named("cuMemGetInfo")?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `new`. An error at the end of the program has no reader.
        #[allow(unsafe_code)]
        let _ = unsafe { primary_ctx::release(self.device) };
    }
}

fn read_attributes(device: sys::CUdevice) -> Result<DeviceAttributes, CudaError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let get = |attribute| {
        // SAFETY: the device is valid.
        #[allow(unsafe_code)]
        let value = unsafe { device::get_attribute(device, attribute) };
        value.named("cuDeviceGetAttribute").map(|value| value as u32)
    };
    // SAFETY: the device is valid.
    #[allow(unsafe_code)]
    let total_bytes = unsafe { device::total_mem(device) }.named("cuDeviceTotalMem")? as u64;
    Ok(DeviceAttributes {
        name: device::get_name(device).named("cuDeviceGetName")?,
        compute_capability: (
            get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        num_sms: get(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_per_block_max: get(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        l2_bytes: get(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        total_bytes,
    })
}
