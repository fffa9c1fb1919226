//! The text of every kernel, always embedded, so that NVRTC can compile it for the GPU that is found at run time.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Writes `sources.rs` to `OUT_DIR`: `SOURCES`, the name and the text of each file in `kernels/`, in order of names.
pub fn embed() {
    println!("cargo:rerun-if-changed=kernels");
    let mut table = "pub(crate) static SOURCES: &[(&str, &str)] = &[\n".to_owned();
    for path in files(&["cu", "cuh"]) {
        let name = path.file_name().and_then(|name| name.to_str()).expect("names of kernels are UTF-8");
        writeln!(table, "    ({name:?}, include_str!({path:?})),").expect("a string takes all");
    }
    table.push_str("];\n");
    fs::write(out_dir().join("sources.rs"), table).expect("OUT_DIR can be written");
}

/// The files in `kernels/` with one of these extensions, in order of names.
pub fn files(extensions: &[&str]) -> Vec<PathBuf> {
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("kernels");
    let entries = fs::read_dir(folder).expect("there is a folder of kernels");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("it can be read").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| extensions.iter().any(|wanted| e == *wanted)));
    paths.sort();
    paths
}

/// Where cargo wants what is generated.
pub fn out_dir() -> PathBuf {
    env::var_os("OUT_DIR").expect("cargo sets it").into()
}
