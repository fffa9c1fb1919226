//! The ways of kernels to the device, over the stand-ins for NVRTC and the driver: what is compiled, what is kept,
//! and that nothing is compiled twice. The stand-in counts its compilations.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use quire_cuda::driver::Context;
use quire_cuda::emulator;
use quire_cuda::image::{Images, Origin, compile_kernels};
use quire_cuda::{KernelError, Kernels};

/// A cache of one test's own, gone at its end. One test at a time: the counts are the process's.
struct Cache {
    folder: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Cache {
    fn new(test: &str) -> Cache {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        emulator::use_stand_in();
        emulator::log_clear();
        let folder = std::env::temp_dir().join(format!("quire-kernels-{test}-{}", std::process::id()));
        Cache { folder, _alone: alone }
    }

    fn images(&self, device: (u32, u32)) -> Images {
        Images::cached_or_compiled(device, Some(&self.folder)).unwrap()
    }

    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Compilations since the last look.
fn compiled() -> u64 {
    let count = emulator::count("nvrtcCompileProgram");
    emulator::log_clear();
    count
}

fn num_sources() -> u64 {
    let kernels = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")).unwrap();
    kernels.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|e| e == "cu")).count()
        as u64
}

#[test]
fn the_second_start_compiles_nothing() {
    let cache = Cache::new("second");
    let first = cache.images((9, 0)).origin;
    assert!(matches!(&first, Origin::Compiled { nvrtc: (13, 0), cached: Some(Ok(_)), .. }), "{first}");
    assert!(first.to_string().starts_with("compiled for sm_90a by NVRTC 13.0, kept in "), "{first}");
    assert_eq!(compiled(), num_sources());
    let second = cache.images((9, 0)).origin;
    assert!(matches!(&second, Origin::Cached(path) if cache.files() == [path.as_path()]), "{second}");
    assert_eq!(compiled(), 0);
    // Another GPU has a file of its own.
    assert!(matches!(cache.images((8, 6)).origin, Origin::Compiled { .. }));
    assert_eq!((compiled(), cache.files().len()), (num_sources(), 2));
}

#[test]
fn a_broken_file_is_compiled_again_and_mended() {
    let cache = Cache::new("broken");
    cache.images((8, 0));
    let file = cache.files().remove(0);
    let good = fs::read(&file).unwrap();
    for broken in [&good[..good.len() / 2], b""] {
        fs::write(&file, broken).unwrap();
        compiled();
        cache.images((8, 0));
        assert_eq!((compiled(), fs::read(&file).unwrap()), (num_sources(), good.clone()));
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_told_and_does_not_matter() {
    let cache = Cache::new("unwritable");
    fs::write(&cache.folder, "a file where the folder would be").unwrap();
    let origin = cache.images((9, 0)).origin;
    assert!(matches!(origin, Origin::Compiled { cached: Some(Err(_)), .. }), "{origin}");
    fs::remove_file(&cache.folder).unwrap();
    let origin = Images::cached_or_compiled((9, 0), None).unwrap().origin;
    assert!(matches!(origin, Origin::Compiled { cached: None, .. }), "{origin}");
}

#[test]
fn what_compile_kernels_writes_is_what_a_gpu_finds() {
    let cache = Cache::new("ahead");
    let file = compile_kernels("sm_90a", &cache.folder).unwrap();
    assert_eq!(compiled(), num_sources());
    assert!(matches!(cache.images((9, 0)).origin, Origin::Cached(path) if path == file));
    assert_eq!(compiled(), 0);
}

#[test]
fn an_architecture_that_is_not_known_is_told_those_that_are() {
    let cache = Cache::new("unknown");
    for arch in ["sm_75", "sm_91", "sm_80a", "compute_90", "hopper", ""] {
        let error = compile_kernels(arch, &cache.folder).unwrap_err().to_string();
        let expected = format!("NVRTC 13.0 does not know {arch}; it knows sm_80, sm_86, ");
        assert!(error.starts_with(&expected), "{error}");
    }
    let error = Images::cached_or_compiled((13, 0), Some(&cache.folder)).unwrap_err().to_string();
    assert!(error.contains("does not know sm_130; it knows sm_80, "), "{error}");
    assert_eq!((compiled(), cache.folder.exists()), (0, false));
}

#[test]
fn kernels_are_found_whichever_file_they_are_in() {
    let cache = Cache::new("found");
    let context = Context::new(0).unwrap();
    let kernels = Kernels::load(&context, cache.images(context.attributes().compute_capability)).unwrap();
    let gather = kernels.function("gather").unwrap();
    assert_ne!(gather, kernels.function("rms_norm_bf16").unwrap());
    assert_eq!(gather, kernels.function("gather").unwrap());
    let error = kernels.function("no_such_kernel").unwrap_err();
    assert!(matches!(&error, KernelError::Unknown(name) if name == "no_such_kernel"), "{error}");
    // The very place that the program gives: its cache, and in it a folder of images.
    let opened = Kernels::open(&context, Some(&cache.folder)).unwrap();
    match opened.origin() {
        Origin::Embedded => assert!(!cache.folder.join("kernels").exists()),
        Origin::Compiled { cached: Some(Ok(path)), .. } => {
            assert!(path.starts_with(cache.folder.join("kernels")))
        }
        other => panic!("{other}"),
    }
}
