//! config.json to `ModelSpec`: what is understood, and what is refused by name.

use quire_model::{
    AttentionSpec, Dtype, LmHead, ModelError, ModelSpec, NormKind, NormSpan, QkNormSpec, RopeScaling,
};
use serde_json::{Value, json};

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 24, "intermediate_size": 40,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "bfloat16",
    })
}

/// `base` with some fields replaced; `null` values included.
fn with(mut base: Value, fields: Value) -> Value {
    let object = base.as_object_mut().unwrap();
    for (name, value) in fields.as_object().unwrap() {
        object.insert(name.clone(), value.clone());
    }
    base
}

fn spec(config: &Value) -> ModelSpec {
    ModelSpec::from_json(&config.to_string(), None).unwrap()
}

/// Of the first layer.
fn attention(spec: &ModelSpec) -> AttentionSpec {
    spec.layers[0].attention.clone()
}

fn windows(spec: &ModelSpec) -> Vec<Option<u32>> {
    spec.layers.iter().map(|layer| layer.attention.sliding_window).collect()
}

#[test]
fn defaults_follow_transformers() {
    let plain = spec(&llama());
    assert_eq!(plain.dtype, Dtype::Bf16);
    assert_eq!((attention(&plain).head_dim, plain.ropes()[0].theta), (6, 10_000.0));
    assert_eq!(plain.ropes()[0].scaling, RopeScaling::None);
    assert!(
        plain.lm_head == LmHead::Own
            && !attention(&plain).qkv_bias
            && !plain.layers[0].mlp.dense().unwrap().bias
    );
    assert_eq!(attention(&plain).scale, 6f32.powf(-0.5));
    let one = with(llama(), json!({"num_key_value_heads": null, "torch_dtype": null}));
    assert_eq!((attention(&spec(&one)).num_kv_heads, spec(&one).dtype), (4, Dtype::F32));
    let newer = with(llama(), json!({"dtype": "float16", "torch_dtype": null}));
    assert_eq!(spec(&newer).dtype, Dtype::F16);
    let qwen3 = with(llama(), json!({"architectures": ["Qwen3ForCausalLM"]}));
    assert_eq!(attention(&spec(&qwen3)).head_dim, 128);
    let head_norm = QkNormSpec { kind: NormKind::Rms, span: NormSpan::Head };
    assert_eq!(attention(&spec(&qwen3)).qk_norm, Some(head_norm));
    let qwen2 = with(llama(), json!({"architectures": ["Qwen2ForCausalLM"]}));
    assert!(attention(&spec(&qwen2)).qkv_bias && !attention(&spec(&qwen2)).output_bias);
    for (family, has_bias) in
        [("LlamaForCausalLM", true), ("Qwen3ForCausalLM", true), ("MistralForCausalLM", false)]
    {
        let config = with(llama(), json!({"architectures": [family], "attention_bias": true}));
        let attention = attention(&spec(&config));
        assert_eq!((attention.qkv_bias, attention.output_bias), (has_bias, has_bias), "{family}");
    }
}

#[test]
fn old_and_new_forms_of_rope_mean_the_same() {
    let scaling = json!({
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    });
    let old = with(scaling.clone(), json!({"type": "llama3"}));
    let old = with(llama(), json!({"rope_theta": 5e5, "rope_scaling": old}));
    let new = with(scaling, json!({"rope_type": "llama3", "rope_theta": 5e5}));
    let new = with(llama(), json!({"rope_parameters": new}));
    assert_eq!(spec(&old).positions, spec(&new).positions);
    assert!(matches!(spec(&old).ropes()[0].scaling, RopeScaling::Llama3 { .. }));
    let plain = with(llama(), json!({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}));
    let rope = spec(&plain).ropes()[0].clone();
    assert_eq!((rope.theta, rope.scaling), (7.0, RopeScaling::None));
}

#[test]
fn windows_apply_as_each_family_says() {
    let family = |name: &str, more: Value| {
        with(with(llama(), json!({"architectures": [name], "sliding_window": 9})), more)
    };
    let w = Some(9);
    assert_eq!(windows(&spec(&family("LlamaForCausalLM", json!({})))), [None, None, None]);
    assert_eq!(windows(&spec(&family("MistralForCausalLM", json!({})))), [w, w, w]);
    assert_eq!(windows(&spec(&family("Qwen2ForCausalLM", json!({"max_window_layers": 1})))), [None; 3]);
    let on = json!({"max_window_layers": 1, "use_sliding_window": true});
    assert_eq!(windows(&spec(&family("Qwen3ForCausalLM", on))), [None, w, w]);
    let types = json!({"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]});
    assert_eq!(windows(&spec(&family("MistralForCausalLM", types))), [w, None, w]);
}

#[test]
fn end_tokens_come_from_both_files() {
    let config = with(llama(), json!({"eos_token_id": 7})).to_string();
    let ids = |generation: Option<&str>| ModelSpec::from_json(&config, generation).unwrap().eos_token_ids;
    assert_eq!(ids(None), [7]);
    assert_eq!(ids(Some(r#"{"eos_token_id": [9, 7, 3]}"#)), [3, 7, 9]);
    assert_eq!(ids(Some(r#"{"temperature": 0.6}"#)), [7]);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let cases = [
        (json!({"architectures": ["MambaForCausalLM"]}), "MambaForCausalLM"),
        (json!({"architectures": []}), "architectures"),
        (json!({"hidden_act": "mish"}), "hidden_act"),
        (json!({"torch_dtype": "float8_e4m3fn"}), "dtype"),
        (json!({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}), "dynamic"),
        (json!({"rope_scaling": {"rope_type": "yarn"}}), "factor"),
        (json!({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}), "short_factor"),
        (json!({"rope_scaling": {"factor": 4.0}}), "rope_scaling"),
        (json!({"rope_scaling": {"rope_type": "linear"}}), "factor"),
        (json!({"rope_scaling": {"rope_type": "linear", "factor": -1.0}}), "factor"),
        (json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}), "rope_scaling"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"), // 3 of 6
        (json!({"quantization_config": {"quant_method": "hqq"}}), "hqq"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        (json!({"head_dim": 7}), "head_dim"),
        (json!({"num_attention_heads": 5, "num_key_value_heads": 5}), "head_dim"),
        (json!({"hidden_size": 0}), "hidden_size"),
        (json!({"vocab_size": null}), "vocab_size"),
        (json!({"layer_types": ["full_attention"]}), "layer_types"),
        (
            json!({"layer_types": ["full_attention", "linear_attention", "full_attention"]}),
            "linear_attention",
        ),
        (json!({"layer_types": ["sliding_attention", "full_attention", "full_attention"]}), "sliding_window"),
        (json!({"eos_token_id": -1}), "eos_token_id"),
        (json!({"rope_theta": -5.0}), "rope_theta"),
    ];
    for (fields, named) in cases {
        let error = ModelSpec::from_json(&with(llama(), fields.clone()).to_string(), None).unwrap_err();
        assert!(error.to_string().contains(named), "{fields} gives {error}");
    }
    assert!(matches!(ModelSpec::from_json("{", None), Err(ModelError::Malformed { .. })));
}

/// Settings of families that transformers would compute with and we do not, each named.
#[test]
fn what_a_family_does_not_compute_is_refused_by_name() {
    let cases = [
        ("Gemma3ForCausalLM", "attn_logit_softcapping", json!(50.0)),
        ("Gemma2ForCausalLM", "use_bidirectional_attention", json!(true)),
        ("GPT2LMHeadModel", "add_cross_attention", json!(true)),
        ("GPT2LMHeadModel", "activation_function", json!("relu")),
        ("OpenELMForCausalLM", "ffn_with_glu", json!(false)),
        ("OpenELMForCausalLM", "normalization_layer_name", json!("layer_norm")),
        ("GraniteForCausalLM", "logits_scaling", json!(0.0)),
        ("SmolLM3ForCausalLM", "no_rope_layers", json!([1, 0])),
        ("OpenELMForCausalLM", "ffn_multipliers", json!([1.0])),
        ("GPTNeoXForCausalLM", "partial_rotary_factor", json!(0.3)),
    ];
    for (architecture, field, value) in cases {
        let openelm = json!({
            "architectures": [architecture], "model_dim": 24, "head_dim": 6, "num_transformer_layers": 3,
            "num_query_heads": [4, 4, 4], "num_kv_heads": [2, 2, 2], "ffn_multipliers": [1.0, 1.5, 2.0],
            "partial_rotary_factor": 1.0,
        });
        let fine = with(llama(), openelm);
        ModelSpec::from_json(&fine.to_string(), None)
            .unwrap_or_else(|error| panic!("{architecture}: {error}"));
        let refused = ModelSpec::from_json(&with(fine, json!({ field: value })).to_string(), None);
        let message = refused.expect_err(field).to_string();
        assert!(message.contains(field), "{architecture}: {message}");
    }
    let falcon = json!({"architectures": ["FalconForCausalLM"], "new_decoder_architecture": true});
    let sequential = with(with(llama(), falcon), json!({"parallel_attn": false}));
    let message = ModelSpec::from_json(&sequential.to_string(), None).unwrap_err().to_string();
    assert!(message.contains("parallel_attn"), "{message}");
}
