//! The files of a model that a client needs to tokenise as we do, as one zip archive.
//!
//! They are stored, not compressed: it is asked for once a client, over a fast line.

use std::io;
use std::path::{Path, PathBuf};

use quire_model::gguf::GgufFile;
use serde_json::{Map, Value};

use super::convert;
use crate::demo;

/// Files that belong to a tokenizer, by their names in a Hugging Face folder.
const NAMES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "added_tokens.json",
];
/// Of the model, for what clients read there: its kind, its end tokens, its defaults.
const MODEL_NAMES: [&str; 2] = ["config.json", "generation_config.json"];
/// Bytes of all files at most; the largest vocabularies have about 40 MiB.
const MAX_BYTES: u64 = 256 << 20;

/// Where the files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerFiles {
    /// The folder of the model, or its GGUF file; `None` = the demo model, which is in the program.
    pub model: Option<PathBuf>,
    /// The folder of the tokenizer, if it is another one.
    pub tokenizer: Option<PathBuf>,
}

impl TokenizerFiles {
    /// tokenizer_config.json; without one, nothing. Blocks.
    pub fn config(&self) -> io::Result<Map<String, Value>> {
        match file_of(self.tokenizer.as_ref().or(self.model.as_ref()), "tokenizer_config.json")? {
            Some(bytes) => Ok(serde_json::from_slice(&bytes)?),
            None => Ok(Map::new()),
        }
    }

    /// Reads them and packs them. Blocks.
    pub fn archive(&self) -> io::Result<Vec<u8>> {
        let mut zip = Zip::default();
        for (names, place) in [
            (&NAMES[..], self.tokenizer.as_ref().or(self.model.as_ref())),
            (&MODEL_NAMES, self.model.as_ref()),
        ] {
            for &name in names {
                let Some(bytes) = file_of(place, name)? else { continue };
                if zip.bytes.len() as u64 + bytes.len() as u64 > MAX_BYTES {
                    let message = format!("the tokenizer's files have more than {MAX_BYTES} bytes");
                    return Err(io::Error::other(message));
                }
                zip.add(name, &bytes);
            }
        }
        Ok(zip.finish())
    }
}

/// A file of that name: of a folder, of the demo model, or what it would be of a GGUF file.
fn file_of(place: Option<&PathBuf>, name: &str) -> io::Result<Option<Vec<u8>>> {
    let Some(place) = place else { return Ok(demo_file(name).map(<[u8]>::to_vec)) };
    if place.is_file() {
        return gguf_file(place, name);
    }
    match std::fs::metadata(place.join(name)) {
        Ok(file) if file.len() > MAX_BYTES => {
            Err(io::Error::other(format!("{name} has more than {MAX_BYTES} bytes")))
        }
        Ok(_) => std::fs::read(place.join(name)).map(Some),
        Err(_) => Ok(None),
    }
}

fn gguf_file(path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let file = GgufFile::open(path).map_err(io::Error::other)?;
    let converted = || convert::from_gguf(file.metadata()).map_err(io::Error::other);
    Ok(match name {
        "tokenizer.json" => Some(converted()?.tokenizer.to_string().into_bytes()),
        "tokenizer_config.json" => Some(converted()?.config.to_string().into_bytes()),
        "config.json" => Some(file.config_json().map_err(io::Error::other)?.into_bytes()),
        "generation_config.json" => {
            Some(file.generation_config_json().map_err(io::Error::other)?.into_bytes())
        }
        _ => None,
    })
}

fn demo_file(name: &str) -> Option<&'static [u8]> {
    match name {
        "tokenizer.json" => Some(demo::TOKENIZER),
        "tokenizer_config.json" => Some(demo::TOKENIZER_CONFIG),
        "config.json" => Some(demo::CONFIG.as_bytes()),
        "generation_config.json" => Some(demo::GENERATION_CONFIG.as_bytes()),
        _ => None,
    }
}

/// A zip archive in the making (APPNOTE.TXT 4.3; little endian throughout). Sizes fit into 32 bits: see
/// [`MAX_BYTES`].
#[derive(Debug, Default)]
struct Zip {
    bytes: Vec<u8>,
    directory: Vec<u8>,
    num_files: u16,
}

impl Zip {
    fn add(&mut self, name: &str, content: &[u8]) {
        let offset = self.bytes.len() as u32;
        let mut about = Vec::new();
        // Version needed 2.0; no flags; stored; midnight of the first day of 1980.
        for field in [20u16, 0, 0, 0, 0x21] {
            about.extend(field.to_le_bytes());
        }
        for field in [crc32(content), content.len() as u32, content.len() as u32] {
            about.extend(field.to_le_bytes());
        }
        about.extend((name.len() as u16).to_le_bytes());
        // No extra field.
        about.extend([0; 2]);

        self.bytes.extend(b"PK\x03\x04");
        self.bytes.extend(&about);
        self.bytes.extend(name.as_bytes());
        self.bytes.extend(content);

        self.directory.extend(b"PK\x01\x02\x14\x00");
        self.directory.extend(&about);
        // No comment, first disk, no attributes.
        self.directory.extend([0; 10]);
        self.directory.extend(offset.to_le_bytes());
        self.directory.extend(name.as_bytes());
        self.num_files += 1;
    }

    fn finish(mut self) -> Vec<u8> {
        let (offset, len) = (self.bytes.len() as u32, self.directory.len() as u32);
        self.bytes.append(&mut self.directory);
        // One disk.
        self.bytes.extend(b"PK\x05\x06\x00\x00\x00\x00");
        for _ in 0..2 {
            self.bytes.extend(self.num_files.to_le_bytes());
        }
        self.bytes.extend(len.to_le_bytes());
        self.bytes.extend(offset.to_le_bytes());
        self.bytes.extend([0; 2]);
        self.bytes
    }
}

/// CRC-32 of IEEE 802.3, reflected.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut crc = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, &byte| TABLE[(crc as u8 ^ byte) as usize] ^ crc >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_of_the_check_string() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926, "the check value that catalogues of CRCs give");
    }

    #[test]
    fn a_folder_gives_what_is_in_it_and_the_demo_what_is_in_the_program() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/pebble/model");
        let folder = TokenizerFiles { model: Some(dir.into()), tokenizer: None }.archive().unwrap();
        let demo = TokenizerFiles { model: None, tokenizer: None }.archive().unwrap();
        let has =
            |archive: &[u8], name: &str| archive.windows(name.len()).any(|bytes| bytes == name.as_bytes());
        for name in ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"] {
            assert!(has(&folder, name) && has(&demo, name), "{name}");
        }
        assert!(has(&folder, "special_tokens_map.json") && !has(&demo, "special_tokens_map.json"));
        assert!(!has(&folder, "model.safetensors"), "no weights");
    }

    #[test]
    fn a_gguf_file_gives_what_its_folder_would_have() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/model/tests/fixtures/gguf-llama/model.gguf");
        let files = TokenizerFiles { model: Some(path.into()), tokenizer: None };
        assert_eq!(files.config().unwrap()["eos_token"], "</s>");
        let archive = files.archive().unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"] {
            assert!(archive.windows(name.len()).any(|bytes| bytes == name.as_bytes()), "{name}");
        }
    }
}
