//! [`Conversation`]: what the chat template gets.

use serde_json::{Map, Value};

use crate::text::{ChatInput, ChatTemplate, SpecialTokens, TextError, render_own};

/// Messages in the form that templates expect, and all that goes to the template with them.
#[derive(Debug, Default, Clone)]
pub struct Conversation {
    /// Each with a `role` and `content` as a string; `arguments` of tool calls are objects.
    pub messages: Vec<Value>,
    /// Tools that the model may call, OpenAI's shape.
    pub tools: Option<Vec<Value>>,
    /// Documents for retrieval templates.
    pub documents: Option<Vec<Value>>,
    /// The text ends with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// The text ends within the last message, so that the model continues it.
    pub continue_final_message: bool,
    /// `chat_template_kwargs`: further variables.
    pub kwargs: Map<String, Value>,
    /// A template of its own, instead of the model's.
    pub template: Option<String>,
}

impl Conversation {
    /// The prompt as text. Takes time: work for the text pool.
    pub fn render(&self, template: &ChatTemplate) -> Result<String, TextError> {
        template.render(&self.input())
    }

    /// The same by its own template.
    pub fn render_by(&self, template: &str, special: &SpecialTokens) -> Result<String, TextError> {
        render_own(template, special, &self.input())
    }

    fn input(&self) -> ChatInput<'_> {
        ChatInput {
            messages: &self.messages,
            tools: self.tools.as_deref(),
            documents: self.documents.as_deref(),
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message,
            kwargs: Some(&self.kwargs).filter(|kwargs| !kwargs.is_empty()),
        }
    }

    /// Whose message is generated: that of `role`, or of whose message is continued.
    pub fn answer_role<'a>(&'a self, role: &'a str) -> &'a str {
        let last = self.messages.last().and_then(|message| message["role"].as_str());
        last.filter(|_| !self.add_generation_prompt).unwrap_or(role)
    }

    /// The last message, if it is of the role that answers: what `echo` repeats.
    pub fn echo(&self, role: &str) -> Option<String> {
        let last = self.messages.last().filter(|message| message["role"] == role)?;
        last["content"].as_str().map(String::from)
    }
}
