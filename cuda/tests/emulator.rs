//! What the emulation shows: a kernel's right result, work done as late as it may be, graphs, and each kind of mistake
//! caught. The kernels are those of emulator/selftest.cu.

use std::process::{Command, Output};
use std::sync::{Arc, Mutex, MutexGuard};

use quire_cuda::driver::{Context, DeviceMemory, Event, Function, Module, PinnedMemory, Stream};
use quire_cuda::emulator;

/// What the stand-in for NVRTC makes.
const IMAGE: &[u8] = b"EMULATED 90\0";

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    input: u64,
    out: u64,
    count: i64,
}

struct Device {
    context: Arc<Context>,
    stream: Stream,
    module: Module,
    // The log is one for the process.
    _alone: MutexGuard<'static, ()>,
}

impl Device {
    fn open() -> Self {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        emulator::use_stand_in();
        let context = Context::new(0).unwrap();
        let stream = Stream::new(&context).unwrap();
        let module = Module::load(&context, IMAGE).unwrap();
        emulator::log_clear();
        Self { context, stream, module, _alone: alone }
    }

    fn function(&self, name: &str) -> Function {
        self.module.function(name).unwrap().expect(name)
    }

    fn floats(&self, values: &[f32]) -> DeviceMemory {
        let memory = DeviceMemory::alloc(&self.context, values.len() * 4).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.stream.write_bytes(memory.address(), &bytes).unwrap();
        memory
    }

    fn read(&self, memory: &DeviceMemory) -> Vec<f32> {
        let mut bytes = vec![0; memory.len()];
        self.stream.read_bytes(memory.address(), &mut bytes).unwrap();
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn launch(&self, name: &str, blocks: u32, threads: u32, shared_bytes: u32, params: &Params) {
        self.stream.launch(&self.function(name), [blocks, 1, 1], threads, shared_bytes, params).unwrap();
    }
}

fn count_up(len: usize) -> Vec<f32> {
    (0..len).map(|i| i as f32).collect()
}

/// `selftest_add_sum` of one block of 64.
fn with_sum_added(values: &[f32]) -> Vec<f32> {
    let sum: f32 = values.iter().sum();
    values.iter().map(|value| value + sum).collect()
}

#[test]
fn kernel_through_the_driver() {
    let device = Device::open();
    let values = count_up(600);
    let (input, out) = (device.floats(&values), device.floats(&[0.0; 600]));
    let params = Params { input: input.address(), out: out.address(), count: 600 };
    device.launch("selftest_add_sum", 3, 256, 8 * 4, &params);
    let expected: Vec<f32> = values.chunks(256).flat_map(with_sum_added).collect();
    assert_eq!(device.read(&out), expected);
}

#[test]
fn what_is_not_allowed_is_refused() {
    let device = Device::open();
    let memory = device.floats(&[0.0; 256]);
    let params = Params { input: memory.address(), out: memory.address(), count: 256 };
    let kernel = device.function("selftest_add_sum");
    assert!(device.module.function("no_such_kernel").unwrap().is_none());
    let launch = |blocks: u32, threads: u32, shared: u32, params: &Params| {
        device.stream.launch(&kernel, [blocks, 1, 1], threads, shared, params).map_err(|error| error.code)
    };
    assert_eq!(launch(0, 256, 32, &params), Err(1));
    assert_eq!(launch(1, 512, 32, &params), Err(701), "KERNEL_BOUNDS say 256");
    assert_eq!(launch(1, 256, 49 * 1024, &params), Err(1), "needs leave");
    kernel.allow_shared_bytes(49 * 1024).unwrap();
    assert_eq!(launch(1, 256, 49 * 1024, &params), Ok(()));
    assert!(kernel.allow_shared_bytes(228 * 1024).is_err(), "more than the device has");
    let on_host = [0.0_f32; 64];
    assert_eq!(launch(1, 64, 8, &Params { input: on_host.as_ptr() as u64, ..params }), Err(1));
    drop(memory);
    assert_eq!(launch(1, 64, 8, &params), Err(1), "freed memory");
    assert!(Module::load(&device.context, b"not an image").is_err());
    assert!(Module::load(&device.context, b"EMULATED 80\0").is_err(), "of another architecture");
}

#[test]
fn work_is_done_as_late_as_it_may_be() {
    let device = Device::open();
    let memory = device.floats(&[1.0]);
    let mut pinned = PinnedMemory::alloc(&device.context, 4).unwrap();
    let event = Event::new(&device.context).unwrap();

    device.stream.copy_to_host(&mut pinned, 0..4, memory.address()).unwrap();
    device.stream.record(&event).unwrap();
    assert!(f32::from_bits(pinned.words()[0]).is_nan(), "read too early");
    event.synchronize().unwrap();
    assert_eq!(f32::from_bits(pinned.words()[0]), 1.0);

    pinned.words_mut()[0] = 2.0_f32.to_bits();
    device.stream.copy_to_device(memory.address(), &pinned, 0..4).unwrap();
    pinned.words_mut()[0] = 3.0_f32.to_bits();
    assert_eq!(device.read(&memory), [3.0], "overwritten too early");
}

#[test]
fn graphs_repeat_what_was_recorded() {
    let device = Device::open();
    let values = count_up(64);
    let (input, out) = (device.floats(&values), device.floats(&[0.0; 64]));
    let params = Params { input: input.address(), out: out.address(), count: 64 };
    device.stream.begin_capture().unwrap();
    device.launch("selftest_add_sum", 1, 64, 8, &params);
    device.stream.copy_on_device(input.address(), out.address(), 256).unwrap();
    let graph = device.stream.end_capture().unwrap();
    assert_eq!(device.read(&out), [0.0; 64], "recording does nothing");
    let mut expected = values;
    for _ in 0..3 {
        device.stream.launch_graph(&graph).unwrap();
        expected = with_sum_added(&expected);
        assert_eq!(device.read(&out), expected);
    }
    assert_eq!(emulator::count("cuGraphLaunch"), 3);
    drop(out);
    assert!(device.stream.launch_graph(&graph).is_err(), "its memory is gone");
}

#[test]
fn waiting_and_allocating_spoil_a_capture() {
    let device = Device::open();
    device.stream.begin_capture().unwrap();
    assert_eq!(device.stream.synchronize().unwrap_err().code, 900);
    assert!(device.stream.end_capture().is_err());
    device.stream.begin_capture().unwrap();
    assert_eq!(DeviceMemory::alloc(&device.context, 16).unwrap_err().code, 900);
    assert!(device.stream.end_capture().is_err());
    device.stream.synchronize().unwrap();
}

#[test]
fn memory_is_counted_and_has_an_end() {
    let device = Device::open();
    let (free, total) = device.context.memory().unwrap();
    let memory = DeviceMemory::alloc(&device.context, 1 << 20).unwrap();
    assert_eq!(device.context.memory().unwrap(), (free - (1 << 20), total));
    assert_eq!(DeviceMemory::alloc(&device.context, free as usize).unwrap_err().code, 2);
    drop(memory);
    assert_eq!(device.context.memory().unwrap(), (free, total));
}

#[test]
fn the_log_tells_what_was_asked() {
    let device = Device::open();
    let memory = device.floats(&[0.0; 64]);
    emulator::log_clear();
    emulator::mark("here");
    device.stream.begin_capture().unwrap();
    let params = Params { input: memory.address(), out: memory.address(), count: 64 };
    device.launch("selftest_add_sum", 1, 64, 8, &params);
    let graph = device.stream.end_capture().unwrap();
    device.stream.launch_graph(&graph).unwrap();
    device.stream.synchronize().unwrap();
    let log = emulator::log();
    let kinds: Vec<&str> = log.iter().map(|line| line.split(' ').next().unwrap()).collect();
    let expected = [
        "mark",
        "cuStreamBeginCapture",
        "cuLaunchKernel",
        "cuStreamEndCapture",
        "cuGraphInstantiate",
        "cuGraphLaunch",
        "cuStreamSynchronize",
    ];
    assert_eq!(kinds, expected);
    assert!(log[2].contains("kernel=selftest_add_sum grid=1,1,1 block=64,1,1 shared_bytes=8"), "{}", log[2]);
    assert!(log[2].ends_with("captured=1"), "{}", log[2]);
}

/// This program with one test and one variable of the environment more.
fn run_test(test: &str, variable: &str, value: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(variable, value).output().unwrap()
}

/// A process that launches the kernel with 64 threads, and waits.
fn run_planted(kernel: &str) -> Output {
    run_test("launches_a_planted_mistake", "QUIRE_TEST_PLANTED", kernel)
}

#[test]
fn launches_a_planted_mistake() {
    let Ok(kernel) = std::env::var("QUIRE_TEST_PLANTED") else { return };
    let device = Device::open();
    // Floats of `out`, and bytes of shared memory.
    let (count, shared_bytes) = match kernel.as_str() {
        "selftest_out_of_bounds_by_one" => (64, 256),
        "selftest_shared_overrun_by_a_byte" => (250, 250),
        "selftest_early_read" => (256, 1024),
        _ => (256, 256),
    };
    let (input, out) = (device.floats(&count_up(256)), device.floats(&vec![0.0; count]));
    let params = Params { input: input.address(), out: out.address(), count: count as i64 };
    device.launch(&kernel, 1, 64, shared_bytes, &params);
    device.stream.synchronize().unwrap();
    println!("ended: {:?}", device.read(&out));
}

#[test]
fn mistakes_are_caught_and_placed() {
    let caught = [
        ("selftest_divergent_barrier", "divergent barriers", "selftest.cu:"),
        ("selftest_barrier_after_return", "some threads have returned", "selftest.cu:"),
        ("selftest_lonely_shuffle", "was not reached by all its threads", "selftest.cu:"),
        ("selftest_shared_overrun", "shared memory", "thread (63, 0, 0)"),
        ("selftest_shared_overrun_by_a_byte", "written past its end of 250 bytes", ""),
        ("selftest_misaligned_copy", "no multiple of 16", "selftest.cu:"),
        ("selftest_misaligned_ldmatrix", "no multiple of 16", "selftest.cu:"),
        ("selftest_misaligned_load", "no multiple of 16", "selftest.cu:"),
        ("selftest_out_of_bounds", "past the end of 1024 bytes of device memory", "after"),
        ("selftest_out_of_bounds_by_one", "0 bytes past the end of 256 bytes", ""),
        ("selftest_watched_read_race", "a race", "selftest_watched.cu:"),
        ("selftest_watched_shuffle_race", "a race", "selftest_watched.cu:"),
        ("selftest_watched_atomic_race", "a race", "selftest_watched.cu:"),
        ("selftest_watched_out_of_bounds", "load of 4 bytes, 0 bytes past the end of 1024", "thread ("),
        ("selftest_stack_overflow", "of the thread's stack", "thread ("),
    ];
    for (kernel, what, place) in caught {
        let output = run_planted(kernel);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{kernel} went through");
        assert!(text.contains(kernel) && text.contains(what) && text.contains(place), "{kernel}: {text}");
    }
}

#[test]
fn what_is_ordered_is_no_race() {
    let device = Device::open();
    let values = count_up(64);
    let (input, out) = (device.floats(&values), device.floats(&[0.0; 64]));
    let params = Params { input: input.address(), out: out.address(), count: 64 };
    device.launch("selftest_watched_ordered", 2, 64, 65 * 4, &params);
    let expected: Vec<f32> = (0..64).map(|i| values[i ^ 1] + values[0] + 64.0).collect();
    assert_eq!(device.read(&out), expected);
}

/// These cannot be told from intent, but give values that cannot be missed.
#[test]
fn mistakes_give_wrong_values() {
    for kernel in ["selftest_missing_barrier", "selftest_early_read"] {
        let output = run_planted(kernel);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("NaN"), "{kernel}: {text}");
    }
}

#[test]
fn results_do_not_depend_on_timing_or_order() {
    for (variable, value) in [
        ("QUIRE_EMULATOR_TIMING", "early"),
        ("QUIRE_EMULATOR_TIMING", "random"),
        ("QUIRE_EMULATOR_SEED", "7"),
        ("QUIRE_EMULATOR_SMS", "1"),
    ] {
        for test in ["kernel_through_the_driver", "graphs_repeat_what_was_recorded"] {
            let output = run_test(test, variable, value);
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && text.contains("1 passed"),
                "{variable}={value} {test}: {text}"
            );
        }
    }
    let early = run_test("work_is_done_as_late_as_it_may_be", "QUIRE_EMULATOR_TIMING", "early");
    assert!(!early.status.success(), "the test cannot fail");
}

#[test]
fn programs_take_the_stand_ins_from_the_library_path() {
    let log = std::env::temp_dir().join(format!("quire-emulator-test-{}", std::process::id()));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["asks_nobody_for_a_stand_in", "--exact", "--nocapture"]);
    command.env("QUIRE_TEST_LIBRARY_PATH", "1").env("LD_LIBRARY_PATH", emulator::library_dir());
    command.env("QUIRE_EMULATOR_LOG", &log).env("QUIRE_EMULATOR_COMPUTE_CAPABILITY", "8.6");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    assert!(text.contains("cuMemAlloc bytes=12345 "), "{text}");
    assert!(text.contains("nvrtcCompileProgram name=good.cu arch=sm_86\n"), "{text}");
}

#[test]
fn asks_nobody_for_a_stand_in() {
    if std::env::var_os("QUIRE_TEST_LIBRARY_PATH").is_none() {
        return;
    }
    let context = Context::new(0).unwrap();
    assert_eq!(context.attributes().compute_capability, (8, 6));
    DeviceMemory::alloc(&context, 12345).unwrap();
    let image = compile("good.cu", "void f() {}", "--gpu-architecture=sm_86").unwrap();
    Module::load(&context, &image).unwrap();
    let log = compile("bad.cu", "int x;\n #error no\n", "--gpu-architecture=sm_86").unwrap_err();
    assert!(log.starts_with("bad.cu(2): error"), "{log}");
    assert!(compile("good.cu", "", "--gpu-architecture=best").is_err());
}

/// Image, or log.
fn compile(name: &str, source: &str, option: &str) -> Result<Vec<u8>, String> {
    use cudarc::nvrtc::result;
    let [name, source] = [name, source].map(|text| std::ffi::CString::new(text).unwrap());
    let program = result::create_program(&source, Some(&name)).unwrap();
    // SAFETY: the program is alive until the end of the process.
    #[allow(unsafe_code)]
    unsafe {
        match result::compile_program(program, &[option]) {
            Ok(()) => Ok(result::get_ptx(program).unwrap().into_iter().map(|byte| byte as u8).collect()),
            Err(_) => {
                let log: Vec<u8> =
                    result::get_program_log(program).unwrap().iter().map(|b| *b as u8).collect();
                Err(String::from_utf8_lossy(&log).into_owned())
            }
        }
    }
}
