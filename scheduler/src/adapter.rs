//! [`Adapter`]: weights that change what the model computes for some requests (LoRA).
//!
//! An adapter is data of its request, as a grammar is: whoever hands in the request has read and checked it, the
//! runner finds it in the request, and it is gone when the last request that has it ends. So nothing here loads,
//! counts or unloads anything, and a name that means something else tomorrow cannot reach a request of today.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// Cheap to clone. Two are equal if the same was loaded, whatever it is called.
#[derive(Clone)]
pub struct Adapter(Arc<Parts>);

struct Parts {
    name: Arc<str>,
    key: Arc<str>,
    weights: Box<dyn Any + Send + Sync>,
}

impl Adapter {
    /// `key` stands for what was loaded, such as a digest of the files: it is part of the prefix cache's hashes, which
    /// other servers compute as well. `weights` are for the runner.
    pub fn new(name: &str, key: &str, weights: impl Any + Send + Sync) -> Self {
        Self(Arc::new(Parts { name: name.into(), key: key.into(), weights: Box::new(weights) }))
    }

    /// What clients call it.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// What it is.
    pub fn key(&self) -> &str {
        &self.0.key
    }

    /// What the runner computes with, if it is of that type.
    pub fn weights<T: Any>(&self) -> Option<&T> {
        self.0.weights.downcast_ref()
    }
}

impl PartialEq for Adapter {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.key == other.0.key
    }
}

impl Eq for Adapter {}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapter")
            .field("name", &self.0.name)
            .field("key", &self.0.key)
            .finish_non_exhaustive()
    }
}
