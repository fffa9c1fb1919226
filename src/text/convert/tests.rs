//! Texts of many scripts against the tokenizers that the fixtures were made of (model/tests/fixtures).

use std::path::{Path, PathBuf};

use quire_model::gguf::{GgufFile, Metadata, Value as Metadatum};
use serde_json::Value;

use crate::text::{Tokenizer, convert};

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

#[test]
fn sentencepiece_models_give_the_tokens_of_sentencepiece_and_of_transformers() {
    for name in ["spm-llama", "spm-llama-added", "spm-unigram"] {
        let folder = fixture(name);
        let tokenizer = Tokenizer::from_dir(&folder).unwrap();
        compare(&tokenizer, &texts(&folder), name);
        assert_eq!(tokenizer.eos_token_id(), Some(2), "{name}");
    }
}

#[test]
fn damaged_sentencepiece_models_are_refused_or_still_tokenise() {
    let model = std::fs::read(fixture("spm-llama").join("tokenizer.model")).unwrap();
    let mut num_refused = 0;
    for round in 0..300usize {
        let mut bytes = model.clone();
        // Spread over the file; the multiplier has no factor in common with its length.
        let place = round * 7919 % bytes.len();
        bytes[place] ^= 1 << (round % 8);
        bytes.truncate(bytes.len() - round % 3 * 40);
        match convert::from_sentencepiece(&bytes, &Value::Null) {
            Ok(converted) => drop(tokenizers::Tokenizer::from_bytes(converted.tokenizer.to_string())),
            Err(_) => num_refused += 1,
        }
    }
    assert!(num_refused > 100, "only {num_refused} of 300 damaged files were refused");
    for (model, words) in [(&b""[..], "has no pieces"), (b"not a model", "not a SentencePiece model")] {
        let error = convert::from_sentencepiece(model, &Value::Null).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn what_contradicts_itself_is_refused_by_its_key() {
    let texts = |texts: &[&str]| Metadatum::Texts(texts.iter().map(|text| text.to_string()).collect());
    let whole = [
        ("tokenizer.ggml.model", Metadatum::Text("gpt2".into())),
        ("tokenizer.ggml.pre", Metadatum::Text("qwen2".into())),
        ("tokenizer.ggml.tokens", texts(&["a", "b", "ab", "<end>"])),
        ("tokenizer.ggml.token_type", Metadatum::Numbers(vec![1.0, 1.0, 1.0, 3.0])),
        ("tokenizer.ggml.merges", texts(&["a b"])),
        ("tokenizer.ggml.eos_token_id", Metadatum::Integer(3)),
    ];
    let with = |key: &'static str, value: Metadatum| {
        let entries = whole.iter().cloned().chain([(key, value)]);
        let metadata = Metadata::new(entries.map(|(key, value)| (key.to_owned(), value)).collect());
        Tokenizer::from_gguf(&metadata).map_err(|error| error.to_string())
    };
    let tokenizer = with("tokenizer.ggml.add_eos_token", Metadatum::Flag(true)).unwrap();
    assert_eq!(tokenizer.encode("ab<end>b", true).unwrap(), [2, 3, 1, 3]);
    let cases = [
        (
            "tokenizer.ggml.model",
            Metadatum::Text("t5".into()),
            "\"t5\" is not supported; supported: gpt2, llama",
        ),
        ("tokenizer.ggml.model", Metadatum::Text("llama".into()), "\"tokenizer.ggml.scores\" is missing"),
        (
            "tokenizer.ggml.pre",
            Metadatum::Text("who".into()),
            "\"who\" is not supported; supported: llama-bpe,",
        ),
        ("tokenizer.ggml.tokens", texts(&["a", "b", "a", "<end>"]), "\"a\" is token 0 and token 2"),
        ("tokenizer.ggml.tokens", texts(&["a"]), "4 entries for 1 tokens"),
        (
            "tokenizer.ggml.token_type",
            Metadatum::Numbers(vec![1.0, 1.0, 1.0, 9.0]),
            "9 is not a type of token",
        ),
        ("tokenizer.ggml.merges", texts(&["ab"]), "\"ab\" is not two tokens and a space"),
        ("tokenizer.ggml.merges", texts(&["a c"]), "not valid"),
        ("tokenizer.ggml.eos_token_id", Metadatum::Integer(4), "4 is not one of the 4 tokens"),
        ("tokenizer.ggml.eos_token_id", Metadatum::Integer(-1), "-1 is not an integer, and not negative"),
        (
            "tokenizer.chat_template",
            Metadatum::Flag(true),
            "\"tokenizer.chat_template\": true is not a string",
        ),
    ];
    for (key, value, words) in cases {
        let error = with(key, value).err().unwrap_or_default();
        assert!(error.contains(words), "{key}: {words}: {error}");
    }
}
