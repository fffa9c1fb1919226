//! Measures the CUDA backend on a GPU: what the GPU can do (ceilings), each kernel at the shapes of real models, and
//! whole steps of these models with made-up weights. Figures are shares of a roofline; each says how its bytes and
//! operations are counted.
//!
//!     gpu_bench [--only ceilings,kernels,steps] [--out FILE] [--cache DIR] [--batch-invariant] [--smoke] CONFIG...
//!
//! A CONFIG is a folder with a config.json. Shares of steps outside kernels need both pieces, kernels and steps.
//! `--batch-invariant` measures steps in that mode. `--smoke` is for a machine without a GPU: small shapes, over the
//! libraries that stand in for NVIDIA's (`LD_LIBRARY_PATH`), to see that the program works; its times mean nothing.

mod ceilings;
mod kernels;
mod random;
mod report;
mod sizes;
mod step;
mod timer;
mod whole_steps;
mod work;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quire_cuda::driver::Context;
use quire_cuda::{CudaBackend, CudaOptions, open_gpu};
use quire_model::{BackendError, Dtype, ModelSpec};
use serde_json::json;

use kernels::KernelBench;
use report::{KERNEL_COLUMNS, Report};
use sizes::Sizes;
use whole_steps::Measurement;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const PIECES: [&str; 3] = ["ceilings", "kernels", "steps"];

struct Args {
    only: Vec<String>,
    out: Option<PathBuf>,
    cache: PathBuf,
    batch_invariant: bool,
    sizes: Sizes,
    configs: Vec<PathBuf>,
}

fn main() {
    if let Err(error) = Args::parse(std::env::args().skip(1)).and_then(|args| run(&args)) {
        eprintln!("gpu_bench: {error}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<()> {
    let context = open_gpu(0)?;
    let attributes = context.attributes();
    println!("{}, {} multiprocessors", attributes.name, attributes.num_sms);
    let common = json!({ "gpu": attributes.name, "smoke": args.sizes.is_smoke });
    let mut report = Report::new(args.out.as_deref(), common)?;
    let mut backend = open_backend(&context, &args.cache, false)?;
    println!("kernels: {}", backend.kernels().origin());
    // Everything else is a share of these.
    let ceilings = ceilings::measure(&mut backend, args.sizes, &mut report)?;
    drop(backend);
    for folder in &args.configs {
        let spec = ModelSpec::from_dir(folder)?;
        let name = folder.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let mut kernels_us = Vec::new();
        if args.wants("kernels") {
            report.heading(&format!("{name}: kernels"), KERNEL_COLUMNS);
            let both = (args.sizes, ceilings);
            kernels_us = KernelBench::new(&context, &args.cache, (&name, &spec), both, &mut report)?.run()?;
        }
        if args.wants("steps") {
            let what = Measurement {
                name: &name,
                spec: &spec,
                sizes: args.sizes,
                ceilings,
                kernels_us: &kernels_us,
                batch_invariant: args.batch_invariant,
            };
            whole_steps::measure(&context, &args.cache, &what, &mut report)?;
        }
    }
    Ok(())
}

/// A backend as the server makes it: graphs, and products chosen by timing, which are remembered in `cache`.
fn open_backend(
    context: &Arc<Context>,
    cache: &Path,
    batch_invariant: bool,
) -> std::result::Result<CudaBackend, BackendError> {
    let options = CudaOptions {
        batch_invariant,
        cache_dir: Some(cache.to_owned()),
        warn: |warning| println!("warning: {warning}"),
        ..CudaOptions::new(Dtype::Bf16)
    };
    CudaBackend::new(context, options)
}

impl Args {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut args = Self {
            only: Vec::new(),
            out: None,
            cache: std::env::temp_dir().join("gpu_bench"),
            batch_invariant: false,
            sizes: Sizes::REAL,
            configs: Vec::new(),
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--only" => args.only = value()?.split(',').map(str::to_owned).collect(),
                "--out" => args.out = Some(value()?.into()),
                "--cache" => args.cache = value()?.into(),
                "--batch-invariant" => args.batch_invariant = true,
                "--smoke" => args.sizes = Sizes::SMOKE,
                _ if word.starts_with('-') => return Err(format!("{word} is not a flag").into()),
                _ => args.configs.push(word.into()),
            }
        }
        match args.only.iter().find(|piece| !PIECES.contains(&piece.as_str())) {
            Some(piece) => Err(format!("{piece} is not among {}", PIECES.join(", ")).into()),
            None => Ok(args),
        }
    }

    fn wants(&self, piece: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == piece)
    }
}
