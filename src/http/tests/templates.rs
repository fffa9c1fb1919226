//! Chat templates in requests: refused, or where clients are trusted, bounded.

use serde_json::json;

use super::*;

const ROUTES: [&str; 2] = ["/v1/chat/completions", "/tokenize"];

fn body(template: &str) -> Value {
    json!({"messages": [{"role": "user", "content": "The cat"}], "max_tokens": 2, "chat_template": template,
        "return_token_ids": true})
}

async fn trusting() -> Server {
    let mut settings = Settings::default();
    settings.server.trust_request_chat_template = true;
    start(settings).await
}

#[tokio::test]
async fn templates_of_strangers_are_refused() {
    let server = start(Settings::default()).await;
    for path in ROUTES {
        let answer = server.post(path, &body("{{ messages[0].content }}")).await;
        assert_eq!(answer.error(), (400, "chat_template".into()), "{path}");
        assert!(answer.text.contains("--trust-request-chat-template"), "{}", answer.text);
    }
}

#[tokio::test]
async fn templates_of_trusted_clients_are_used() {
    let server = trusting().await;
    let template = "{{ messages[0].content }} sat{% if add_generation_prompt %}!{% endif %}";
    let expected = json!(tokenizer().encode("The cat sat!", false).unwrap());
    let [chat, tokenize] = ROUTES;
    assert_eq!(server.post(chat, &body(template)).await.json()["prompt_token_ids"], expected);
    assert_eq!(server.post(tokenize, &body(template)).await.json()["tokens"], expected);
}

#[tokio::test]
async fn wrong_templates_are_refused() {
    let server = trusting().await;
    for template in [
        "{{".to_owned(),
        "{% for m in messages %}".to_owned(),
        "{{ raise_exception('no') }}".to_owned(),
        " ".repeat(65 << 10),
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}".to_owned(),
    ] {
        for path in ROUTES {
            assert_eq!(server.post(path, &body(&template)).await.status, 400, "{path}");
        }
    }
}

#[tokio::test]
async fn templates_have_limits() {
    let server = trusting().await;
    let long = |piece: &str| piece.repeat(60_000 / piece.len());
    let deep = "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}";
    for template in [
        format!("{{{{ {}1 }}}}", long("-")),
        format!("{{{{ {}1 }}}}", long("not ")),
        format!("{{{{ {}1{} }}}}", "(".repeat(30_000), ")".repeat(30_000)),
        format!("{{{{ a{} }}}}", long(".a")),
        format!("{{{{ 1{} }}}}", long("|abs")),
        format!("{{% if 0 %}}{}{{% endif %}}", long("{% elif 0 %}")),
        format!("{}x", long("{% if 1 %}")),
        format!("{deep}{{{{ ns.x }}}}"),
        format!("{deep}{{{{ ns.x|tojson }}}}"),
        deep.to_owned(),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned(),
    ] {
        for path in ROUTES {
            let answer = server.post(path, &body(&template)).await;
            // Some of them are only long; what matters is that there is an answer, and a server after it.
            let start: String = template.chars().take(40).collect();
            assert!(
                matches!(answer.status.as_u16(), 200 | 400),
                "{start}: {} {}",
                answer.status,
                answer.text
            );
        }
    }
    assert_eq!(server.post(ROUTES[0], &body("{{ messages[0].content }}")).await.status, 200);
}
