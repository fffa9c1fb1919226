//! What an answer must look like: [`Constraint`], as every API can ask for it, and the [`GrammarCompiler`] that
//! makes it into masks over the model's vocabulary.
//!
//! The work of parsing is `llguidance`'s: it knows JSON Schema, regular expressions and context-free grammars in
//! Lark's notation. What is here makes everything else into one of these, bounds it, and keeps what was compiled.

mod cache;
mod compiler;
mod constraint;
mod gate;
mod late_end;
mod limits;
mod matcher;
mod source;
mod thinking;
mod vocabulary;

#[cfg(test)]
mod tests;

pub use compiler::{GrammarCompiler, GrammarRefusal};
pub use constraint::{Constraint, JsonOptions};
pub use gate::{after_text, after_tokens};
pub use late_end::late_end;
pub use thinking::{ThinkingMarks, ThinkingStart, ThoughtTracker};
