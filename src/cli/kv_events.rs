//! `--kv-events-config`: vLLM's JSON, as far as it is about subscribers by gRPC.

use serde_json::Value;

use crate::config::KvEventsConfig;

/// vLLM's default.
const DEFAULT_BUFFER_STEPS: u64 = 10_000;
const MAX_BUFFER_STEPS: u64 = 1_000_000;

/// What the flag says; events may be off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KvEventsArg(pub(super) Option<KvEventsConfig>);

/// Reads the flag's value. What is about ZMQ is refused by name.
pub(super) fn parse_kv_events(text: &str) -> Result<KvEventsArg, String> {
    let Ok(Value::Object(fields)) = serde_json::from_str(text) else {
        return Err("must be a JSON object, like '{\"enable_kv_cache_events\": true}'".into());
    };
    let (mut enabled, mut buffer_steps) = (false, DEFAULT_BUFFER_STEPS);
    for (name, value) in &fields {
        match (name.as_str(), value) {
            ("enable_kv_cache_events", Value::Bool(value)) => enabled = *value,
            ("enable_kv_cache_events", _) => {
                return Err("enable_kv_cache_events must be true or false".into());
            }
            ("publisher", Value::String(publisher)) if ["null", "grpc"].contains(&publisher.as_str()) => (),
            ("publisher", Value::Null) => (),
            ("publisher", _) => {
                return Err("publisher must be left out or be \"grpc\": events are not published by ZMQ; \
                            subscribers come by gRPC"
                    .into());
            }
            ("buffer_steps", value) => {
                let steps = value.as_u64().filter(|steps| (1..=MAX_BUFFER_STEPS).contains(steps));
                buffer_steps =
                    steps.ok_or_else(|| format!("buffer_steps must be between 1 and {MAX_BUFFER_STEPS}"))?;
            }
            _ => return Err(format!("{name} is not supported: events come by gRPC alone")),
        }
    }
    Ok(KvEventsArg(enabled.then_some(KvEventsConfig { buffer_steps: buffer_steps as usize })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_is_vllms_as_far_as_it_is_true() {
        let steps = |text: &str| parse_kv_events(text).map(|arg| arg.0.map(|events| events.buffer_steps));
        assert_eq!(steps("{}"), Ok(None));
        assert_eq!(steps(r#"{"enable_kv_cache_events": false, "publisher": "null"}"#), Ok(None));
        assert_eq!(steps(r#"{"enable_kv_cache_events": true}"#), Ok(Some(10_000)));
        assert_eq!(steps(r#"{"enable_kv_cache_events": true, "buffer_steps": 7}"#), Ok(Some(7)));
        for (bad, name) in [
            ("true", "JSON object"),
            ("{", "JSON object"),
            (r#"{"enable_kv_cache_events": 1}"#, "enable_kv_cache_events"),
            (r#"{"publisher": "zmq"}"#, "publisher"),
            (r#"{"buffer_steps": 0}"#, "buffer_steps"),
            (r#"{"endpoint": "tcp://*:5557"}"#, "endpoint"),
        ] {
            assert!(steps(bad).unwrap_err().contains(name), "{bad}");
        }
    }
}
