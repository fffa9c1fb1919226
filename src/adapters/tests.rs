//! Loading, replacing and forgetting adapters of the demo model.

use quire_cpu::{CpuBackend, CpuOptions};
use quire_model::{Checkpoint, Model, ModelSpec};

use super::*;
use crate::demo;

pub(crate) const LIMITS: AdapterLimits =
    AdapterLimits { max_loras: 2, max_rank: 16, max_resident: 2, rounded_to: None, runtime_updates: true };

/// The folder of the demo model's adapter.
pub(crate) fn pirate() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/assets/pebble/pebble-pirate-lora").into()
}

/// None yet, for the demo model.
pub(crate) fn adapters(limits: AdapterLimits) -> Adapters {
    let spec = ModelSpec::from_json(demo::CONFIG, None).unwrap();
    let checkpoint = Checkpoint::from_bytes(demo::WEIGHTS).unwrap();
    let mut backend = CpuBackend::new(CpuOptions { num_threads: Some(1), isa: None }).unwrap();
    let model = Model::load(&mut backend, spec, &checkpoint, &mut |_| {}).unwrap();
    Adapters::new(limits, model.lora_targets().clone(), &["pebble".into(), "alias".into()])
}

/// A copy of the demo model's adapter, for a test to change. Removed when dropped.
pub(crate) struct Copied(std::path::PathBuf);

impl Copied {
    pub(crate) fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("quire-adapter-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::write(dir.join(file), std::fs::read(Path::new(&pirate()).join(file)).unwrap()).unwrap();
        }
        Self(dir)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// Sets a field of adapter_config.json.
    pub(crate) fn set(&self, field: &str, value: serde_json::Value) {
        let path = self.0.join("adapter_config.json");
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        json[field] = value;
        std::fs::write(path, json.to_string()).unwrap();
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn names_are_taken_replaced_and_given_back() {
    let adapters = adapters(LIMITS);
    let info = adapters.load("a", &pirate(), None, false).await.unwrap();
    assert_eq!((info.id, &*info.parent, &*info.path), (1, "pebble", &*pirate()));
    assert_eq!(adapters.load("b", &pirate(), Some("alias"), false).await.unwrap().parent, "alias");
    assert_eq!(adapters.load("c", &pirate(), Some("other"), false).await.unwrap().parent, "pebble");
    let error = adapters.load("a", &pirate(), None, false).await.unwrap_err();
    assert!(error.to_string().contains("already been loaded"), "{error}");
    let error = adapters.load("alias", &pirate(), None, true).await.unwrap_err();
    assert!(matches!(error, AdapterError::NameTaken(_)), "{error}");
    let error = adapters.load("d", "/nowhere", None, false).await.unwrap_err();
    assert_eq!(error.to_string(), "Loading lora d failed: No adapter found for /nowhere");
    assert_eq!(adapters.load("a", &pirate(), None, true).await.unwrap().id, 1, "its number stays");
    assert_eq!(adapters.unload("a").await.unwrap().name, "a");
    assert!(matches!(adapters.unload("a").await, Err(AdapterError::Unknown(_))));
    assert!(matches!(adapters.get("a").await, Err(AdapterError::Unknown(_))));
    assert_eq!(adapters.load("a", &pirate(), None, false).await.unwrap().id, 4);
    let names: Vec<_> = adapters.list().into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["b", "c", "a"]);
}

#[tokio::test]
async fn what_is_called_the_same_and_is_another_has_another_key() {
    let adapters = adapters(LIMITS);
    let copy = Copied::new("keys");
    adapters.load("a", copy.path(), None, false).await.unwrap();
    let first = adapters.get("a").await.unwrap();
    adapters.load("b", &pirate(), None, false).await.unwrap();
    assert_eq!(adapters.get("b").await.unwrap(), first, "the same files");
    copy.set("lora_alpha", 3.into());
    adapters.load("a", copy.path(), None, true).await.unwrap();
    assert_ne!(adapters.get("a").await.unwrap(), first);
    let rounded = Adapters::new(
        AdapterLimits { rounded_to: Some(Dtype::F16), ..LIMITS },
        (*adapters.targets).clone(),
        &["pebble".into()],
    );
    rounded.load("b", &pirate(), None, false).await.unwrap();
    assert_ne!(rounded.get("b").await.unwrap(), first);
}

#[tokio::test]
async fn more_than_stay_in_memory_are_read_again_and_must_be_the_same() {
    let adapters = adapters(LIMITS);
    let copies = ["x", "y", "z"].map(Copied::new);
    for (copy, alpha) in copies.iter().zip([1, 2, 3]) {
        copy.set("lora_alpha", alpha.into());
    }
    for (name, copy) in ["x", "y", "z"].into_iter().zip(&copies) {
        adapters.load(name, copy.path(), None, false).await.unwrap();
    }
    let resident = || {
        let registry = adapters.lock();
        let entries = registry.entries.iter().filter(|entry| entry.adapter.is_some());
        entries.map(|entry| entry.info.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(resident(), ["y", "z"]);
    let x = adapters.get("x").await.unwrap();
    assert_eq!(resident(), ["x", "z"], "y was not asked for the longest");
    adapters.get("z").await.unwrap();
    adapters.get("y").await.unwrap();
    assert_eq!(resident(), ["y", "z"]);
    assert_eq!(adapters.get("x").await.unwrap(), x);
    adapters.get("z").await.unwrap();
    adapters.get("y").await.unwrap();
    copies[0].set("lora_alpha", 9.into());
    let error = adapters.get("x").await.unwrap_err();
    assert!(matches!(error, AdapterError::Changed(_)), "{error}");
    adapters.load("x", copies[0].path(), None, true).await.unwrap();
    assert_ne!(adapters.get("x").await.unwrap(), x);
}
