//! Texts of many scripts against the tokenizers that the fixtures were made of (model/tests/fixtures).

use std::path::{Path, PathBuf};

use quire_model::gguf::GgufFile;
use serde_json::Value;

use crate::text::Tokenizer;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("model/tests/fixtures").join(name)
}

/// Texts and their tokens.
fn texts(folder: &Path) -> Vec<(String, Vec<u32>)> {
    let json = std::fs::read(folder.join("texts.json")).unwrap();
    let Value::Array(texts) = serde_json::from_slice(&json).unwrap() else { panic!("an array") };
    let id = |id: &Value| id.as_u64().unwrap() as u32;
    let ids = |text: &Value| text["ids"].as_array().unwrap().iter().map(id).collect();
    texts.iter().map(|text| (text["text"].as_str().unwrap().to_owned(), ids(text))).collect()
}

fn compare(tokenizer: &Tokenizer, texts: &[(String, Vec<u32>)], name: &str) {
    assert!(texts.len() > 20, "{name}");
    let mut wrong = Vec::new();
    for (text, expected) in texts {
        let found = tokenizer.encode(text, true).unwrap();
        if found != *expected {
            let show = |ids: &[u32]| -> Vec<String> {
                ids.iter().map(|id| tokenizer.token_str(*id).unwrap_or_default()).collect()
            };
            wrong.push(format!("{text:?}: {:?} for {:?}", show(&found), show(expected)));
        }
    }
    assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
}

#[test]
fn texts_have_the_tokens_that_the_model_was_made_with() {
    for name in [
        "gguf-llama/model.gguf",
        "gguf-llama3-split/model-00001-of-00002.gguf",
        "gguf-qwen2/model.gguf",
        "gguf-phi3/model.gguf",
        "gguf-gemma/model.gguf",
    ] {
        let path = fixture(name);
        let file = GgufFile::open(&path).unwrap();
        let tokenizer = Tokenizer::from_gguf(file.metadata()).unwrap();
        let texts = texts(path.parent().unwrap());
        compare(&tokenizer, &texts, name);
        for (text, ids) in texts.iter().filter(|(text, _)| !text.contains(['e', 'é', 'ﬁ', '½', 'Ⅷ'])) {
            assert_eq!(&tokenizer.decode(ids, true), text, "{name}");
        }
    }
}
