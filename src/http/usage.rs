//! [`Usage`]: how many tokens a request took.

use schemars::JsonSchema;
use serde::Serialize;

/// Counts of one request, or of one choice of it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(into = "UsageJson")]
#[schemars(rename = "Usage")]
pub(crate) struct Usage {
    /// Tokens of all prompts, each counted once however many choices it has.
    pub(crate) prompt_tokens: u64,
    /// Prompt tokens taken from the prefix cache; `None` = not to be told.
    pub(crate) cached_tokens: Option<u64>,
    /// Generated tokens of all choices, final stop tokens included.
    pub(crate) completion_tokens: u64,
    /// Those of them that were reasoning. Told if there are any.
    pub(crate) reasoning_tokens: u64,
}

/// As it is on the wire.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Usage")]
struct UsageJson {
    prompt_tokens: u64,
    total_tokens: u64,
    completion_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptTokensDetails>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_tokens_details: Option<CompletionTokensDetails>,
}

#[derive(Serialize, JsonSchema)]
struct CompletionTokensDetails {
    reasoning_tokens: u64,
}

#[derive(Serialize, JsonSchema)]
struct PromptTokensDetails {
    cached_tokens: u64,
}

impl From<Usage> for UsageJson {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
            completion_tokens: usage.completion_tokens,
            prompt_tokens_details: usage
                .cached_tokens
                .map(|cached_tokens| PromptTokensDetails { cached_tokens }),
            completion_tokens_details: (usage.reasoning_tokens > 0)
                .then_some(CompletionTokensDetails { reasoning_tokens: usage.reasoning_tokens }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_the_sum() {
        let usage =
            Usage { prompt_tokens: 5, cached_tokens: Some(4), completion_tokens: 7, reasoning_tokens: 0 };
        assert_eq!(
            serde_json::to_string(&usage).unwrap(),
            r#"{"prompt_tokens":5,"total_tokens":12,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":4}}"#
        );
        let usage = Usage { cached_tokens: None, ..usage };
        assert_eq!(
            serde_json::to_string(&usage).unwrap(),
            r#"{"prompt_tokens":5,"total_tokens":12,"completion_tokens":7}"#
        );
    }
}
