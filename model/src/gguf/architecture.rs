//! [`Architecture`]: how the models that GGUF calls by one name are stored in a Hugging Face folder.

use super::metadata::Metadata;

/// A name of `general.architecture` and what stands behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Architecture {
    /// In `general.architecture`, and what the keys of its settings begin with.
    pub(super) name: &'static str,
    /// In `architectures` of config.json.
    pub(super) hf_name: &'static str,
    /// How converters treat it.
    pub(super) kind: Kind,
    /// How many experts its layers have; 0 where they have none.
    pub(super) num_experts: u64,
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

const ARCHITECTURES: [Architecture; 9] = [
    Architecture::new("llama", "LlamaForCausalLM", Kind::Llama),
    Architecture::new("qwen2", "Qwen2ForCausalLM", Kind::Plain),
    Architecture::new("qwen3", "Qwen3ForCausalLM", Kind::Plain),
    Architecture::new("qwen2moe", "Qwen2MoeForCausalLM", Kind::Plain),
    Architecture::new("qwen3moe", "Qwen3MoeForCausalLM", Kind::Plain),
    Architecture::new("phi3", "Phi3ForCausalLM", Kind::Phi3),
    Architecture::new("gemma", "GemmaForCausalLM", Kind::Gemma),
    Architecture::new("gemma2", "Gemma2ForCausalLM", Kind::Gemma2),
    Architecture::new("gemma3", "Gemma3ForCausalLM", Kind::Gemma2),
];

/// As in llama.cpp.
const MAX_EXPERTS: u64 = 512;

impl Architecture {
    const fn new(name: &'static str, hf_name: &'static str, kind: Kind) -> Self {
        Self { name, hf_name, kind, num_experts: 0 }
    }

    /// That of a file.
    pub(super) fn of(metadata: &Metadata) -> Result<Self, String> {
        let key = "general.architecture";
        let name = metadata.word(key)?.ok_or_else(|| format!("key {key:?} is missing"))?;
        let known = ARCHITECTURES.iter().find(|known| known.name == name).copied().ok_or_else(|| {
            let names = ARCHITECTURES.map(|known| known.name).join(", ");
            format!("key {key:?}: {name:?} is not supported; supported: {names}")
        })?;
        let key = format!("{name}.expert_count");
        match metadata.integer(&key)?.unwrap_or(0) {
            0 => Ok(known),
            count if count > MAX_EXPERTS => Err(format!("key {key:?}: {count}; at most {MAX_EXPERTS}")),
            // Mixtral goes by the name of Llama.
            count if known.kind == Kind::Llama => {
                Ok(Self { hf_name: "MixtralForCausalLM", num_experts: count, ..known })
            }
            count => Ok(Self { num_experts: count, ..known }),
        }
    }
}
