//! Reads an adapter's folder: adapter_config.json and adapter_model.safetensors.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use candle_core::safetensors::SliceSafetensors;
use sha2::{Digest, Sha256};

use super::config::AdapterConfig;
use super::error::LoraError;
use super::targets::{LoraTarget, LoraTargets};
use super::{LoraPart, LoraWeights};
use crate::checkpoint::{TensorData, TensorView};
use crate::spec::Dtype;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// What PEFT puts in front of the names of a model's modules.
const PREFIX: &str = "base_model.model.";

/// The two matrices of one module, by their names in the file.
#[derive(Default)]
struct Pair {
    a: Option<String>,
    b: Option<String>,
}

impl LoraWeights {
    /// Reads the adapter in `dir` for a model with these layers. `rounded_to` rounds its numbers to those that the type
    /// has; they are kept and computed with in f32.
    pub fn read(
        dir: &Path,
        targets: &LoraTargets,
        max_rank: usize,
        rounded_to: Option<Dtype>,
    ) -> Result<Self, LoraError> {
        let read = |name| std::fs::read(dir.join(name));
        let config = read(CONFIG).map_err(|source| match source.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                LoraError::Missing { path: dir.into(), file: CONFIG }
            }
            _ => LoraError::Io { path: dir.join(CONFIG), source },
        })?;
        let weights = read(WEIGHTS).map_err(|source| LoraError::Io { path: dir.join(WEIGHTS), source });
        Self::from_bytes(&config, weights, targets, max_rank, rounded_to).map_err(|error| match error {
            LoraError::Malformed { path, reason } => LoraError::Malformed { path: dir.join(path), reason },
            error => error,
        })
    }

    /// The same, of files that are in memory. What is wrong with the first goes before what kept the second from being
    /// read.
    pub fn from_bytes(
        config: &[u8],
        weights: Result<Vec<u8>, LoraError>,
        targets: &LoraTargets,
        max_rank: usize,
        rounded_to: Option<Dtype>,
    ) -> Result<Self, LoraError> {
        let damaged = |path: &str, reason: String| LoraError::Malformed { path: path.into(), reason };
        let text = std::str::from_utf8(config).map_err(|e| damaged(CONFIG, e.to_string()))?;
        let settings = AdapterConfig::from_json(text)?;
        if settings.rank > max_rank {
            return Err(LoraError::Rank { rank: settings.rank, most: max_rank });
        }
        let weights = weights?;
        let tensors = SliceSafetensors::new(&weights).map_err(|e| damaged(WEIGHTS, e.to_string()))?;
        let reader = Reader { tensors, settings, targets, max_rank, rounded_to };
        let mut parts = Vec::new();
        for (module, pair) in reader.pairs()? {
            parts.push(reader.part(&module, pair)?);
        }
        Ok(Self::new(parts, digest(config, &weights, rounded_to)))
    }
}

struct Reader<'a> {
    tensors: SliceSafetensors<'a>,
    settings: AdapterConfig,
    targets: &'a LoraTargets,
    max_rank: usize,
    rounded_to: Option<Dtype>,
}

impl Reader<'_> {
    /// The modules of the file. Each tensor must be a matrix of one.
    fn pairs(&self) -> Result<BTreeMap<String, Pair>, LoraError> {
        let mut names: Vec<String> = self.tensors.tensors().into_iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
        for name in names {
            let Some((module, is_a)) = split(&name) else {
                let reason =
                    "is no lora_A.weight or lora_B.weight of a linear layer; nothing else is supported";
                return Err(LoraError::Tensor { name, reason: reason.into() });
            };
            let pair = pairs.entry(module.to_owned()).or_default();
            let place = if is_a { &mut pair.a } else { &mut pair.b };
            if let Some(other) = place {
                let reason = format!("is for the same layer as {other:?}");
                return Err(LoraError::Tensor { name, reason });
            }
            *place = Some(name);
        }
        match pairs.is_empty() {
            true => Err(LoraError::Malformed { path: WEIGHTS.into(), reason: "it has no tensors".into() }),
            false => Ok(pairs),
        }
    }

    fn part(&self, module: &str, pair: Pair) -> Result<LoraPart, LoraError> {
        let alone =
            |name: String, other| LoraError::Tensor { name, reason: format!("has no {other} beside it") };
        let (a, b) = match pair {
            Pair { a: Some(a), b: Some(b) } => (a, b),
            Pair { a: Some(a), .. } => return Err(alone(a, "lora_B")),
            Pair { b, .. } => return Err(alone(b.unwrap_or_default(), "lora_A")),
        };
        let Some(target) = self.targets.get(module) else {
            let reason = format!(
                "adapters cannot change {module:?} of this model; they can change {}",
                self.targets.kinds()
            );
            return Err(LoraError::Tensor { name: a, reason });
        };
        let rank = self.rank(&a, target)?;
        let b = self.matrix(&b, [target.outputs, rank])?;
        let b = match &target.order {
            None => b,
            Some(order) => order.iter().flat_map(|row| &b[row * rank..][..rank]).copied().collect(),
        };
        Ok(LoraPart {
            projection: target.projection,
            columns: target.columns.clone(),
            rank,
            scaling: self.settings.scaling(module, rank),
            a: self.matrix(&a, [rank, target.inputs])?,
            b,
        })
    }

    /// The rank that a first matrix has, if it is one that it may have.
    fn rank(&self, name: &str, target: &LoraTarget) -> Result<usize, LoraError> {
        let found = self.shape(name)?;
        let (inputs, config) = (target.inputs, &self.settings);
        let fits = |rank: usize| rank > 0 && (config.has_rank_pattern || rank == config.rank);
        match found[..] {
            [rank, columns] if columns == inputs && fits(rank) && rank <= self.max_rank => Ok(rank),
            [rank, columns] if columns == inputs && fits(rank) => {
                Err(LoraError::Rank { rank, most: self.max_rank })
            }
            _ => {
                let rank = if config.has_rank_pattern { "rank".into() } else { config.rank.to_string() };
                Err(LoraError::Shape { name: name.into(), found, expected: format!("[{rank}, {inputs}]") })
            }
        }
    }

    fn matrix(&self, name: &str, expected: [usize; 2]) -> Result<Vec<f32>, LoraError> {
        let found = self.shape(name)?;
        if found != expected {
            return Err(LoraError::Shape { name: name.into(), found, expected: format!("{expected:?}") });
        }
        let view = self.view(name)?;
        let rounded = match self.rounded_to {
            Some(dtype) => {
                let data = TensorData::Stored(view.bytes_as(dtype).into_owned().into());
                TensorView { dtype, shape: view.shape.clone(), data }
            }
            None => view,
        };
        let bytes = rounded.bytes_as(Dtype::F32);
        Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>, LoraError> {
        Ok(self.tensors.get(name).map_err(|e| unreadable(name, &e))?.shape().to_vec())
    }

    fn view(&self, name: &str) -> Result<TensorView<'_>, LoraError> {
        let view = self.tensors.get(name).map_err(|e| unreadable(name, &e))?;
        let dtype = match candle_core::DType::try_from(view.dtype()) {
            Ok(candle_core::DType::F32) => Dtype::F32,
            Ok(candle_core::DType::BF16) => Dtype::Bf16,
            Ok(candle_core::DType::F16) => Dtype::F16,
            _ => {
                let reason = format!("is stored as {:?}; supported: F32, BF16, F16", view.dtype());
                return Err(LoraError::Tensor { name: name.into(), reason });
            }
        };
        Ok(TensorView { dtype, shape: view.shape().to_vec(), data: TensorData::Stored(view.data().into()) })
    }
}

fn unreadable(name: &str, error: &candle_core::Error) -> LoraError {
    LoraError::Tensor { name: name.into(), reason: error.to_string() }
}

/// The module that a tensor belongs to, and whether it is the first of its two matrices.
fn split(name: &str) -> Option<(&str, bool)> {
    let module = name.strip_suffix(".weight")?;
    let module = module.strip_prefix(PREFIX).unwrap_or(module);
    let (module, matrix) = module.rsplit_once('.')?;
    match matrix {
        "lora_A" => Some((module, true)),
        "lora_B" => Some((module, false)),
        _ => None,
    }
}

fn digest(config: &[u8], weights: &[u8], rounded_to: Option<Dtype>) -> String {
    let mut hasher = Sha256::new();
    hasher.update((config.len() as u64).to_le_bytes());
    hasher.update(config);
    hasher.update(weights);
    hasher.update(format!("{rounded_to:?}"));
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
