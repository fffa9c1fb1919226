//! [`RequestMetrics`]: how long one answer took, told in the answer itself with `--enable-per-request-metrics`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::engine::Finish;

/// In milliseconds, as vLLM counts them: waiting in the queue is apart, and the rest counts from the first step.
/// What did not happen (a second token, say) is left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub(crate) struct RequestMetrics {
    /// From the first step to the first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    time_to_first_token_ms: Option<f64>,
    /// From the first token to the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    generation_time_ms: Option<f64>,
    /// From the arrival to the first step.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_time_ms: Option<f64>,
    /// Between two tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_itl_ms: Option<f64>,
    /// All tokens, over the time from the first step to the last token.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_second: Option<f64>,
}

impl RequestMetrics {
    /// Those of a sequence that has ended.
    pub(crate) fn of(finish: &Finish) -> Self {
        let timings = finish.timings;
        let tokens = f64::from(finish.num_output_tokens);
        let between = |from: Option<Duration>, to: Option<Duration>| {
            Some(to?.saturating_sub(from?).as_secs_f64() * 1e3)
        };
        let generation_time_ms = between(timings.first_token, timings.last_token);
        let inference_ms = between(timings.scheduled, timings.last_token).filter(|ms| *ms > 0.0);
        Self {
            time_to_first_token_ms: between(timings.scheduled, timings.first_token),
            generation_time_ms,
            queue_time_ms: timings.scheduled.map(|scheduled| scheduled.as_secs_f64() * 1e3),
            mean_itl_ms: generation_time_ms.filter(|_| tokens > 1.0).map(|ms| ms / (tokens - 1.0)),
            tokens_per_second: inference_ms.map(|ms| tokens / ms * 1e3),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{FinishKind, Timings};

    #[test]
    fn times_are_those_between_what_happened() {
        let ms = |ms| Some(Duration::from_millis(ms));
        let timings = Timings { scheduled: ms(10), first_token: ms(30), last_token: ms(110) };
        let finish =
            Finish { kind: FinishKind::Length, stop: None, error: None, num_output_tokens: 5, timings };
        let told = |finish: &Finish| serde_json::to_string(&RequestMetrics::of(finish)).unwrap();
        assert_eq!(
            told(&finish),
            r#"{"time_to_first_token_ms":20.0,"generation_time_ms":80.0,"queue_time_ms":10.0,"mean_itl_ms":20.0,"tokens_per_second":50.0}"#
        );
        let single = Finish { num_output_tokens: 1, ..finish.clone() };
        assert!(!told(&single).contains("mean_itl_ms"));
        assert_eq!(told(&Finish { timings: Timings::default(), ..finish }), "{}");
    }
}
