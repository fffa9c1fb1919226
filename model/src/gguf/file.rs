//! [`GgufFile`]: a model in one GGUF file, or in one that was split, mapped into memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::header::{Header, TensorInfo};
use super::metadata::Metadata;
use crate::error::ModelError;
use crate::mapped_file::MappedFile;

/// An open model: its metadata, and its tensors as stored.
pub struct GgufFile {
    path: PathBuf,
    metadata: Metadata,
    /// (part, what it says)
    tensors: BTreeMap<String, (usize, TensorInfo)>,
    parts: Vec<Bytes>,
}

enum Bytes {
    Mapped(MappedFile),
    Memory(Vec<u8>),
}

impl std::fmt::Debug for GgufFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GgufFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl GgufFile {
    /// Maps the file, and the other parts if it is the first of a split one (`...-00001-of-0000N.gguf`). The files must
    /// not be changed while they are open.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let mut parts = Vec::new();
        let mut headers = Vec::new();
        for path in part_paths(path)? {
            let file = MappedFile::open(&path)?;
            let header = Header::parse(file.bytes())
                .map_err(|reason| ModelError::Malformed { path: path.clone(), reason })?;
            parts.push(Bytes::Mapped(file));
            headers.push((path, header));
        }
        Self::join(headers, parts)
    }

    /// The file, or the first of the files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Of the first part, which has all that is not about the split.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, (_, info))| (name.as_str(), info))
    }

    /// What is said about a tensor, and its bytes.
    pub fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        let (part, info) = self.tensors.get(name)?;
        let file = match &self.parts[*part] {
            Bytes::Mapped(file) => file.bytes(),
            Bytes::Memory(bytes) => &bytes[..],
        };
        Some((info, &file[info.bytes.clone()]))
    }

    /// Gives the memory of a tensor's pages back; it can still be read.
    pub(crate) fn give_back(&self, name: &str) {
        if let Some((part, info)) = self.tensors.get(name)
            && let Bytes::Mapped(file) = &self.parts[*part]
        {
            file.give_back(info.bytes.clone());
        }
    }

    /// A whole file that is in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, ModelError> {
        let path = PathBuf::from("memory.gguf");
        let header =
            Header::parse(&bytes).map_err(|reason| ModelError::Malformed { path: path.clone(), reason })?;
        Self::join(vec![(path, header)], vec![Bytes::Memory(bytes)])
    }

    fn join(headers: Vec<(PathBuf, Header)>, parts: Vec<Bytes>) -> Result<Self, ModelError> {
        let mut tensors = BTreeMap::new();
        let mut first = None;
        let num_parts = headers.len() as u64;
        for (index, (path, header)) in headers.into_iter().enumerate() {
            let malformed = |reason| ModelError::Malformed { path: path.clone(), reason };
            check_split(&header.metadata, index as u64, num_parts).map_err(malformed)?;
            for (name, info) in header.tensors {
                if tensors.contains_key(&name) {
                    return Err(malformed(format!("tensor {name:?} is in another part too")));
                }
                tensors.insert(name, (index, info));
            }
            first.get_or_insert((path, header.metadata));
        }
        let (path, metadata) = first.expect("there is a file");
        let count = metadata.integer("split.tensors.count");
        match count.map_err(|reason| ModelError::Malformed { path: path.clone(), reason })? {
            Some(count) if count != tensors.len() as u64 => {
                let reason =
                    format!("it was split into {count} tensors, and the parts have {}", tensors.len());
                Err(ModelError::Malformed { path, reason })
            }
            _ => Ok(Self { path, metadata, tensors, parts }),
        }
    }
}

/// Whether a part is the one that it should be.
fn check_split(metadata: &Metadata, index: u64, num_parts: u64) -> Result<(), String> {
    let count = metadata.integer("split.count")?.unwrap_or(1).max(1);
    if count != num_parts {
        return Err(format!(
            "it is of a model in {count} parts, and {num_parts} were found by name; parts are named \
             NAME-00001-of-0000N.gguf, and the first is the one to give"
        ));
    }
    match metadata.integer("split.no")? {
        Some(number) if number != index => Err(format!(
            "it says to be part {} of the model, by its name it is part {}",
            number + 1,
            index + 1
        )),
        _ => Ok(()),
    }
}

/// The file itself, or all parts that its name tells of.
fn part_paths(path: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((stem, number, count)) = split_name(name) else { return Ok(vec![path.into()]) };
    if number != 1 || count == 0 {
        let reason =
            format!("of a split model the first part is the one to give: {stem}-00001-of-{count:05}.gguf");
        return Err(ModelError::Malformed { path: path.into(), reason });
    }
    Ok((1..=count).map(|part| path.with_file_name(format!("{stem}-{part:05}-of-{count:05}.gguf"))).collect())
}

/// `STEM-00002-of-00003.gguf` as (STEM, 2, 3).
pub fn split_name(name: &str) -> Option<(&str, u32, u32)> {
    let digits = |text: &str| -> Option<u32> {
        (text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
    };
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    Some((stem, digits(number)?, digits(count)?))
}
