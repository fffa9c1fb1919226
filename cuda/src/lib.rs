//! The place of the CUDA backend. See README.md: nothing is written yet, and nothing pretends to be.
