//! [`Usage`]: how many tokens a request took.

use serde::ser::{Serialize, SerializeStruct, Serializer};

/// Counts of one request, or of one choice of it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Tokens of all prompts, each counted once however many choices it has.
    pub(crate) prompt_tokens: u64,
    /// Prompt tokens taken from the prefix cache.
    pub(crate) cached_tokens: u64,
    /// Generated tokens of all choices, final stop tokens included.
    pub(crate) completion_tokens: u64,
    /// Those of them that were reasoning. Told if there are any.
    pub(crate) reasoning_tokens: u64,
}

impl Serialize for Usage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Details {
            cached_tokens: u64,
        }
        #[derive(serde::Serialize)]
        struct CompletionDetails {
            reasoning_tokens: u64,
        }
        let reasoning_tokens = self.reasoning_tokens;
        let mut usage = serializer.serialize_struct("Usage", 4 + usize::from(reasoning_tokens > 0))?;
        usage.serialize_field("prompt_tokens", &self.prompt_tokens)?;
        usage.serialize_field("total_tokens", &(self.prompt_tokens + self.completion_tokens))?;
        usage.serialize_field("completion_tokens", &self.completion_tokens)?;
        usage.serialize_field("prompt_tokens_details", &Details { cached_tokens: self.cached_tokens })?;
        if reasoning_tokens > 0 {
            usage.serialize_field("completion_tokens_details", &CompletionDetails { reasoning_tokens })?;
        }
        usage.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_the_sum() {
        let usage = Usage { prompt_tokens: 5, cached_tokens: 4, completion_tokens: 7, reasoning_tokens: 0 };
        assert_eq!(
            serde_json::to_string(&usage).unwrap(),
            r#"{"prompt_tokens":5,"total_tokens":12,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":4}}"#
        );
    }
}
