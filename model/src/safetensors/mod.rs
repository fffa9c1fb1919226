//! safetensors files: tensors by name as stored, whatever their type. What a header says is checked once, here
//! (`header.rs`), so that nobody behind it meets an offset that lies.

mod dtype;
mod folder;
mod header;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub use dtype::StoredDtype;
use header::Header;

use crate::error::ModelError;
use crate::mapped_file::MappedFile;

/// One tensor as it is in a file: row-major, little-endian.
#[derive(Debug, Clone, Copy)]
pub struct RawTensor<'a> {
    /// What an element is.
    pub dtype: StoredDtype,
    /// Slowest dimension first.
    pub shape: &'a [usize],
    /// As many as type and shape say, of any alignment.
    pub bytes: &'a [u8],
}

/// Some safetensors files, as one set of tensors.
pub(crate) struct Safetensors {
    files: Vec<OneFile>,
    /// The file of each name.
    by_name: BTreeMap<String, usize>,
}

struct OneFile {
    path: PathBuf,
    bytes: FileBytes,
    header: Header,
}

enum FileBytes {
    Mapped(MappedFile),
    Memory(Cow<'static, [u8]>),
}

impl Safetensors {
    /// Maps the files of a folder (see [`folder::Weights`]) and checks what they say against each other.
    pub(crate) fn open(dir: &Path) -> Result<Self, ModelError> {
        let weights = folder::Weights::of(dir)?;
        let map = |path: &PathBuf| OneFile::new(path, FileBytes::Mapped(MappedFile::open(path)?));
        let files = weights.files.iter().map(map).collect::<Result<Vec<_>, _>>()?;
        let tensors = Self::of(files)?;
        weights.check(|name| tensors.by_name.get(name).map(|file| tensors.files[*file].path.as_path()))?;
        Ok(tensors)
    }

    /// A whole file that is in memory.
    pub(crate) fn from_bytes(bytes: Cow<'static, [u8]>) -> Result<Self, ModelError> {
        Self::of(vec![OneFile::new(Path::new("safetensors in memory"), FileBytes::Memory(bytes))?])
    }

    fn of(files: Vec<OneFile>) -> Result<Self, ModelError> {
        let mut by_name = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for name in file.header.keys() {
                if let Some(other) = by_name.insert(name.clone(), index) {
                    let other: &Path = &files[other].path;
                    let reason = format!("tensor {name:?} is in {} as well", other.display());
                    return Err(ModelError::Malformed { path: file.path.clone(), reason });
                }
            }
        }
        Ok(Self { files, by_name })
    }

    pub(crate) fn names(&self) -> BTreeSet<String> {
        self.by_name.keys().cloned().collect()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The tensor of that name. The system is told that it is read next.
    pub(crate) fn tensor(&self, name: &str) -> Option<RawTensor<'_>> {
        let file = &self.files[*self.by_name.get(name)?];
        let entry = file.header.get(name)?;
        if let FileBytes::Mapped(map) = &file.bytes {
            map.will_need(entry.range.clone());
        }
        let bytes = &file.bytes()[entry.range.clone()];
        Some(RawTensor { dtype: entry.dtype, shape: &entry.shape, bytes })
    }

    /// Gives the memory of a tensor's pages back to the system.
    pub(crate) fn give_back(&self, name: &str) {
        let Some(file) = self.by_name.get(name).map(|file| &self.files[*file]) else { return };
        if let (FileBytes::Mapped(map), Some(entry)) = (&file.bytes, file.header.get(name)) {
            map.give_back(entry.range.clone());
        }
    }
}

impl OneFile {
    fn new(path: &Path, bytes: FileBytes) -> Result<Self, ModelError> {
        let mut file = Self { path: path.into(), bytes, header: Header::new() };
        file.header = header::parse(file.bytes())
            .map_err(|reason| ModelError::Malformed { path: path.into(), reason })?;
        Ok(file)
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            FileBytes::Mapped(map) => map.bytes(),
            FileBytes::Memory(bytes) => bytes,
        }
    }
}
