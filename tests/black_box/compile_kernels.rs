//! `quire compile-kernels`, as far as it goes on a machine that may have no compiler for GPUs.

use std::time::Duration;

use crate::server::run;

#[test]
fn what_cannot_be_compiled_is_told_in_a_sentence_and_leaves_nothing() {
    let out = std::env::temp_dir().join(format!("quire-no-kernels-{}", std::process::id()));
    let args = ["compile-kernels", "--arch", "hopper", "--out", out.to_str().expect("UTF-8")];
    let output = run(&args, Duration::from_secs(60));
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    let without_nvrtc = said == "error: NVRTC is not on this machine (libnvrtc.so, of the CUDA toolkit)\n";
    let with_nvrtc = said.contains("does not know hopper; it knows sm_80, ");
    assert!((without_nvrtc || with_nvrtc) && said.lines().count() == 1, "{said}");
    assert!(!out.exists());
}

#[test]
fn the_architecture_must_be_said() {
    let output = run(&["compile-kernels"], Duration::from_secs(60));
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--arch"));
}
