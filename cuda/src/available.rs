//! Whether there is a GPU to use, and if not, what is missing, in one sentence.

use std::sync::Arc;

use crate::arch::LEAST;
use crate::cublaslt::{self, CublasLtError};
use crate::driver::{Context, CudaError, driver_version, is_driver_present};

/// CUDA 13.0, as the driver counts: the version of the interface that this crate calls.
const LEAST_DRIVER: u32 = 13_000;

/// Why no GPU can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// No driver.
    #[error("there is no NVIDIA driver on this machine (libcuda.so.1 cannot be opened); use --device cpu")]
    NoDriver,
    /// The driver is of the time before CUDA 13.
    #[error(
        "the NVIDIA driver is for CUDA {}.{}; {}.{} or later is needed, that is driver 580 or later",
        .0 / 1000, .0 % 1000 / 10, LEAST_DRIVER / 1000, LEAST_DRIVER % 1000 / 10
    )]
    OldDriver(u32),
    /// The driver sees nothing.
    #[error(
        "the NVIDIA driver sees no GPU; use --device cpu, or look at CUDA_VISIBLE_DEVICES and nvidia-smi"
    )]
    NoGpu,
    /// It sees others.
    #[error("there is no GPU number {asked}; --device may be cuda:0 to cuda:{}", count - 1)]
    NoSuchGpu {
        /// The number that was asked for.
        asked: usize,
        /// How many there are.
        count: usize,
    },
    /// Its instructions lack what the kernels need.
    #[error("{name} has compute capability {}.{}; {}.{} or more is needed", found.0, found.1, LEAST.0, LEAST.1)]
    TooOld {
        /// The GPU.
        name: String,
        /// Its compute capability.
        found: (u32, u32),
    },
    /// There is nothing to multiply matrices with.
    #[error("{}; or use --device cpu", CublasLtError::Missing)]
    NoCublasLt,
    /// The driver does not work.
    #[error("the NVIDIA driver does not work: {0}")]
    Driver(#[from] CudaError),
}

/// Opens GPU number `ordinal`, if it can be used.
pub fn open_gpu(ordinal: usize) -> Result<Arc<Context>, Unavailable> {
    if !is_driver_present() {
        return Err(Unavailable::NoDriver);
    }
    let version = driver_version()?;
    if version < LEAST_DRIVER {
        return Err(Unavailable::OldDriver(version));
    }
    let count = Context::count()?;
    if count == 0 {
        return Err(Unavailable::NoGpu);
    }
    if ordinal >= count {
        return Err(Unavailable::NoSuchGpu { asked: ordinal, count });
    }
    let context = Context::new(ordinal)?;
    let attributes = context.attributes();
    if attributes.compute_capability < LEAST {
        let (name, found) = (attributes.name.clone(), attributes.compute_capability);
        return Err(Unavailable::TooOld { name, found });
    }
    if !cublaslt::is_present() {
        return Err(Unavailable::NoCublasLt);
    }
    Ok(context)
}
