//! [`GgufTensors`]: the tensors of a GGUF file by Hugging Face's names, with what converters changed undone.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::architecture::Architecture;
use super::file::GgufFile;
use super::header::TensorInfo;
use super::metadata::Metadata;
use super::names::{Change, halves_first, hf_names, is_setting};
use crate::error::ModelError;
use crate::ggml::{GgmlType, decode_row};

/// All tensors that a model is loaded from.
pub(crate) struct GgufTensors {
    file: GgufFile,
    /// By Hugging Face's name: the name in the file, and what to undo. What is not known has its own name.
    names: BTreeMap<String, (String, Change)>,
    heads: Heads,
}

/// Into how many heads rows of queries and keys are divided.
struct Heads {
    queries: usize,
    keys: usize,
}

/// A tensor as it is in the file, but for the order of its rows.
pub(crate) struct GgufTensor<'a> {
    pub(crate) kind: GgmlType,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Cow<'a, [u8]>,
}

impl GgufTensors {
    /// Of a file of a known architecture.
    pub(crate) fn new(file: GgufFile) -> Result<Self, ModelError> {
        let architecture = Architecture::of(file.metadata()).map_err(|reason| file.malformed(reason))?;
        let heads = Heads::of(file.metadata(), architecture).map_err(|reason| file.malformed(reason))?;
        let mut names = BTreeMap::new();
        for (name, _) in file.tensors().filter(|(name, _)| !is_setting(name)) {
            let known = hf_names(architecture, name);
            if known.is_empty() {
                names.insert(name.to_owned(), (name.to_owned(), Change::None));
            }
            names.extend(known.into_iter().map(|(known, change)| (known, (name.to_owned(), change))));
        }
        Ok(Self { file, names, heads })
    }

    /// All names, Hugging Face's where there is one.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        self.names.keys().cloned().collect()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// Gives the memory of a tensor's pages back; it can still be read. Experts that share a tensor stay until the
    /// system needs their memory.
    pub(crate) fn give_back(&self, name: &str) {
        if let Some((own_name, change)) = self.names.get(name)
            && !matches!(change, Change::Expert(_))
        {
            self.file.give_back(own_name);
        }
    }

    /// The tensor of that name.
    pub(crate) fn get(&self, name: &str) -> Result<GgufTensor<'_>, ModelError> {
        let missing = || ModelError::MissingTensor { name: name.into() };
        let (own_name, change) = self.names.get(name).ok_or_else(missing)?;
        let (info, bytes) = self.file.tensor(own_name).ok_or_else(missing)?;
        let whole = |shape: &[usize], bytes| GgufTensor {
            kind: info.kind,
            shape: shape.to_vec(),
            bytes: Cow::Borrowed(bytes),
        };
        match change {
            Change::None => Ok(whole(&info.shape, bytes)),
            Change::Vector => Ok(whole(&[&[1], &info.shape[..]].concat(), bytes)),
            Change::Expert(expert) => {
                let len = bytes.len() / info.shape[0];
                let own = bytes.get(expert * len..(expert + 1) * len).ok_or_else(missing)?;
                Ok(whole(&info.shape[1..], own))
            }
            Change::PlusOne => Ok(less_one(info, bytes)),
            Change::QueryRows => self.in_halves(own_name, info, bytes, self.heads.queries),
            Change::KeyRows => self.in_halves(own_name, info, bytes, self.heads.keys),
        }
    }

    fn in_halves(
        &self,
        name: &str,
        info: &TensorInfo,
        bytes: &[u8],
        heads: usize,
    ) -> Result<GgufTensor<'_>, ModelError> {
        let rows = info.shape[0];
        if !rows.is_multiple_of(2 * heads) {
            let reason =
                format!("tensor {name:?}: {rows} rows are not an even number for each of {heads} heads");
            return Err(self.file.malformed(reason));
        }
        let (row_bytes, dim) = (bytes.len() / rows, rows / heads);
        let heads = bytes.chunks_exact(dim * row_bytes);
        let ordered =
            heads.flat_map(|head| halves_first(dim).map(move |row| &head[row * row_bytes..][..row_bytes]));
        let bytes = Cow::Owned(ordered.collect::<Vec<_>>().concat());
        Ok(GgufTensor { kind: info.kind, shape: info.shape.clone(), bytes })
    }
}

fn less_one(info: &TensorInfo, bytes: &[u8]) -> GgufTensor<'static> {
    let mut values = vec![0.0; info.shape.iter().product()];
    decode_row(info.kind, bytes, 0..values.len(), &mut values);
    let bytes = values.iter().flat_map(|value| (value - 1.0).to_le_bytes()).collect();
    GgufTensor { kind: GgmlType::F32, shape: info.shape.clone(), bytes: Cow::Owned(bytes) }
}

impl Heads {
    /// At least one each, whatever the file says.
    fn of(metadata: &Metadata, architecture: Architecture) -> Result<Self, String> {
        let count = |name: &str| -> Result<Option<usize>, String> {
            let count = metadata.integer_of_layers(&format!("{}.attention.{name}", architecture.name))?;
            Ok(count.map(|count| usize::try_from(count).unwrap_or(usize::MAX / 2).clamp(1, usize::MAX / 2)))
        };
        let queries = count("head_count")?.unwrap_or(1);
        Ok(Self { queries, keys: count("head_count_kv")?.unwrap_or(queries) })
    }
}
