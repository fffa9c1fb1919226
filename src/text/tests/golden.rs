//! The demo model's recorded prompts: template, encoding and decoding as transformers did them.

use serde_json::Value;

use super::super::{ChatInput, ChatTemplate, TextError, Tokenizer};
use super::{asset, pebble};

#[test]
fn golden_prompts_encode_render_and_decode_alike() {
    let golden: Value = serde_json::from_slice(&std::fs::read(asset("golden.json")).unwrap()).unwrap();
    let tokenizer = pebble();
    let template = ChatTemplate::from_tokenizer(&tokenizer).unwrap().expect("pebble has a template");
    let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let mut num_rendered = 0;
    for case in golden["cases"].as_array().unwrap() {
        let name = &case["name"];
        let prompt = case["prompt"].as_str().unwrap();
        assert_eq!(tokenizer.encode(prompt, true).unwrap(), ids(&case["prompt_ids"]), "{name}");
        assert_eq!(tokenizer.decode(&ids(&case["prompt_ids"]), false), prompt, "{name}");
        assert_eq!(tokenizer.decode(&ids(&case["output_ids"]), true), case["output_text"], "{name}");
        if let Some(messages) = case["messages"].as_array() {
            let input = ChatInput {
                messages,
                tools: case["tools"].as_array().map(Vec::as_slice),
                add_generation_prompt: true,
                ..Default::default()
            };
            assert_eq!(template.render(&input).unwrap(), prompt, "{name}");
            num_rendered += 1;
        }
    }
    assert!(num_rendered > 0);
}

#[test]
fn special_tokens_come_from_the_config() {
    let tokenizer = pebble();
    assert_eq!(tokenizer.eos_token_id(), Some(2));
    assert_eq!(tokenizer.pad_token_id(), Some(0));
    assert_eq!(tokenizer.bos_token_id(), None);
    assert_eq!(tokenizer.vocab_size(), 2048);
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(3) && !tokenizer.is_special(9_999));
    assert_eq!(tokenizer.token_str(3).as_deref(), Some("<tool_call>"));
    assert_eq!(tokenizer.token_str(9_999), None);
}

#[test]
fn a_checkpoint_directory_may_keep_its_template_and_tokens_in_files_of_their_own() {
    let dir = std::env::temp_dir().join(format!("quire-text-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    let missing = Tokenizer::from_dir(&dir).unwrap_err();
    assert!(
        matches!(&missing, TextError::Read { path, .. } if path.ends_with("tokenizer.json")),
        "{missing}"
    );

    std::fs::copy(asset("model/tokenizer.json"), dir.join("tokenizer.json")).unwrap();
    write("tokenizer_config.json", r#"{"chat_template": "config", "eos_token": {"content": "<|im_end|>"}}"#);
    write("special_tokens_map.json", r#"{"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}"#);
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    assert_eq!(tokenizer.chat_template_source(), Some("config"));
    assert_eq!((tokenizer.eos_token_id(), tokenizer.pad_token_id()), (Some(2), Some(0)));

    write("chat_template.jinja", "file");
    assert_eq!(Tokenizer::from_dir(&dir).unwrap().chat_template_source(), Some("file"));
    write("special_tokens_map.json", "{");
    let broken = Tokenizer::from_dir(&dir).unwrap_err();
    assert!(matches!(&broken, TextError::BadFile { file: "special_tokens_map.json", .. }), "{broken}");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn token_texts_join_to_the_whole_text() {
    let tokenizer = pebble();
    let text = " Once upon a time: é 🦊\n";
    let ids = tokenizer.encode(text, false).unwrap();
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).collect();
    assert_eq!(bytes, text.as_bytes());
    assert!(tokenizer.token_text(ids[0]).starts_with(' '));
    assert!(ids.iter().any(|&id| tokenizer.token_text(id).contains('\u{FFFD}')), "the fox is several tokens");
}
