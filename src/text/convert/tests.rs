//! See tests/fixtures.
