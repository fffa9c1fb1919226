//! Servers that pool: `/v1/embeddings`, `/pooling`, `/v1/score`, `/v1/rerank`, and what they refuse.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quire_model::{LabelActivation, Labels, Matryoshka, PoolerSpec};
use quire_scheduler::sim::POOLED_WIDTH;
use quire_scheduler::{Pooling, Request as Prompt, RequestId, SamplingParams};
use serde_json::json;

use super::*;

/// A server whose vectors are those of the simulated model.
fn pooling(normalize: bool, matryoshka: Matryoshka) -> Settings {
    let prompts = BTreeMap::from([("query".to_owned(), "find: ".to_owned())]);
    let spec = PoolerSpec {
        pooling: Pooling::Last,
        normalize,
        max_seq_length: None,
        matryoshka,
        labels: None,
        prompts,
    };
    Settings { pooler: Some(Pooler { spec, width: POOLED_WIDTH, joins_pairs: true }), ..Settings::default() }
}

/// A server whose logits are those vectors.
fn classifying(activation: LabelActivation) -> Settings {
    let names = (0..POOLED_WIDTH).map(|index| (index > 0).then(|| format!("kind {index}"))).collect();
    let mut settings = pooling(true, Matryoshka::No);
    if let Some(pooler) = &mut settings.pooler {
        pooler.spec.labels = Some(Labels { names, activation });
    }
    settings
}

/// What the simulated model gives for these tokens.
fn expected(ids: &[u32]) -> Vec<f32> {
    let prompt = Prompt {
        id: RequestId(0),
        prompt_token_ids: ids.into(),
        sampling: Arc::new(SamplingParams { pooling: Some(Pooling::Last), ..SamplingParams::default() }),
        priority: 0,
        arrival_us: 0,
        adapter: None,
        cache_salt: None,
        bypass_prefix_cache: true,
    };
    SimModel { seed: 7, vocab: Settings::default().vocab }.pool_alone(&prompt).to_vec()
}

fn normalized(vector: &[f32]) -> Vec<f64> {
    let norm = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    vector.iter().map(|x| f64::from(*x) / norm).collect()
}

#[track_caller]
fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap_or_else(|| panic!("{value}")).iter().map(|x| x.as_f64().unwrap()).collect()
}

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_form_of_input_gives_the_vectors_of_its_tokens_in_order() {
    let server = start(pooling(true, Matryoshka::No)).await;
    let encode = |text: &str| tokenizer().encode(text, true).unwrap();
    let texts = ["a pebble", "another, longer text about stones", "x"];
    let lists: Vec<Vec<u32>> = texts.iter().map(|text| encode(text)).collect();
    for (input, ids) in [
        (json!(texts[0]), &lists[..1]),
        (json!(texts), &lists[..]),
        (json!(lists[0]), &lists[..1]),
        (json!(lists), &lists[..]),
    ] {
        let answer = server.post("/v1/embeddings", &json!({ "model": "pebble", "input": input })).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let body = answer.json();
        assert_eq!((&body["object"], &body["model"]), (&json!("list"), &json!("pebble")));
        assert!(body["id"].as_str().unwrap().starts_with("embd-"), "{body}");
        let data = body["data"].as_array().unwrap();
        assert_eq!(data.len(), ids.len());
        for (index, (one, ids)) in data.iter().zip(ids).enumerate() {
            assert_eq!((&one["index"], &one["object"]), (&json!(index), &json!("embedding")));
            assert_close(&numbers(&one["embedding"]), &normalized(&expected(ids)));
        }
        let tokens: usize = ids.iter().map(Vec::len).sum();
        let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0,
                            "prompt_tokens_details": null });
        assert_eq!(body["usage"], usage);
    }
    server.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_are_base64_raw_or_cut_if_asked() {
    let server = start(pooling(true, Matryoshka::Lengths(vec![2, POOLED_WIDTH]))).await;
    let ids = [300, 301, 302];
    let ask = async |more: Value| {
        let mut body = json!({ "input": ids });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/embeddings", &body).await
    };
    let raw = ask(json!({ "encoding_format": "base64", "use_activation": false })).await.json();
    let bytes = STANDARD.decode(raw["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let floats: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    assert_eq!(floats, expected(&ids));
    let cut = ask(json!({ "dimensions": 2 })).await.json();
    assert_close(&numbers(&cut["data"][0]["embedding"]), &normalized(&expected(&ids)[..2]));
    assert_eq!(ask(json!({ "dimensions": 3 })).await.error(), (400, "dimensions".into()));
    for pooling in [json!({}), json!({ "task": "embed" })] {
        let mut body = json!({ "input": ids });
        body.as_object_mut().unwrap().extend(pooling.as_object().unwrap().clone());
        let body = server.post("/pooling", &body).await.json();
        assert_eq!(body["data"][0]["object"], "pooling");
        assert!(body["id"].as_str().unwrap().starts_with("pool-"));
        assert_close(&numbers(&body["data"][0]["data"]), &normalized(&expected(&ids)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_inputs_are_refused_or_cut_and_fill_the_context_to_its_last_token() {
    let server = start(pooling(true, Matryoshka::No)).await;
    let ids: Vec<u32> = (0..MAX_MODEL_LEN + 1).map(|i| 300 + i % 1000).collect();
    let post = async |body: Value| server.post("/v1/embeddings", &body).await;
    assert_eq!(post(json!({ "input": ids })).await.error(), (400, "input".into()));
    let whole = post(json!({ "input": ids[1..] })).await;
    assert_eq!(whole.status, 200, "{}", whole.text);
    for (body, kept) in [
        (json!({ "truncate_prompt_tokens": -1 }), &ids[..MAX_MODEL_LEN as usize]),
        (json!({ "truncate_prompt_tokens": 5 }), &ids[..5]),
        (json!({ "truncate_prompt_tokens": 5, "truncation_side": "left" }), &ids[ids.len() - 5..]),
    ] {
        let mut body = body;
        body["input"] = json!(ids);
        let found = post(body).await.json();
        assert_close(&numbers(&found["data"][0]["embedding"]), &normalized(&expected(kept)));
    }
    let text = "a stone and another stone ".repeat(4000);
    let found = post(json!({ "input": text, "truncate_prompt_tokens": 7 })).await.json();
    let all = tokenizer().encode(&text, true).unwrap();
    assert_close(&numbers(&found["data"][0]["embedding"]), &normalized(&expected(&all[..7])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scores_and_ranks_are_cosines() {
    let server = start(pooling(true, Matryoshka::No)).await;
    let vector = |text: &str| normalized(&expected(&tokenizer().encode(text, true).unwrap()));
    let cosine = |a: &str, b: &str| vector(a).iter().zip(vector(b)).map(|(a, b)| a * b).sum::<f64>();
    let documents = ["one stone", "a pebble", "the sea", "one stone"];
    for (path, body) in [
        ("/v1/score", json!({ "text_1": "a pebble", "text_2": documents })),
        ("/score", json!({ "queries": ["a pebble"], "documents": documents })),
        ("/score", json!({ "data_1": vec!["a pebble"; 4], "data_2": documents })),
    ] {
        let body = server.post(path, &body).await.json();
        let scores: Vec<f64> =
            body["data"].as_array().unwrap().iter().map(|one| one["score"].as_f64().unwrap()).collect();
        assert_close(&scores, &documents.map(|document| cosine("a pebble", document)));
    }
    let uneven = json!({ "text_1": ["a", "b"], "text_2": ["a", "b", "c"] });
    assert_eq!(server.post("/score", &uneven).await.error(), (400, "text_1".into()));
    for path in ["/rerank", "/v1/rerank", "/v2/rerank"] {
        let body = json!({ "query": "a pebble", "documents": documents, "top_n": 3 });
        let body = server.post(path, &body).await.json();
        let results = body["results"].as_array().unwrap();
        assert_eq!((results.len(), &results[0]["index"]), (3, &json!(1)));
        assert_eq!(results[0]["document"]["text"], "a pebble");
        let scores: Vec<f64> = results.iter().map(|one| one["relevance_score"].as_f64().unwrap()).collect();
        assert!(scores.is_sorted_by(|a, b| a >= b) && (scores[0] - 1.0).abs() < 1e-6, "{scores:?}");
    }
    let mixed = json!({ "query": "x", "documents": [{ "text": "y" }, "z"] });
    assert_eq!(server.post("/rerank", &mixed).await.json()["results"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_embedded_is_named() {
    let server = start(pooling(true, Matryoshka::No)).await;
    for (path, body, status, param) in [
        ("/v1/embeddings", json!({}), 400, "input"),
        ("/v1/embeddings", json!({ "input": [] }), 400, "input"),
        ("/v1/embeddings", json!({ "input": [""] }), 400, "input"),
        ("/v1/embeddings", json!({ "input": ["a", ""] }), 400, "input[1]"),
        ("/v1/embeddings", json!({ "input": ["a", 1] }), 400, "input[1]"),
        ("/v1/embeddings", json!({ "input": [[1], [999_999]] }), 400, "input[1]"),
        ("/v1/embeddings", json!({ "input": vec!["a"; 2049] }), 400, "input"),
        ("/v1/embeddings", json!({ "input": "a", "encoding_format": "hex" }), 400, "encoding_format"),
        ("/v1/embeddings", json!({ "input": "a", "embed_dtype": "float64" }), 400, "embed_dtype"),
        ("/v1/embeddings", json!({ "input": "a", "endianness": "middle" }), 400, "endianness"),
        ("/v1/embeddings", json!({ "input": "a", "dimensions": 4 }), 400, "dimensions"),
        ("/v1/embeddings", json!({ "input": "a", "model": "other" }), 404, "model"),
        ("/v1/embeddings", json!({ "input": "a", "cache_salt": "" }), 400, "cache_salt"),
        ("/pooling", json!({ "input": "a", "task": "token_embed" }), 400, "task"),
        ("/score", json!({ "text_1": "a" }), 400, "text_2"),
        ("/rerank", json!({ "query": "a", "documents": [1] }), 400, "documents[0]"),
        ("/rerank", json!({ "query": "a", "documents": [] }), 400, "documents"),
        ("/rerank", json!({ "query": "a", "documents": ["b"], "top_n": -1 }), 400, "top_n"),
        (
            "/rerank",
            json!({ "query": "a", "documents": ["b"], "max_tokens_per_doc": MAX_MODEL_LEN }),
            400,
            "max_tokens_per_doc",
        ),
        (
            "/score",
            json!({ "text_1": "a", "text_2": "b", "max_tokens_per_query": -1 }),
            400,
            "max_tokens_per_query",
        ),
        ("/v2/embed", json!({ "model": "pebble" }), 400, "texts"),
        ("/v2/embed", json!({ "texts": ["a"], "images": ["b"] }), 400, "images"),
        ("/v2/embed", json!({ "texts": ["a"], "input_type": "other" }), 400, "input_type"),
        ("/v2/embed", json!({ "texts": ["a"], "truncate": "MIDDLE" }), 400, "truncate"),
        ("/v2/embed", json!({ "texts": ["a"], "embedding_types": ["int4"] }), 400, "embedding_types[0]"),
        (
            "/v2/embed",
            json!({ "texts": ["some more words"], "truncate": "NONE", "max_tokens": 1 }),
            400,
            "texts",
        ),
        ("/classify", json!({ "input": "a" }), 404, "null"),
    ] {
        let answer = server.post(path, &body).await;
        assert_eq!(answer.error(), (status, param.to_owned()), "{path} {body}: {}", answer.text);
    }
    server.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_does_one_thing_and_says_which() {
    let pools = start(pooling(true, Matryoshka::No)).await;
    let chat = json!({ "messages": [{ "role": "user", "content": "x" }] });
    for (path, body) in [("/v1/completions", json!({ "prompt": "x" })), ("/v1/chat/completions", chat)] {
        let answer = pools.post(path, &body).await;
        assert_eq!(answer.error(), (404, "null".into()), "{}", answer.text);
        assert!(answer.text.contains("generates no text"), "{}", answer.text);
    }
    let generates = start(Settings::default()).await;
    for (path, body) in [
        ("/v1/embeddings", json!({ "input": "x" })),
        ("/score", json!({ "text_1": "x", "text_2": "y" })),
        ("/rerank", json!({ "query": "x", "documents": ["y"] })),
    ] {
        let answer = generates.post(path, &body).await;
        assert_eq!(answer.error(), (404, "null".into()), "{}", answer.text);
        assert!(answer.text.contains("--runner pooling"), "{}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_12_a_failed_input_fails_its_request_and_frees_the_rest() {
    let settings = Settings {
        failures: SimFailures { row: 3000, ..SimFailures::default() },
        ..pooling(true, Matryoshka::No)
    };
    let server = start(settings).await;
    let mut statuses = BTreeMap::new();
    for i in 0..30 {
        let input: Vec<Vec<u32>> = (0..4).map(|k| vec![300 + i, 400 + k]).collect();
        let answer = server.post("/v1/embeddings", &json!({ "input": input })).await;
        *statuses.entry(answer.status.as_u16()).or_insert(0) += 1;
    }
    assert_eq!(statuses.keys().copied().collect::<Vec<_>>(), [200, 500], "{statuses:?}");
    server.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_say_where_each_vector_is() {
    let server = start(pooling(false, Matryoshka::No)).await;
    let lists = [vec![300, 301], vec![302]];
    for (format, has_metadata) in [("bytes", true), ("bytes_only", false)] {
        for path in ["/v1/embeddings", "/pooling"] {
            let body = json!({ "input": lists, "encoding_format": format, "endianness": "big" });
            let answer = server.post(path, &body).await;
            assert_eq!(answer.headers["content-type"], "application/octet-stream");
            let floats: Vec<f32> =
                answer.bytes.as_chunks().0.iter().map(|bytes| f32::from_be_bytes(*bytes)).collect();
            assert_eq!(floats, lists.iter().flat_map(|ids| expected(ids)).collect::<Vec<_>>());
            let Some(metadata) = answer.headers.get("metadata") else {
                assert!(!has_metadata);
                continue;
            };
            let metadata: Value = serde_json::from_slice(metadata.as_bytes()).unwrap();
            let half = answer.bytes.len() / 2;
            let second = json!({ "index": 1, "embed_dtype": "float32", "endianness": "big", "start": half,
                                 "end": 2 * half, "shape": [POOLED_WIDTH] });
            assert!(has_metadata && metadata["data"][1] == second, "{metadata}");
            assert_eq!(metadata["usage"]["prompt_tokens"], 3);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coheres_form_of_the_same_vectors() {
    let server = start(pooling(true, Matryoshka::No)).await;
    let ids = |text: &str| tokenizer().encode(text, true).unwrap();
    let post = async |body: Value| server.post("/v2/embed", &body).await;
    let body =
        json!({ "model": "pebble", "texts": ["a pebble", "x"], "embedding_types": ["float", "base64"] });
    let answer = post(body).await.json();
    for (index, text) in ["a pebble", "x"].into_iter().enumerate() {
        assert_close(&numbers(&answer["embeddings"]["float"][index]), &normalized(&expected(&ids(text))));
        assert!(answer["embeddings"]["base64"][index].is_string());
    }
    assert_eq!(
        (&answer["texts"], &answer["meta"]["api_version"]["version"]),
        (&json!(["a pebble", "x"]), &json!("2"))
    );
    assert_eq!(answer["meta"]["billed_units"]["input_tokens"], ids("a pebble").len() + ids("x").len());
    assert!(answer["embeddings"].get("binary").is_none(), "{answer}");
    let asked = post(json!({ "texts": ["x"], "input_type": "query" })).await.json();
    assert_close(&numbers(&asked["embeddings"]["float"][0]), &normalized(&expected(&ids("find: x"))));
    let long = "some words and more of them";
    for (truncate, kept) in [("END", &ids(long)[..2]), ("START", &ids(long)[ids(long).len() - 2..])] {
        let cut = post(json!({ "texts": [long], "truncate": truncate, "max_tokens": 2 })).await.json();
        assert_close(&numbers(&cut["embeddings"]["float"][0]), &normalized(&expected(kept)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn classes_are_probabilities_unless_logits_are_wanted() {
    let ids = [300, 301, 302];
    let logits: Vec<f64> = expected(&ids).iter().map(|x| f64::from(*x)).collect();
    let total: f64 = logits.iter().map(|x| x.exp()).sum();
    for (activation, probs) in [
        (LabelActivation::Softmax, logits.iter().map(|x| x.exp() / total).collect::<Vec<_>>()),
        (LabelActivation::Sigmoid, logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect()),
        (LabelActivation::Identity, logits.clone()),
    ] {
        let server = start(classifying(activation)).await;
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        for (more, expected) in [(json!({}), &probs), (json!({ "use_activation": false }), &logits)] {
            let mut body = json!({ "model": "pebble", "input": [ids, [5]] });
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = server.post("/classify", &body).await.json();
            assert!(answer["id"].as_str().unwrap().starts_with("classify-"), "{answer}");
            let one = &answer["data"][0];
            assert_close(&numbers(&one["probs"]), expected);
            assert_eq!((&one["index"], &one["num_classes"]), (&json!(0), &json!(POOLED_WIDTH)));
            let label = if best == 0 { Value::Null } else { json!(format!("kind {best}")) };
            assert_eq!((&one["label"], &answer["usage"]["prompt_tokens"]), (&label, &json!(4)));
            body["task"] = json!("classify");
            let pooled = server.post("/pooling", &body).await.json();
            assert_close(&numbers(&pooled["data"][0]["data"]), expected);
        }
        for (path, body) in [
            ("/v1/embeddings", json!({ "input": "x" })),
            ("/v2/embed", json!({ "texts": ["x"] })),
            ("/score", json!({ "text_1": "x", "text_2": "y" })),
        ] {
            assert_eq!(server.post(path, &body).await.status, 404, "{path}");
        }
        let cut = json!({ "input": "x", "dimensions": 2 });
        assert_eq!(server.post("/pooling", &cut).await.error(), (400, "dimensions".into()));
        server.wait_until_idle().await;
    }
}
