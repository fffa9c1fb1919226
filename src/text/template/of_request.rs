//! A template that came with a request, where the operator trusts clients with that.
//!
//! The engine of templates recurses over what it parses, drops and prints, so a short text can need a long stack: the
//! whole life of such a template is on a thread with one that is long enough for what the limits allow. Its memory has
//! no limit of its own, which is why this is for clients that are trusted.

use std::thread;

use super::{ChatInput, ChatTemplate, TextError};
use crate::text::SpecialTokens;

/// Bytes of a template; the longest of known models have about 20 KiB.
pub const MAX_SOURCE_BYTES: usize = 64 << 10;

/// Steps, a tenth of what the model's own template may take: one step can nest a value one level deeper.
const MAX_STEPS: u64 = 500_000;

/// Reserved, not used: the system gives pages to a stack as it grows. For [`MAX_STEPS`] / 4 levels of values and one
/// level of syntax a byte.
const STACK_BYTES: usize = 512 << 20;

/// Compiles the template and renders the prompt's text with it. Takes time: work for the text pool.
///
/// # Errors
/// Those of [`ChatTemplate::new`] and [`ChatTemplate::render`]; [`TextError::TemplateLimit`] also where the source is
/// too long.
pub fn render_own(source: &str, special: &SpecialTokens, input: &ChatInput) -> Result<String, TextError> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(TextError::TemplateLimit { limit: MAX_SOURCE_BYTES as u64, unit: "bytes of source" });
    }
    thread::scope(|scope| {
        let work = || ChatTemplate::with_steps(source, special, MAX_STEPS)?.render(input);
        let thread = thread::Builder::new().name("template".into()).stack_size(STACK_BYTES);
        let started = thread.spawn_scoped(scope, work);
        let thread = started.map_err(|error| TextError::Panicked { message: error.to_string() })?;
        thread.join().unwrap_or_else(|_| {
            Err(TextError::TemplateRender { line: 0, message: "the template engine failed on it".into() })
        })
    })
}
