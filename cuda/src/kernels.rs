//! [`Kernels`]: every kernel on the device, found by its name.

use std::path::Path;
use std::sync::Arc;

use quire_model::BackendError;

use crate::driver::{Context, CudaError, Function, Module};
use crate::image::{self, ImageError, Images, Origin};

/// The images of all files of kernels, loaded onto one GPU.
#[derive(Debug)]
pub struct Kernels {
    modules: Vec<Module>,
    origin: Origin,
}

/// Why a kernel cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// There is nothing to load.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// No file of kernels defines it.
    #[error("there is no kernel {0}")]
    Unknown(String),
    /// The driver refuses.
    #[error(transparent)]
    Driver(#[from] CudaError),
}

impl Kernels {
    /// Finds or makes the images for this GPU and loads them. What it makes is kept in `cache_dir`, in the folder
    /// of [`image::folder_in`].
    pub fn open(context: &Arc<Context>, cache_dir: Option<&Path>) -> Result<Kernels, KernelError> {
        let folder = cache_dir.map(image::folder_in);
        let images = Images::for_device(context.attributes().compute_capability, folder.as_deref())?;
        Ok(Kernels::load(context, images)?)
    }

    /// Loads images that were made for this GPU.
    pub fn load(context: &Arc<Context>, images: Images) -> Result<Kernels, CudaError> {
        let modules = images.modules.iter().map(|module| Module::load(context, &module.image));
        Ok(Kernels { modules: modules.collect::<Result<_, _>>()?, origin: images.origin })
    }

    /// The kernel of that name, whichever file it is in. For the start, not for every step: modules are searched.
    pub fn function(&self, name: &str) -> Result<Function, KernelError> {
        for module in &self.modules {
            if let Some(function) = module.function(name)? {
                return Ok(function);
            }
        }
        Err(KernelError::Unknown(name.to_owned()))
    }

    /// Where the images come from, to be told at the start.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }
}

impl From<KernelError> for BackendError {
    fn from(error: KernelError) -> Self {
        match error {
            KernelError::Driver(error) => error.into(),
            error => Self { device: "cuda", fatal: false, reason: error.to_string() },
        }
    }
}
