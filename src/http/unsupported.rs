//! Fields that we know and do not act on: what is refused, and what is a mere label.
//!
//! Nothing that would change an answer is accepted and then ignored. A field of vLLM's or OpenAI's API
//! that Quire does not support is refused with its name, unless its value asks for what happens anyway.
//! Fields that nobody knows are accepted, as in vLLM, so that clients of other servers keep working.

use serde_json::Value;

/// Of completions and chat.
pub(crate) static OPENAI: Table = Table { refused: REFUSED, labels: LABELS };

/// What the endpoints of one API know and do not act on.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) refused: &'static [Refused],
    /// Fields that are for the client's own bookkeeping.
    pub(crate) labels: &'static [&'static str],
}

impl Table {
    /// Why a field is refused, or `None` if it may pass.
    pub(crate) fn refusal(&self, name: &str, value: &Value) -> Option<&'static str> {
        let refused = self.refused.iter().find(|refused| refused.name == name)?;
        (!refused.unless.holds(value)).then_some(refused.why)
    }

    /// Whether the field is a label.
    pub(crate) fn is_label(&self, name: &str) -> bool {
        self.labels.contains(&name)
    }

    /// Whether no field has two entries.
    #[cfg(test)]
    pub(crate) fn is_consistent(&self) -> bool {
        let mut names: Vec<_> =
            self.refused.iter().map(|r| r.name).chain(self.labels.iter().copied()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        names.len() == count
    }
}

/// Fields that ask for nothing: names for users, sessions and bills, hints to caches and tiers of a hosted
/// service.
const LABELS: &[&str] = &[
    "metadata",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "session_id",
    "store",
    "user",
];

/// A field that is refused, and why.
#[derive(Debug)]
pub(crate) struct Refused {
    name: &'static str,
    unless: Harmless,
    why: &'static str,
}

/// A value that asks for what happens anyway.
#[derive(Debug)]
pub(crate) enum Harmless {
    Never,
    Bool(bool),
    Number(f64),
    Word(&'static str),
    /// `""`, `[]` or `{}`.
    Empty,
    /// `{"type": "text"}`
    TextType,
    /// `["text"]`
    OnlyText,
    /// `{"edits": [...]}`, all of them with `"keep": "all"`.
    KeepsAll,
}

impl Harmless {
    fn holds(&self, value: &Value) -> bool {
        match self {
            Self::Never => false,
            Self::Bool(harmless) => value.as_bool() == Some(*harmless),
            Self::Number(harmless) => value.as_f64() == Some(*harmless),
            Self::Word(harmless) => value.as_str() == Some(harmless),
            Self::Empty => match value {
                Value::String(text) => text.is_empty(),
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            },
            Self::TextType => value["type"] == "text",
            Self::KeepsAll => {
                let mut edits = value["edits"].as_array().into_iter().flatten();
                value.is_object() && edits.all(|edit| edit["keep"] == "all")
            }
            Self::OnlyText => value.as_array().is_some_and(|list| list.iter().all(|item| item == "text")),
        }
    }
}

pub(crate) const fn refused(name: &'static str, unless: Harmless, why: &'static str) -> Refused {
    Refused { name, unless, why }
}

pub(crate) const TEXT_ONLY: &str = "this server reads and writes text only";
const OLD_TOOLS: &str = "it was replaced by tools and tool_choice, which are supported";
const OF_COMPLETIONS: &str = "this field belongs to /v1/completions";
const OF_CHAT: &str = "this field belongs to /v1/chat/completions";

const REFUSED: &[Refused] = &[
    refused("audio", Harmless::Never, TEXT_ONLY),
    refused("best_of", Harmless::Number(1.0), "only 1 is supported; n gives several choices"),
    refused("chat_template", Harmless::Empty, OF_CHAT),
    refused("ec_transfer_params", Harmless::Empty, "transfer of encoder caches is not built"),
    refused("function_call", Harmless::Word("none"), OLD_TOOLS),
    refused("functions", Harmless::Empty, OLD_TOOLS),
    refused("include_reasoning", Harmless::Bool(true), OF_CHAT),
    refused("kv_transfer_params", Harmless::Empty, "transfer of KV caches is not built yet"),
    refused("length_penalty", Harmless::Number(1.0), "it belongs to beam search, which is not supported"),
    refused("instruction", Harmless::Empty, "write it into the texts"),
    refused("logits_processors", Harmless::Empty, "processors written by clients are not supported"),
    refused("media_io_kwargs", Harmless::Empty, TEXT_ONLY),
    refused("messages", Harmless::Never, OF_CHAT),
    refused("mm_payload", Harmless::Empty, TEXT_ONLY),
    refused("mm_processor_kwargs", Harmless::Empty, TEXT_ONLY),
    refused("modalities", Harmless::OnlyText, TEXT_ONLY),
    refused("prediction", Harmless::Empty, "predicted outputs are not supported"),
    refused("prompt_embeds", Harmless::Empty, "prompts are text or token ids"),
    refused("return_prompt_text", Harmless::Bool(false), OF_CHAT),
    refused("return_token_offsets", Harmless::Bool(false), "answers of generation have no place for them"),
    refused("return_weight_versions", Harmless::Bool(false), "weights have no versions here"),
    refused("routed_experts_prompt_start", Harmless::Never, "routing of experts is not reported"),
    refused("structural_tag", Harmless::Empty, "it belongs in structured_outputs or response_format"),
    refused("suffix", Harmless::Empty, "the model cannot fill in the middle of a text"),
    refused("parallel_tool_calls", Harmless::Bool(true), OF_CHAT),
    refused("tool_choice", Harmless::Word("none"), OF_CHAT),
    refused("tools", Harmless::Empty, OF_CHAT),
    refused("top_logprobs", Harmless::Number(0.0), OF_CHAT),
    refused("use_beam_search", Harmless::Bool(false), "beam search is not supported"),
    refused("verbosity", Harmless::Word("medium"), "the model has no such setting"),
    refused("vllm_xargs", Harmless::Empty, "there are no samplers that take extra arguments"),
    refused("watermarking", Harmless::Bool(false), "watermarking is not supported"),
    refused("web_search_options", Harmless::Never, "the server searches nothing"),
    refused("documents", Harmless::Empty, OF_CHAT),
    refused("prompt", Harmless::Never, OF_COMPLETIONS),
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unsupported_fields_are_refused_unless_they_ask_for_nothing() {
        for (name, harmless, harmful) in [
            ("best_of", json!(1), json!(2)),
            ("use_beam_search", json!(false), json!(true)),
            ("suffix", json!(""), json!("end")),
            ("length_penalty", json!(1.0), json!(0.5)),
            ("modalities", json!(["text"]), json!(["text", "audio"])),
            ("kv_transfer_params", json!({}), json!({"do_remote_decode": true})),
        ] {
            assert_eq!(OPENAI.refusal(name, &harmless), None, "{name}");
            assert!(OPENAI.refusal(name, &harmful).is_some(), "{name}");
        }
    }

    #[test]
    fn a_field_is_in_one_list_once() {
        assert!(OPENAI.is_consistent());
    }
}
