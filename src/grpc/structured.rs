//! Structured outputs: what each dialect asks for as a [`Constraint`], and its grammar.

use quire_proto::openengine::v1::GuidedDecoding;
use quire_proto::openengine::v1::guided_decoding::Guide;
use quire_proto::vllm::decoding_parameters::StructuredOutput;
use quire_proto::vllm::grpc::engine::sampling_params::Constraint as EngineConstraint;
use quire_scheduler::Grammar;
use tonic::Status;

use super::status::{invalid_field, not_tokenized};
use crate::app::App;
use crate::grammar::{Constraint, GrammarRefusal};

/// What an output must look like, and the field that says so.
pub(super) type Asked = (Constraint, &'static str);

/// Implementations that a client may name: there is one, and it is the one that "auto" means.
const BACKENDS: [&str; 4] = ["", "auto", "guidance", "llguidance"];

/// What a request of `vllm.Inference` asks for; `json_object: false` asks for nothing.
pub(super) fn constraint(kind: Option<StructuredOutput>) -> Result<Option<Asked>, Status> {
    let Some(kind) = kind else { return Ok(None) };
    read(match kind {
        StructuredOutput::Json(text) => (Constraint::schema_from_text(&text), "decoding.json"),
        StructuredOutput::Regex(pattern) => (Ok(Constraint::Regex(pattern)), "decoding.regex"),
        StructuredOutput::Choice(texts) => (Ok(Constraint::Choice(texts.choices)), "decoding.choice"),
        StructuredOutput::Grammar(text) => (Ok(Constraint::Grammar(text)), "decoding.grammar"),
        StructuredOutput::JsonObject(false) => return Ok(None),
        StructuredOutput::JsonObject(true) => (Ok(Constraint::JsonObject), "decoding.json_object"),
        StructuredOutput::StructuralTag(text) => {
            (Constraint::structural_tag_from_text(&text), "decoding.structural_tag")
        }
    })
}

/// What a request of `VllmEngine` asks for.
pub(super) fn engine_constraint(kind: Option<EngineConstraint>) -> Result<Option<Asked>, Status> {
    let Some(kind) = kind else { return Ok(None) };
    read(match kind {
        EngineConstraint::JsonSchema(text) => {
            (Constraint::schema_from_text(&text), "sampling_params.json_schema")
        }
        EngineConstraint::Regex(pattern) => (Ok(Constraint::Regex(pattern)), "sampling_params.regex"),
        EngineConstraint::Choice(texts) => (Ok(Constraint::Choice(texts.choices)), "sampling_params.choice"),
        EngineConstraint::Grammar(text) => (Ok(Constraint::Grammar(text)), "sampling_params.grammar"),
        EngineConstraint::JsonObject(false) => return Ok(None),
        EngineConstraint::JsonObject(true) => (Ok(Constraint::JsonObject), "sampling_params.json_object"),
        EngineConstraint::StructuralTag(text) => {
            (Constraint::structural_tag_from_text(&text), "sampling_params.structural_tag")
        }
    })
}

/// What a request of `openengine.v1` asks for.
pub(super) fn guided(guided: Option<GuidedDecoding>) -> Result<Option<Asked>, Status> {
    let Some(GuidedDecoding { guide, backend }) = guided else { return Ok(None) };
    if !BACKENDS.contains(&backend.as_str()) {
        let message = format!("{backend:?} is not there; leave it out, or say auto or llguidance");
        return Err(invalid_field("guided.backend", &message));
    }
    let Some(guide) = guide else { return Ok(None) };
    read(match guide {
        Guide::JsonSchema(text) => (Constraint::schema_from_text(&text), "guided.json_schema"),
        Guide::Regex(pattern) => (Ok(Constraint::Regex(pattern)), "guided.regex"),
        Guide::Choice(texts) => (Ok(Constraint::Choice(texts.choices)), "guided.choice"),
        Guide::EbnfGrammar(text) => (Ok(Constraint::Grammar(text)), "guided.ebnf_grammar"),
        Guide::JsonObject(_) => (Ok(Constraint::JsonObject), "guided.json_object"),
        Guide::StructuralTag(text) => (Constraint::structural_tag_from_text(&text), "guided.structural_tag"),
    })
}

fn read(
    (constraint, field): (Result<Constraint, GrammarRefusal>, &'static str),
) -> Result<Option<Asked>, Status> {
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
