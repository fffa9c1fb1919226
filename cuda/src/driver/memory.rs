//! Memory of the device, and pages of the host that the device can read and write directly.

use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::result;

use super::context::Context;
use super::error::{CudaError, Named};

/// Bytes on the device, aligned to 256.
#[derive(Debug)]
pub struct DeviceMemory {
    context: Arc<Context>,
    address: u64,
    len: usize,
}

impl DeviceMemory {
    /// `len` bytes with no particular contents; at least 1.
    pub fn alloc(context: &Arc<Context>, len: usize) -> Result<Self, CudaError> {
        context.bind()?;
        // SAFETY: nothing reads the bytes before they are written: kernels are written so, and tests poison them.
        #[allow(unsafe_code)]
        let address = unsafe { result::malloc_sync(len.max(1)) }.named("cuMemAlloc")?;
        Ok(Self { context: context.clone(), address, len })
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty, reason = "memory of no bytes has no use")]
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: allocated in `alloc`, freed once. The driver waits for work that uses it.
            #[allow(unsafe_code)]
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Bytes of the host that copies read and write while the host goes on.
///
/// Who reads them after a copy from the device, or writes them after a copy to it, must have waited for an
/// event recorded behind that copy.
#[derive(Debug)]
pub struct PinnedMemory {
    context: Arc<Context>,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory with one owner.
#[allow(unsafe_code)]
unsafe impl Send for PinnedMemory {}

impl PinnedMemory {
    /// `len` zero bytes, aligned to 4096.
    pub fn alloc(context: &Arc<Context>, len: usize) -> Result<Self, CudaError> {
        context.bind()?;
        // SAFETY: the pages are ours until `drop`.
        #[allow(unsafe_code)]
        let start = unsafe { result::malloc_host(len.max(1), 0) }.named("cuMemHostAlloc")?.cast::<u8>();
        // SAFETY: `len` bytes were allocated there.
        #[allow(unsafe_code)]
        unsafe {
            start.write_bytes(0, len);
        }
        let start = NonNull::new(start).expect("the driver gives no null without an error");
        Ok(Self { context: context.clone(), start, len })
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated and initialised in `alloc`; the type's rule keeps the device out meanwhile.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.start.as_ptr(), self.len)
        }
    }

    /// All of it, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len)
        }
    }

    /// As 32-bit words; a rest of fewer than 4 bytes is left out.
    pub fn words(&self) -> &[u32] {
        // SAFETY: as in `bytes`; the start is aligned to a page, and any bits are a u32.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len / 4)
        }
    }

    /// As 32-bit words, to write.
    pub fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: as in `words`.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.len / 4)
        }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: allocated in `alloc`, freed once.
            #[allow(unsafe_code)]
            let _ = unsafe { result::free_host(self.start.as_ptr().cast()) };
        }
    }
}
