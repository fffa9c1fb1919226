//! [`Quantization`]: how a checkpoint's weights are stored, as `quantization_config` of config.json says, or what
//! they are made at load.

use serde_json::Value;

use crate::error::ModelError;
use crate::quantization::AtLoad;
use crate::quantization::awq::AwqSpec;
use crate::quantization::compressed_tensors::CompressedTensorsSpec;
use crate::quantization::fp8::Fp8Spec;
use crate::quantization::gptq::GptqSpec;

/// What is done about quantisation. Only what tensors do not say themselves is in here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Quantization {
    /// Weights are what the checkpoint says.
    #[default]
    None,
    /// AutoGPTQ, GPTQModel, AutoRound.
    Gptq(GptqSpec),
    /// AutoAWQ.
    Awq(AwqSpec),
    /// DeepSeek, Neural Magic, FBGEMM, ModelOpt.
    Fp8(Fp8Spec),
    /// LLM Compressor.
    CompressedTensors(CompressedTensorsSpec),
    /// bitsandbytes, saved after quantisation.
    BitsAndBytes,
    /// gpt-oss: experts in MXFP4, the rest as it is.
    Mxfp4,
    /// Full precision in the checkpoint, packed when it is loaded.
    AtLoad(AtLoad),
}

const FIELD: &str = "quantization_config";
const METHODS: &str = "gptq, awq, fp8, fbgemm_fp8, modelopt (FP8), compressed-tensors, bitsandbytes, mxfp4, or unquantised weights";

/// What names of such tensors end in.
const OF_ACTIVATIONS: [&str; 11] = [
    "input_scale",
    "input_scale_ub",
    "input_zero_point",
    "input_global_scale",
    "activation_scale",
    "output_scale",
    "output_zero_point",
    "q_scale",
    "prob_scale",
    "k_zero_point",
    "v_zero_point",
];

impl Quantization {
    /// Reads `quantization_config`; `None` and null mean that there is none.
    pub fn from_config(config: Option<&Value>) -> Result<Self, ModelError> {
        let Some(config) = config.filter(|config| !config.is_null()) else { return Ok(Self::None) };
        let method = config["quant_method"].as_str().unwrap_or_default();
        match method {
            "gptq" => gptq(config),
            "awq" => awq(config),
            "fp8" => {
                only(config, "fmt", &["e4m3"])?;
                only(config, "activation_scheme", &["dynamic", "static"])?;
                Ok(Self::Fp8(Fp8Spec { block: block("weight_block_size", &config["weight_block_size"])? }))
            }
            "fbgemm_fp8" => Ok(Self::Fp8(Fp8Spec { block: None })),
            "modelopt" => {
                only(config, "quant_algo", &["FP8"])?;
                Ok(Self::Fp8(Fp8Spec { block: None }))
            }
            "compressed-tensors" => compressed_tensors(config),
            "bitsandbytes" => Ok(Self::BitsAndBytes),
            "mxfp4" => Ok(Self::Mxfp4),
            // bitsandbytes once wrote no method.
            "" if config["load_in_4bit"] == true || config["load_in_8bit"] == true => Ok(Self::BitsAndBytes),
            _ => Err(unsupported("quant_method", &config["quant_method"], METHODS)),
        }
    }

    /// What `--quantization` makes of it: a way to quantise full-precision weights, or the method by which they
    /// are quantised already, under vLLM's names.
    pub fn asked_for(self, flag: &str) -> Result<Self, ModelError> {
        let own = self.names();
        if own.contains(&flag) {
            return Ok(self);
        }
        let reason = match own.first() {
            Some(method) => format!("the checkpoint is quantised already, by {method}"),
            None => match AtLoad::from_name(flag) {
                Some(to) => return Ok(Self::AtLoad(to)),
                None => format!("full-precision weights are made one of {}", AtLoad::NAMES),
            },
        };
        Err(ModelError::Flag { flag: "--quantization", value: flag.into(), reason })
    }

    /// How weights are quantised, by vLLM's name, if they are.
    pub fn name(&self) -> Option<&'static str> {
        match self {
            Self::AtLoad(to) => Some(to.name()),
            stored => stored.names().first().copied(),
        }
    }

    /// What the checkpoint's own method may be called; the first name is the usual one.
    fn names(&self) -> &'static [&'static str] {
        match self {
            Self::None | Self::AtLoad(_) => &[],
            Self::Gptq(_) => &["gptq", "gptq_marlin"],
            Self::Awq(_) => &["awq", "awq_marlin"],
            Self::Fp8(_) => &["fp8", "fbgemm_fp8", "modelopt"],
            Self::CompressedTensors(_) => &["compressed-tensors"],
            Self::BitsAndBytes => &["bitsandbytes"],
            Self::Mxfp4 => &["mxfp4"],
        }
    }

    /// The same for the product that makes logits, and for routers of experts, which stay in full precision where
    /// weights are quantised at load.
    pub fn only_as_stored(&self) -> Self {
        if matches!(self, Self::AtLoad(_)) { Self::None } else { self.clone() }
    }

    /// Whether a tensor says nothing about weights, but how a quantised kernel rounds its activations or its KV cache.
    /// Both stay as they are here.
    pub(crate) fn passes_over(&self, tensor: &str) -> bool {
        let suffix = tensor.rsplit('.').next().unwrap_or_default();
        self.is_stored() && OF_ACTIVATIONS.contains(&suffix)
    }

    /// Whether the checkpoint's own weights are quantised.
    pub fn is_stored(&self) -> bool {
        !matches!(self, Self::None | Self::AtLoad(_))
    }
}

fn gptq(config: &Value) -> Result<Quantization, ModelError> {
    const FORMATS: &[&str] = &["gptq", "gptq_v2"];
    bits(config, "bits", &[2, 3, 4, 8])?;
    only(config, "checkpoint_format", FORMATS)?;
    only(config, "format", FORMATS)?;
    only(config, "pack_dtype", &["int32"])?;
    if config["is_marlin_format"] == true {
        return Err(unsupported("is_marlin_format", &config["is_marlin_format"], "false"));
    }
    let v2 = config["checkpoint_format"] == "gptq_v2" || config["format"] == "gptq_v2";
    let bits = config["bits"].as_u64().map(|bits| bits as usize);
    Ok(Quantization::Gptq(GptqSpec { bits, group_size: group_size(config, "group_size")?, v2 }))
}

fn awq(config: &Value) -> Result<Quantization, ModelError> {
    let width = if config["w_bit"].is_null() { "bits" } else { "w_bit" };
    bits(config, width, &[4])?;
    only(config, "version", &["gemm", "GEMM"])?;
    only(config, "format", &["gemm", "GEMM"])?;
    let group = if config["q_group_size"].is_null() { "group_size" } else { "q_group_size" };
    Ok(Quantization::Awq(AwqSpec { group_size: group_size(config, group)? }))
}

fn compressed_tensors(config: &Value) -> Result<Quantization, ModelError> {
    const FORMATS: &[&str] = &[
        "pack-quantized",
        "int-quantized",
        "float-quantized",
        "naive-quantized",
        "nvfp4-pack-quantized",
        "mxfp4-pack-quantized",
        "mixed-precision",
        "dense",
    ];
    only(config, "format", FORMATS)?;
    only(&config["sparsity_config"], "format", &["dense"])?;
    let transforms = &config["transform_config"]["config_groups"];
    if transforms.as_object().is_some_and(|groups| !groups.is_empty()) {
        return Err(unsupported("transform_config", transforms, "none"));
    }
    let mut blocks = None;
    for group in config["config_groups"].as_object().into_iter().flat_map(|groups| groups.values()) {
        only(group, "format", FORMATS)?;
        let structure = block("block_structure", &group["weights"]["block_structure"])?;
        if blocks.is_some() && structure.is_some() && blocks != structure {
            return Err(unsupported(
                "block_structure",
                &group["weights"]["block_structure"],
                "one for all groups",
            ));
        }
        blocks = blocks.or(structure);
    }
    Ok(Quantization::CompressedTensors(CompressedTensorsSpec { block: blocks }))
}

/// Rows and columns of a block, where the field is there.
fn block(name: &str, value: &Value) -> Result<Option<[usize; 2]>, ModelError> {
    if value.is_null() {
        return Ok(None);
    }
    let size = |index: usize| value[index].as_u64().filter(|size| *size > 0).map(|size| size as usize);
    match (size(0), size(1), value.as_array().map(Vec::len)) {
        (Some(rows), Some(columns), Some(2)) => Ok(Some([rows, columns])),
        _ => Err(invalid(name, value, "two positive integers")),
    }
}

/// Columns of a group; -1 stands for the whole row.
fn group_size(config: &Value, name: &str) -> Result<Option<usize>, ModelError> {
    match config[name].as_i64() {
        Some(-1) => Ok(None),
        Some(size) if size > 0 => Ok(Some(size as usize)),
        None if config[name].is_null() => Ok(Some(128)),
        _ => Err(invalid(name, &config[name], "a positive integer, or -1 for the whole row")),
    }
}

fn bits(config: &Value, name: &str, supported: &[u64]) -> Result<(), ModelError> {
    match config[name].as_u64() {
        Some(bits) if supported.contains(&bits) => Ok(()),
        None if config[name].is_null() => Ok(()),
        _ => Err(unsupported(name, &config[name], &format!("{supported:?}"))),
    }
}

/// Refuses a field that is there and has none of these values.
fn only(config: &Value, name: &str, supported: &[&str]) -> Result<(), ModelError> {
    match &config[name] {
        Value::Null => Ok(()),
        Value::String(value) if supported.contains(&value.as_str()) => Ok(()),
        other => Err(unsupported(name, other, &supported.join(", "))),
    }
}

fn unsupported(name: &str, found: &Value, supported: &str) -> ModelError {
    ModelError::Config {
        field: FIELD,
        reason: format!("{name} = {found} is not supported; supported: {supported}"),
    }
}

fn invalid(name: &str, found: &Value, allowed: &str) -> ModelError {
    ModelError::Config { field: FIELD, reason: format!("{name} = {found} is not {allowed}") }
}
