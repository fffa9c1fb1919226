//! [`Weights`]: which files of a model's folder have its weights.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use crate::error::ModelError;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The files, and what their index says of them.
pub(super) struct Weights {
    /// In order of name.
    pub(super) files: Vec<PathBuf>,
    /// The index, and from a tensor's name to its file.
    index: Option<(PathBuf, BTreeMap<String, String>)>,
}

impl Weights {
    /// `model.safetensors` if it is there, else the files that `model.safetensors.index.json` lists, else whatever
    /// has a name that ends in `.safetensors` (but for `consolidated*`, the same weights in another layout).
    pub(super) fn of(dir: &Path) -> Result<Self, ModelError> {
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if single.exists() {
            return Ok(Self { files: vec![single], index: None });
        }
        if index.exists() {
            let by_name = read_index(&index)?;
            let names: BTreeSet<&str> = by_name.values().map(String::as_str).collect();
            let files: Vec<_> = names.into_iter().map(|name| dir.join(name)).collect();
            if let Some(absent) = files.iter().find(|file| !file.exists()) {
                let listed = by_name.values().filter(|file| absent.ends_with(file)).count();
                let reason = format!("lists {listed} tensors in {}, which is not there", file_name(absent));
                return Err(ModelError::Malformed { path: index, reason });
            }
            return Ok(Self { files, index: Some((index, by_name)) });
        }
        Ok(Self { files: others(dir)?, index: None })
    }

    /// Checks the index against the files: `file_of` is where a tensor really is.
    pub(super) fn check<'a>(&self, file_of: impl Fn(&str) -> Option<&'a Path>) -> Result<(), ModelError> {
        let Some((path, by_name)) = &self.index else { return Ok(()) };
        for (name, listed) in by_name {
            let reason = match file_of(name) {
                Some(file) if file.ends_with(listed) => continue,
                Some(file) => {
                    format!("says that tensor {name:?} is in {listed}; it is in {}", file_name(file))
                }
                None => format!("says that tensor {name:?} is in {listed}, which has none of that name"),
            };
            return Err(ModelError::Malformed { path: path.clone(), reason });
        }
        Ok(())
    }
}

/// From a tensor's name to its file, which is one of this folder.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    let malformed = |reason: String| ModelError::Malformed { path: path.into(), reason };
    let text =
        std::fs::read_to_string(path).map_err(|source| ModelError::Io { path: path.into(), source })?;
    let Index { weight_map: WeightMap(by_name) } =
        serde_json::from_str(&text).map_err(|e| malformed(e.to_string()))?;
    for (tensor, file) in &by_name {
        if file.contains(['/', '\\', ':']) || !file.ends_with(".safetensors") {
            return Err(malformed(format!(
                "weight_map[{tensor:?}] = {file:?} is not the name of a safetensors file in this folder"
            )));
        }
    }
    match by_name.is_empty() {
        true => Err(malformed("weight_map lists no tensor".into())),
        false => Ok(by_name),
    }
}

fn others(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let io = |source| ModelError::Io { path: dir.into(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        found.push(entry.map_err(io)?.path());
    }
    found.sort();
    let ends = |path: &PathBuf, ending: &str| file_name(path).ends_with(ending);
    let (tensors, rest): (Vec<_>, Vec<_>) = found
        .into_iter()
        .filter(|path| !file_name(path).starts_with("consolidated"))
        .partition(|path| ends(path, ".safetensors"));
    if !tensors.is_empty() {
        return Ok(tensors);
    }
    let reason = match rest.iter().find(|path| [".bin", ".pt", ".pth"].iter().any(|end| ends(path, end))) {
        Some(pickle) => format!(
            "{} holds Python objects, which are not read: write the weights as safetensors, with transformers \
             `AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)`",
            file_name(pickle)
        ),
        None => format!("there is neither {SINGLE} nor {INDEX} nor any other safetensors file"),
    };
    Err(ModelError::NoWeights { dir: dir.into(), reason })
}

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// The map of an index, in which no name may be twice.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = WeightMap;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from names of tensors to names of files")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut by_name = BTreeMap::new();
                while let Some((name, file)) = map.next_entry::<String, String>()? {
                    if by_name.insert(name.clone(), file).is_some() {
                        return Err(A::Error::custom(format!("weight_map lists {name:?} twice")));
                    }
                }
                Ok(WeightMap(by_name))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
