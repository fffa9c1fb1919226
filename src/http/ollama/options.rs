//! `options` of a request: sampling parameters as Ollama names them, and hints to Ollama's runners.
//!
//! What is not given is the model's own default (generation_config.json), as on every other route, and not
//! Ollama's: those are settings of its model files.

use serde_json::Value;

use crate::http::fields::{Fields, expected_got};
use crate::http::sampling;
use crate::validate::SamplingFields;

/// Reads `options`; errors stay in `fields`.
pub(super) fn read_options(fields: &mut Fields) -> SamplingFields {
    let Some(mut options) = fields.nested("options") else { return SamplingFields::default() };
    let sampling = SamplingFields {
        temperature: options.real("temperature"),
        top_k: options.int("top_k"),
        top_p: options.real("top_p"),
        min_p: options.real("min_p"),
        repetition_penalty: options.real("repeat_penalty"),
        presence_penalty: options.real("presence_penalty"),
        frequency_penalty: options.real("frequency_penalty"),
        seed: options.int("seed"),
        stop: options.string_or_strings("stop").unwrap_or_default(),
        default_max_tokens: num_predict(&mut options),
        ..SamplingFields::default()
    };
    sampling::describe(&options);
    for refused in REFUSED {
        let given = options.take(refused.name);
        options.describe(refused.name, |_| serde_json::json!({ "const": refused.harmless() }));
        if let Some(value) = given
            && value != refused.harmless()
        {
            options.wrong(refused.name, format!("not supported: {}", refused.why));
        }
    }
    HINTS.iter().for_each(|hint| check_hint(&mut options, hint));
    fields.absorb(options);
    sampling
}

/// Tokens to generate at most; as in Ollama, the context ends the answer before if it is full, and 0, -1 and -2
/// mean as many as it holds.
fn num_predict(options: &mut Fields) -> Option<u32> {
    let asked = options.int("num_predict")?;
    if asked < -2 {
        options.wrong("num_predict", format!("must be at least -2, got {asked}"));
    }
    u32::try_from(asked).ok().filter(|&asked| asked > 0)
}

/// An option that would change the answer, and which is not there.
struct Refused {
    name: &'static str,
    /// Asks for what happens anyway; JSON.
    harmless: &'static str,
    why: &'static str,
}

impl Refused {
    fn harmless(&self) -> Value {
        serde_json::from_str(self.harmless).expect("the table has JSON in it")
    }
}

const REFUSED: &[Refused] = &[
    Refused { name: "mirostat", harmless: "0", why: "see temperature, top_p and min_p" },
    Refused { name: "tfs_z", harmless: "1.0", why: "see top_p and min_p" },
    Refused { name: "typical_p", harmless: "1.0", why: "see top_p and min_p" },
    Refused { name: "penalize_newline", harmless: "true", why: "penalties count every token" },
    Refused { name: "repeat_last_n", harmless: "-1", why: "penalties look at prompt and answer as a whole" },
    Refused { name: "vocab_only", harmless: "false", why: "the model is loaded whole" },
    Refused { name: "embedding_only", harmless: "false", why: "the model generates" },
];

/// What Ollama's runners are told when they are started, and what belongs to a sampler that is refused when
/// it is asked for. Here memory, threads and devices are chosen when the server starts, and the context is
/// the model's for every request, so none of these can change an answer.
const HINTS: &[&str] = &[
    "f16_kv",
    "logits_all",
    "low_vram",
    "main_gpu",
    "mirostat_eta",
    "mirostat_tau",
    "num_batch",
    "num_ctx",
    "num_gpu",
    "num_keep",
    "num_thread",
    "numa",
    "use_mlock",
    "use_mmap",
];

fn check_hint(options: &mut Fields, name: &str) {
    match options.take(name) {
        None | Some(Value::Number(_) | Value::Bool(_)) => (),
        Some(other) => options.wrong(name, expected_got("a number or a boolean", &other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json;

    fn read(options: &str) -> Result<SamplingFields, String> {
        let body = format!(r#"{{"options":{options}}}"#);
        let mut fields = Fields::new(json::parse(body.as_bytes()).unwrap());
        let sampling = read_options(&mut fields);
        fields.finish().map(|()| sampling).map_err(|error| error.to_json())
    }

    #[test]
    fn options_are_sampling_parameters() {
        let sampling = read(
            r#"{"temperature":0.5,"top_k":5,"top_p":0.9,"min_p":0.1,"repeat_penalty":1.1,"presence_penalty":1,
                "frequency_penalty":-1,"seed":7,"stop":["a","b"],"num_predict":9,"num_ctx":4096,"num_gpu":1}"#,
        )
        .unwrap();
        assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p), (Some(0.5), Some(5), Some(0.9)));
        assert_eq!((sampling.min_p, sampling.repetition_penalty), (Some(0.1), Some(1.1)));
        assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (Some(1.0), Some(-1.0)));
        assert_eq!((sampling.seed, sampling.stop.len()), (Some(7), 2));
        assert_eq!((sampling.max_tokens, sampling.default_max_tokens), (None, Some(9)));
        for unlimited in [0, -1, -2] {
            assert_eq!(read(&format!(r#"{{"num_predict":{unlimited}}}"#)).unwrap().default_max_tokens, None);
        }
    }

    #[test]
    fn options_that_would_change_the_answer_are_refused_by_name() {
        for refused in REFUSED {
            read(&format!(r#"{{"{}":{}}}"#, refused.name, refused.harmless)).unwrap();
            let error = read(&format!(r#"{{"{}":64}}"#, refused.name)).unwrap_err();
            assert!(error.contains(&format!("options.{}", refused.name)), "{error}");
        }
        assert!(read(r#"{"num_predict":-3}"#).unwrap_err().contains("options.num_predict"));
        assert!(read(r#"{"num_ctx":"big"}"#).unwrap_err().contains("options.num_ctx"));
        read(r#"{"made_up":1}"#).unwrap();
    }
}
