//! `quire compile-kernels`: makes the CUDA kernels for a GPU on a machine that has none, so that the machine with
//! the GPU needs no compiler.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use quire_cuda::image;

use crate::device;

/// Flags of `quire compile-kernels`.
#[derive(Debug, Args)]
pub(crate) struct CompileKernelsArgs {
    /// What to compile for: sm_80 (A100), sm_89 (L4, L40S), sm_90a (H100, H200), sm_100 (B200), and so on
    #[arg(long, value_name = "ARCH")]
    arch: String,
    /// Folder to write to [default: where `quire serve` looks, ~/.cache/quire/kernels]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Writes the file and prints its path.
pub(crate) fn run(args: CompileKernelsArgs) -> anyhow::Result<()> {
    let looked_in = || Some(image::folder_in(&device::cache_dir()?));
    let folder = args.out.or_else(looked_in).context("neither --out nor HOME says where to write")?;
    println!("{}", image::compile_kernels(&args.arch, &folder)?.display());
    Ok(())
}
