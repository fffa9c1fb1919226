//! Images made ahead of time: one compressed fatbin for each `.cu` file, where an nvcc is found. Without one the
//! crate builds just as well, and kernels are compiled by NVRTC when a GPU is first used.
//!
//! - `QUIRE_CUDA_ARCHS`: what a fatbin holds, with commas: `sm_N` is machine code, `compute_N` is PTX, which the
//!   driver translates for any later GPU. The default covers every GPU from compute capability 8.0 on.
//! - `QUIRE_CUDA_AOT`: `auto` is the default; `require` makes a missing or failing nvcc an error; `off` skips it.
//! - The nvcc is the first of `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `.cuda/` (see `check/compile.sh`), `PATH`,
//!   `/usr/local/cuda`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{env, fs};

use crate::sources;

/// Machine code for A100, H100/H200 and B200, and what runs on all between and after: sm_80 code on 8.6 and 8.9,
/// sm_100 code on 10.3, and PTX of compute_80, the oldest that is supported, on 12.0 and later.
const DEFAULT_ARCHS: &str = "sm_80,sm_90a,sm_100,compute_80";

/// Writes `fatbins.rs` to `OUT_DIR`: `FATBIN_ARCHS`, and `FATBINS`, each with the name of its file without `.cu`.
/// Both are empty if nothing was compiled. An error only if the environment asks for what cannot be had.
pub fn embed() -> Result<(), String> {
    let env = |name: &str| {
        println!("cargo:rerun-if-env-changed={name}");
        env::var(name).ok().filter(|value| !value.is_empty())
    };
    let mode = env("QUIRE_CUDA_AOT").unwrap_or_else(|| "auto".into());
    let archs = env("QUIRE_CUDA_ARCHS").unwrap_or_else(|| DEFAULT_ARCHS.into());
    let archs: Vec<&str> = archs.split(',').map(str::trim).collect();
    let flags = archs.iter().map(|arch| generate(arch)).collect::<Result<Vec<_>, _>>()?;
    let nvcc = find_nvcc(&env)?;
    let required = mode == "require";
    let compiled = match (mode.as_str(), nvcc) {
        ("off", _) | ("auto", None) => None,
        ("require", None) => return Err("QUIRE_CUDA_AOT=require, and no nvcc was found".into()),
        ("auto" | "require", Some(nvcc)) => match compile(&nvcc, &flags) {
            Ok(images) => Some(images),
            Err(error) if required => return Err(error),
            Err(error) => {
                let first = error.lines().take(3).collect::<Vec<_>>().join(" / ");
                println!(
                    "cargo:warning=kernels are left to NVRTC at run time (QUIRE_CUDA_AOT=off hides this): {first}"
                );
                None
            }
        },
        _ => return Err(format!("QUIRE_CUDA_AOT={mode}: must be auto, require or off")),
    };
    write_table(compiled.as_deref().map(|images| (&*archs, images)));
    Ok(())
}

/// nvcc's flag for one entry of `QUIRE_CUDA_ARCHS`.
fn generate(arch: &str) -> Result<String, String> {
    let number = arch.strip_prefix("sm_").or_else(|| arch.strip_prefix("compute_"));
    let number = number.filter(|n| n.starts_with(|c: char| c.is_ascii_digit()));
    let number =
        number.ok_or_else(|| format!("QUIRE_CUDA_ARCHS: `{arch}` must be like sm_90a or compute_80"))?;
    Ok(format!("-gencode=arch=compute_{number},code={arch}"))
}

fn find_nvcc(env: &dyn Fn(&str) -> Option<String>) -> Result<Option<PathBuf>, String> {
    let named = env("NVCC").map(PathBuf::from);
    if let Some(nvcc) = named.as_ref().filter(|nvcc| !nvcc.is_file()) {
        return Err(format!("NVCC={}: no such file", nvcc.display()));
    }
    let homes = [env("CUDA_HOME"), env("CUDA_PATH")].into_iter().flatten();
    let mut found: Vec<PathBuf> = named.into_iter().collect();
    found.extend(homes.map(|home| Path::new(&home).join("bin/nvcc")));
    let manifest_dir = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    found.push(Path::new(&manifest_dir).join("../.cuda/nvidia/cu13/bin/nvcc"));
    // A change of PATH alone does not build anew: it differs between any two shells.
    found
        .extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()).map(|folder| folder.join("nvcc")));
    found.push("/usr/local/cuda/bin/nvcc".into());
    Ok(found.into_iter().find(|nvcc| nvcc.is_file()))
}

/// One nvcc a file, as many at a time as cargo allows. The images, or what the first that failed has said.
fn compile(nvcc: &Path, flags: &[String]) -> Result<Vec<(String, PathBuf)>, String> {
    println!("cargo:rerun-if-changed={}", nvcc.display());
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let mut images = Vec::new();
    for some in sources::files(&["cu"]).chunks(jobs) {
        let start = |file: &PathBuf| start(nvcc, flags, file).map_err(|e| format!("{}: {e}", nvcc.display()));
        for child in some.iter().map(start).collect::<Vec<_>>() {
            let (stem, image, child) = child?;
            let done = child.wait_with_output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
            if !done.status.success() {
                let said = String::from_utf8_lossy(&done.stderr);
                return Err(format!("{} failed on {stem}.cu: {}", nvcc.display(), said.trim()));
            }
            images.push((stem, image));
        }
    }
    Ok(images)
}

fn start(nvcc: &Path, flags: &[String], file: &Path) -> std::io::Result<(String, PathBuf, Child)> {
    let stem =
        file.file_stem().and_then(|stem| stem.to_str()).expect("names of kernels are UTF-8").to_owned();
    let image = sources::out_dir().join(format!("{stem}.fatbin"));
    let mut command = Command::new(nvcc);
    command.args(["-O3", "-std=c++17", "-fatbin", "--compress-mode=size"]).args(flags);
    command.arg(file).arg("-o").arg(&image).stderr(Stdio::piped());
    Ok((stem, image, command.spawn()?))
}

fn write_table(compiled: Option<(&[&str], &[(String, PathBuf)])>) {
    let (archs, images) = compiled.unwrap_or_default();
    let mut table =
        format!("static FATBIN_ARCHS: &[&str] = &{archs:?};\nstatic FATBINS: &[(&str, &[u8])] = &[\n");
    for (stem, image) in images {
        writeln!(table, "    ({stem:?}, include_bytes!({image:?})),").expect("a string takes all");
    }
    table.push_str("];\n");
    fs::write(sources::out_dir().join("fatbins.rs"), table).expect("OUT_DIR can be written");
}
