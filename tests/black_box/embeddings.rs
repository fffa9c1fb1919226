//! Servers that pool: a whole folder of sentence-transformers against transformers, and the demo model.

use serde_json::{Value, json};

use crate::http;
use crate::server::Server;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/model/tests/fixtures/bert-sentences");

/// The fixture's texts: `text`, `token_ids` and `embedding`.
fn expected() -> Vec<Value> {
    let text = std::fs::read_to_string(format!("{FOLDER}/expected.json")).expect("the fixture is there");
    serde_json::from_str(&text).expect("JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

/// Tokenizer, modules, pooling and encoder together give what Python gives, with nothing said on the command
/// line. The longest text is beyond the folder's `max_seq_length`.
#[tokio::test]
async fn a_folder_of_sentence_transformers_embeds_as_in_python() {
    let server = Server::shared(&[FOLDER, "--served-model-name", "tiny"]);
    let expected = expected();
    let texts: Vec<&Value> = expected.iter().map(|one| &one["text"]).collect();
    let body = json!({ "model": "tiny", "input": texts, "truncate_prompt_tokens": -1 });
    let answer = http::post(server.http, "/v1/embeddings", &body).await.ok();
    let mut tokens = 0;
    for (found, expected) in answer["data"].as_array().expect("a list").iter().zip(&expected) {
        tokens += expected["token_ids"].as_array().expect("a list").len();
        let (found, expected) = (numbers(&found["embedding"]), numbers(&expected["embedding"]));
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
        }
    }
    assert_eq!(answer["usage"]["prompt_tokens"], tokens);
    let long = json!({ "input": texts });
    let refused = http::post(server.http, "/v1/embeddings", &long).await;
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("input[3]")));
    let chat = json!({ "messages": [{ "role": "user", "content": "Hello" }] });
    assert_eq!(http::post(server.http, "/v1/chat/completions", &chat).await.status, 404);
    let models = http::get(server.http, "/v1/models").await.ok();
    assert_eq!(models["data"][0]["max_model_len"], 32);
}

/// The vectors of some texts, as base64: bit for bit.
async fn vectors(server: &Server, texts: &[String]) -> Vec<String> {
    let body = json!({ "input": texts, "encoding_format": "base64" });
    let answer = http::post(server.http, "/v1/embeddings", &body).await.ok();
    let data = answer["data"].as_array().expect("a list");
    data.iter().map(|one| one["embedding"].as_str().expect("base64").to_owned()).collect()
}

#[tokio::test]
async fn invariant_8_chunks_and_company_change_no_bit_of_a_vector() {
    let mean = ["--runner", "pooling", "--pooler-config", r#"{"seq_pooling_type": "MEAN"}"#];
    let small = ["--max-num-batched-tokens", "13", "--max-num-seqs", "5"];
    let texts: Vec<String> =
        (1..30).map(|i| "Once upon a time there was a fox. ".repeat(1 + i % 7)).collect();
    let whole = Server::start(&mean);
    let together = vectors(&whole, &texts).await;
    let cut = Server::start(&[&mean[..], &small].concat());
    assert_eq!(vectors(&cut, &texts).await, together);
    for (text, expected) in texts.iter().zip(&together).take(7) {
        assert_eq!(&vectors(&whole, std::slice::from_ref(text)).await[0], expected, "{text:?}");
    }
}

const PAIRS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/model/tests/fixtures/bert-pairs");

/// Pairs of texts, told apart by their types, are scored as in Python: alone, in company, and as a ranking.
#[tokio::test]
async fn a_cross_encoder_scores_pairs_as_in_python() {
    let server = Server::shared(&[PAIRS, "--served-model-name", "tiny"]);
    let text = std::fs::read_to_string(format!("{PAIRS}/expected.json")).expect("the fixture is there");
    let pairs: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let side = |which: usize| pairs.iter().map(|one| one["pair"][which].clone()).collect::<Vec<_>>();
    let score = async |more: Value| {
        let mut body = json!({ "queries": side(0), "documents": side(1) });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        http::post(server.http, "/score", &body).await.ok()
    };
    let (logits, probabilities) = (score(json!({ "use_activation": false })).await, score(json!({})).await);
    for (index, one) in pairs.iter().enumerate() {
        let logit = one["logit"].as_f64().expect("a number");
        for (found, expected) in [(&logits, logit), (&probabilities, 1.0 / (1.0 + (-logit).exp()))] {
            let found = found["data"][index]["score"].as_f64().expect("a score");
            assert!((found - expected).abs() < 1e-5, "{one}: {found} for {expected}");
        }
        let body = json!({ "query": one["pair"][0], "documents": [one["pair"][1]] });
        let alone = http::post(server.http, "/rerank", &body).await.ok();
        assert_eq!(alone["results"][0]["relevance_score"], probabilities["data"][index]["score"]);
    }
    let tokens: usize = pairs.iter().map(|one| one["token_ids"].as_array().expect("a list").len()).sum();
    assert_eq!(probabilities["usage"]["prompt_tokens"], tokens);
    // `[CLS] the stone [SEP] the peb [SEP]`
    let body = json!({ "text_1": "the stone the", "text_2": "the pebble", "max_tokens_per_query": 2,
                       "max_tokens_per_doc": 2 });
    let cut = http::post(server.http, "/score", &body).await.ok();
    assert_eq!(cut["usage"]["prompt_tokens"], 7);
    let refused = http::post(server.http, "/v1/embeddings", &json!({ "input": "a" })).await;
    assert_eq!(refused.status, 404);
}
