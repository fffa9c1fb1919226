//! Chat templates: messages to the prompt's text, as `transformers.apply_chat_template` does it.
//!
//! Templates are Jinja2 written for Python. minijinja runs the language; the modules below give it Python's
//! way of printing, JSON, string methods and dates. Templates come with the model and are trusted as far as
//! the server's operator trusts the model; messages and keyword arguments come from anybody. So a rendering
//! has a limit on steps and on output, and JSON that nests too deeply is refused before it is walked.

mod environment;
mod json;
mod python;
mod strftime;

pub(crate) use self::strftime::strftime;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

use super::{SpecialTokens, TextError, Tokenizer};
use environment::RaisedByTemplate;

/// Steps of the template machine per rendering: a few hundred milliseconds of work. A message takes some tens
/// to some hundreds of steps.
const MAX_STEPS: u64 = 5_000_000;

/// Bytes of rendered text: twice the largest request body, because JSON that is printed again may grow.
const MAX_OUTPUT_BYTES: usize = 64 << 20;

/// Depth of JSON in messages, tools and keyword arguments; the same as serde_json's parser accepts.
const MAX_DEPTH: usize = 128;

/// Names that `chat_template_kwargs` may not set, because the request sets them itself.
const RESERVED: [&str; 7] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
];

/// Stands at the end of the message to be continued while rendering; the rendered text is cut there. The
/// blank at its end shows whether the template trims messages.
const CONTINUE_MARK: &str = "QUIRE_CONTINUE_FINAL_MESSAGE ";

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    special: SpecialTokens,
    has_tool_use: bool,
}

/// What a template is rendered with. Absent lists are `none` in the template, as in transformers.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChatInput<'a> {
    /// The conversation, as the request wrote it.
    pub messages: &'a [Value],
    /// Tools that the model may call, OpenAI's shape.
    pub tools: Option<&'a [Value]>,
    /// Documents for retrieval templates.
    pub documents: Option<&'a [Value]>,
    /// Whether the text ends with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// Whether the text ends within the last message, so that the model continues it.
    pub continue_final_message: bool,
    /// `chat_template_kwargs`: further variables.
    pub kwargs: Option<&'a Map<String, Value>>,
}

impl ChatTemplate {
    /// Compiles a template. `special` are the tokens that it may name, such as `bos_token`.
    ///
    /// The source must be trusted: minijinja's parser recurses without a limit on some constructs, such as a
    /// long run of unary minus, and a variable that doubles in a loop is not bounded by the limits on
    /// rendering.
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`] with the line.
    pub fn new(source: &str, special: &SpecialTokens) -> Result<Self, TextError> {
        let mut environment = environment::python_like();
        environment.set_fuel(Some(MAX_STEPS));
        let mut template =
            Self { environment, source: source.to_owned(), special: special.clone(), has_tool_use: false };
        template.add("default", source)?;
        Ok(template)
    }

    /// The template that comes with a tokenizer, and the one for requests with tools where the model has its
    /// own.
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`] with the line.
    pub fn from_tokenizer(tokenizer: &Tokenizer) -> Result<Option<Self>, TextError> {
        let Some(source) = tokenizer.chat_template_source() else { return Ok(None) };
        let mut template = Self::new(source, tokenizer.special_tokens())?;
        if let Some(source) = tokenizer.tool_use_template_source() {
            template.add("tool_use", source)?;
            template.has_tool_use = true;
        }
        Ok(Some(template))
    }

    /// The template itself: that of requests without tools.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders the prompt's text. `strftime_now` in the template sees the time in UTC.
    ///
    /// # Errors
    /// [`TextError::TemplateRaised`] where the template rejects the messages, [`TextError::TemplateLimit`],
    /// [`TextError::TemplateRender`], [`TextError::ReservedKwarg`] and [`TextError::ContinueFinalMessage`].
    pub fn render(&self, input: &ChatInput) -> Result<String, TextError> {
        self.render_at(input, SystemTime::now())
    }

    /// As [`render`](Self::render), at a given time.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_at(&self, input: &ChatInput, now: SystemTime) -> Result<String, TextError> {
        if !input.continue_final_message {
            return self.render_messages(input, now);
        }
        let fail = |reason| TextError::ContinueFinalMessage { reason };
        if input.add_generation_prompt {
            return Err(fail("cannot be combined with add_generation_prompt"));
        }
        let mut messages = input.messages.to_vec();
        let text = messages.last_mut().and_then(last_text).ok_or(fail("the last message has no text"))?;
        text.push_str(CONTINUE_MARK);
        let mut rendered = self.render_messages(&ChatInput { messages: &messages, ..*input }, now)?;
        let mark = rendered
            .rfind(CONTINUE_MARK.trim_end())
            .ok_or(fail("the last message does not appear in the rendered text"))?;
        let keeps_spaces = rendered[mark..].starts_with(CONTINUE_MARK);
        rendered.truncate(mark);
        if !keeps_spaces {
            rendered.truncate(rendered.trim_end().len());
        }
        Ok(rendered)
    }

    fn add(&mut self, name: &'static str, source: &str) -> Result<(), TextError> {
        let source = environment::without_generation_tags(source);
        self.environment.add_template_owned(name, source).map_err(|error| TextError::TemplateSyntax {
            line: error.line().unwrap_or(0),
            message: error.detail().map_or_else(|| error.kind().to_string(), String::from),
        })
    }

    fn render_messages(&self, input: &ChatInput, now: SystemTime) -> Result<String, TextError> {
        let context = self.context(input, now)?;
        let name = if self.has_tool_use && input.tools.is_some() { "tool_use" } else { "default" };
        let template = self.environment.get_template(name).map_err(|error| explain(&error))?;
        let mut output = LimitedOutput::default();
        // minijinja 2.24 panics on some input, such as `[][::-1]`: that request has no prompt, but nothing is
        // broken.
        let render = || template.render_captured_to(context, &mut output).map(drop);
        let result = catch_unwind(AssertUnwindSafe(render)).map_err(|_| TextError::TemplateRender {
            line: 0,
            message: "the template engine failed on this input".into(),
        })?;
        if output.is_full {
            return Err(TextError::TemplateLimit { limit: MAX_OUTPUT_BYTES as u64, unit: "bytes of text" });
        }
        result.map_err(|error| explain(&error))?;
        String::from_utf8(output.bytes)
            .map_err(|error| TextError::TemplateRender { line: 0, message: error.to_string() })
    }

    fn context(&self, input: &ChatInput, now: SystemTime) -> Result<minijinja::Value, TextError> {
        let mut variables: Vec<(&str, minijinja::Value)> =
            self.special.named().map(|(name, token)| (name, token.into())).collect();
        for (name, value) in input.kwargs.into_iter().flatten() {
            if RESERVED.contains(&name.as_str()) {
                return Err(TextError::ReservedKwarg { name: name.clone() });
            }
            variables.push((name, python::from_json(value, MAX_DEPTH)?));
        }
        let list = |values: &[Value]| -> Result<minijinja::Value, TextError> {
            let values = values.iter().map(|value| python::from_json(value, MAX_DEPTH));
            Ok(values.collect::<Result<Vec<_>, _>>()?.into())
        };
        let optional = |values: Option<&[Value]>| values.map_or(Ok(().into()), list);
        variables.push(("messages", list(input.messages)?));
        variables.push(("tools", optional(input.tools)?));
        variables.push(("documents", optional(input.documents)?));
        variables.push(("add_generation_prompt", input.add_generation_prompt.into()));
        variables.push(("strftime_now", environment::strftime_now(now)));
        Ok(variables.into_iter().collect())
    }
}

/// The text that a continued message ends with: its content, or the last text part of it.
fn last_text(message: &mut Value) -> Option<&mut String> {
    match message.get_mut("content")? {
        Value::String(text) => Some(text),
        Value::Array(parts) => parts.iter_mut().rev().find_map(|part| match part.get_mut("text") {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }),
        _ => None,
    }
}

fn explain(error: &minijinja::Error) -> TextError {
    if let Some(raised) = environment::source_of::<RaisedByTemplate>(error) {
        return TextError::TemplateRaised { message: raised.0.clone() };
    }
    let mut innermost = error;
    while let Some(source) = std::error::Error::source(innermost).and_then(|source| source.downcast_ref()) {
        innermost = source;
    }
    if innermost.kind() == ErrorKind::OutOfFuel {
        return TextError::TemplateLimit { limit: MAX_STEPS, unit: "steps" };
    }
    let kind = innermost.kind().to_string();
    let message = innermost.detail().map_or(kind.clone(), |detail| format!("{kind}: {detail}"));
    TextError::TemplateRender { line: innermost.line().or(error.line()).unwrap_or(0), message }
}

#[derive(Default)]
struct LimitedOutput {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for LimitedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT_BYTES {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
