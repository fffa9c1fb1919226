//! [`Device`]: what computes. Chosen once at the start; from here on the program sees a `ModelRunner` and a number
//! of bytes for the KV cache.

#[cfg(feature = "cuda")]
use std::sync::Arc;

use quire_cpu::{CpuBackend, CpuOptions};
#[cfg(feature = "cuda")]
use quire_cuda::{CudaBackend, CudaOptions, MemoryPlan, Unavailable, driver::Context, open_gpu};
use quire_model::{
    Backend, Checkpoint, Dtype, KvDtype, KvGroups, LoraTargets, Model, ModelSpec, Progress, Runner,
    RunnerConfig,
};
use quire_scheduler::ModelRunner;

use crate::config::{DeviceChoice, EngineConfig, ModelSource, WeightDtype};
use crate::load::LoadError;

/// KV cache of the demo model, if nothing else is asked for: 43,000 tokens, and little for a laptop.
const DEMO_KV_CACHE_BYTES: u64 = 128 << 20;
/// KV cache of other models on a CPU, if nothing else is asked for (vLLM's VLLM_CPU_KVCACHE_SPACE).
const CPU_KV_CACHE_BYTES: u64 = 4 << 30;

/// What the doors let into one request must have room in a slot on the GPU: biases, stop tokens, bad words, and
/// as many end tokens of the model as bad words.
#[cfg(feature = "cuda")]
const _: () = {
    use crate::validate::{MAX_BAD_WORDS, MAX_TOKEN_LIST};
    use quire_cuda::sampling::{MAX_RULES, MAX_WORDS};
    assert!(2 * (MAX_TOKEN_LIST + MAX_BAD_WORDS) <= MAX_RULES && MAX_BAD_WORDS <= MAX_WORDS);
};

/// The CPU, or a GPU that has been opened.
#[derive(Debug)]
pub enum Device {
    /// All cores that the process may use.
    Cpu,
    /// One NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Gpu(Arc<Context>),
}

/// Memory for a KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvMemory {
    /// Bytes to use.
    pub bytes: u64,
    /// Bytes that there are, at most.
    pub available_bytes: u64,
}

/// Why the device that was asked for cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The program was built for the CPU alone.
    #[error("this program was built without CUDA (cargo feature `cuda`); use --device cpu")]
    NotBuiltIn,
    /// A GPU keeps keys and values in one type.
    #[cfg(feature = "cuda")]
    #[error(
        "--kv-cache-dtype {asked} is not built for GPUs yet; allowed: auto, {own} (what the model computes in)"
    )]
    KvDtype {
        /// What was asked for.
        asked: &'static str,
        /// What there is.
        own: &'static str,
    },
    /// There is nothing that rounded activations could be multiplied by as integers.
    #[error(
        "--activation-dtype int8 is for weights of integers of 8 bits or fewer, and this model has none; \
         --quantization int8 or q8_0 makes them so"
    )]
    NoIntegerWeights,
    /// A GPU does not round activations.
    #[cfg(feature = "cuda")]
    #[error(
        "--activation-dtype int8 is not built for GPUs yet; allowed: float32 (as the model computes), or --device cpu"
    )]
    Int8Activations,
    /// There is none.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl Device {
    /// The device asked for; with `auto`, GPU 0 if it can be used.
    pub fn choose(choice: DeviceChoice) -> Result<Self, DeviceError> {
        match choice {
            DeviceChoice::Cpu => Ok(Self::Cpu),
            #[cfg(feature = "cuda")]
            DeviceChoice::Cuda(ordinal) => Ok(Self::Gpu(open_gpu(ordinal)?)),
            #[cfg(feature = "cuda")]
            DeviceChoice::Auto => Ok(match open_gpu(0) {
                Ok(gpu) => Self::Gpu(gpu),
                Err(Unavailable::NoDriver) => Self::Cpu,
                Err(reason) => {
                    tracing::warn!(%reason, "computing on the CPU");
                    Self::Cpu
                }
            }),
            #[cfg(not(feature = "cuda"))]
            DeviceChoice::Cuda(_) => Err(DeviceError::NotBuiltIn),
            #[cfg(not(feature = "cuda"))]
            DeviceChoice::Auto => Ok(Self::Cpu),
        }
    }

    /// Whether hidden states can be pooled on it.
    pub fn can_pool(&self) -> bool {
        matches!(self, Self::Cpu)
    }

    /// Tokens in a step if the operator does not say: what keeps the device busy without making others wait.
    pub fn default_max_num_batched_tokens(&self) -> u32 {
        match self {
            Self::Cpu => 2048,
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => 8192,
        }
    }

    /// What the KV cache keeps of a number. On the CPU, float32 unless told otherwise: what is computed in f32 is not
    /// rounded without being asked. On a GPU, what the model computes in, and nothing else.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(unused_variables, clippy::unnecessary_wraps, reason = "a GPU refuses")
    )]
    pub fn kv_dtype(&self, config: &EngineConfig, spec: &ModelSpec) -> Result<KvDtype, DeviceError> {
        match self {
            Self::Cpu => Ok(config.kv_cache_dtype.unwrap_or(KvDtype::F32)),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => {
                let own = compute_dtype(config, spec).into();
                match config.kv_cache_dtype.filter(|asked| *asked != own) {
                    None => Ok(own),
                    Some(asked) => Err(DeviceError::KvDtype { asked: asked.name(), own: own.name() }),
                }
            }
        }
    }

    /// Whether activations are rounded to 8 bits for products by weights of integers; a GPU refuses.
    #[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "a GPU refuses"))]
    pub fn int8_activations(&self, config: &EngineConfig) -> Result<bool, DeviceError> {
        match self {
            Self::Cpu => Ok(config.int8_activations),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) if config.int8_activations => Err(DeviceError::Int8Activations),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => Ok(false),
        }
    }

    /// Which layers share the memory of the KV cache. On a GPU none do, and nothing is freed before a sequence ends.
    pub fn kv_groups(&self, config: &EngineConfig, spec: &ModelSpec) -> KvGroups {
        match self {
            Self::Cpu if config.hybrid_kv_cache => KvGroups::by_window(spec),
            _ => KvGroups::one(spec),
        }
    }

    /// What the KV cache may have, by the configuration and what is free now. `limits` are those of the runner to
    /// be, but for the number of blocks.
    pub fn kv_memory(
        &self,
        config: &EngineConfig,
        spec: &ModelSpec,
        limits: &RunnerConfig,
    ) -> Result<KvMemory, LoadError> {
        let available_bytes = self.available_kv_bytes(config, spec, limits)?;
        let default_bytes = match (&config.model, self) {
            (ModelSource::Demo, _) => DEMO_KV_CACHE_BYTES,
            (ModelSource::Folder(_) | ModelSource::Gguf(_), Self::Cpu) => CPU_KV_CACHE_BYTES,
            #[cfg(feature = "cuda")]
            (ModelSource::Folder(_) | ModelSource::Gguf(_), Self::Gpu(_)) => u64::MAX,
        };
        let bytes = config.kv_cache_memory_bytes.unwrap_or(default_bytes.min(available_bytes));
        Ok(KvMemory { bytes, available_bytes })
    }

    #[cfg_attr(
        not(feature = "cuda"),
        expect(clippy::unnecessary_wraps, unused_variables, reason = "a GPU needs them")
    )]
    fn available_kv_bytes(
        &self,
        config: &EngineConfig,
        spec: &ModelSpec,
        limits: &RunnerConfig,
    ) -> Result<u64, LoadError> {
        match self {
            Self::Cpu => Ok((available_memory_bytes() as f64 * config.gpu_memory_utilization) as u64),
            #[cfg(feature = "cuda")]
            Self::Gpu(context) => {
                let dtype = compute_dtype(config, spec);
                let (limits, share) = (limits.step_limits(spec), config.gpu_memory_utilization);
                let plan = MemoryPlan::new(context, spec, &limits, dtype, share)
                    .map_err(|error| LoadError::Backend(error.into()))?;
                tracing::info!(device = context.attributes().name, "memory: {plan}");
                Ok(plan.kv_bytes())
            }
        }
    }

    /// Loads the model and takes all memory; gives the layers that adapters may change, too. Called on the thread that will own the runner.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "only a GPU has a choice"))]
    pub fn runner(
        self,
        config: &EngineConfig,
        spec: ModelSpec,
        checkpoint: &Checkpoint,
        limits: RunnerConfig,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Box<dyn ModelRunner>, LoraTargets), LoadError> {
        match self {
            Self::Cpu => {
                let (kv_dtype, groups) = (self.kv_dtype(config, &spec)?, self.kv_groups(config, &spec));
                let mut backend = CpuBackend::new(CpuOptions::default())?
                    .with_kv_dtype(kv_dtype)
                    .with_int8_activations(self.int8_activations(config)?);
                let model = Model::load(&mut backend, spec, checkpoint, progress)?;
                match backend.num_integer_matrices() {
                    0 if config.int8_activations => return Err(DeviceError::NoIntegerWeights.into()),
                    0 => {}
                    count => tracing::info!(count, "matrices are multiplied by activations of 8 bits"),
                }
                boxed(Runner::with_kv_groups(backend, model, limits, groups)?, config)
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(ref context) => {
                let mut backend =
                    CudaBackend::new(context, cuda_options(config, compute_dtype(config, &spec)))?;
                tracing::info!("kernels: {}", backend.kernels().origin());
                let model = Model::load(&mut backend, spec, checkpoint, progress)?;
                boxed(Runner::new(backend, model, limits)?, config)
            }
        }
    }
}

/// With room for adapters, if there are to be any.
fn boxed<B: Backend + 'static>(
    runner: Runner<B>,
    config: &EngineConfig,
) -> Result<(Box<dyn ModelRunner>, LoraTargets), LoadError> {
    let runner = match &config.lora {
        Some(lora) => runner.with_adapters(lora.limits.max_rank)?,
        None => runner,
    };
    let targets = runner.lora_targets().clone();
    Ok((Box::new(runner), targets))
}

/// `--dtype`; `None` = as stored.
pub fn weight_dtype(config: &EngineConfig) -> Option<Dtype> {
    match config.dtype {
        WeightDtype::Auto => None,
        WeightDtype::F32 => Some(Dtype::F32),
        WeightDtype::F16 => Some(Dtype::F16),
        WeightDtype::Bf16 => Some(Dtype::Bf16),
    }
}

/// What a GPU computes in.
#[cfg(feature = "cuda")]
fn compute_dtype(config: &EngineConfig, spec: &ModelSpec) -> Dtype {
    weight_dtype(config).unwrap_or(spec.dtype)
}

#[cfg(feature = "cuda")]
fn cuda_options(config: &EngineConfig, dtype: Dtype) -> CudaOptions {
    CudaOptions {
        batch_invariant: config.batch_invariant,
        graphs: !config.enforce_eager,
        cache_dir: cache_dir(),
        warn: |warning| tracing::warn!("{warning}"),
        ..CudaOptions::new(dtype)
    }
}

/// Where things are kept that can be made again: `$XDG_CACHE_HOME/quire`, or `~/.cache/quire`. `None` where there
/// is no home.
pub fn cache_dir() -> Option<std::path::PathBuf> {
    let absolute =
        |name: &str| std::env::var_os(name).map(std::path::PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    base.map(|base| base.join("quire"))
}

/// What this process can still get: what the kernel says, or less where a control group (a container's limit)
/// allows less; all of memory where neither says.
fn available_memory_bytes() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok());
    // Version 2; "max" instead of a number means no limit.
    let cgroup = |file: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse().ok()
    };
    let contained = cgroup("memory.max").map(|max| max.saturating_sub(cgroup("memory.current").unwrap_or(0)));
    kib.map_or(u64::MAX, |kib| kib * 1024).min(contained.unwrap_or(u64::MAX))
}
