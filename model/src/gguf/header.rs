//! [`Header`]: what a GGUF file says about itself, read with every length checked before anything is believed.
//!
//! The format (versions 2 and 3; little-endian): magic, version, counts; metadata as (key, type, value); tensors as
//! (name, dimensions, type, offset); padding; data. A file may be made to harm whoever reads it, so nothing is
//! allocated that the file's own bytes do not back, and what contradicts itself is refused by name.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use super::cursor::Cursor;
use super::metadata::{Metadata, Value};
use crate::ggml::{GgmlType, SUPPORTED_TYPES};

/// Bytes before the data at most; the largest vocabularies take about 20 MiB.
const MAX_HEADER_BYTES: usize = 1 << 28;
/// Elements of an array at most: more than any vocabulary.
const MAX_ARRAY_LEN: u64 = 1 << 24;
/// As in ggml.
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

/// Everything but the data.
#[derive(Debug)]
pub struct Header {
    /// All keys and their values.
    pub metadata: Metadata,
    /// All tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
}

/// Where a tensor is and how it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// How its elements are stored.
    pub kind: GgmlType,
    /// Slowest dimension first, as everywhere but in GGUF itself.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

impl Header {
    /// Reads the header of a whole file. The error is for people, and names the key or tensor that is wrong.
    pub fn parse(file: &[u8]) -> Result<Self, String> {
        let mut cursor = Cursor::new(file, MAX_HEADER_BYTES);
        if cursor.bytes(4, "the magic")? != b"GGUF" {
            return Err("it does not begin with the magic \"GGUF\"".into());
        }
        match cursor.u32("the version")? {
            2 | 3 => {}
            version if version.swap_bytes() <= 3 => {
                return Err("it is a big-endian file; supported: little-endian".into());
            }
            version => return Err(format!("version {version} is not supported; supported: 2, 3")),
        }
        let num_tensors = cursor.u64("the number of tensors")?;
        let num_keys = cursor.u64("the number of keys")?;
        // The shortest key: a name of no bytes, a type, a value of one byte. The shortest tensor: no dimensions.
        cursor.expect(num_keys, 13, "keys")?;
        cursor.expect(num_tensors, 24, "tensors")?;

        let metadata = Metadata::new(read_metadata(&mut cursor, num_keys)?);
        let alignment = alignment(&metadata)?;
        let stubs = read_tensors(&mut cursor, num_tensors)?;
        let data = (cursor.position() as u64).next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for (name, stub) in stubs {
            let info =
                stub.locate(data, alignment, file.len()).map_err(|e| format!("tensor {name:?}: {e}"))?;
            tensors.insert(name, info);
        }
        refuse_overlaps(&tensors)?;
        Ok(Self { metadata, tensors })
    }
}

fn read_metadata(cursor: &mut Cursor<'_>, num_keys: u64) -> Result<BTreeMap<String, Value>, String> {
    let mut entries = BTreeMap::new();
    for index in 0..num_keys {
        let key = cursor.name(&format!("key {index}"))?;
        let kind = cursor.u32(&format!("the type of key {key:?}"))?;
        let value = read_value(cursor, kind, &key)?;
        if entries.insert(key.clone(), value).is_some() {
            return Err(format!("key {key:?} is there twice"));
        }
    }
    Ok(entries)
}

const ARRAY: u32 = 9;
const STRING: u32 = 8;

fn read_value(cursor: &mut Cursor<'_>, kind: u32, key: &str) -> Result<Value, String> {
    let what = || format!("key {key:?}");
    match kind {
        STRING => Ok(Value::Text(cursor.text(&what())?)),
        ARRAY => {
            let kind = cursor.u32(&what())?;
            let len = cursor.u64(&what())?;
            if len > MAX_ARRAY_LEN {
                return Err(format!("key {key:?}: an array of {len} elements; at most {MAX_ARRAY_LEN}"));
            }
            let least_bytes = match kind {
                ARRAY => return Err(format!("key {key:?}: an array of arrays is not supported")),
                STRING => 8,
                kind => scalar_bytes(kind).ok_or_else(|| format!("key {key:?}: no type {kind} exists"))?,
            };
            cursor.expect(len, least_bytes, &what())?;
            if kind == STRING {
                let texts = (0..len).map(|_| cursor.text(&what()));
                return Ok(Value::Texts(texts.collect::<Result<_, _>>()?));
            }
            let numbers =
                (0..len).map(|_| Ok(read_scalar(cursor, kind, key)?.as_number().unwrap_or_default()));
            Ok(Value::Numbers(numbers.collect::<Result<_, String>>()?))
        }
        kind => read_scalar(cursor, kind, key),
    }
}

fn scalar_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn read_scalar(cursor: &mut Cursor<'_>, kind: u32, key: &str) -> Result<Value, String> {
    let what = format!("key {key:?}");
    Ok(match kind {
        0 => Value::Integer(cursor.array::<1>(&what)?[0].into()),
        1 => Value::Integer(i8::from_le_bytes(cursor.array(&what)?).into()),
        2 => Value::Integer(u16::from_le_bytes(cursor.array(&what)?).into()),
        3 => Value::Integer(i16::from_le_bytes(cursor.array(&what)?).into()),
        4 => Value::Integer(u32::from_le_bytes(cursor.array(&what)?).into()),
        5 => Value::Integer(i32::from_le_bytes(cursor.array(&what)?).into()),
        6 => Value::Float(f32::from_le_bytes(cursor.array(&what)?).into()),
        7 => match cursor.array::<1>(&what)?[0] {
            0 => Value::Flag(false),
            1 => Value::Flag(true),
            other => return Err(format!("key {key:?}: {other} is neither true (1) nor false (0)")),
        },
        10 => Value::Integer(u64::from_le_bytes(cursor.array(&what)?).into()),
        11 => Value::Integer(i64::from_le_bytes(cursor.array(&what)?).into()),
        12 => Value::Float(f64::from_le_bytes(cursor.array(&what)?)),
        kind => return Err(format!("key {key:?}: no type {kind} exists")),
    })
}

fn alignment(metadata: &Metadata) -> Result<u64, String> {
    let key = "general.alignment";
    let Some(alignment) = metadata.integer(key)? else { return Ok(DEFAULT_ALIGNMENT) };
    if alignment.is_power_of_two() && alignment <= 1 << 20 {
        return Ok(alignment);
    }
    Err(format!("key {key:?}: {alignment} is not a power of two of at most 2^20"))
}

/// A tensor whose place is not known yet.
struct Stub {
    kind: GgmlType,
    shape: Vec<u64>,
    offset: u64,
}

fn read_tensors(cursor: &mut Cursor<'_>, num_tensors: u64) -> Result<Vec<(String, Stub)>, String> {
    let mut stubs = Vec::new();
    let mut names = HashSet::new();
    for index in 0..num_tensors {
        let name = cursor.name(&format!("the name of tensor {index}"))?;
        let what = format!("tensor {name:?}");
        if !names.insert(name.clone()) {
            return Err(format!("{what} is there twice"));
        }
        let num_dimensions = cursor.u32(&what)?;
        if !(1..=MAX_DIMENSIONS).contains(&num_dimensions) {
            return Err(format!("{what} has {num_dimensions} dimensions; allowed: 1 to {MAX_DIMENSIONS}"));
        }
        let mut shape = (0..num_dimensions).map(|_| cursor.u64(&what)).collect::<Result<Vec<_>, String>>()?;
        shape.reverse();
        let kind = GgmlType::from_number(cursor.u32(&what)?)
            .map_err(|found| format!("{what} is stored as {found}; supported: {SUPPORTED_TYPES}"))?;
        let offset = cursor.u64(&what)?;
        stubs.push((name, Stub { kind, shape, offset }));
    }
    Ok(stubs)
}

impl Stub {
    /// `data` is where offsets count from.
    fn locate(self, data: u64, alignment: u64, file_len: usize) -> Result<TensorInfo, String> {
        let Self { kind, shape, offset } = self;
        let too_large = || format!("its shape {shape:?} has more elements than there is memory");
        let sizes = shape.iter().map(|size| usize::try_from(*size)).collect::<Result<Vec<_>, _>>();
        let sizes = sizes.map_err(|_| too_large())?;
        if sizes.contains(&0) {
            return Err(format!("its shape {shape:?} has no elements"));
        }
        let columns = sizes[sizes.len() - 1];
        if !columns.is_multiple_of(kind.block_len()) {
            let (name, block) = (kind.name(), kind.block_len());
            return Err(format!(
                "rows of {columns} are not a multiple of the {block} numbers of a {name} block"
            ));
        }
        let row_bytes = kind.row_bytes(columns).ok_or_else(too_large)?;
        let len = sizes[..sizes.len() - 1].iter().try_fold(row_bytes, |bytes, size| bytes.checked_mul(*size));
        let len = len.ok_or_else(too_large)? as u64;
        if !offset.is_multiple_of(alignment) {
            return Err(format!("its offset {offset} is not a multiple of the alignment {alignment}"));
        }
        let place = data.checked_add(offset).and_then(|start| Some((start, start.checked_add(len)?)));
        match place {
            Some((start, end)) if end <= file_len as u64 => {
                Ok(TensorInfo { kind, shape: sizes, bytes: start as usize..end as usize })
            }
            _ => Err(format!(
                "its {len} bytes at offset {offset} reach beyond the end of the file ({file_len} bytes): it is \
                 truncated, or not whole yet"
            )),
        }
    }
}

/// Files that give the same bytes to two tensors could claim to be far larger than they are.
fn refuse_overlaps(tensors: &BTreeMap<String, TensorInfo>) -> Result<(), String> {
    let mut places: Vec<_> = tensors.iter().map(|(name, info)| (info.bytes.clone(), name)).collect();
    places.sort_unstable_by_key(|(bytes, _)| bytes.start);
    for pair in places.windows(2) {
        let [(first, first_name), (second, second_name)] = pair else { continue };
        if second.start < first.end {
            return Err(format!("tensors {first_name:?} and {second_name:?} overlap"));
        }
    }
    Ok(())
}
