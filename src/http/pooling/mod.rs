//! The routes of servers that pool: vectors for texts, and what follows from how near those are.

mod classify;
mod embeddings;
mod encoding;
mod pool;
mod request;
mod rerank;
mod score;
mod similarity;

pub(crate) use self::classify::classify;
pub(crate) use self::embeddings::{describe as describe_embeddings, embeddings};
pub(crate) use self::pool::{describe as describe_pooling, pooling};
pub(crate) use self::rerank::{describe as describe_rerank, rerank};
pub(crate) use self::score::{describe as describe_score, score};
