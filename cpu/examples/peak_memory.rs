//! How much memory a load takes at its peak: `cargo run --release -p quire-cpu --example peak_memory -- FOLDER
//! [float32|float16|bfloat16]`. Linux only, which says what a process has had at most.

use std::path::Path;

use quire_cpu::{CpuBackend, CpuOptions};
use quire_model::{Checkpoint, Dtype, Model, ModelSpec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (folder, dtype) = match &arguments[..] {
        [folder] => (folder, None),
        [folder, name] => (folder, Some(dtype(name)?)),
        _ => return Err("give a model's folder, and perhaps a type to convert to".into()),
    };
    let folder = Path::new(folder);
    let mut backend = CpuBackend::new(CpuOptions::default())?;
    let before = peak_mib()?;
    let start = std::time::Instant::now();
    let checkpoint = Checkpoint::open(folder)?;
    let checkpoint = match dtype {
        Some(dtype) => checkpoint.converted_to(dtype),
        None => checkpoint,
    };
    let spec = ModelSpec::from_dir(folder)?;
    let model_bytes = spec.num_parameters() * dtype.unwrap_or(spec.dtype).bytes();
    let _model = Model::load(&mut backend, spec, &checkpoint, &mut |_| {})?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "model {} MiB; peak {} MiB, of it {before} MiB before the load; {seconds:.2} s",
        model_bytes >> 20,
        peak_mib()?
    );
    Ok(())
}

fn dtype(name: &str) -> Result<Dtype, String> {
    match name {
        "float32" => Ok(Dtype::F32),
        "float16" => Ok(Dtype::F16),
        "bfloat16" => Ok(Dtype::Bf16),
        other => Err(format!("{other:?} is not one of float32, float16, bfloat16")),
    }
}

fn peak_mib() -> Result<u64, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? >> 10)
}
