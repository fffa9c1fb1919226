//! How byte-level tokenizers take a text apart before merging, by the names that `tokenizer.ggml.pre` has for them.
//!
//! The expressions are facts of the models, from their own tokenizer.json; the names are llama.cpp's.

use serde_json::{Value, json};

/// What happens to a text before its bytes are merged.
#[derive(Debug)]
pub(super) struct Split {
    /// Names of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Applied one after the other, each to what the one before left.
    expressions: &'static [&'static str],
    /// Whether characters are composed first.
    composes: bool,
    /// Whether a part that is a token itself is taken as it is.
    pub(super) ignores_merges: bool,
    /// Whether a text begins with the special token unless the file says otherwise.
    pub(super) adds_first: bool,
}

const PLAIN: Split =
    Split { names: &[], expressions: &[], composes: false, ignores_merges: false, adds_first: false };

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const SPLITS: &[Split] = &[
    Split {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3"],
        expressions: &[CL100K],
        ignores_merges: true,
        adds_first: true,
        ..PLAIN
    },
    Split { names: &["qwen2", "deepseek-r1-qwen", "megrez"], expressions: &[QWEN2], composes: true, ..PLAIN },
    Split { names: &["dbrx", "smaug-bpe"], expressions: &[CL100K], ..PLAIN },
    Split { names: &["gpt-2", "mpt", "olmo", "phi-2"], expressions: &[GPT2], ..PLAIN },
    Split { names: &["smollm", "starcoder", "refact"], expressions: &[r"\p{N}", GPT2], ..PLAIN },
    Split { names: &["tekken"], expressions: &[TEKKEN], ignores_merges: true, adds_first: true, ..PLAIN },
    Split { names: &["gpt-4o", "llama4"], expressions: &[O200K], ..PLAIN },
    Split {
        names: &["deepseek-coder"],
        expressions: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-\x{D7FF}]+", r"\p{N}"],
        ..PLAIN
    },
    Split {
        names: &["deepseek-v3"],
        expressions: &[
            r"\p{N}{1,3}",
            r"[一-龥\x{3040}-ゟ゠-ヿ]+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
        ],
        ..PLAIN
    },
    // What files have from before there were names.
    Split {
        names: &["default"],
        expressions: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
        ..PLAIN
    },
];

impl Split {
    /// That of a name; the error lists the names that are known.
    pub(super) fn of_name(name: &str) -> Result<&'static Self, String> {
        SPLITS.iter().find(|split| split.names.contains(&name)).ok_or_else(|| {
            let names: Vec<&str> = SPLITS.iter().flat_map(|split| split.names).copied().collect();
            format!("key \"tokenizer.ggml.pre\": {name:?} is not supported; supported: {}", names.join(", "))
        })
    }

    pub(super) fn normalizer(&self) -> Value {
        if self.composes { json!({"type": "NFC"}) } else { Value::Null }
    }

    pub(super) fn pre_tokenizer(&self) -> Value {
        let split = |expression: &&str| json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false});
        let bytes =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let all: Vec<Value> = self.expressions.iter().map(split).chain([bytes]).collect();
        json!({"type": "Sequence", "pretokenizers": all})
    }
}
