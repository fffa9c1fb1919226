//! For tests on machines without a GPU: the libraries that stand in for NVIDIA's (see emulator/README.md), and what
//! they were asked.
//!
//! With `QUIRE_TEST_DEVICE=real` in the environment the same tests run on the GPU that is there. Those that need the
//! stand-in then fail, and say [`ABOUT_THE_STAND_IN`], by which check/run.sh leaves them out.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The folder that holds libcuda, libnvrtc and libcublasLt. A program that was built for NVIDIA's takes these
/// when it is started with this folder as `LD_LIBRARY_PATH`.
pub fn library_dir() -> PathBuf {
    assert!(!is_device_real(), "{ABOUT_THE_STAND_IN}");
    Path::new(env!("QUIRE_EMULATOR_LIBRARIES")).to_owned()
}

/// What a test says on a real device if it is about the stand-in, or plants mistakes in it.
pub const ABOUT_THE_STAND_IN: &str = "this is about the stand-in, and QUIRE_TEST_DEVICE=real";

/// Whether NVIDIA's own libraries are to be used, and not the stand-ins.
pub fn is_device_real() -> bool {
    std::env::var_os("QUIRE_TEST_DEVICE").is_some_and(|value| value == "real")
}

/// Makes this process use the stand-ins. To be called before anything else of this crate: a library that is open
/// already stays what it is. On a real device it does nothing.
///
/// # Panics
/// If they cannot be opened: this is for tests.
pub fn use_stand_in() {
    if is_device_real() {
        return;
    }
    let driver = open("libcuda.so");
    open("libnvrtc.so");
    open("libcublasLt.so");
    Recorder::of(driver);
}

/// How often the driver's (or cuBLASLt's, or NVRTC's) function was called, named without `_v2`, since the process
/// began or since [`log_clear`].
pub fn count(function: &str) -> u64 {
    let name = CString::new(function).expect("no NUL in names");
    // SAFETY: the string ends in NUL and outlives the call.
    #[allow(unsafe_code)]
    unsafe {
        (Recorder::get().count)(name.as_ptr())
    }
}

/// Forgets counts and log.
pub fn log_clear() {
    if is_device_real() {
        return;
    }
    // SAFETY: it has no parameters.
    #[allow(unsafe_code)]
    unsafe {
        (Recorder::get().clear)();
    }
}

/// Adds a line "mark `text`" to the log.
pub fn mark(text: &str) {
    let text = CString::new(text).expect("no NUL in marks");
    // SAFETY: the string ends in NUL and outlives the call.
    #[allow(unsafe_code)]
    unsafe {
        (Recorder::get().mark)(text.as_ptr());
    }
}

/// One line for each launch, copy, wait, allocation, capture and graph since the last [`log_clear`], such as
/// `cuLaunchKernel kernel=gather_bf16 grid=4,1,1 block=256,1,1 shared_bytes=0 stream=1 captured=0`.
pub fn log() -> Vec<String> {
    let recorder = Recorder::get();
    // SAFETY: it has no parameters.
    #[allow(unsafe_code)]
    let end = unsafe { (recorder.end)() };
    let mut line = vec![0_u8; 1024];
    let read = |number| {
        // SAFETY: it writes at most as many bytes as the buffer has, and a NUL among them.
        #[allow(unsafe_code)]
        let len = unsafe { (recorder.entry)(number, line.as_mut_ptr().cast(), line.len()) };
        let text = CStr::from_bytes_until_nul(&line).ok().filter(|_| len >= 0);
        text.map(|text| text.to_string_lossy().into_owned())
    };
    (0..end).filter_map(read).collect()
}

/// Makes an algorithm of the stand-in for cuBLASLt, by its number, refuse other numbers of rows and take so many
/// microseconds longer, until [`reset_cublaslt`].
pub fn change_cublaslt_algorithm(number: u32, rows: RangeInclusive<u32>, delay_us: u32) {
    let function = find(open("libcublasLt.so"), c"emulator_cublaslt_change");
    // SAFETY: the type is that of the function in emulator/cublaslt.cc, which is built with this crate.
    #[allow(unsafe_code)]
    unsafe {
        type Change = unsafe extern "C" fn(u32, u32, u32, u32);
        std::mem::transmute::<*mut c_void, Change>(function)(number, *rows.start(), *rows.end(), delay_us);
    }
}

/// Makes the stand-in for cuBLASLt refuse to run an algorithm, by its number, that its checks accept, until
/// [`reset_cublaslt`].
pub fn fail_cublaslt_algorithm(number: u32) {
    let function = find(open("libcublasLt.so"), c"emulator_cublaslt_fail");
    // SAFETY: the type is that of the function in emulator/cublaslt.cc, which is built with this crate.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn(u32)>(function)(number);
    }
}

/// Undoes [`change_cublaslt_algorithm`] and [`fail_cublaslt_algorithm`].
pub fn reset_cublaslt() {
    if is_device_real() {
        return;
    }
    let function = find(open("libcublasLt.so"), c"emulator_cublaslt_reset");
    // SAFETY: the type is that of the function in emulator/cublaslt.cc, which is built with this crate.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(function)();
    }
}

/// Whether kernels asked for from here on are those with a mistake planted, where there is one (see
/// emulator/planted.cu): what a test of kernels must see.
pub fn plant_mistakes(on: bool) {
    if !on && is_device_real() {
        return;
    }
    let function = find(open("libcuda.so"), c"emulator_plant_mistakes");
    // SAFETY: the type is that of the function in emulator/driver.cc, which is built with this crate.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int)>(function)(c_int::from(on));
    }
}

type Count = unsafe extern "C" fn(*const c_char) -> u64;
type Clear = unsafe extern "C" fn();
type Mark = unsafe extern "C" fn(*const c_char);
type End = unsafe extern "C" fn() -> u64;
type Entry = unsafe extern "C" fn(u64, *mut c_char, usize) -> i64;

/// The exported functions of emulator/record.h.
struct Recorder {
    count: Count,
    clear: Clear,
    mark: Mark,
    end: End,
    entry: Entry,
}

static RECORDER: OnceLock<Recorder> = OnceLock::new();

impl Recorder {
    fn get() -> &'static Self {
        assert!(!is_device_real(), "{ABOUT_THE_STAND_IN}");
        RECORDER.get().expect("use_stand_in() was called")
    }

    fn of(driver: *mut c_void) {
        RECORDER.get_or_init(|| {
            // SAFETY: the types are those of the functions in emulator/record.h, which is built with this crate.
            #[allow(unsafe_code)]
            unsafe {
                Self {
                    count: std::mem::transmute::<*mut c_void, Count>(find(driver, c"emulator_count")),
                    clear: std::mem::transmute::<*mut c_void, Clear>(find(driver, c"emulator_log_clear")),
                    mark: std::mem::transmute::<*mut c_void, Mark>(find(driver, c"emulator_mark")),
                    end: std::mem::transmute::<*mut c_void, End>(find(driver, c"emulator_log_end")),
                    entry: std::mem::transmute::<*mut c_void, Entry>(find(driver, c"emulator_log_entry")),
                }
            }
        });
    }
}

#[allow(unsafe_code)]
unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// `RTLD_NOW | RTLD_GLOBAL` of Linux.
const NOW_AND_GLOBAL: c_int = 0x102;

fn open(name: &str) -> *mut c_void {
    assert!(!is_device_real(), "{ABOUT_THE_STAND_IN}");
    let path = library_dir().join(name);
    let text = CString::new(path.to_str().expect("a path in UTF-8")).expect("no NUL in paths");
    // SAFETY: opening our own library runs only its constructors, which register kernels.
    #[allow(unsafe_code)]
    let library = unsafe { dlopen(text.as_ptr(), NOW_AND_GLOBAL) };
    assert!(!library.is_null(), "{} cannot be opened", path.display());
    library
}

fn find(library: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: the library is open and stays open.
    #[allow(unsafe_code)]
    let function = unsafe { dlsym(library, name.as_ptr()) };
    assert!(!function.is_null(), "the stand-in has no {name:?}");
    function
}
