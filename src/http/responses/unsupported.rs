//! The fields of `/v1/responses` that we know and do not act on.

use crate::http::unsupported::{Harmless, TEXT_ONLY, Table, refused};

/// Of `/v1/responses`.
pub(super) static RESPONSES: Table = Table {
    refused: &[
        refused("context_management", Harmless::Empty, "conversations are not compacted; see truncation"),
        refused("conversation", Harmless::Never, "conversations are not stored; see previous_response_id"),
        refused("echo", Harmless::Bool(false), OF_CHAT),
        refused("ec_transfer_params", Harmless::Empty, "transfer of encoder caches is not built"),
        refused("enable_response_messages", Harmless::Bool(false), "see /tokenize for the prompt"),
        refused("kv_transfer_params", Harmless::Empty, "transfer of KV caches is not built yet"),
        refused("max_completion_tokens", Harmless::Never, "here it is called max_output_tokens"),
        refused("max_tokens", Harmless::Never, "here it is called max_output_tokens"),
        refused("messages", Harmless::Never, "here it is called input"),
        refused("mm_processor_kwargs", Harmless::Empty, TEXT_ONLY),
        refused("modalities", Harmless::OnlyText, TEXT_ONLY),
        refused("moderation", Harmless::Empty, "nothing here judges what is said"),
        refused("n", Harmless::Number(1.0), "a response has one answer"),
        refused("previous_input_messages", Harmless::Empty, "see previous_response_id"),
        refused("vllm_xargs", Harmless::Empty, "there are no samplers that take extra arguments"),
    ],
    labels: &["client_metadata", "prompt_cache_options", "prompt_cache_retention", "session_id"],
};

const OF_CHAT: &str = "this field belongs to /v1/chat/completions";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_in_one_list_once() {
        assert!(RESPONSES.is_consistent());
    }
}
