//! Grammars against outside judges.
