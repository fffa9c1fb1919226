//! [`Table`]: the algorithms chosen by timing, kept on disk, so that a server measures once per machine and
//! gives the same bits after every start.
//!
//! One text file for each GPU model and version of cuBLASLt, a line per choice, closed by a checksum. An
//! algorithm means something only to the version that made it, hence the header; it is offered to
//! `cublasLtMatmulAlgoCheck` before use all the same. A file that is broken or belongs to something else is
//! reported, ignored, and rewritten at the next [`Table::write`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{GemmShape, dtype_name};
use crate::cublaslt::Algorithm;
use crate::driver::DeviceAttributes;

const TITLE: &str = "quire gemm table 1";

/// What a choice was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    /// The product.
    pub shape: GemmShape,
    /// First and last number of rows.
    pub rows: (u32, u32),
    /// Whether it was chosen among algorithms that treat every row alike.
    pub batch_invariant: bool,
}

/// Choices, and the file they are kept in.
#[derive(Debug)]
pub(super) struct Table {
    path: PathBuf,
    header: String,
    /// By the key as it is written.
    choices: BTreeMap<String, Algorithm>,
}

impl Table {
    /// Reads the table of that GPU and version of cuBLASLt; an empty one if there is none. Also says, in a
    /// line, why a file that is there was not used.
    pub fn read(directory: &Path, gpu: &DeviceAttributes, library_version: u64) -> (Self, Option<String>) {
        let (major, minor) = gpu.compute_capability;
        let header =
            format!("{TITLE}\ngpu {}, {major}.{minor}\ncublaslt {library_version}\n", gpu.name.trim());
        let path = directory.join(file_name(&gpu.name, library_version));
        let mut table = Self { path, header, choices: BTreeMap::new() };
        let warning = match table.read_file() {
            Ok(choices) => {
                table.choices = choices;
                None
            }
            Err(why) => {
                Some(format!("{}: {why}; ignored, products will be timed anew", table.path.display()))
            }
        };
        (table, warning)
    }

    /// What was chosen.
    pub fn get(&self, key: &Key) -> Option<Algorithm> {
        self.choices.get(&key.line()).copied()
    }

    /// Keeps a choice, on disk from the next [`Self::write`] on.
    pub fn insert(&mut self, key: &Key, algorithm: Algorithm) {
        self.choices.insert(key.line(), algorithm);
    }

    /// Writes all choices, with those that another process may have written since, in one step: readers see
    /// the old file or the new one.
    pub fn write(&mut self) -> io::Result<()> {
        for (key, algorithm) in self.read_file().unwrap_or_default() {
            self.choices.entry(key).or_insert(algorithm);
        }
        let mut text = self.header.clone();
        for (key, algorithm) in &self.choices {
            text.push_str(key);
            text.push(' ');
            for word in algorithm.0 {
                write!(text, "{word:016x}").expect("a String takes anything");
            }
            text.push('\n');
        }
        let checksum = checksum(&text);
        text.push_str(&checksum);
        let directory = self.path.parent().expect("the path was joined from a directory");
        fs::create_dir_all(directory)?;
        let temporary = self.path.with_extension(format!("tmp{}", std::process::id()));
        fs::write(&temporary, text)?;
        fs::rename(&temporary, &self.path).inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })
    }

    /// The choices in the file, none if there is no file; or what is wrong with it.
    fn read_file(&self) -> Result<BTreeMap<String, Algorithm>, String> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(error.to_string()),
        };
        if !text.starts_with(TITLE) {
            return Err(format!("is no \"{TITLE}\""));
        }
        let Some(body) = text.strip_prefix(&self.header) else {
            return Err("belongs to another GPU or version of cuBLASLt".to_owned());
        };
        let closing = body.rfind("sha256 ").ok_or("has no checksum at its end")?;
        let (lines, closing) = body.split_at(closing);
        if closing != checksum(&text[..text.len() - closing.len()]) {
            return Err("does not match its checksum".to_owned());
        }
        lines
            .lines()
            .map(|line| parse_choice(line).ok_or_else(|| format!("has a line that is no choice: {line}")))
            .collect()
    }
}

impl Key {
    fn line(&self) -> String {
        let GemmShape { n, k, input, output, bias, rows_max: _ } = self.shape;
        let kind = if self.batch_invariant { "invariant" } else { "fastest" };
        let bias = if bias { "bias" } else { "-" };
        let (first, last) = self.rows;
        format!("{kind} {n} {k} {} {} {bias} {first} {last}", dtype_name(input), dtype_name(output))
    }
}

fn file_name(gpu: &str, library_version: u64) -> String {
    let plain: String = gpu
        .trim()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    format!("gemm-{plain}-cublaslt-{library_version}.txt")
}

fn checksum(text: &str) -> String {
    format!("sha256 {:x}\n", Sha256::digest(text))
}

/// A key of any words and 64 bytes in hexadecimal.
fn parse_choice(line: &str) -> Option<(String, Algorithm)> {
    let (key, hexadecimal) = line.rsplit_once(' ')?;
    if hexadecimal.len() != 128 || !hexadecimal.is_ascii() {
        return None;
    }
    let mut words = [0; 8];
    for (word, digits) in words.iter_mut().zip(hexadecimal.as_bytes().chunks_exact(16)) {
        *word = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some((key.to_owned(), Algorithm(words)))
}

#[cfg(test)]
mod tests {
    use quire_model::Dtype;

    use super::*;

    fn gpu(name: &str) -> DeviceAttributes {
        DeviceAttributes {
            name: name.to_owned(),
            compute_capability: (9, 0),
            num_sms: 132,
            shared_bytes_per_block_max: 0,
            l2_bytes: 0,
            total_bytes: 0,
        }
    }

    fn key(n: u32, batch_invariant: bool) -> Key {
        let shape =
            GemmShape { n, k: 4096, input: Dtype::Bf16, output: Dtype::F32, bias: true, rows_max: 512 };
        Key { shape, rows: (33, 64), batch_invariant }
    }

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("quire-gemm-table-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn what_is_written_is_read_and_others_choices_are_kept() {
        let directory = directory("round-trip");
        let (mut one, warning) = Table::read(&directory, &gpu("NVIDIA H200"), 130_100);
        assert_eq!(warning, None);
        let (mut other, _) = Table::read(&directory, &gpu("NVIDIA H200"), 130_100);
        one.insert(&key(1024, false), Algorithm([1, 2, 3, 4, 5, 6, 7, u64::MAX]));
        one.insert(&key(1024, true), Algorithm([9; 8]));
        one.write().unwrap();
        other.insert(&key(2048, false), Algorithm([4; 8]));
        other.write().unwrap();

        let (table, warning) = Table::read(&directory, &gpu("NVIDIA H200"), 130_100);
        assert_eq!(warning, None);
        assert_eq!(table.get(&key(1024, false)), Some(Algorithm([1, 2, 3, 4, 5, 6, 7, u64::MAX])));
        assert_eq!(table.get(&key(1024, true)), Some(Algorithm([9; 8])));
        assert_eq!(table.get(&key(2048, false)), Some(Algorithm([4; 8])));
        assert_eq!(table.get(&key(512, false)), None);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "temporary files stay behind");

        let (table, _) = Table::read(&directory, &gpu("NVIDIA H200"), 130_101);
        assert_eq!(table.get(&key(1024, false)), None);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn every_changed_byte_of_a_file_is_noticed() {
        let directory = directory("broken");
        let (mut table, _) = Table::read(&directory, &gpu("NVIDIA H200"), 130_100);
        table.insert(&key(1024, false), Algorithm([7; 8]));
        table.write().unwrap();
        let good = fs::read(&table.path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&table.path, &bad).unwrap();
            let (read, warning) = Table::read(&directory, &gpu("NVIDIA H200"), 130_100);
            assert!(warning.is_some(), "byte {at}");
            assert_eq!(read.get(&key(1024, false)), None, "byte {at}");
            fs::write(&table.path, &good[..at]).unwrap();
            assert!(Table::read(&directory, &gpu("NVIDIA H200"), 130_100).1.is_some(), "cut at {at}");
        }
        table.write().unwrap();
        assert_eq!(Table::read(&directory, &gpu("NVIDIA H200"), 130_100).1, None);
        fs::remove_dir_all(directory).unwrap();
    }
}
