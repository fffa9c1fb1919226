//! `thinking_token_budget`, through every door. The simulated model never ends its thoughts by itself.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::*;

const END: &str = "</think>";

fn settings() -> Settings {
    let chat = ChatConfig { reasoning_parser: Some("deepseek_r1".into()), ..ChatConfig::default() };
    let mut settings = Settings { chat, ..Settings::default() };
    settings.server.enable_scale_out = true;
    settings
}

fn with(mut body: Value, fields: Value) -> Value {
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn chat(fields: Value) -> Value {
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 60, "seed": 1,
        "ignore_eos": true, "return_token_ids": true});
    with(body, fields)
}

fn end_ids() -> Vec<u64> {
    tokenizer().encode(END, false).unwrap().into_iter().map(u64::from).collect()
}

/// Tokens before the first end marker.
#[track_caller]
fn tokens_before_end(token_ids: &Value) -> usize {
    let ids: Vec<u64> = token_ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    let end = end_ids();
    ids.windows(end.len()).position(|window| window == end).unwrap_or_else(|| panic!("no end in {ids:?}"))
}

#[tokio::test]
async fn a_chat_thinks_as_long_as_its_budget() {
    let server = start(settings()).await;
    for budget in [0, 1, 5, 17] {
        for more in [json!({}), json!({"logprobs": true, "top_logprobs": 2}), json!({"min_tokens": 50})] {
            let body = with(chat(json!({"thinking_token_budget": budget})), more);
            let whole = server.post("/v1/chat/completions", &body).await.json();
            let choice = &whole["choices"][0];
            assert_eq!(tokens_before_end(&choice["token_ids"]), budget, "{whole}");
            assert_eq!(choice["token_ids"].as_array().unwrap().len(), 60);
            assert_ne!(choice["message"]["content"], "", "{whole}");
            let streamed = with(body, json!({"stream": true}));
            let mut text = (String::new(), String::new());
            for event in server.post("/v1/chat/completions", &streamed).await.events() {
                let delta = &event["choices"][0]["delta"];
                text.0.push_str(delta["reasoning"].as_str().unwrap_or_default());
                text.1.push_str(delta["content"].as_str().unwrap_or_default());
            }
            let message = &choice["message"];
            assert_eq!(text.0, message["reasoning"].as_str().unwrap_or_default());
            assert_eq!(text.1, message["content"].as_str().unwrap());
        }
    }
    let endless =
        server.post("/v1/chat/completions", &chat(json!({"thinking_token_budget": -1}))).await.json();
    assert_eq!(endless["choices"][0]["message"]["content"], "", "{endless}");
}

#[tokio::test]
async fn the_answer_behind_cut_thoughts_keeps_its_form() {
    let server = start(settings()).await;
    let form = json!({"structured_outputs": {"choice": ["yes", "no"]}, "thinking_token_budget": 7, "ignore_eos": false});
    let whole = server.post("/v1/chat/completions", &chat(form)).await.json();
    let choice = &whole["choices"][0];
    assert_eq!(tokens_before_end(&choice["token_ids"]), 7, "{whole}");
    assert!(["yes", "no"].contains(&choice["message"]["content"].as_str().unwrap()), "{whole}");
    assert_eq!(choice["finish_reason"], "stop");
}

#[tokio::test]
async fn budgets_of_one_batch_do_not_touch_each_other() {
    let server = start(settings()).await;
    let budgets = [Some(1), Some(12), None, Some(20), Some(14), None, Some(0), Some(12), Some(33)];
    let body = |budget: &Option<usize>| chat(json!({"thinking_token_budget": budget}));
    let mut alone = Vec::new();
    for budget in &budgets {
        let answer = server.post("/v1/chat/completions", &body(budget)).await.json();
        if let Some(budget) = budget {
            assert_eq!(tokens_before_end(&answer["choices"][0]["token_ids"]), *budget);
        }
        alone.push(answer["choices"].clone());
    }
    let bodies: Vec<_> = budgets.iter().map(body).collect();
    let crowd = join_all(bodies.iter().map(|body| server.post("/v1/chat/completions", body))).await;
    for (i, answer) in crowd.iter().enumerate() {
        assert_eq!(answer.json()["choices"], alone[i], "{:?}", budgets[i]);
    }
}

#[tokio::test]
async fn every_door_has_it() {
    let server = start(settings()).await;
    let prompt = "<|im_start|>assistant\n<think>";
    let body = json!({"prompt": prompt, "max_tokens": 40, "return_token_ids": true, "ignore_eos": true,
        "thinking_token_budget": 6});
    let answer = server.post("/v1/completions", &body).await.json();
    assert_eq!(tokens_before_end(&answer["choices"][0]["token_ids"]), 6, "{answer}");
    // Thoughts that the prompt has begun count.
    let ids = tokenizer().encode(&format!("{prompt}\n"), false).unwrap();
    let body = json!({"token_ids": ids, "sampling_params": {"max_tokens": 40, "ignore_eos": true,
        "thinking_token_budget": 6}});
    let answer = server.post("/inference/v1/generate", &body).await.json();
    assert_eq!(tokens_before_end(&answer["choices"][0]["token_ids"]), 5, "{answer}");
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 40, "ignore_eos": true,
        "thinking": {"type": "enabled", "budget_tokens": 6}});
    let answer = server.post("/v1/messages", &body).await.json();
    let [thinking, text] = &answer["content"].as_array().unwrap()[..] else { panic!("{answer}") };
    assert_eq!((&thinking["type"], &text["type"]), (&json!("thinking"), &json!("text")), "{answer}");
    // Without thoughts in the prompt there is nothing to cut.
    let body = json!({"prompt": "hi", "max_tokens": 40, "seed": 1, "thinking_token_budget": 0});
    let answer = server.post("/v1/completions", &body).await.json();
    let plain = json!({"prompt": "hi", "max_tokens": 40, "seed": 1});
    let plain = server.post("/v1/completions", &plain).await.json();
    assert_eq!(answer["choices"], plain["choices"]);
}

#[tokio::test]
async fn budgets_that_cannot_be_kept_are_refused() {
    let param = (400, "thinking_token_budget".to_owned());
    let plain = start(Settings::default()).await;
    let thinking = start(settings()).await;
    for (server, fields) in [
        (&plain, json!({"thinking_token_budget": 3})),
        (&thinking, json!({"thinking_token_budget": -2})),
        (&thinking, json!({"thinking_token_budget": 1.5})),
        (&thinking, json!({"thinking_token_budget": true})),
        (&thinking, json!({"thinking_token_budget": 3, "allowed_token_ids": [300]})),
    ] {
        assert_eq!(
            server.post("/v1/chat/completions", &chat(fields.clone())).await.error(),
            param,
            "{fields}"
        );
        let body = with(json!({"prompt": "hi"}), fields.clone());
        assert_eq!(server.post("/v1/completions", &body).await.error(), param, "{fields}");
    }
    let unlimited = chat(json!({"thinking_token_budget": -1}));
    assert_eq!(plain.post("/v1/chat/completions", &unlimited).await.status, 200);
}
