//! Tests of the text layer against outside oracles: the `tokenizers` crate's own decoder, Jinja2 under
//! Python, and a naive search. Random cases are seeded; a failure names its seed.

mod detokenize;
mod golden;
mod pool;
mod stop;
mod template;

use std::path::PathBuf;

use super::Tokenizer;

fn asset(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/pebble").join(path)
}

fn pebble() -> Tokenizer {
    Tokenizer::from_dir(&asset("model")).expect("pebble's tokenizer loads")
}
