//! Images made ahead of time: one compressed fatbin for each `.cu` file, where an nvcc is found. Without one the
//! crate builds just as well, and kernels are compiled by NVRTC when a GPU is first used.
//!
//! - `QUIRE_CUDA_ARCHS`: what a fatbin holds, with commas: `sm_N` is machine code, `compute_N` is PTX, which the
//!   driver translates for any later GPU. The default covers every GPU from compute capability 8.0 on.
//! - `QUIRE_CUDA_AOT`: `auto` is the default; `require` makes a missing or failing nvcc an error; `off` skips it.
//! - The nvcc is the first of `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `.cuda/` (see `check/compile.sh`), `PATH`,
//!   `/usr/local/cuda`.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs, thread};

use crate::sources;

/// Machine code for A100, H100/H200 and B200, and what runs on all between and after: sm_80 code on 8.6 and 8.9,
/// sm_100 code on 10.3, and PTX of compute_80, the oldest that is supported, on 12.0 and later.
const DEFAULT_ARCHS: &str = "sm_80,sm_90a,sm_100,compute_80";

/// The language as for NVRTC (`OPTIONS` in src/image.rs).
const NVCC_OPTIONS: &[&str] = &["-O3", "-std=c++17", "-fatbin", "--compress-mode=size", "-Xptxas", "-v"];

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
    match compiled {
        Some(images) => write_table(&archs, &images),
        None => write_table(&[], &[]),
    }
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

/// A fatbin for each file, made or still good, by its name; or what nvcc said of the first that failed.
fn compile(nvcc: &Path, flags: &[String]) -> Result<Vec<(String, PathBuf)>, String> {
    println!("cargo:rerun-if-changed={}", nvcc.display());
    let mut files = sources::files(&["cu"]);
    let stems =
        files.iter().map(|file| file.file_stem().expect("a file").to_str().expect("UTF-8").to_owned());
    let images = stems.map(|stem| (stem.clone(), sources::out_dir().join(stem + ".fatbin"))).collect();
    // The longest last, where it is taken first, so that no core is left alone with it.
    files.sort_by_key(|file| fs::metadata(file).map_or(0, |data| data.len()));
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let left = Mutex::new(files);
    let work = || -> Result<(), String> {
        let next = || left.lock().expect("no thread panics").pop();
        while let Some(file) = next() {
            compile_one(nvcc, flags, &file)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no thread panics"))
    })?;
    Ok(images)
}

/// Beside the fatbin: `.report` is what ptxas said of each kernel (check/compile.sh reads it), and `.inputs` a hash
/// of what went in, so that an edit of one file compiles one file.
fn compile_one(nvcc: &Path, flags: &[String], file: &Path) -> Result<(), String> {
    let image = sources::out_dir().join(file.file_name().expect("a file")).with_extension("fatbin");
    let (report, inputs) = (image.with_extension("report"), image.with_extension("inputs"));
    let mut hasher = DefaultHasher::new();
    let texts = sources::files(&["cuh"]).into_iter().chain([file.to_owned()]);
    (nvcc, NVCC_OPTIONS, flags, texts.map(|file| fs::read(file).ok()).collect::<Vec<_>>()).hash(&mut hasher);
    let hash = hasher.finish().to_string();
    if image.is_file() && report.is_file() && fs::read_to_string(&inputs).is_ok_and(|known| known == hash) {
        return Ok(());
    }
    let _ = fs::remove_file(&inputs);
    let mut command = Command::new(nvcc);
    command.args(NVCC_OPTIONS).args(flags).arg(file).arg("-o").arg(&image);
    let done = command.output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    let said = String::from_utf8_lossy(&done.stderr);
    if !done.status.success() {
        return Err(format!("{} failed on {}: {}", nvcc.display(), file.display(), said.trim()));
    }
    let written = fs::write(report, &*said).and_then(|()| fs::write(inputs, hash));
    written.map_err(|e| format!("{}: {e}", image.display()))
}

fn write_table(archs: &[&str], images: &[(String, PathBuf)]) {
    let mut table =
        format!("static FATBIN_ARCHS: &[&str] = &{archs:?};\nstatic FATBINS: &[(&str, &[u8])] = &[\n");
    for (stem, image) in images {
        writeln!(table, "    ({stem:?}, include_bytes!({image:?})),").expect("a string takes all");
    }
    table.push_str("];\n");
    fs::write(sources::out_dir().join("fatbins.rs"), table).expect("OUT_DIR can be written");
}
