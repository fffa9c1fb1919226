//! Any bytes as a GGUF file: refused with a sentence, or tensors within the file, and a model and a tokenizer that are
//! refused or can be worked with.

use quire::text::Tokenizer;
use quire_model::gguf::GgufFile;
use quire_model::{Checkpoint, ModelError};

/// The whole input is the file.
pub fn run(data: &[u8]) {
    let file = match GgufFile::from_bytes(data.to_vec()) {
        Ok(file) => file,
        Err(error) => return check(&error),
    };
    let bytes: usize =
        file.tensors().filter_map(|(name, _)| file.tensor(name)).map(|(_, bytes)| bytes.len()).sum();
    assert!(bytes <= data.len(), "more tensors than file");
    if let Ok(tokenizer) = Tokenizer::from_gguf(file.metadata()) {
        let text = "the quick brown fox, 12345 \u{e9}\u{1f600}";
        if let Ok(ids) = tokenizer.encode(text, true) {
            assert!(ids.len() <= 4 * text.len() + 4, "{} tokens", ids.len());
        }
    }
    match file.config_json() {
        Ok(json) => super::model_config::run(json.as_bytes()),
        Err(error) => check(&error),
    }
    match Checkpoint::from_gguf(file) {
        Ok(checkpoint) => drop(checkpoint.names()),
        Err(error) => check(&error),
    }
}

fn check(error: &ModelError) {
    let words = error.to_string();
    assert!(!words.is_empty() && words.len() < 8192, "{} bytes of error", words.len());
}
