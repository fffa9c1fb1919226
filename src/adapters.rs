//! [`Adapters`]: the LoRA adapters that clients may name instead of the model, and how they are read.
//!
//! A request takes its adapter with it into the engine ([`Adapter`]), so nothing needs to be told to the engine when one
//! is loaded or unloaded: who runs with it runs to the end with what it began with, and whoever comes later finds what is
//! here then. Files are read and checked on threads that may block.
//!
//! At most `max_resident` adapters have their weights in memory (besides those that requests still run with); the others
//! are read again when they are asked for, the one that was not asked for the longest makes room. What is read again must
//! be what was read before.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quire_model::{Dtype, LoraError, LoraTargets, LoraWeights};
use quire_scheduler::Adapter;

/// Names there may be at most; the weights have a limit of their own.
const MAX_ADAPTERS: usize = 4096;

/// What adapters may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterLimits {
    /// Different ones among the requests that run at once.
    pub max_loras: u32,
    /// Rank at most.
    pub max_rank: usize,
    /// Those whose weights are in memory.
    pub max_resident: usize,
    /// What their numbers are rounded to; `None` = as stored.
    pub rounded_to: Option<Dtype>,
    /// Whether they may be loaded and unloaded while the server runs.
    pub runtime_updates: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct Adapters {
    limits: AdapterLimits,
    targets: Arc<LoraTargets>,
    /// Names of the model itself, which adapters cannot have.
    model_names: Vec<String>,
    registry: Mutex<Registry>,
    /// Held while files are read: one adapter after the other.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Registry {
    /// In the order of their loading.
    entries: Vec<Entry>,
    last_id: i64,
    /// Counts what was asked for, for [`Entry::last_use`].
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    info: AdapterInfo,
    /// Of what was loaded.
    key: String,
    /// `None` = to be read again.
    adapter: Option<Adapter>,
    last_use: u64,
}

/// What is known of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterInfo {
    /// A number of its own, from 1; one that is replaced keeps it.
    pub id: i64,
    /// What clients call it.
    pub name: String,
    /// Its folder, as it was given.
    pub path: String,
    /// The name of the model that it says it is of.
    pub parent: String,
}

/// Why an adapter was not loaded, unloaded or found. The words are vLLM's where clients look for them.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum AdapterError {
    #[error(
        "The lora adapter '{0}' has already been loaded. If you want to load the adapter in place, set \
         'load_inplace' to True."
    )]
    AlreadyLoaded(String),
    #[error("'{0}' is the name of the model itself; give the adapter another")]
    NameTaken(String),
    #[error("{MAX_ADAPTERS} adapters are loaded, which is the most there may be; unload one")]
    TooMany,
    #[error("The lora adapter '{0}' cannot be found.")]
    Unknown(String),
    #[error("Loading lora {name} failed: No adapter found for {path}")]
    Missing { name: String, path: String },
    #[error("Loading lora {name} failed: {source}")]
    Unusable { name: String, source: LoraError },
    #[error("the files of adapter {0} have changed since it was loaded; load it again, in place")]
    Changed(String),
    #[error("reading adapter {0} failed")]
    Panicked(String),
}

impl Adapters {
    /// None yet, for a model with these layers and names (of which there is one at least).
    pub fn new(limits: AdapterLimits, targets: LoraTargets, model_names: &[String]) -> Self {
        Self {
            limits,
            targets: targets.into(),
            model_names: model_names.to_vec(),
            registry: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
        }
    }

    /// What adapters may be.
    pub fn limits(&self) -> &AdapterLimits {
        &self.limits
    }

    /// All that are loaded, in the order of their loading.
    pub fn list(&self) -> Vec<AdapterInfo> {
        self.lock().entries.iter().map(|entry| entry.info.clone()).collect()
    }

    /// Whether there is one of that name.
    pub fn has(&self, name: &str) -> bool {
        self.lock().find(name).is_some()
    }

    /// The adapter of that name, for a request to take with it.
    pub async fn get(&self, name: &str) -> Result<Adapter, AdapterError> {
        if let Some(adapter) = self.lock().touch(name)? {
            return Ok(adapter);
        }
        let _reading = self.reading.lock().await;
        // Somebody may have read it meanwhile.
        if let Some(adapter) = self.lock().touch(name)? {
            return Ok(adapter);
        }
        let (path, key) = {
            let registry = self.lock();
            let entry = registry.find(name).ok_or_else(|| AdapterError::Unknown(name.into()))?;
            (entry.info.path.clone(), entry.key.clone())
        };
        let adapter = self.read_blocking(name, &path).await?;
        if adapter.key() != key {
            return Err(AdapterError::Changed(name.into()));
        }
        self.lock().keep(name, &adapter, self.limits.max_resident);
        Ok(adapter)
    }

    /// Reads an adapter and gives it a name. One that has the name is an error, or with `in_place` replaced.
    pub async fn load(
        &self,
        name: &str,
        path: &str,
        parent: Option<&str>,
        in_place: bool,
    ) -> Result<AdapterInfo, AdapterError> {
        let _reading = self.reading.lock().await;
        self.check_name(name, in_place)?;
        let adapter = self.read_blocking(name, path).await?;
        Ok(self.insert(name, path, parent, adapter))
    }

    /// The same before the server runs, on the caller's thread.
    pub fn load_now(
        &self,
        name: &str,
        path: &str,
        parent: Option<&str>,
    ) -> Result<AdapterInfo, AdapterError> {
        self.check_name(name, false)?;
        let adapter = read(name, path, &self.targets, &self.limits)?;
        Ok(self.insert(name, path, parent, adapter))
    }

    /// Forgets an adapter. Requests that run with it are not disturbed.
    pub async fn unload(&self, name: &str) -> Result<AdapterInfo, AdapterError> {
        let _reading = self.reading.lock().await;
        let mut registry = self.lock();
        let place = registry.entries.iter().position(|entry| entry.info.name == name);
        let place = place.ok_or_else(|| AdapterError::Unknown(name.into()))?;
        Ok(registry.entries.remove(place).info)
    }

    fn check_name(&self, name: &str, in_place: bool) -> Result<(), AdapterError> {
        if self.model_names.iter().any(|model| model == name) {
            return Err(AdapterError::NameTaken(name.into()));
        }
        let registry = self.lock();
        match registry.find(name) {
            Some(_) if !in_place => Err(AdapterError::AlreadyLoaded(name.into())),
            None if registry.entries.len() >= MAX_ADAPTERS => Err(AdapterError::TooMany),
            _ => Ok(()),
        }
    }

    fn insert(&self, name: &str, path: &str, parent: Option<&str>, adapter: Adapter) -> AdapterInfo {
        let parent = parent.filter(|parent| self.model_names.iter().any(|name| name == parent));
        let parent = parent.unwrap_or(&self.model_names[0]).to_owned();
        let mut registry = self.lock();
        let id = match registry.find(name) {
            Some(entry) => entry.info.id,
            None => registry.last_id + 1,
        };
        registry.last_id = registry.last_id.max(id);
        let info = AdapterInfo { id, name: name.into(), path: path.into(), parent };
        let key = adapter.key().to_owned();
        let entry = Entry { info: info.clone(), key, adapter: None, last_use: 0 };
        match registry.entries.iter_mut().find(|entry| entry.info.name == name) {
            Some(old) => *old = entry,
            None => registry.entries.push(entry),
        }
        registry.keep(name, &adapter, self.limits.max_resident);
        info
    }

    async fn read_blocking(&self, name: &str, path: &str) -> Result<Adapter, AdapterError> {
        let (targets, limits) = (self.targets.clone(), self.limits.clone());
        let (owned_name, path) = (name.to_owned(), path.to_owned());
        let work = move || read(&owned_name, &path, &targets, &limits);
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|_| Err(AdapterError::Panicked(name.into())))
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.info.name == name)
    }

    /// Notes that an adapter was asked for, and gives it if its weights are in memory.
    fn touch(&mut self, name: &str) -> Result<Option<Adapter>, AdapterError> {
        self.uses += 1;
        let entry = self.entries.iter_mut().find(|entry| entry.info.name == name);
        let entry = entry.ok_or_else(|| AdapterError::Unknown(name.into()))?;
        entry.last_use = self.uses;
        Ok(entry.adapter.clone())
    }

    /// Keeps weights, and drops those that were not asked for the longest where there are too many.
    fn keep(&mut self, name: &str, adapter: &Adapter, most: usize) {
        self.uses += 1;
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.info.name == name) {
            entry.adapter = Some(adapter.clone());
            entry.last_use = self.uses;
        }
        while self.entries.iter().filter(|entry| entry.adapter.is_some()).count() > most {
            let resident = self.entries.iter_mut().filter(|entry| entry.adapter.is_some());
            let oldest = resident.min_by_key(|entry| entry.last_use).expect("there are more than some");
            oldest.adapter = None;
        }
    }
}

fn read(
    name: &str,
    path: &str,
    targets: &LoraTargets,
    limits: &AdapterLimits,
) -> Result<Adapter, AdapterError> {
    let weights = LoraWeights::read(Path::new(path), targets, limits.max_rank, limits.rounded_to);
    let weights = weights.map_err(|source| match source {
        LoraError::Missing { .. } => AdapterError::Missing { name: name.into(), path: path.into() },
        source => AdapterError::Unusable { name: name.into(), source },
    })?;
    let key = weights.digest().to_owned();
    tracing::info!(adapter = name, path, bytes = weights.num_bytes(), "adapter loaded");
    Ok(Adapter::new(name, &key, weights))
}

#[cfg(test)]
pub(crate) mod tests;
