//! NVIDIA's run-time compiler, as far as it is needed: one source file to machine code (a cubin) for one
//! architecture. It needs its library and no GPU, no driver and no headers.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int};

use cudarc::nvrtc::sys;

/// The oldest NVRTC that knows sm_90a.
const OLDEST_MAJOR: u32 = 12;

/// The library, opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nvrtc {
    /// (major, minor), such as (13, 0).
    pub(crate) version: (u32, u32),
}

/// Why a compilation came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NvrtcError {
    /// The library found is too old.
    #[error("libnvrtc.so is version {}.{}, and {OLDEST_MAJOR}.0 is the oldest that will do", .0.0, .0.1)]
    TooOld((u32, u32)),
    /// A call failed.
    #[error("{call} failed: {code:?}")]
    Call {
        /// The function.
        call: &'static str,
        /// What it returned.
        code: sys::nvrtcResult,
    },
    /// The source is refused.
    #[error("{0}")]
    Log(String),
}

impl Nvrtc {
    /// Opens the library; `None` if there is none on this machine.
    pub(crate) fn open() -> Result<Option<Nvrtc>, NvrtcError> {
        // SAFETY: opening NVIDIA's library runs its initialisers, which ask nothing of the caller.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the library is there, and both pointers are to live integers.
        check("nvrtcVersion", unsafe { sys::nvrtcVersion(&mut major, &mut minor) })?;
        let version = (major as u32, minor as u32);
        if version.0 < OLDEST_MAJOR {
            return Err(NvrtcError::TooOld(version));
        }
        Ok(Some(Nvrtc { version }))
    }

    /// The architectures it can compile for, by number (90 is sm_90), in rising order.
    pub(crate) fn architectures(&self) -> Result<Vec<u32>, NvrtcError> {
        let mut count: c_int = 0;
        // SAFETY: the pointer is to a live integer.
        check("nvrtcGetNumSupportedArchs", unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) })?;
        let mut numbers = vec![0; count as usize];
        // SAFETY: the array holds as many integers as the library has said it writes.
        check("nvrtcGetSupportedArchs", unsafe { sys::nvrtcGetSupportedArchs(numbers.as_mut_ptr()) })?;
        numbers.sort_unstable();
        Ok(numbers.into_iter().map(|number| number as u32).collect())
    }

    /// The cubin of a source. `name` is what messages call it; `headers` are the names and texts that its
    /// `#include`s may name; `options` as on NVRTC's command line, one with `--gpu-architecture=sm_N`.
    pub(crate) fn compile(
        &self,
        name: &str,
        text: &str,
        headers: &[(&str, &str)],
        options: &[String],
    ) -> Result<Vec<u8>, NvrtcError> {
        let program = Program::new(name, text, headers)?;
        let options: Vec<CString> = options.iter().map(|option| c_string(option)).collect();
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is live, and the array holds that many strings ending in NUL.
        let code =
            unsafe { sys::nvrtcCompileProgram(program.handle, pointers.len() as c_int, pointers.as_ptr()) };
        match code {
            sys::nvrtcResult::NVRTC_SUCCESS => program.cubin(),
            sys::nvrtcResult::NVRTC_ERROR_COMPILATION => Err(NvrtcError::Log(program.log()?)),
            // The log says more than the code: which library or option it lacks.
            code => match program.log()? {
                log if log.is_empty() => Err(NvrtcError::Call { call: "nvrtcCompileProgram", code }),
                log => Err(NvrtcError::Log(log)),
            },
        }
    }
}

/// A program of NVRTC's, destroyed when dropped. NVRTC copies what it is given.
struct Program {
    handle: sys::nvrtcProgram,
}

impl Program {
    fn new(name: &str, text: &str, headers: &[(&str, &str)]) -> Result<Program, NvrtcError> {
        let (name, text) = (c_string(name), c_string(text));
        let headers: Vec<(CString, CString)> =
            headers.iter().map(|(name, text)| (c_string(name), c_string(text))).collect();
        let names: Vec<*const c_char> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
        let texts: Vec<*const c_char> = headers.iter().map(|(_, text)| text.as_ptr()).collect();
        let mut handle = std::ptr::null_mut();
        // SAFETY: all strings end in NUL and outlive the call, and both arrays have the length given.
        let code = unsafe {
            sys::nvrtcCreateProgram(
                &mut handle,
                text.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        check("nvrtcCreateProgram", code)?;
        Ok(Program { handle })
    }

    fn log(&self) -> Result<String, NvrtcError> {
        let mut bytes = 0;
        // SAFETY: the program is live, the pointer is to a live integer.
        check("nvrtcGetProgramLogSize", unsafe { sys::nvrtcGetProgramLogSize(self.handle, &mut bytes) })?;
        let mut log = vec![0_u8; bytes];
        // SAFETY: the buffer holds as many bytes as the library has said it writes.
        let code = unsafe { sys::nvrtcGetProgramLog(self.handle, log.as_mut_ptr().cast()) };
        check("nvrtcGetProgramLog", code)?;
        let text = CStr::from_bytes_until_nul(&log).map(|text| text.to_string_lossy().trim().to_owned());
        Ok(text.unwrap_or_default())
    }

    fn cubin(&self) -> Result<Vec<u8>, NvrtcError> {
        let mut bytes = 0;
        // SAFETY: the program is live, the pointer is to a live integer.
        check("nvrtcGetCUBINSize", unsafe { sys::nvrtcGetCUBINSize(self.handle, &mut bytes) })?;
        let mut cubin = vec![0_u8; bytes];
        // SAFETY: the buffer holds as many bytes as the library has said it writes.
        check("nvrtcGetCUBIN", unsafe { sys::nvrtcGetCUBIN(self.handle, cubin.as_mut_ptr().cast()) })?;
        Ok(cubin)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the handle is of a program that was created and not yet destroyed. A failure would leave memory
        // behind and nothing else.
        let _ = unsafe { sys::nvrtcDestroyProgram(&mut self.handle) };
    }
}

fn check(call: &'static str, code: sys::nvrtcResult) -> Result<(), NvrtcError> {
    match code {
        sys::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        code => Err(NvrtcError::Call { call, code }),
    }
}

/// Sources and options are ours, and hold no NUL.
fn c_string(text: &str) -> CString {
    CString::new(text).expect("no NUL in sources and options")
}
