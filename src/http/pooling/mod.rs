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
pub(crate) use self::embeddings::embeddings;
pub(crate) use self::pool::pooling;
pub(crate) use self::rerank::rerank;
pub(crate) use self::score::score;
