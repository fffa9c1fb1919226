//! [`Architecture`]: how the models that GGUF calls by one name are stored in a Hugging Face folder.

use super::metadata::Metadata;

/// A name of `general.architecture` and what stands behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Architecture {
    /// In `general.architecture`, and what the keys of its settings begin with.
    pub(super) name: &'static str,
    /// In `architectures` of config.json.
    pub(super) hf_name: &'static str,
    /// What differs from Llama.
    pub(super) kind: Kind,
}

/// Ways in which converters from Hugging Face's folders treat an architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Rows of queries and keys are reordered for a rotation of neighbours.
    Llama,
    /// Nothing is special.
    Plain,
    /// Projections of the same input are one tensor.
    Phi3,
    /// One is added to the weights of norms.
    Gemma,
    /// The same, with norms of what attention and the MLP give.
    Gemma2,
}

const ARCHITECTURES: [Architecture; 7] = [
    Architecture { name: "llama", hf_name: "LlamaForCausalLM", kind: Kind::Llama },
    Architecture { name: "qwen2", hf_name: "Qwen2ForCausalLM", kind: Kind::Plain },
    Architecture { name: "qwen3", hf_name: "Qwen3ForCausalLM", kind: Kind::Plain },
    Architecture { name: "phi3", hf_name: "Phi3ForCausalLM", kind: Kind::Phi3 },
    Architecture { name: "gemma", hf_name: "GemmaForCausalLM", kind: Kind::Gemma },
    Architecture { name: "gemma2", hf_name: "Gemma2ForCausalLM", kind: Kind::Gemma2 },
    Architecture { name: "gemma3", hf_name: "Gemma3ForCausalLM", kind: Kind::Gemma2 },
];

impl Architecture {
    /// That of a file.
    pub(super) fn of(metadata: &Metadata) -> Result<Self, String> {
        let key = "general.architecture";
        let name = metadata.text(key)?.ok_or_else(|| format!("key {key:?} is missing"))?;
        ARCHITECTURES.iter().find(|known| known.name == name).copied().ok_or_else(|| {
            let names = ARCHITECTURES.map(|known| known.name).join(", ");
            format!("key {key:?}: {name:?} is not supported; supported: {names}")
        })
    }
}
