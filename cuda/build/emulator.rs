//! The libraries that stand in for NVIDIA's in tests: the kernels and `emulator/`, compiled for the host.
//!
//! The C++ compiler is `CXX`, or `c++`. What is made lies in a folder of `OUT_DIR`, under the names by which the
//! loader asks for NVIDIA's libraries; the crate gets the folder's path as `QUIRE_EMULATOR_LIBRARIES`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::SystemTime;
use std::{env, fs};

use crate::sources;

/// No contraction: a product and a sum are rounded each, whatever the compiler and the host can do.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
];

/// A misaligned access is a fault on the GPU and nothing on the host: emulator/misaligned.cc reports it.
const KERNEL_FLAGS: &[&str] =
    &["-g1", "-fsanitize=alignment", "-fno-sanitize-recover=alignment", "-x", "c++"];

/// Not for ThreadSanitizer itself: the calls before each load and store go to emulator/accesses.cc.
const WATCHED_FLAGS: &[&str] = &["-fsanitize=thread"];

/// Each library with its sources besides the kernels (which are in the driver's), and the name of the file that
/// programs built for NVIDIA's ask for.
const LIBRARIES: &[(&str, &str, &[&str])] = &[
    (
        "libcuda.so",
        "libcuda.so.1",
        &[
            "driver",
            "stream",
            "record",
            "emulator",
            "fiber",
            "warp",
            "memory",
            "misaligned",
            "accesses",
            "selftest",
            "selftest_watched",
            "planted",
        ],
    ),
    ("libnvrtc.so", "libnvrtc.so.13", &["nvrtc"]),
    ("libcublasLt.so", "libcublasLt.so.13", &["cublaslt", "product"]),
];

/// Compiles what has changed, and links all.
pub fn build() -> Result<(), String> {
    println!("cargo:rerun-if-changed=emulator");
    println!("cargo:rerun-if-env-changed=CXX");
    let folder = sources::out_dir().join("emulator");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    println!("cargo:rustc-env=QUIRE_EMULATOR_LIBRARIES={}", folder.display());
    let own = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("emulator");
    let source = |name: &&str| {
        let kernels = own.join(name).with_extension("cu");
        if kernels.is_file() { kernels } else { own.join(name).with_extension("cc") }
    };
    let mut groups: Vec<Vec<PathBuf>> = LIBRARIES.iter().map(|l| l.2.iter().map(source).collect()).collect();
    groups[0].extend(sources::files(&["cu"]));
    compile(&groups.concat(), &folder)?;
    for ((name, alias, _), group) in LIBRARIES.iter().zip(&groups) {
        let objects: Vec<PathBuf> = group.iter().map(|source| object(source, &folder)).collect();
        link(name, alias, &objects, &folder)?;
    }
    Ok(())
}

fn compiler() -> Command {
    Command::new(env::var("CXX").unwrap_or_else(|_| "c++".into()))
}

fn is_kernels(source: &Path) -> bool {
    source.extension().is_some_and(|extension| extension == "cu")
}

/// All kernels but those self-tests that show what is seen without watching.
fn is_watched(source: &Path) -> bool {
    is_kernels(source) && source.file_stem().is_some_and(|stem| stem != "selftest")
}

fn object(source: &Path, folder: &Path) -> PathBuf {
    let name = source.file_name().and_then(|name| name.to_str()).expect("names of sources are UTF-8");
    folder.join(format!("{name}.o"))
}

/// Compiles those sources that are newer than their objects, or all if a header or this file is.
fn compile(all: &[PathBuf], folder: &Path) -> Result<(), String> {
    let own = all[0].parent().expect("a file in a folder");
    let mut common = sources::files(&["cuh"]);
    common.push(Path::new("build/emulator.rs").to_owned());
    let entries = fs::read_dir(own).map_err(|e| format!("{}: {e}", own.display()))?;
    common.extend(
        entries.filter_map(|e| e.ok()).map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "h")),
    );
    let newest = common.iter().filter_map(|path| modified(path)).max();
    let newest_kernel = sources::files(&["cu"]).iter().filter_map(|path| modified(path)).max();
    let mut stale: Vec<&PathBuf> = all.iter().collect();
    stale.retain(|source| {
        let made = modified(&object(source, folder));
        // Kernels in emulator/ may include others.
        let includes = if source.parent() == Some(own) { newest_kernel } else { None };
        made.is_none() || made < modified(source) || made < newest || made < includes
    });
    // Those that take longest first.
    stale.sort_by_key(|source| std::cmp::Reverse(fs::metadata(source).map_or(0, |data| data.len())));
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let queue = Mutex::new(stale.into_iter());
    let next = || queue.lock().expect("nobody panics").next();
    let work = || std::iter::from_fn(next).try_for_each(|source| compile_one(source, folder));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("nobody panics"))
    })
}

fn compile_one(source: &Path, folder: &Path) -> Result<(), String> {
    let mut command = compiler();
    command.args(FLAGS);
    if is_kernels(source) {
        command.args(KERNEL_FLAGS);
    }
    if is_watched(source) {
        command.args(WATCHED_FLAGS);
    }
    command.arg("-c").arg(source).arg("-o").arg(object(source, folder));
    let status = command
        .status()
        .map_err(|e| format!("feature `emulator` needs a C++ compiler (CXX, or c++): {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} does not compile for the host; see above", source.display()))
    }
}

/// The library's own name is the one cudarc tries first: the loader then takes an open library of that name and
/// looks no further.
fn link(name: &str, alias: &str, objects: &[PathBuf], folder: &Path) -> Result<(), String> {
    let mut command = compiler();
    command.arg("-shared").arg(format!("-Wl,-soname,{name}")).args(objects).arg("-o").arg(folder.join(name));
    if name != LIBRARIES[0].0 {
        command.arg("-L").arg(folder).args(["-lcuda", "-Wl,-rpath,$ORIGIN"]);
    }
    let status = command.status().map_err(|e| format!("the C++ compiler: {e}"))?;
    if !status.success() {
        return Err(format!("{name} cannot be linked; see above"));
    }
    let alias = folder.join(alias);
    if !alias.exists() {
        std::os::unix::fs::symlink(name, &alias).map_err(|e| format!("{}: {e}", alias.display()))?;
    }
    Ok(())
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|data| data.modified()).ok()
}
