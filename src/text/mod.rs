//! stub, replaced
use std::path::Path;
use std::sync::Arc;
#[derive(Debug, Clone, thiserror::Error)]
pub enum TextError {
    #[error("overloaded")]
    Overloaded,
    #[error("panicked: {0}")]
    Panicked(String),
    #[error("template: {0}")]
    Template(String),
    #[error("tokenizer: {0}")]
    Tokenizer(String),
}
#[derive(Debug, Clone)]
pub struct Tokenizer(Arc<()>);
impl Tokenizer {
    pub fn from_bytes(_: &[u8], _: Option<&[u8]>) -> Result<Self, TextError> {
        Err(TextError::Overloaded)
    }
    pub fn from_dir(_: &Path) -> Result<Self, TextError> {
        Err(TextError::Overloaded)
    }
    pub fn encode(&self, _: &str, _: bool) -> Result<Vec<u32>, TextError> {
        Err(TextError::Overloaded)
    }
    pub fn decode(&self, _: &[u32], _: bool) -> String {
        String::new()
    }
    pub fn token_str(&self, _: u32) -> Option<String> {
        None
    }
    pub fn token_text(&self, _: u32) -> String {
        String::new()
    }
    pub fn token_bytes(&self, _: u32) -> Vec<u8> {
        vec![]
    }
    pub fn is_special(&self, _: u32) -> bool {
        false
    }
    pub fn vocab_size(&self) -> usize {
        0
    }
}
#[derive(Debug)]
pub struct Detokenizer;
impl Detokenizer {
    pub fn new(_: &Tokenizer, _: &[u32], _: bool, _: bool) -> Self {
        Self
    }
    pub fn push(&mut self, _: u32, _: &mut String) {}
    pub fn finish(&mut self, _: &mut String) {}
}
#[derive(Debug)]
pub struct StopMatcher;
impl StopMatcher {
    pub fn new(_: &[String], _: bool) -> Self {
        Self
    }
    pub fn push(&mut self, _: &str, _: &mut String) -> Option<usize> {
        None
    }
    pub fn pass(&mut self, _: &str, _: &mut String) {}
    pub fn finish(&mut self, _: &mut String) {}
}
#[derive(Debug, Clone)]
pub struct ChatTemplate;
pub struct ChatInput<'a> {
    pub messages: &'a [serde_json::Value],
    pub tools: Option<&'a [serde_json::Value]>,
    pub documents: Option<&'a [serde_json::Value]>,
    pub add_generation_prompt: bool,
    pub continue_final_message: bool,
    pub kwargs: Option<&'a serde_json::Map<String, serde_json::Value>>,
}
impl ChatTemplate {
    pub fn render(&self, _: &ChatInput) -> Result<String, TextError> {
        Err(TextError::Overloaded)
    }
}
#[derive(Debug, Clone)]
pub struct TextPool;
impl TextPool {
    pub fn new(_: usize, _: usize) -> Self {
        Self
    }
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, TextError> {
        Ok(job())
    }
}
