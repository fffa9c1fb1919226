//! [`arrange`]: messages as the templates of models that write in channels want them.
//!
//! These templates read reasoning as `thinking`, refuse a message that both thinks and says something before a
//! call, write one call a message, and take a result for that of the call before it.

use serde_json::{Map, Value, json};

/// The same conversation, one call a message, each with its results after it.
pub(super) fn arrange(messages: Vec<Value>) -> Vec<Value> {
    let mut arranged = Vec::with_capacity(messages.len());
    let mut rest = messages.into_iter().peekable();
    while let Some(mut message) = rest.next() {
        let Some(fields) = message.as_object_mut().filter(|fields| fields["role"] == "assistant") else {
            arranged.push(message);
            continue;
        };
        if let Some(reasoning) = fields.get("reasoning").cloned() {
            fields.insert("thinking".into(), reasoning);
        }
        let Some(Value::Array(calls)) = fields.remove("tool_calls").filter(|calls| *calls != json!([]))
        else {
            arranged.push(message);
            continue;
        };
        say_in_thoughts(fields);
        let mut results = Vec::new();
        while let Some(result) = rest.next_if(|message| message["role"] == "tool") {
            results.push(result);
        }
        for call in calls {
            let (own, others) = results.into_iter().partition(|result| result["tool_call_id"] == call["id"]);
            results = others;
            let mut one = std::mem::replace(&mut message, json!({"role": "assistant", "content": ""}));
            one["tool_calls"] = json!([call]);
            arranged.push(one);
            arranged.extend::<Vec<_>>(own);
        }
        arranged.append(&mut results);
    }
    arranged
}

/// What is said before a call becomes part of what is thought.
fn say_in_thoughts(message: &mut Map<String, Value>) {
    let text = |name: &str| message.get(name).and_then(Value::as_str).unwrap_or_default();
    let (thinking, content) = (text("thinking"), text("content"));
    if !thinking.is_empty() && !content.is_empty() {
        let both = format!("{thinking}\n\n{content}");
        message.insert("thinking".into(), both.into());
        message.insert("content".into(), "".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_followed_by_its_results() {
        let call = |id: &str| json!({"id": id, "function": {"name": "f", "arguments": {}}});
        let result = |id: &str| json!({"role": "tool", "tool_call_id": id, "content": id});
        let user = json!({"role": "user", "content": "?"});
        let calls = json!({
            "role": "assistant", "content": "Let me see.", "reasoning": "Hm.", "tool_calls": [call("a"), call("b")],
        });
        let messages = vec![user.clone(), calls, result("b"), result("a"), result("x"), user.clone()];
        let first = json!({
            "role": "assistant", "content": "", "reasoning": "Hm.", "thinking": "Hm.\n\nLet me see.",
            "tool_calls": [call("a")],
        });
        let second = json!({"role": "assistant", "content": "", "tool_calls": [call("b")]});
        let expected = [user.clone(), first, result("a"), second, result("b"), result("x"), user];
        assert_eq!(arrange(messages), expected);
    }

    #[test]
    fn a_message_without_calls_has_no_field_for_them() {
        let message = json!({"role": "assistant", "content": "a", "reasoning": "b", "tool_calls": []});
        let expected = json!({"role": "assistant", "content": "a", "reasoning": "b", "thinking": "b"});
        assert_eq!(arrange(vec![message]), [expected]);
    }
}
