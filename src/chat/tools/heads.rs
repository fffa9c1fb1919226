//! What comes before the arguments of a [`HeadedCall`](super::headed_call::HeadedCall), one function a format: the
//! name in it, and the id where the model gives one.

/// `get_weather[CALL_ID]abc[ARGS]`; both markers may be missing.
pub(super) fn mistral(head: &str) -> Option<(&str, Option<&str>)> {
    let (head, _) = head.split_once("[ARGS]").unwrap_or((head, ""));
    Some(match head.split_once("[CALL_ID]") {
        Some((name, id)) => (name.trim(), Some(id.trim())),
        None => (head.trim(), None),
    })
}

pub(super) fn deepseek_v3(head: &str) -> Option<(&str, Option<&str>)> {
    let (_, rest) = head.split_once("<｜tool▁sep｜>")?;
    Some((rest.trim_start().lines().next()?.trim(), None))
}

pub(super) fn deepseek_v31(head: &str) -> Option<(&str, Option<&str>)> {
    let (name, _) = head.split_once("<｜tool▁sep｜>")?;
    Some((name.trim(), None))
}

/// `functions.get_weather:0<|tool_call_argument_begin|>`: what the template wants back as the id.
pub(super) fn kimi_k2(head: &str) -> Option<(&str, Option<&str>)> {
    let (id, _) = head.split_once("<|tool_call_argument_begin|>")?;
    let id = id.trim();
    let name = id.rsplit_once(':').map_or(id, |(name, _)| name);
    Some((name.strip_prefix("functions.").unwrap_or(name), Some(id)))
}

/// `"get_weather": `: the key of the arguments in an object of their own.
pub(super) fn apertus(head: &str) -> Option<(&str, Option<&str>)> {
    let name = head.trim().strip_suffix(':')?.trim_end();
    Some((name.strip_prefix('"')?.strip_suffix('"')?, None))
}

pub(super) fn plamo(head: &str) -> Option<(&str, Option<&str>)> {
    let (_, rest) = head.split_once("<|plamo:begin_tool_name:plamo|>")?;
    let (name, _) = rest.split_once("<|plamo:end_tool_name:plamo|>")?;
    Some((name.trim(), None))
}
