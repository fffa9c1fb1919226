//! Files made here, whole and damaged, with candle's reader as the oracle for whole ones.

use std::io::Cursor;

use candle_core::Device;
use candle_core::quantized::gguf_file;

use super::*;
use crate::ggml::{GgmlType, decode_row, quantize};
use crate::philox::uniform;

const SEED: u64 = 23;

/// A file in the making.
#[derive(Default)]
pub(crate) struct Builder {
    version: u32,
    keys: Vec<u8>,
    num_keys: u64,
    tensors: Vec<u8>,
    num_tensors: u64,
    data: Vec<u8>,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self { version: 3, ..Self::default() }
    }

    /// `value` with its type's number before it.
    pub(crate) fn key(mut self, name: &str, kind: u32, value: &[u8]) -> Self {
        put_text(&mut self.keys, name);
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.num_keys += 1;
        self
    }

    pub(crate) fn integer(self, name: &str, value: u32) -> Self {
        self.key(name, 4, &value.to_le_bytes())
    }

    pub(crate) fn text(self, name: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        put_text(&mut bytes, value);
        self.key(name, 8, &bytes)
    }

    pub(crate) fn tensor(mut self, name: &str, kind: GgmlType, shape: &[u64], data: &[u8]) -> Self {
        let number = (0..40).find(|number| GgmlType::from_number(*number) == Ok(kind)).unwrap();
        let offset = self.data.len() as u64;
        self.data.extend(data);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.raw_tensor(name, number, shape, offset)
    }

    fn raw_tensor(mut self, name: &str, kind: u32, shape: &[u64], offset: u64) -> Self {
        put_text(&mut self.tensors, name);
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|size| self.tensors.extend(size.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.num_tensors += 1;
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(self.num_tensors.to_le_bytes());
        file.extend(self.num_keys.to_le_bytes());
        file.extend(&self.keys);
        file.extend(&self.tensors);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&self.data);
        file
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn array(kind: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &len.to_le_bytes(), elements].concat()
}

fn random(len: usize) -> Vec<f32> {
    (0..len).map(|i| uniform(SEED, i as u32) as f32 - 0.5).collect()
}

fn small_file() -> Builder {
    let texts: Vec<u8> = ["a", "", "ß"].iter().fold(Vec::new(), |mut bytes, text| {
        put_text(&mut bytes, text);
        bytes
    });
    let floats: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let file = Builder::new()
        .text("general.architecture", "llama")
        .integer("llama.block_count", 2)
        .key("a.float", 6, &0.25f32.to_le_bytes())
        .key("a.flag", 7, &[1])
        .key("a.negative", 5, &(-7i32).to_le_bytes())
        .key("texts", 9, &array(8, 3, &texts))
        .key("floats", 9, &array(6, 2, &floats));
    GgmlType::ALL.iter().fold(file, |file, kind| {
        let values = quantize(&random(3 * 256), 256, *kind).unwrap();
        file.tensor(&format!("of.{}", kind.name()), *kind, &[3, 256], &values)
    })
}

#[test]
fn what_is_read_is_what_candle_reads() {
    for version in [2, 3] {
        let bytes = Builder { version, ..small_file() }.finish();
        let file = GgufFile::from_bytes(bytes.clone()).unwrap();
        let mut reader = Cursor::new(&bytes);
        let oracle = gguf_file::Content::read(&mut reader).unwrap();
        let metadata = file.metadata();
        assert_eq!(metadata.text("general.architecture"), Ok(Some("llama")));
        assert_eq!(metadata.integer("llama.block_count"), Ok(Some(2)));
        assert_eq!(metadata.number("a.float"), Ok(Some(0.25)));
        assert_eq!(metadata.flag("a.flag"), Ok(Some(true)));
        assert_eq!(metadata.texts("texts").unwrap().unwrap(), ["a", "", "ß"]);
        assert_eq!(metadata.numbers("floats").unwrap().unwrap(), [1.5, -2.0]);
        assert_eq!(metadata.number("nowhere"), Ok(None));
        assert!(
            metadata.integer("a.negative").unwrap_err().contains("\"a.negative\": -7 is not an integer, and")
        );
        assert!(
            metadata
                .texts("floats")
                .unwrap_err()
                .contains("an array of 2 numbers is not an array of strings")
        );

        assert_eq!(file.tensors().count(), oracle.tensor_infos.len());
        for (name, info) in file.tensors() {
            let expected = oracle.tensor(&mut reader, name, &Device::Cpu).unwrap();
            assert_eq!(info.shape, expected.shape().dims(), "{name}");
            let expected: Vec<Vec<f32>> = expected.dequantize(&Device::Cpu).unwrap().to_vec2().unwrap();
            let (_, bytes) = file.tensor(name).unwrap();
            for (row, expected) in bytes.chunks_exact(bytes.len() / 3).zip(&expected) {
                let mut found = vec![0.0; 256];
                decode_row(info.kind, row, 0..256, &mut found);
                assert_eq!(&found, expected, "{name}");
            }
        }
    }
}

/// What is refused, and the words that the refusal must have.
#[test]
fn what_contradicts_itself_is_refused_by_name() {
    let row = [0; 128];
    let huge = u64::MAX.to_le_bytes();
    let cases = [
        (b"GGML".to_vec(), "magic"),
        (b"GGUF\x01\0\0\0".to_vec(), "version 1 is not supported"),
        (b"GGUF\0\0\0\x03".to_vec(), "big-endian"),
        ([b"GGUF\x03\0\0\0", &huge[..], &huge[..]].concat(), "keys: 18446744073709551615 of them"),
        ([b"GGUF\x03\0\0\0", &huge[..], &[0; 8]].concat(), "tensors: 18446744073709551615 of them"),
        (Builder::new().key("k", 8, &huge).finish(), "key \"k\" needs 18446744073709551615 bytes"),
        (
            Builder::new().key("k", 9, &array(4, 1 << 24, &[])).finish(),
            "key \"k\": 16777216 of them need more",
        ),
        (Builder::new().key("k", 9, &array(0, u64::MAX, &[])).finish(), "an array of 18446744073709551615"),
        (Builder::new().key("k", 9, &array(9, 1, &array(9, 1, &[]))).finish(), "array of arrays"),
        (Builder::new().key("k", 13, &[0]).finish(), "key \"k\": no type 13 exists"),
        (Builder::new().key("k", 7, &[2]).finish(), "key \"k\": 2 is neither true"),
        (Builder::new().integer("k", 1).integer("k", 2).finish(), "key \"k\" is there twice"),
        (
            Builder::new().integer("general.alignment", 0).finish(),
            "\"general.alignment\": 0 is not a power of two",
        ),
        (Builder::new().integer("general.alignment", 24).finish(), "24 is not a power of two"),
        (
            Builder::new().text("general.alignment", "32").finish(),
            "\"general.alignment\": \"32\" is not an integer",
        ),
        (Builder::new().raw_tensor("t", 0, &[], 0).finish(), "\"t\" has 0 dimensions"),
        (Builder::new().raw_tensor("t", 0, &[1; 5], 0).finish(), "\"t\" has 5 dimensions"),
        (Builder::new().raw_tensor("t", 0, &[0, 4], 0).finish(), "has no elements"),
        (
            Builder::new().raw_tensor("t", 0, &[1 << 32, 1 << 32], 0).finish(),
            "more elements than there is memory",
        ),
        (Builder::new().raw_tensor("t", 0, &[u64::MAX, 3], 0).finish(), "more elements than there is memory"),
        (
            Builder::new().raw_tensor("t", 23, &[2, 256], 0).finish(),
            "\"t\" is stored as IQ4_XS; supported: F32,",
        ),
        (Builder::new().raw_tensor("t", 4, &[2, 256], 0).finish(), "\"t\" is stored as type 4;"),
        (
            Builder::new().raw_tensor("t", 12, &[2, 96], 0).finish(),
            "rows of 96 are not a multiple of the 256",
        ),
        (
            Builder::new().raw_tensor("t", 0, &[4], 8).finish(),
            "offset 8 is not a multiple of the alignment 32",
        ),
        (
            Builder::new().raw_tensor("t", 0, &[4], 1 << 40).finish(),
            "tensor \"t\": its 16 bytes at offset 1099511627776",
        ),
        (Builder::new().raw_tensor("t", 0, &[4], u64::MAX - 31).finish(), "beyond the end of the file"),
        (
            Builder::new().tensor("t", GgmlType::F32, &[32], &row).raw_tensor("t", 0, &[8], 0).finish(),
            "tensor \"t\" is there twice",
        ),
        (
            Builder::new().tensor("t", GgmlType::F32, &[32], &row).raw_tensor("u", 0, &[8], 64).finish(),
            "tensors \"t\" and \"u\" overlap",
        ),
        (Builder::new().integer("split.count", 3).finish(), "a model in 3 parts, and 1 were found"),
        (
            Builder::new().integer("split.tensors.count", 3).finish(),
            "split into 3 tensors, and the parts have 0",
        ),
    ];
    for (bytes, words) in cases {
        let error = GgufFile::from_bytes(bytes).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn no_damage_makes_it_panic_and_no_cut_goes_unseen() {
    let whole = small_file().finish();
    let end =
        GgufFile::from_bytes(whole.clone()).unwrap().tensors().map(|(_, info)| info.bytes.end).max().unwrap();
    for len in (0..end).step_by(7) {
        assert!(Header::parse(&whole[..len]).is_err(), "cut to {len} of {end} bytes");
    }
    let header_len = end - GgmlType::ALL.iter().map(|kind| 3 * kind.row_bytes(256).unwrap()).sum::<usize>();
    for round in 0..20_000u32 {
        let mut bytes = whole.clone();
        let at = |k: u32| uniform(SEED, 9 * round + k);
        for change in 0..1 + (at(0) * 4.0) as u32 {
            let place = (at(1 + 2 * change) * header_len as f64) as usize;
            let value = at(2 + 2 * change);
            bytes[place] = if value < 0.3 { 0xFF } else { (value * 256.0) as u8 };
        }
        // What is still a file must be one that can be used.
        if let Ok(file) = GgufFile::from_bytes(bytes) {
            for (name, info) in file.tensors() {
                let (_, bytes) = file.tensor(name).unwrap();
                let columns = *info.shape.last().unwrap();
                let row = &bytes[..info.kind.row_bytes(columns).unwrap()];
                decode_row(info.kind, row, 0..columns.min(256), &mut vec![0.0; columns.min(256)]);
            }
        }
    }
}

#[test]
fn parts_are_found_by_name_and_joined() {
    assert_eq!(split_name("a-b-00002-of-00003.gguf"), Some(("a-b", 2, 3)));
    for other in ["a.gguf", "a-00001-of-00003.bin", "a-1-of-3.gguf", "a-00001of-00003.gguf", "-of-.gguf"] {
        assert_eq!(split_name(other), None, "{other}");
    }
    let dir = std::env::temp_dir().join(format!("quire-gguf-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let part = |number: u16| {
        Builder::new()
            .key("split.no", 2, &number.to_le_bytes())
            .key("split.count", 2, &2u16.to_le_bytes())
            .integer("split.tensors.count", 2)
            .tensor(&format!("t{number}"), GgmlType::F32, &[2], &f32::from(number).to_le_bytes().repeat(2))
            .finish()
    };
    let path = |number: u16| dir.join(format!("m-0000{number}-of-00002.gguf"));
    std::fs::write(path(1), part(0)).unwrap();
    let error = GgufFile::open(&path(1)).unwrap_err().to_string();
    assert!(error.contains("m-00002-of-00002.gguf"), "{error}");
    std::fs::write(path(2), part(1)).unwrap();
    let file = GgufFile::open(&path(1)).unwrap();
    assert_eq!(file.tensor("t1").unwrap().1, 1f32.to_le_bytes().repeat(2));
    let error = GgufFile::open(&path(2)).unwrap_err().to_string();
    assert!(error.contains("the first part is the one to give: m-00001-of-00002.gguf"), "{error}");
    std::fs::write(path(2), part(0)).unwrap();
    let error = GgufFile::open(&path(1)).unwrap_err().to_string();
    assert!(error.contains("says to be part 1 of the model, by its name it is part 2"), "{error}");
    std::fs::remove_dir_all(&dir).unwrap();
}

/// A model without weights to speak of.
fn settings(architecture: &str, num_layers: u32, changes: &[(&str, u32)]) -> Builder {
    let usual = [
        ("block_count", num_layers),
        ("embedding_length", 64),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("context_length", 128),
    ];
    let mut file = Builder::new().text("general.architecture", architecture);
    let eps = format!("{architecture}.attention.layer_norm_rms_epsilon");
    file = file.key(&eps, 6, &1e-5f32.to_le_bytes());
    for (name, value) in usual {
        let value = changes.iter().find(|(changed, _)| *changed == name).map_or(value, |(_, value)| *value);
        file = file.integer(&format!("{architecture}.{name}"), value);
    }
    for (name, value) in changes.iter().filter(|(name, _)| !usual.iter().any(|(known, _)| known == name)) {
        file = file.integer(&format!("{architecture}.{name}"), *value);
    }
    for layer in 0..num_layers.min(50) {
        file = file.tensor(&format!("blk.{layer}.attn_norm.weight"), GgmlType::F32, &[1], &[0; 4]);
    }
    file.tensor("token_embd.weight", GgmlType::F16, &[10, 64], &[0; 1280])
}

fn config(file: Builder) -> Result<serde_json::Value, String> {
    let file = GgufFile::from_bytes(file.finish()).unwrap();
    let text = file.config_json().map_err(|error| error.to_string())?;
    Ok(serde_json::from_str(&text).unwrap())
}

#[test]
fn settings_are_those_of_the_same_model_in_a_folder() {
    let factors: Vec<u8> = [1f32, 1.0, 2.0, 8.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let llama = settings("llama", 2, &[("attention.key_length", 8), ("rope.dimension_count", 8)])
        .tensor("rope_freqs.weight", GgmlType::F32, &[4], &factors)
        .tensor("output.weight", GgmlType::F16, &[10, 64], &[0; 1280]);
    let found = config(llama).unwrap();
    assert_eq!(found["architectures"], serde_json::json!(["LlamaForCausalLM"]));
    assert_eq!((&found["head_dim"], &found["vocab_size"]), (&8.into(), &10.into()));
    assert_eq!((&found["tie_word_embeddings"], &found["torch_dtype"]), (&false.into(), &"float16".into()));
    assert_eq!(found["rope_scaling"]["long_factor"], serde_json::json!([1.0, 1.0, 2.0, 8.0]));
    assert_eq!(found["rope_scaling"]["attention_factor"], 1.0);

    let window = [("attention.sliding_window", 32)];
    let mistral = config(settings("llama", 2, &window)).unwrap();
    assert_eq!(mistral["architectures"], serde_json::json!(["MistralForCausalLM"]));
    assert_eq!((&mistral["sliding_window"], &mistral["head_dim"]), (&32.into(), &16.into()));
    // Of the largest Gemma 2, queries are scaled by what a head is of the residual stream.
    for (num_layers, scalar) in [(26, 32), (46, 16)] {
        let changes = [("attention.sliding_window", 32), ("attention.key_length", 32)];
        let gemma = config(settings("gemma2", num_layers, &changes)).unwrap();
        assert_eq!(gemma["query_pre_attn_scalar"], scalar, "{num_layers} layers");
        assert_eq!(
            (&gemma["layer_types"][0], &gemma["layer_types"][1]),
            (&"sliding_attention".into(), &"full_attention".into())
        );
        assert_eq!(gemma["tie_word_embeddings"], true);
    }
    let changes = [("attention.key_length", 96), ("rope.dimension_count", 72)];
    let share = config(settings("phi3", 2, &changes)).unwrap()["partial_rotary_factor"].as_f64().unwrap();
    assert_eq!((share * 96.0) as usize, 72);
}

#[test]
fn settings_that_mean_nothing_are_refused_by_key() {
    let cases = [
        (settings("bert", 2, &[]), "\"bert\" is not supported; supported: llama, qwen2,"),
        (Builder::new(), "key \"general.architecture\" is missing"),
        (settings("llama", u32::MAX, &[]), "key \"llama.block_count\": 4294967295; at most"),
        (
            settings("gemma3", 1 << 20, &[]),
            "key \"gemma3.block_count\": 1048576 layers, and there are 51 tensors",
        ),
        (settings("llama", 2, &[("attention.head_count", 0)]), "key \"llama.attention.head_count\": 0 heads"),
        (settings("llama", 2, &[("expert_count", 513)]), "key \"llama.expert_count\": 513; at most 512"),
        (settings("llama", 2, &[("expert_count", 8)]), "key \"llama.expert_used_count\" is missing"),
        (
            settings("llama", 2, &[("rope.dimension_count", 8)]),
            "8 is not supported; supported: the whole head, 16",
        ),
        (
            settings("qwen3", 2, &[("attention.key_length", 16), ("attention.value_length", 8)]),
            "\"qwen3.attention.value_length\": 8",
        ),
        (settings("gemma2", 2, &[]), "key \"gemma2.attention.sliding_window\" is missing"),
        (
            settings("qwen2", 2, &[]).text("qwen2.rope.scaling.type", "dynamic"),
            "\"dynamic\" is not supported",
        ),
        (
            settings("qwen2", 2, &[]).text("qwen2.rope.scaling.type", "yarn"),
            "\"qwen2.rope.scaling.original_context_length\" is",
        ),
    ];
    for (file, words) in cases {
        let error = config(file).expect_err(words);
        assert!(error.contains(words), "{words}: {error}");
    }
}
