//! What `/openapi.json` says of these routes.

use serde_json::json;

use super::answer::{ChatLine, GenerateLine};
use super::embed::{self, Embeddings, OneEmbedding};
use super::error::Body;
use super::models::{Processes, Shown, Tags, Version};
use super::request::{read_chat, read_generate, read_show};
use crate::http::openapi::Operation;

pub(crate) fn chat(op: &mut Operation<'_>) {
    op.errors_are::<Body<'_>>()
        .about("Answers a conversation, in Ollama's way")
        .takes(|mut fields| drop(read_chat(&mut fields)))
        .answers::<ChatLine<'_>>()
        .answers_as(
            "application/x-ndjson",
            json!({ "type": "string", "description": "Such an object a line" }),
        );
}

pub(crate) fn generate(op: &mut Operation<'_>) {
    op.errors_are::<Body<'_>>()
        .about("Continues a text, in Ollama's way")
        .takes(|mut fields| drop(read_generate(&mut fields)))
        .answers::<GenerateLine<'_>>()
        .answers_as(
            "application/x-ndjson",
            json!({ "type": "string", "description": "Such an object a line" }),
        );
}

pub(crate) fn embeddings(op: &mut Operation<'_>) {
    op.errors_are::<Body<'_>>()
        .about("A vector for each text, in Ollama's way")
        .takes(|mut fields| drop(embed::read(&mut fields)))
        .answers::<Embeddings>();
}

pub(crate) fn old_embeddings(op: &mut Operation<'_>) {
    op.errors_are::<Body<'_>>()
        .about("The vector of a text, in an old way of Ollama's")
        .takes(|mut fields| drop(embed::read_old(&mut fields)))
        .answers::<OneEmbedding>();
}

pub(crate) fn tags(op: &mut Operation<'_>) {
    op.about("Every name of the model").answers::<Tags>();
}

pub(crate) fn ps(op: &mut Operation<'_>) {
    op.about("The model that is loaded").answers::<Processes>();
}

pub(crate) fn show(op: &mut Operation<'_>) {
    op.errors_are::<Body<'_>>()
        .about("What is known of the model")
        .takes(|mut fields| drop(read_show(&mut fields)))
        .answers::<Shown>();
}

pub(crate) fn version(op: &mut Operation<'_>) {
    op.about("The version of Ollama whose API this is").answers::<Version>();
}
