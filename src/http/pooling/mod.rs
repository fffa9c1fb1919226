//! The routes of servers that pool: vectors for texts, and what follows from how near those are.

mod embeddings;
mod encoding;
mod request;

pub(crate) use self::embeddings::embeddings;
