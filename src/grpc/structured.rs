//! Structured outputs: the oneof of `vllm.Inference` as a [`Constraint`], and its grammar.

use quire_proto::vllm::decoding_parameters::StructuredOutput;
use quire_scheduler::Grammar;
use tonic::Status;

use super::status::{invalid_field, not_tokenized};
use crate::app::App;
use crate::grammar::{Constraint, GrammarRefusal};

/// What an output must look like, and the field that says so.
pub(super) type Asked = (Constraint, &'static str);

/// What a request asks for; `json_object: false` asks for nothing.
pub(super) fn constraint(kind: Option<StructuredOutput>) -> Result<Option<Asked>, Status> {
    let Some(kind) = kind else { return Ok(None) };
    let (constraint, field) = match kind {
        StructuredOutput::Json(text) => (Constraint::schema_from_text(&text), "decoding.json"),
        StructuredOutput::Regex(pattern) => (Ok(Constraint::Regex(pattern)), "decoding.regex"),
        StructuredOutput::Choice(texts) => (Ok(Constraint::Choice(texts.choices)), "decoding.choice"),
        StructuredOutput::Grammar(text) => (Ok(Constraint::Grammar(text)), "decoding.grammar"),
        StructuredOutput::JsonObject(false) => return Ok(None),
        StructuredOutput::JsonObject(true) => (Ok(Constraint::JsonObject), "decoding.json_object"),
        StructuredOutput::StructuralTag(text) => {
            (Constraint::structural_tag_from_text(&text), "decoding.structural_tag")
        }
    };
    match constraint {
        Ok(constraint) => Ok(Some((constraint, field))),
        Err(GrammarRefusal(why)) => Err(invalid_field(field, &why)),
    }
}

/// The grammar of a constraint, compiled on the text pool.
pub(super) async fn compile(app: &App, asked: Option<Asked>) -> Result<Option<Grammar>, Status> {
    let Some((constraint, field)) = asked else { return Ok(None) };
    let grammars = app.grammars.clone();
    let compiled = app.text_pool.run(move || grammars.compile(&constraint)).await;
    let compiled = compiled.map_err(|error| not_tokenized(&error, field))?;
    compiled.map(Some).map_err(|GrammarRefusal(why)| invalid_field(field, &why))
}
