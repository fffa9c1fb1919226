//! Encoders and the files of sentence-transformers: what is understood, and what is refused by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use quire_model::{
    Activation, ClassifierForm, LabelActivation, Labels, LmHead, Matryoshka, ModelError, ModelSpec, Norms,
    PoolerSpec, Pooling, Positions, is_sentence_transformer,
};
use serde_json::{Value, json};

fn bert(fields: Value) -> Value {
    let mut config = json!({
        "architectures": ["BertModel"], "vocab_size": 60, "hidden_size": 30, "intermediate_size": 44,
        "num_hidden_layers": 2, "num_attention_heads": 5, "max_position_embeddings": 40, "hidden_act": "gelu",
    });
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    config
}

fn spec(config: &Value) -> Result<ModelSpec, ModelError> {
    ModelSpec::from_json(&config.to_string(), None)
}

#[test]
fn encoders_are_the_same_line_with_other_settings() {
    let plain = spec(&bert(json!({}))).unwrap();
    assert_eq!(
        (plain.norms, plain.layers[0].mlp.dense().unwrap().activation, plain.causal),
        (Norms::OfSum, Activation::Gelu, false)
    );
    assert_eq!((plain.lm_head, plain.norm.eps, plain.max_position_embeddings), (LmHead::None, 1e-12, 40));
    assert_eq!(plain.positions, Positions::Learned { rows: 40, first: 0, types: 2 });
    assert_eq!(plain.default_pooling(), Pooling::Cls);
    for architecture in ["RobertaModel", "XLMRobertaModel"] {
        let roberta = spec(&bert(json!({ "architectures": [architecture], "pad_token_id": 1 }))).unwrap();
        assert_eq!(roberta.positions, Positions::Learned { rows: 40, first: 2, types: 2 });
        assert_eq!(roberta.max_position_embeddings, 38);
    }
    for (fields, named) in [
        (json!({ "hidden_act": "relu" }), "hidden_act"),
        (json!({ "position_embedding_type": "relative_key" }), "position_embedding_type"),
        (json!({ "is_decoder": true }), "is_decoder"),
        (json!({ "num_attention_heads": 7 }), "num_attention_heads"),
        (json!({ "architectures": ["BertForMaskedLM"] }), "BertForMaskedLM"),
    ] {
        let error = spec(&bert(fields)).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn classifiers_name_their_labels_and_what_becomes_of_logits() {
    let labels = |fields: Value| -> Result<Labels, ModelError> {
        let mut config = bert(json!({ "architectures": ["BertForSequenceClassification"] }));
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let spec = spec(&config)?;
        assert_eq!(spec.classifier.unwrap().form, ClassifierForm::Pooler);
        assert_eq!(spec.pooled_width(), spec.classifier.unwrap().num_labels);
        Ok(PoolerSpec::of(&spec, &config.to_string(), None)?.labels.unwrap())
    };
    let named = |names: &[&str]| names.iter().map(|name| Some((*name).to_owned())).collect::<Vec<_>>();
    let plain = labels(json!({})).unwrap();
    assert_eq!((plain.names, plain.activation), (named(&["LABEL_0", "LABEL_1"]), LabelActivation::Softmax));
    let one = labels(json!({ "id2label": { "0": "fits" } })).unwrap();
    assert_eq!((one.names, one.activation), (named(&["fits"]), LabelActivation::Sigmoid));
    for (fields, expected) in [
        (
            json!({ "num_labels": 1, "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity" }),
            LabelActivation::Identity,
        ),
        (
            json!({ "sentence_transformers": { "activation_fn": "torch.nn.modules.activation.Sigmoid" } }),
            LabelActivation::Softmax,
        ),
        (json!({ "problem_type": "multi_label_classification" }), LabelActivation::Sigmoid),
        (json!({ "problem_type": "regression", "num_labels": 1 }), LabelActivation::Identity),
    ] {
        assert_eq!(labels(fields.clone()).unwrap().activation, expected, "{fields}");
    }
    for (fields, told) in [
        (json!({ "problem_type": "other" }), "problem_type"),
        (json!({ "sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh" }), "Tanh"),
        (json!({ "id2label": {} }), "id2label"),
    ] {
        assert!(labels(fields).unwrap_err().to_string().contains(told), "{told}");
    }
}

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, files: &[(&str, Value)]) -> Self {
        let path = std::env::temp_dir().join(format!("quire-pooler-{name}-{}", std::process::id()));
        std::fs::create_dir_all(path.join("1_Pooling")).unwrap();
        for (file, content) in files {
            std::fs::write(path.join(file), content.to_string()).unwrap();
        }
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn modules(kinds: &[&str]) -> Value {
    let module = |(index, kind): (usize, &&str)| {
        let path = if *kind == "Pooling" { "1_Pooling" } else { "" };
        json!({ "idx": index, "name": index.to_string(), "path": path, "type": format!("sentence_transformers.models.{kind}") })
    };
    kinds.iter().enumerate().map(module).collect()
}

fn pooler(dir: &Path, config: &Value) -> Result<PoolerSpec, ModelError> {
    PoolerSpec::of(&spec(config)?, &config.to_string(), Some(dir))
}

#[test]
fn folders_of_sentence_transformers_say_how() {
    let all = Folder::new(
        "all",
        &[
            ("modules.json", modules(&["Transformer", "Pooling", "Normalize"])),
            (
                "1_Pooling/config.json",
                json!({ "pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false }),
            ),
            ("sentence_bert_config.json", json!({ "max_seq_length": 32, "do_lower_case": false })),
        ],
    );
    assert!(is_sentence_transformer(&all.0));
    let expected = PoolerSpec {
        pooling: Pooling::Mean,
        normalize: true,
        max_seq_length: Some(32),
        matryoshka: Matryoshka::Lengths(vec![8, 16]),
        labels: None,
        prompts: BTreeMap::new(),
    };
    assert_eq!(pooler(&all.0, &bert(json!({ "matryoshka_dimensions": [8, 16] }))).unwrap(), expected);

    let raw = Folder::new(
        "raw",
        &[
            ("modules.json", modules(&["Transformer", "Pooling"])),
            ("1_Pooling/config.json", json!({ "pooling_mode": "lasttoken" })),
        ],
    );
    let found = pooler(&raw.0, &bert(json!({ "is_matryoshka": true }))).unwrap();
    assert_eq!((found.pooling, found.normalize, found.matryoshka), (Pooling::Last, false, Matryoshka::Any));

    let none = Folder::new("none", &[]);
    assert!(!is_sentence_transformer(&none.0));
    let found = pooler(&none.0, &bert(json!({}))).unwrap();
    assert_eq!((found.pooling, found.normalize, found.matryoshka), (Pooling::Cls, true, Matryoshka::No));
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let plain = || json!({ "pooling_mode_mean_tokens": true });
    for (name, kinds, pooling, transformer, told) in [
        ("dense", vec!["Transformer", "Pooling", "Dense"], plain(), json!({}), "Dense"),
        ("max", vec!["Transformer", "Pooling"], json!({ "pooling_mode_max_tokens": true }), json!({}), "max"),
        (
            "two",
            vec!["Transformer", "Pooling"],
            json!({ "pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true }),
            json!({}),
            "cls + mean",
        ),
        ("lower", vec!["Transformer", "Pooling"], plain(), json!({ "do_lower_case": true }), "do_lower_case"),
    ] {
        let files = [
            ("modules.json", modules(&kinds)),
            ("1_Pooling/config.json", pooling),
            ("sentence_bert_config.json", transformer),
        ];
        let folder = Folder::new(name, &files);
        let error = pooler(&folder.0, &bert(json!({}))).unwrap_err().to_string();
        assert!(error.contains(told), "{name}: {error}");
    }
}
