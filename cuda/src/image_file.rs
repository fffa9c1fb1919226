//! Compiled kernels on disk: all modules for one architecture in one file, so that a set is there whole or not at
//! all. A check sum tells a broken file from a good one.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, io};

use sha2::{Digest, Sha256};

/// Ends in the version of the format.
const MAGIC: &[u8] = b"quire kernels 1\n";
const DIGEST_BYTES: usize = 32;

/// A compiled module: the name of its source without `.cu`, and what the driver loads: a cubin or a fatbin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CompiledModule {
    pub(crate) name: String,
    pub(crate) image: Vec<u8>,
}

/// Writes the file at once: a reader, or a second program that writes the same, never sees a part of it. Makes the
/// folder if need be.
pub(crate) fn write(path: &Path, modules: &[CompiledModule]) -> io::Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let folder = path.parent().expect("a file is in a folder");
    fs::create_dir_all(folder)?;
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let unfinished = folder.join(format!(".{}-{number}.unfinished", std::process::id()));
    // Not synced to the disk: what a power cut leaves behind fails its check sum and is compiled again.
    let written = fs::write(&unfinished, to_bytes(modules)).and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// Reads a file; `None` if it is not there or not whole.
pub(crate) fn read(path: &Path) -> Option<Vec<CompiledModule>> {
    from_bytes(&fs::read(path).ok()?)
}

/// The magic, the modules (each: length of the name, name, length of the image, image; lengths are u64, little
/// endian), SHA-256 of all that.
fn to_bytes(modules: &[CompiledModule]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for module in modules {
        for part in [module.name.as_bytes(), &module.image] {
            bytes.extend((part.len() as u64).to_le_bytes());
            bytes.extend(part);
        }
    }
    let digest = Sha256::digest(&bytes);
    bytes.extend(digest);
    bytes
}

fn from_bytes(bytes: &[u8]) -> Option<Vec<CompiledModule>> {
    let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST_BYTES)?)?;
    if Sha256::digest(content).as_slice() != digest {
        return None;
    }
    let mut rest = content.strip_prefix(MAGIC)?;
    let mut part = || {
        let (length, after) = rest.split_first_chunk()?;
        let (part, after) = after.split_at_checked(u64::from_le_bytes(*length).try_into().ok()?)?;
        rest = after;
        Some(part.to_vec())
    };
    let mut modules = Vec::new();
    while let Some(name) = part() {
        modules.push(CompiledModule { name: String::from_utf8(name).ok()?, image: part()? });
    }
    rest.is_empty().then_some(modules)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Vec<CompiledModule> {
        let module = |name: &str, image: &[u8]| CompiledModule { name: name.into(), image: image.into() };
        vec![module("attention", &[1; 50]), module("", b""), module("norm", b"\x7fELF")]
    }

    #[test]
    fn what_is_written_is_read() {
        for count in 0..=3 {
            let modules = &modules()[..count];
            assert_eq!(from_bytes(&to_bytes(modules)).as_deref(), Some(modules));
        }
    }

    #[test]
    fn a_file_with_any_byte_changed_lost_or_added_is_not_read() {
        let good = to_bytes(&modules());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(from_bytes(&bad), None, "byte {at} changed");
            assert_eq!(from_bytes(&good[..at]), None, "cut at {at}");
            bad = good.clone();
            bad.insert(at, 0);
            assert_eq!(from_bytes(&bad), None, "a byte added at {at}");
        }
    }

    #[test]
    fn a_sum_that_is_right_over_nonsense_is_not_enough() {
        for content in
            [&b"quire kernels 2\n"[..], b"quire kernels 1\n\x05\0\0\0\0\0\0\0abc", b"", b"quire kernels 1\nx"]
        {
            let bytes = [content, Sha256::digest(content).as_slice()].concat();
            assert_eq!(from_bytes(&bytes), None, "{content:?}");
        }
    }

    #[test]
    fn writers_at_the_same_time_leave_one_whole_file_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("quire-image-file-{}", std::process::id()));
        let path = folder.join("new/folder/a.kernels");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        write(&path, &modules()).unwrap();
                        assert_eq!(read(&path), Some(modules()));
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
        assert_eq!(read(&path), None);
    }
}
