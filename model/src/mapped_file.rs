//! [`MappedFile`]: a file as bytes in memory, whose pages come when they are read and can be given back.

use std::ops::Range;
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

use crate::error::ModelError;

/// A read-only map of a whole file.
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps a file, which must not be changed or truncated while the map exists.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io { path: path.into(), source };
        let file = std::fs::File::open(path).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Err(io(std::io::Error::other("not a file")));
        }
        // SAFETY: the map is read-only; that nobody truncates the file meanwhile is the documented condition of
        // this function.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self { map })
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Tells the system that these bytes are read next, so that it fetches them ahead. What it makes of that is
    /// its own affair; a range beyond the file is cut.
    pub fn will_need(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some((start, len)) = self.within(range) {
            let _ = self.map.advise_range(memmap2::Advice::WillNeed, start, len);
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Gives the memory of these bytes back: they stay readable, but are fetched from the file again. A range
    /// beyond the file is cut.
    pub fn give_back(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some((start, len)) = self.within(range) {
            // SAFETY: nothing is written through a read-only map of a file, so dropping its pages loses nothing:
            // the next read brings the same bytes.
            #[allow(unsafe_code)]
            let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    #[cfg(unix)]
    fn within(&self, range: Range<usize>) -> Option<(usize, usize)> {
        let end = range.end.min(self.map.len());
        (range.start < end).then(|| (range.start, end - range.start))
    }
}

#[cfg(test)]
mod tests {
    use super::MappedFile;

    #[test]
    fn pages_given_back_come_again_with_the_same_bytes() {
        let path = std::env::temp_dir().join(format!("quire-mapped-{}", std::process::id()));
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = MappedFile::open(&path).unwrap();
        for range in [0..bytes.len(), 5..5000, 99_000..200_000, 300_000..400_000, 7..7] {
            file.will_need(range.clone());
            assert_eq!(file.bytes(), bytes);
            file.give_back(range);
            assert_eq!(file.bytes(), bytes);
        }
        std::fs::remove_file(&path).unwrap();
        assert!(MappedFile::open(&path).is_err());
        assert!(MappedFile::open(&std::env::temp_dir()).is_err(), "a folder");
    }
}
