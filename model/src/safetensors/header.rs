//! [`Header`]: which tensors a safetensors file has, and where. Every byte of it may be a lie.
//!
//! The format: eight bytes of header length, little-endian; that many bytes of JSON, an object from a tensor's name to
//! `{"dtype", "shape", "data_offsets": [begin, end]}`; then the tensors' bytes, each exactly once and without holes,
//! by offsets that count from the header's end. `__metadata__` is no tensor.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::dtype::StoredDtype;

/// Longest header read, as in the format's own library.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// More dimensions than any weight has.
const MAX_RANK: usize = 8;
/// What a reader of an error message needs to see of a hostile name.
const MAX_SHOWN_NAME: usize = 200;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) dtype: StoredDtype,
    /// Slowest dimension first.
    pub(crate) shape: Vec<usize>,
    /// Its bytes, counted from the file's beginning; as many as type and shape say, and within the file.
    pub(crate) range: Range<usize>,
}

/// The tensors of a file by name.
pub(crate) type Header = BTreeMap<String, Entry>;

/// Reads a file's header. The error is what is wrong with it, in words.
pub(crate) fn parse(file: &[u8]) -> Result<Header, String> {
    let Some((len, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!("{} bytes are too few for a safetensors file", file.len()));
    };
    let len = u64::from_le_bytes(*len);
    if len > MAX_HEADER_BYTES {
        return Err(format!(
            "not a safetensors file: its first 8 bytes say {len} bytes of header; at most {MAX_HEADER_BYTES} are allowed"
        ));
    }
    let header_len = usize::try_from(len).unwrap_or(usize::MAX);
    let Some((json, data)) = rest.split_at_checked(header_len) else {
        return Err(format!(
            "its header should have {len} bytes, but only {} follow: the file is truncated, or no safetensors file",
            rest.len()
        ));
    };
    let Listed(listed) = serde_json::from_slice(json).map_err(|e| format!("its header: {e}"))?;
    let mut header = Header::new();
    for (name, entry) in listed {
        let entry = entry.check(8 + header_len).map_err(|e| format!("tensor {:?}: {e}", shown(&name)))?;
        if let Some((name, _)) = header.insert(name.clone(), entry).map(|old| (name, old)) {
            return Err(format!("tensor {:?} is listed twice", shown(&name)));
        }
    }
    no_holes(&header, file.len() - data.len(), file.len())?;
    Ok(header)
}

/// Checks that the tensors share out the bytes from `start` to `end` of the file.
fn no_holes(header: &Header, start: usize, end: usize) -> Result<(), String> {
    let mut by_offset: Vec<_> = header.iter().map(|(name, entry)| (entry.range.clone(), name)).collect();
    by_offset.sort_by_key(|(range, _)| (range.start, range.end));
    let mut at = start;
    for (range, name) in by_offset {
        let problem = match range.start.cmp(&at) {
            std::cmp::Ordering::Less => "overlaps the one before it",
            std::cmp::Ordering::Greater => "leaves a hole before it",
            std::cmp::Ordering::Equal if range.end > end => {
                let (last, len) = (range.end, end);
                return Err(format!(
                    "tensor {:?} ends at byte {last}, but the file at {len}: it is truncated",
                    shown(name)
                ));
            }
            std::cmp::Ordering::Equal => {
                at = range.end;
                continue;
            }
        };
        let offsets = [range.start - start, range.end - start];
        return Err(format!("tensor {:?} with data_offsets {offsets:?} {problem}", shown(name)));
    }
    match at == end {
        true => Ok(()),
        false => Err(format!("{} bytes at its end belong to no tensor", end - at)),
    }
}

fn shown(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_SHOWN_NAME)]
}

/// An entry as written.
#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Shape,
    data_offsets: [u64; 2],
}

impl RawEntry {
    fn check(self, data_start: usize) -> Result<Entry, String> {
        let Self { dtype, shape: Shape(shape), data_offsets: [begin, end] } = self;
        let dtype = StoredDtype::of_name(&dtype)
            .ok_or_else(|| format!("dtype {:?} is not one of safetensors'", shown(&dtype)))?;
        let elements = shape.iter().try_fold(1usize, |product, n| product.checked_mul(*n));
        let Some(len) = elements.and_then(|elements| dtype.bytes_of(elements)) else {
            return Err(format!("no memory holds {dtype} of shape {shape:?} in whole bytes"));
        };
        let in_file = |offset: u64| usize::try_from(offset).ok()?.checked_add(data_start);
        match (in_file(begin), in_file(end)) {
            (Some(start), Some(end)) if start <= end && end - start == len => {
                Ok(Entry { dtype, shape, range: start..end })
            }
            _ => {
                Err(format!("{dtype} of shape {shape:?} has {len} bytes; data_offsets are [{begin}, {end}]"))
            }
        }
    }
}

/// Dimensions, of which there may not be any number.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dimensions;
        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX_RANK} sizes")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let mut sizes = Vec::with_capacity(4);
                while let Some(size) = list.next_element()? {
                    if sizes.len() == MAX_RANK {
                        return Err(A::Error::custom(format!("a shape of more than {MAX_RANK} dimensions")));
                    }
                    sizes.push(size);
                }
                Ok(Shape(sizes))
            }
        }
        deserializer.deserialize_seq(Dimensions)
    }
}

/// The header's entries in order, the same name as often as it is there.
struct Listed(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Listed;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Listed, A::Error> {
                let mut listed = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry = map
                        .next_value()
                        .map_err(|e| A::Error::custom(format!("tensor {:?}: {e}", shown(&name))))?;
                    listed.push((name, entry));
                }
                Ok(Listed(listed))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
