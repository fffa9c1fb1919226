//! [`HeadedCall`]: a call whose arguments are JSON, with the name before them.
//!
//! ```text
//! get_weather[ARGS]{"city": "Paris"}
//! functions.get_weather:0<|tool_call_argument_begin|>{"city": "Paris"}
//! ```

use super::calls::{Calls, Step};
use super::json::{JsonStep, JsonText};

/// What comes before the arguments is at most this long.
const MAX_HEAD_BYTES: usize = 512;

/// Finds the function's name in what comes before the arguments, and the id if the model gives one.
pub(super) type Head = fn(&str) -> Option<(&str, Option<&str>)>;

/// The state of reading one call.
#[derive(Debug, Clone)]
pub(super) struct HeadedCall {
    head: Head,
    text: String,
    json: Option<JsonText>,
}

impl HeadedCall {
    pub(super) fn new(head: Head) -> Self {
        Self { head, text: String::new(), json: None }
    }

    pub(super) fn feed(&mut self, c: char, calls: &mut Calls) -> Step {
        if self.json.is_none() && c != '{' {
            if self.text.len() >= MAX_HEAD_BYTES {
                return Step::Foreign;
            }
            self.text.push(c);
            return Step::More;
        }
        if self.json.is_none() {
            let Some((name, id)) = (self.head)(&self.text) else { return Step::Foreign };
            if !calls.begin(name, id.map(String::from)) {
                return Step::Foreign;
            }
        }
        let mut piece = String::new();
        let step = self.json.get_or_insert_default().feed(c, &mut piece);
        calls.arguments(&piece);
        match step {
            JsonStep::Inside => Step::More,
            JsonStep::Last => Step::Done,
            JsonStep::Foreign => Step::Foreign,
        }
    }
}
