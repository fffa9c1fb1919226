//! The routes of servers that pool: vectors for texts, labels for texts, and how near texts are to each other.

mod classify;
mod cohere;
mod embeddings;
mod encoding;
mod pool;
mod request;
mod rerank;
mod score;
mod scores;

pub(crate) use self::classify::{classify, describe as describe_classify};
pub(crate) use self::cohere::{describe as describe_cohere, embed as cohere_embed};
pub(crate) use self::embeddings::{describe as describe_embeddings, embeddings};
pub(crate) use self::pool::{describe as describe_pooling, pooling};
pub(crate) use self::rerank::{describe as describe_rerank, rerank};
pub(crate) use self::score::{describe as describe_score, score};
