//! [`CudaError`]: which call the driver refused, and why.

use cudarc::driver::result::DriverError;
use quire_model::BackendError;

/// The driver refused a call, or reports what went wrong on the device since the last one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed: {text} (CUDA error {code})")]
pub struct CudaError {
    /// What was being done, as the driver's function is called.
    pub call: &'static str,
    /// `CUresult`.
    pub code: u32,
    /// The driver's own words.
    pub text: String,
}

/// The results that cuda.h describes as leaving the process "in an inconsistent state": uncorrectable memory
/// errors, illegal addresses and instructions, launch failures and time-outs, a lost device.
const CONTEXT_IS_LOST: &[u32] = &[214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999];

impl CudaError {
    pub(crate) fn new(call: &'static str, error: DriverError) -> Self {
        let text = match error.error_string() {
            Ok(text) => text.to_string_lossy().into_owned(),
            Err(_) => "unknown error".to_owned(),
        };
        Self { call, code: error.0 as u32, text }
    }

    /// Nothing on this device will work any more in this process.
    pub fn is_fatal(&self) -> bool {
        CONTEXT_IS_LOST.contains(&self.code)
    }
}

impl From<CudaError> for BackendError {
    fn from(error: CudaError) -> Self {
        Self { device: "cuda", fatal: error.is_fatal(), reason: error.to_string() }
    }
}

/// Names the call in an error of cudarc's.
pub(crate) trait Named<T> {
    fn named(self, call: &'static str) -> Result<T, CudaError>;
}

impl<T> Named<T> for Result<T, DriverError> {
    fn named(self, call: &'static str) -> Result<T, CudaError> {
        self.map_err(|error| CudaError::new(call, error))
    }
}
