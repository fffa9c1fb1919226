//! How kernels become something that a GPU can run: images. They are, in this order,
//!
//! 1. in the program, where an nvcc was at hand when it was built (`build/fatbin.rs`) and they cover the GPU;
//! 2. in the cache on disk, from an earlier start, or from [`compile_kernels`] on another machine;
//! 3. compiled now, by NVRTC for the very GPU, and put into the cache.
//!
//! A file of the cache is named by all that its content depends on, so that none is ever out of date: sources and
//! options (as a hash), architecture and NVRTC version. Where NVRTC is missing, one made by any version will do.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fmt, fs, io, thread};

use sha2::{Digest, Sha256};

use crate::arch::{Arch, ComputeCapability, LEAST, target_runs_on};
use crate::image_file::{self, CompiledModule};
use crate::nvrtc::{Nvrtc, NvrtcError};

include!(concat!(env!("OUT_DIR"), "/sources.rs"));
include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Beside the architecture. nvcc is given the same (`build/fatbin.rs`).
const OPTIONS: &[&str] = &["--std=c++17"];

const EXTENSION: &str = "kernels";

/// Every kernel, for one GPU.
#[derive(Debug)]
pub struct Images {
    /// Where they come from.
    pub origin: Origin,
    pub(crate) modules: Vec<CompiledModule>,
}

/// Where images come from.
#[derive(Debug)]
pub enum Origin {
    /// They are part of the program.
    Embedded,
    /// From this file.
    Cached(PathBuf),
    /// Compiled just now.
    Compiled {
        /// For what.
        arch: Arch,
        /// NVRTC's major and minor.
        nvrtc: (u32, u32),
        /// The file that spares this next time, or why there is none. `None` if there is no cache.
        cached: Option<Result<PathBuf, io::Error>>,
    },
}

/// Why there are no images.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The GPU is too old.
    #[error("the GPU has compute capability {}.{}, and {}.{} is the least that is supported", .0.0, .0.1, LEAST.0, LEAST.1)]
    TooOld(ComputeCapability),
    /// Nothing was made ahead of time, and nothing can be made now.
    #[error(
        "no kernels for {arch}: there are none in this program, none in {cache}, and NVRTC, which would compile \
         them, is not on this machine (libnvrtc.so, of the CUDA toolkit); install it, or run `quire \
         compile-kernels --arch {arch} --out DIR` where it is and copy what is in DIR to {cache}"
    )]
    NoCompiler {
        /// For what.
        arch: Arch,
        /// The cache, in words.
        cache: String,
    },
    /// NVRTC is missing, and was to be used.
    #[error("NVRTC is not on this machine (libnvrtc.so, of the CUDA toolkit)")]
    NoNvrtc,
    /// NVRTC cannot compile for this.
    #[error("NVRTC {}.{} does not know {arch}; it knows {known}", nvrtc.0, nvrtc.1)]
    UnknownArch {
        /// What was asked for.
        arch: String,
        /// NVRTC's major and minor.
        nvrtc: (u32, u32),
        /// What it knows that is supported.
        known: String,
    },
    /// NVRTC refuses a kernel.
    #[error("NVRTC cannot compile {file} for {arch}: {reason}")]
    Compile {
        /// Under `kernels/`.
        file: &'static str,
        /// For what.
        arch: Arch,
        /// Its log.
        reason: String,
    },
    /// NVRTC itself does not work.
    #[error("NVRTC does not work: {0}")]
    Nvrtc(String),
    /// The images could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Images {
    /// The images for a GPU of this compute capability, the first of: in the program, in `cache`, compiled now.
    pub fn for_device(device: ComputeCapability, cache: Option<&Path>) -> Result<Images, ImageError> {
        if device >= LEAST && FATBIN_ARCHS.iter().any(|target| target_runs_on(target, device)) {
            let module =
                |&(name, image): &(&str, &[u8])| CompiledModule { name: name.into(), image: image.into() };
            return Ok(Images { origin: Origin::Embedded, modules: FATBINS.iter().map(module).collect() });
        }
        Images::cached_or_compiled(device, cache)
    }

    /// As [`for_device`](Images::for_device), whatever is in the program.
    pub fn cached_or_compiled(device: ComputeCapability, cache: Option<&Path>) -> Result<Images, ImageError> {
        if device < LEAST {
            return Err(ImageError::TooOld(device));
        }
        let Some(nvrtc) = Nvrtc::open()? else {
            return made_elsewhere(device, cache).ok_or_else(|| ImageError::NoCompiler {
                arch: Arch::best_for(device, &[device.0 * 10 + device.1]).unwrap_or(Arch::of(device)),
                cache: cache
                    .map_or("the cache that HOME would name".into(), |cache| cache.display().to_string()),
            });
        };
        let known = nvrtc.architectures()?;
        let Some(arch) = Arch::best_for(device, &known) else {
            return Err(unknown(&Arch::of(device).to_string(), &nvrtc, &known));
        };
        let path = cache.map(|cache| cache.join(file_name(arch, nvrtc.version)));
        if let Some((path, modules)) = path.as_ref().and_then(|path| Some((path, image_file::read(path)?))) {
            return Ok(Images { origin: Origin::Cached(path.clone()), modules });
        }
        let modules = compile(&nvrtc, arch)?;
        let cached = path.map(|path| image_file::write(&path, &modules).map(|()| path));
        Ok(Images { origin: Origin::Compiled { arch, nvrtc: nvrtc.version, cached }, modules })
    }
}

/// Compiles every kernel for `arch` (such as `sm_90a`) by NVRTC, with no need of a GPU or a driver, and writes the
/// file that [`Images::for_device`] finds if `folder` is, or is copied to, its cache. The file's path.
pub fn compile_kernels(arch: &str, folder: &Path) -> Result<PathBuf, ImageError> {
    let nvrtc = Nvrtc::open()?.ok_or(ImageError::NoNvrtc)?;
    let known = nvrtc.architectures()?;
    let parsed = arch.parse::<Arch>().ok().filter(|arch| arch.is_among(&known));
    let parsed = parsed.ok_or_else(|| unknown(arch, &nvrtc, &known))?;
    let path = folder.join(file_name(parsed, nvrtc.version));
    let modules = compile(&nvrtc, parsed)?;
    match image_file::write(&path, &modules) {
        Ok(()) => Ok(path),
        Err(source) => Err(ImageError::Write { path, source }),
    }
}

/// The folder of images in the folder where the program keeps what can be made again.
pub fn folder_in(cache_dir: &Path) -> PathBuf {
    cache_dir.join("kernels")
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Embedded => write!(f, "in the program, for {}", FATBIN_ARCHS.join(", ")),
            Origin::Cached(path) => write!(f, "from {}", path.display()),
            Origin::Compiled { arch, nvrtc, cached } => {
                write!(f, "compiled for {arch} by NVRTC {}.{}, ", nvrtc.0, nvrtc.1)?;
                match cached {
                    Some(Ok(path)) => write!(f, "kept in {}", path.display()),
                    Some(Err(error)) => write!(f, "not kept for the next start: {error}"),
                    None => write!(f, "not kept for the next start: HOME is not set"),
                }
            }
        }
    }
}

/// The file of the cache that holds the kernels of this program for `arch`.
fn file_name(arch: Arch, (major, minor): (u32, u32)) -> String {
    format!("{arch}-{}-nvrtc{major}.{minor}.{EXTENSION}", content_hash())
}

/// Of everything that goes into the compiler.
fn content_hash() -> String {
    let texts = SOURCES.iter().flat_map(|&(name, text)| [name, text]);
    hash(OPTIONS.iter().copied().chain(texts))
}

fn hash<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The best whole file of the cache that runs on the device, for a machine without NVRTC.
fn made_elsewhere(device: ComputeCapability, cache: Option<&Path>) -> Option<Images> {
    let hash = content_hash();
    let entries = fs::read_dir(cache?).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let made_for = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(&format!(".{EXTENSION}"))?;
        let (arch, version) = name.split_once(&format!("-{hash}-nvrtc"))?;
        let (major, minor) = version.split_once('.')?;
        let version = (major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?);
        let arch = arch.parse::<Arch>().ok().filter(|arch| arch.runs_on(device))?;
        Some((arch, version, path))
    };
    let mut found: Vec<_> = entries.filter_map(made_for).collect();
    found.sort();
    let whole = |(_, _, path): (Arch, (u32, u32), PathBuf)| {
        let modules = image_file::read(&path)?;
        Some(Images { origin: Origin::Cached(path), modules })
    };
    found.into_iter().rev().find_map(whole)
}

/// Every `.cu` file, on all cores: NVRTC compiles programs at the same time as long as each has a thread.
fn compile(nvrtc: &Nvrtc, arch: Arch) -> Result<Vec<CompiledModule>, ImageError> {
    let is_header = |name: &str| name.ends_with(".cuh");
    let headers: Vec<_> = SOURCES.iter().copied().filter(|(name, _)| is_header(name)).collect();
    let files: Vec<_> = SOURCES.iter().copied().filter(|(name, _)| !is_header(name)).collect();
    let mut options = vec![format!("--gpu-architecture={arch}")];
    options.extend(OPTIONS.iter().map(|&option| option.to_owned()));
    let compile_one = |(file, text): (&'static str, &str)| match nvrtc.compile(file, text, &headers, &options)
    {
        Ok(image) => Ok(CompiledModule { name: file.trim_end_matches(".cu").to_owned(), image }),
        Err(error) => Err(ImageError::Compile { file, arch, reason: error.to_string() }),
    };
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let work = || {
        while let Some(&file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = compile_one(file);
            done.lock().expect("nobody panics with the lock").push((file.0, result));
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, |cores| cores.get()).min(files.len());
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let mut done = done.into_inner().expect("nobody panics with the lock");
    done.sort_by_key(|(file, _)| *file);
    done.into_iter().map(|(_, result)| result).collect()
}

fn unknown(arch: &str, nvrtc: &Nvrtc, known: &[u32]) -> ImageError {
    ImageError::UnknownArch { arch: arch.into(), nvrtc: nvrtc.version, known: Arch::list(known) }
}

impl From<NvrtcError> for ImageError {
    fn from(error: NvrtcError) -> Self {
        ImageError::Nvrtc(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of this test's own, gone at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("quire-image-{test}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn what_is_embedded_is_what_is_in_the_folder() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let mut there: Vec<String> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".cu") || name.ends_with(".cuh"))
            .collect();
        there.sort();
        assert_eq!(SOURCES.iter().map(|&(name, _)| name).collect::<Vec<_>>(), there);
        for (name, text) in SOURCES {
            assert_eq!(*text, fs::read_to_string(folder.join(name)).unwrap(), "{name}");
        }
        let images: Vec<&str> = FATBINS.iter().map(|&(name, _)| name).collect();
        let files: Vec<&str> = there.iter().filter_map(|name| name.strip_suffix(".cu")).collect();
        assert!(images == files || (images.is_empty() && FATBIN_ARCHS.is_empty()), "{images:?}");
    }

    #[test]
    fn any_change_of_what_is_compiled_changes_the_hash() {
        let of = |parts: &[&str]| hash(parts.iter().copied());
        let mut hashes = vec![
            of(&[]),
            of(&[""]),
            of(&["-O3", "a.cu", "text"]),
            of(&["-O3", "a.cu", "texT"]),
            of(&["-O3", "b.cu", "text"]),
            of(&["-O3", "a.cut", "ext"]),
            of(&["a.cu", "text", "-O3"]),
        ];
        let count = hashes.len();
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), count);
    }

    #[test]
    fn without_a_compiler_the_best_whole_file_that_runs_on_the_gpu_is_taken() {
        let folder = Folder::new("elsewhere");
        let image = |arch: &str, version| {
            let path = folder.0.join(file_name(arch.parse().unwrap(), version));
            image_file::write(&path, &[CompiledModule { name: arch.into(), image: vec![1, 2, 3] }]).unwrap();
            path
        };
        let found = |device| match made_elsewhere(device, Some(&folder.0))?.origin {
            Origin::Cached(path) => Some(path),
            other => panic!("{other}"),
        };
        assert_eq!(found((8, 6)), None);
        let oldest = image("sm_80", (13, 10));
        let older = image("sm_86", (13, 9));
        let best = image("sm_86", (13, 10));
        let (hopper, for_all) = (image("sm_90a", (13, 0)), image("sm_90", (13, 0)));
        // Of other kernels, and not of this kind at all.
        let other = best.to_str().unwrap().replace(&content_hash(), &"0".repeat(32));
        for name in [other.as_str(), "readme.txt", "sm_86.kernels", "-nvrtc13.0.kernels"] {
            fs::copy(&best, folder.0.join(name)).unwrap();
        }
        assert_eq!(found((8, 6)), Some(best.clone()));
        assert_eq!(found((8, 0)), Some(oldest.clone()));
        assert_eq!(found((9, 0)), Some(hopper.clone()));
        assert_eq!(found((10, 0)), None);
        assert!(made_elsewhere((8, 6), None).is_none());

        fs::write(&best, "not whole").unwrap();
        assert_eq!(found((8, 9)), Some(older.clone()));
        fs::remove_file(&older).unwrap();
        assert_eq!(found((8, 9)), Some(oldest));
        fs::remove_file(&hopper).unwrap();
        assert_eq!(found((9, 0)), Some(for_all));
    }

    #[test]
    fn a_gpu_that_is_too_old_is_told_so_wherever_images_would_come_from() {
        for found in [Images::for_device((7, 5), None), Images::cached_or_compiled((7, 5), None)] {
            let error = found.expect_err("nothing runs on it").to_string();
            assert_eq!(error, "the GPU has compute capability 7.5, and 8.0 is the least that is supported");
        }
    }
}
