//! Streaming detokenisation: pieces add up to the whole, whatever the vocabulary and however bytes are split.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::super::{Detokenizer, TextError, Tokenizer};

/// A tokenizer.json with a plain vocabulary: the first `added` entries are special or added tokens,
/// alternately.
fn tokenizer_json(vocab: &[String], num_added: usize, model: &str, decoder: Value) -> Value {
    let ids: serde_json::Map<String, Value> =
        vocab.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added: Vec<Value> = (0..num_added)
        .map(|id| {
            json!({"id": id, "content": vocab[id], "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": id % 2 == 0})
        })
        .collect();
    let model = match model {
        "BPE" => json!({"type": "BPE", "vocab": ids, "merges": [], "byte_fallback": true, "unk_token": null}),
        _ => {
            json!({"type": "WordPiece", "vocab": ids, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                    "max_input_chars_per_word": 100})
        }
    };
    json!({"version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": null,
           "post_processor": null, "decoder": decoder, "model": model, "truncation": null, "padding": null})
}

const SPECIALS: [&str; 4] = ["<s>", "<tool>", "</s>", "<x y>"];

/// Stands between byte tokens in the oracle's input and is taken out of its output.
const SEPARATOR: char = '\u{E000}';

fn sentencepiece_vocab() -> Vec<String> {
    let mut vocab: Vec<String> = SPECIALS.map(String::from).to_vec();
    let bytes = "é🦊 日本a".bytes().chain([0x80, 0xC0, 0xFF, 0xF0, 0xE2]);
    vocab.extend(bytes.map(|byte| format!("<0x{byte:02X}>")));
    let texts = ["▁", "▁▁", "▁Hello", "lo", "▁wor", "ld", "é", "日本", "!", " ", "▁a▁b", "<0xZZ>", "🦊"];
    vocab.extend(texts.map(String::from));
    vocab.sort_by_key(|token| !SPECIALS.contains(&token.as_str()));
    let mut seen = std::collections::HashSet::new();
    vocab.retain(|token| seen.insert(token.clone()));
    vocab.push(SEPARATOR.to_string());
    vocab
}

struct Subject {
    name: &'static str,
    ours: Tokenizer,
    oracle: tokenizers::Tokenizer,
    /// Ids that are drawn from.
    num_ids: u32,
    separator: Option<u32>,
}

impl Subject {
    fn new(name: &'static str, json: &[u8], num_ids: usize) -> Self {
        let oracle = tokenizers::Tokenizer::from_bytes(json).unwrap();
        let separator = oracle.token_to_id(&SEPARATOR.to_string());
        Self {
            name,
            ours: Tokenizer::from_bytes(json, None).unwrap_or_else(|error| panic!("{name}: {error}")),
            oracle,
            num_ids: num_ids as u32,
            separator,
        }
    }

    /// What the crate's decoder gives. It throws away a whole run of byte tokens that is invalid anywhere, so
    /// runs are first taken apart into valid texts and invalid sequences, with a separator token between
    /// them.
    fn expected(&self, ids: &[u32], skip_special: bool) -> String {
        let Some(separator) = self.separator else { return self.oracle.decode(ids, skip_special).unwrap() };
        let is_seen =
            |id: u32| self.oracle.id_to_token(id).is_some() && !(skip_special && self.ours.is_special(id));
        let ids: Vec<u32> = ids.iter().copied().filter(|&id| is_seen(id)).collect();
        let byte_of = |id: u32| {
            let token = self.oracle.id_to_token(id)?;
            u8::from_str_radix(token.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
        };
        let mut separated = Vec::new();
        for run in ids.chunk_by(|&a, &b| byte_of(a).is_some() && byte_of(b).is_some()) {
            let bytes: Vec<u8> = run.iter().filter_map(|&id| byte_of(id)).collect();
            if bytes.is_empty() {
                separated.extend_from_slice(run);
            }
            let mut at = 0;
            for chunk in bytes.utf8_chunks() {
                for len in [chunk.valid().len(), chunk.invalid().len()] {
                    separated.extend_from_slice(&run[at..at + len]);
                    separated.push(separator);
                    at += len;
                }
            }
        }
        self.oracle.decode(&separated, skip_special).unwrap().replace(SEPARATOR, "")
    }

    fn random_ids(&self, rng: &mut StdRng, max_len: usize) -> Vec<u32> {
        let len = rng.random_range(0..=max_len);
        // One id in a while is not in the vocabulary.
        (0..len)
            .map(|_| rng.random_range(0..self.num_ids + 1))
            .map(|id| if id == self.num_ids { id + 7 } else { id })
            .collect()
    }
}

fn subjects() -> Vec<Subject> {
    let words = [
        "[CLS]", "<tool>", "[SEP]", "[UNK]", "hello", "##lo", "world", "##s", "!", ".", "don", "'", "t", "é",
    ];
    let suffixed =
        ["<s>", "<tool>", "</s>", "[UNK]", "he", "llo</w>", "wor", "ld</w>", "!</w>", "é</w>", "日"];
    let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let llama = json!({"type": "Sequence", "decoders": [
        replace, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]});
    let gemma =
        json!({"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]});
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let built = |name, vocab: &[String], model, decoder: Value| {
        let json = tokenizer_json(vocab, 4, model, decoder).to_string();
        Subject::new(name, json.as_bytes(), vocab.len())
    };
    let bytes = |name, decoder| {
        let vocab = sentencepiece_vocab();
        let mut subject = built(name, &vocab, "BPE", decoder);
        subject.num_ids -= 1; // the separator is the oracle's
        subject
    };
    let spaces = |name, decoder| Subject { separator: None, ..bytes(name, decoder) };
    let words_with = |name, words: &[&str], decoder| {
        let vocab: Vec<String> = words.iter().map(ToString::to_string).collect();
        built(name, &vocab, "WordPiece", decoder)
    };
    let pebble = std::fs::read(super::asset("model/tokenizer.json")).unwrap();
    vec![
        Subject::new("pebble", &pebble, 2048),
        bytes("llama", llama),
        bytes("gemma", gemma),
        spaces("metaspace, first", metaspace("first")),
        spaces("metaspace, never", metaspace("never")),
        words_with("wordpiece", &words, json!({"type": "WordPiece", "prefix": "##", "cleanup": true})),
        words_with("word suffixes", &suffixed, json!({"type": "BPEDecoder", "suffix": "</w>"})),
        words_with("no decoder", &words, Value::Null),
    ]
}

#[test]
fn a_stream_is_the_whole_text() {
    for subject in subjects() {
        for seed in 0..4000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let ids = subject.random_ids(&mut rng, 20);
            let skip_special = seed % 2 == 0;
            let expected = subject.expected(&ids, skip_special);
            let mut detokenizer = Detokenizer::new(&subject.ours, &[], skip_special, true);
            let mut text = String::new();
            for &id in &ids {
                detokenizer.push(id, &mut text);
                assert!(
                    expected.starts_with(&text),
                    "{}, seed {seed}: {text:?} of {expected:?}",
                    subject.name
                );
            }
            detokenizer.finish(&mut text);
            assert_eq!(text, expected, "{}, seed {seed}, ids {ids:?}", subject.name);
            assert_eq!(subject.ours.decode(&ids, skip_special), expected, "{}, seed {seed}", subject.name);
        }
    }
}

#[test]
fn a_prompt_gives_the_stream_its_context() {
    for subject in subjects() {
        for seed in 0..4000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (prompt, ids) = (subject.random_ids(&mut rng, 12), subject.random_ids(&mut rng, 8));
            let skip_special = seed % 2 == 0;
            let mut text = String::new();
            let mut before = Detokenizer::new(&subject.ours, &[], skip_special, true);
            prompt.iter().for_each(|&id| before.push(id, &mut text));
            let mut after = Detokenizer::new(&subject.ours, &prompt, skip_special, true);
            ids.iter().for_each(|&id| after.push(id, &mut text));
            after.finish(&mut text);
            let whole = [prompt.as_slice(), ids.as_slice()].concat();
            let expected = subject.expected(&whole, skip_special);
            assert_eq!(text, expected, "{}, seed {seed}, prompt {prompt:?}, ids {ids:?}", subject.name);
        }
    }
}

/// All of Unicode's planes through a byte-level tokenizer, streamed: no piece of the stream is half a
/// character.
#[test]
fn real_text_streams_without_replacement_characters() {
    let tokenizer = super::pebble();
    for seed in 0..500 {
        let mut rng = StdRng::seed_from_u64(seed);
        let text: String = (0..40).filter_map(|_| char::from_u32(rng.random_range(1..0x11_0000))).collect();
        let text = text.replace('\u{FFFD}', "");
        let mut detokenizer = Detokenizer::new(&tokenizer, &[], true, true);
        let mut streamed = String::new();
        for id in tokenizer.encode(&text, false).unwrap() {
            detokenizer.push(id, &mut streamed);
            assert!(!streamed.contains('\u{FFFD}'), "seed {seed}");
        }
        assert_eq!(streamed, text, "seed {seed}");
    }
}

#[test]
fn added_tokens_join_where_that_is_asked_for() {
    let subjects = subjects();
    let subject = subjects.iter().find(|subject| subject.name == "wordpiece").unwrap();
    let stream = |skip_special, spaces_between| {
        let mut detokenizer = Detokenizer::new(&subject.ours, &[], skip_special, spaces_between);
        let mut text = String::new();
        for id in [0, 4, 1, 2, 2, 6] {
            detokenizer.push(id, &mut text);
        }
        detokenizer.finish(&mut text);
        text
    };
    assert_eq!(stream(false, true), "[CLS] hello <tool> [SEP] [SEP] world");
    assert_eq!(stream(false, false), "[CLS] hello <tool>[SEP][SEP] world");
    assert_eq!(stream(true, false), "hello <tool> world");
}

#[test]
fn a_decoder_that_cannot_stream_is_refused() {
    let vocab = sentencepiece_vocab();
    let strip = json!({"type": "Strip", "content": " ", "start": 0, "stop": 1});
    let json = tokenizer_json(&vocab, 4, "BPE", strip).to_string();
    let error = Tokenizer::from_bytes(json.as_bytes(), None).unwrap_err();
    assert!(matches!(error, TextError::BadFile { file: "tokenizer.json", .. }));
}
