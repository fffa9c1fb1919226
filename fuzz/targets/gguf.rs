//! Any bytes as a GGUF file: refused with a sentence, or a header whose tensors are within the file.

use quire_model::gguf::Header;

/// The whole input is the file.
pub fn run(data: &[u8]) {
    if let Err(reason) = Header::parse(data) {
        assert!(!reason.is_empty() && reason.len() < 4096, "{} bytes of error", reason.len());
    }
}
