//! The matrix products of [`quire_cuda::gemm`], over the stand-in for cuBLASLt, against sums in f64.
#![cfg(feature = "emulator")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use half::{bf16, f16};
use quire_cuda::Kernels;
use quire_cuda::driver::{Context, DeviceMemory, Stream};
use quire_cuda::emulator;
use quire_cuda::gemm::{Gemm, GemmError, GemmOptions, GemmReport, GemmShape, GemmTuning, Operands};
use quire_cuda::linear_plain::LinearPlain;
use quire_model::Dtype;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

/// Calls are counted for the whole process, so tests take turns.
static TURN: Mutex<()> = Mutex::new(());

struct Device {
    context: Arc<Context>,
    stream: Stream,
    _turn: MutexGuard<'static, ()>,
}

impl Device {
    fn open() -> Self {
        let turn = TURN.lock().unwrap_or_else(|broken| broken.into_inner());
        emulator::use_stand_in();
        let context = Context::new(0).unwrap();
        let stream = Stream::new(&context).unwrap();
        Self { context, stream, _turn: turn }
    }

    fn gemm(&self, shapes: &[GemmShape], options: &GemmOptions) -> (Gemm, GemmReport) {
        Gemm::new(&self.stream, shapes, options).unwrap()
    }

    fn upload(&self, dtype: Dtype, values: &[f32]) -> DeviceMemory {
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        };
        let memory = DeviceMemory::alloc(&self.context, bytes.len()).unwrap();
        self.stream.write_bytes(memory.address(), &bytes).unwrap();
        memory
    }

    fn download(&self, dtype: Dtype, memory: &DeviceMemory) -> Vec<f32> {
        let mut bytes = vec![0; memory.len()];
        self.stream.read_bytes(memory.address(), &mut bytes).unwrap();
        let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match dtype {
            Dtype::F32 => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Dtype::Bf16 => halves().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
            Dtype::F16 => halves().map(|bits| f16::from_bits(bits).to_f32()).collect(),
        }
    }
}

/// Matrices of one product, on the host as the device sees them and on the device.
struct Case {
    shape: GemmShape,
    rows: u32,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    memory: [DeviceMemory; 4],
}

impl Case {
    fn random(device: &Device, rng: &mut StdRng, shape: GemmShape, rows: u32) -> Self {
        let mut random = |dtype: Dtype, len: u32| -> Vec<f32> {
            (0..len).map(|_| round(dtype, rng.random_range(-1.0..1.0))).collect()
        };
        let x = random(shape.input, rows * shape.k);
        let weight = random(shape.input, shape.n * shape.k);
        let bias = shape.bias.then(|| random(shape.output, shape.n));
        let memory = [
            device.upload(shape.input, &x),
            device.upload(shape.input, &weight),
            device.upload(shape.output, bias.as_deref().unwrap_or(&[0.0])),
            DeviceMemory::alloc(&device.context, (rows * shape.n) as usize * shape.output.bytes()).unwrap(),
        ];
        Self { shape, rows, x, weight, bias, memory }
    }

    fn operands(&self) -> Operands {
        let [x, weight, bias, out] = self.memory.each_ref().map(DeviceMemory::address);
        Operands { x, weight, bias: self.shape.bias.then_some(bias), out }
    }

    fn out(&self, device: &Device) -> Vec<f32> {
        device.download(self.shape.output, &self.memory[3])
    }

    /// Runs it with algorithms that `gemm` chose.
    fn run(&self, device: &Device, gemm: &mut Gemm) -> Vec<f32> {
        let id = gemm.find(&self.shape).unwrap();
        gemm.run(&device.stream, id, self.rows, &self.operands()).unwrap();
        self.out(device)
    }

    /// Fails if an element differs from the sum in f64 by more than f32 sums in any order and one rounding may.
    fn assert_is_product(&self, out: &[f32], what: &str) {
        let (n, k) = (self.shape.n as usize, self.shape.k as usize);
        let unit = match self.shape.output {
            Dtype::F32 => 2.0_f64.powi(-24),
            Dtype::Bf16 => 2.0_f64.powi(-8),
            Dtype::F16 => 2.0_f64.powi(-11),
        };
        for (at, got) in out.iter().enumerate() {
            let (row, column) = (at / n, at % n);
            let x = &self.x[row * k..][..k];
            let weight = &self.weight[column * k..][..k];
            let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[column]));
            let terms = x.iter().zip(weight).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let (sum, size) = terms.fold((bias, bias.abs()), |(sum, size), t| (sum + t, size + t.abs()));
            let allowed = 1.01 * unit * sum.abs() + (k + 2) as f64 * 2.0_f64.powi(-24) * size + 1e-7;
            let error = (f64::from(*got) - sum).abs();
            assert!(
                error <= allowed,
                "{what}: {} of {} rows, element [{row}][{column}]: {got}, not {sum} +- {allowed}",
                self.shape,
                self.rows
            );
        }
    }
}

fn round(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::F32 => value,
        Dtype::Bf16 => bf16::from_f32(value).to_f32(),
        Dtype::F16 => f16::from_f32(value).to_f32(),
    }
}

fn shape(n: u32, k: u32, input: Dtype, rows_max: u32) -> GemmShape {
    GemmShape { n, k, input, output: input, bias: false, rows_max }
}

fn random_shape(rng: &mut StdRng) -> GemmShape {
    let input = DTYPES[rng.random_range(0..3)];
    GemmShape {
        n: rng.random_range(1..200),
        k: rng.random_range(1..300),
        input,
        output: if rng.random() { input } else { Dtype::F32 },
        bias: rng.random(),
        rows_max: 300,
    }
}

fn tuned(directory: &Path) -> GemmOptions {
    let tuning = GemmTuning { table_directory: Some(directory.to_owned()), seconds_max: 60.0 };
    GemmOptions { batch_invariant: false, tuning: Some(tuning) }
}

fn fresh_directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("quire-gemm-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    path
}

fn only_file(directory: &Path) -> PathBuf {
    let files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn products_are_those_of_f64_in_every_mode() {
    let device = Device::open();
    for seed in 0..24 {
        let mut rng = StdRng::seed_from_u64(seed);
        let shape = random_shape(&mut rng);
        let options = GemmOptions { batch_invariant: seed % 2 == 1, tuning: None };
        let (mut gemm, report) = device.gemm(&[shape], &options);
        assert_eq!((report.timed, report.from_table), (0, 0));
        for rows in [1, rng.random_range(2..40), rng.random_range(40..=300)] {
            let case = Case::random(&device, &mut rng, shape, rows);
            case.assert_is_product(&case.run(&device, &mut gemm), &format!("seed {seed}"));
        }
    }
}

#[test]
fn the_plain_kernel_computes_products_too() {
    let device = Device::open();
    let kernels = Kernels::open(&device.context, None).unwrap();
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let shape = random_shape(&mut rng);
        let rows = rng.random_range(1..12);
        let case = Case::random(&device, &mut rng, shape, rows);
        let plain = LinearPlain::new(&kernels, &shape).unwrap();
        plain.run(&device.stream, rows, &case.operands()).unwrap();
        case.assert_is_product(&case.out(&device), &format!("seed {seed}"));
    }
}

#[test]
fn a_second_start_reads_the_table_and_times_nothing() {
    let device = Device::open();
    let directory = fresh_directory("second-start");
    let shapes = [shape(48, 64, Dtype::Bf16, 40), shape(33, 20, Dtype::F32, 5)];
    emulator::log_clear();
    let (first, report) = device.gemm(&shapes, &tuned(&directory));
    // 1, 2, 4, 8, 16, 32, 40; and 1, 2, 4, 5.
    assert_eq!((report.timed, report.from_table, report.first_proposals), (11, 0, 0));
    assert_eq!(report.warnings, [""; 0]);
    only_file(&directory);

    let counts = || ["cublasLtMatmul", "cublasLtMatmulAlgoGetHeuristic", "cuMemAlloc"].map(emulator::count);
    let [products, searches, allocations] = counts();
    assert!(products > 100 && searches == 11, "{products} products, {searches} searches");
    let (second, report) = device.gemm(&shapes, &tuned(&directory));
    assert_eq!((report.timed, report.from_table, report.first_proposals), (0, 11, 0));
    // One allocation: the workspace.
    assert_eq!(counts(), [products, searches, allocations + 1]);
    for (shape, rows_max) in shapes.iter().zip([40, 5]) {
        let id = second.find(shape).unwrap();
        for rows in 1..=rows_max {
            assert_eq!(first.algorithm(id, rows), second.algorithm(id, rows));
            assert!(second.algorithm(id, rows).is_some());
        }
        assert_eq!(second.algorithm(id, rows_max + 1), None);
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn another_model_keeps_what_is_in_the_table() {
    let device = Device::open();
    let directory = fresh_directory("another-model");
    let (one, other) = (shape(16, 16, Dtype::F32, 2), shape(24, 16, Dtype::F32, 2));
    device.gemm(&[one], &tuned(&directory));
    device.gemm(&[other], &tuned(&directory));
    let (_, report) = device.gemm(&[one, other], &tuned(&directory));
    assert_eq!((report.timed, report.from_table), (0, 4));
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn tables_that_are_broken_or_of_another_gpu_are_reported_and_rewritten() {
    let device = Device::open();
    let directory = fresh_directory("broken");
    let shapes = [shape(16, 24, Dtype::F16, 4)];
    device.gemm(&shapes, &tuned(&directory));
    let path = only_file(&directory);
    let good = fs::read_to_string(&path).unwrap();
    let name = device.context.attributes().name.clone();
    assert!(good.contains(&name));
    let broken = [
        ("does not match its checksum", good.replacen(" 3 4 ", " 3 3 ", 1)),
        ("belongs to another GPU", sealed(&good.replace(&name, "NVIDIA H100"))),
        ("belongs to another GPU", sealed(&good.replace("cublaslt 1", "cublaslt 2"))),
        ("is no \"quire gemm table 1\"", "{}".to_owned()),
    ];
    for (why, text) in broken {
        assert_ne!(text, good);
        fs::write(&path, text).unwrap();
        let (_, report) = device.gemm(&shapes, &tuned(&directory));
        assert_eq!((report.timed, report.from_table), (3, 0), "{why}");
        assert_eq!(report.warnings.len(), 1, "{:?}", report.warnings);
        assert!(report.warnings[0].contains(why), "{:?}", report.warnings);
        let (_, report) = device.gemm(&shapes, &tuned(&directory));
        assert_eq!((report.timed, report.from_table), (0, 3), "{why}");
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_saved_algorithm_that_the_library_refuses_is_chosen_anew() {
    let device = Device::open();
    let directory = fresh_directory("refused");
    let shapes = [shape(16, 24, Dtype::F16, 4)];
    device.gemm(&shapes, &tuned(&directory));
    let path = only_file(&directory);
    let text = fs::read_to_string(&path).unwrap();
    let line = text.lines().find(|line| line.contains(" 3 4 ")).unwrap();
    let (key, _) = line.rsplit_once(' ').unwrap();
    fs::write(&path, sealed(&text.replace(line, &format!("{key} {}", "5a".repeat(64))))).unwrap();
    let (mut gemm, report) = device.gemm(&shapes, &tuned(&directory));
    assert_eq!((report.timed, report.from_table), (1, 2));
    assert!(
        report.warnings[0].contains("refuses the algorithm saved for 3 to 4 rows"),
        "{:?}",
        report.warnings
    );
    let case = Case::random(&device, &mut StdRng::seed_from_u64(1), shapes[0], 4);
    case.assert_is_product(&case.run(&device, &mut gemm), "chosen anew");
    fs::remove_dir_all(directory).unwrap();
}

/// A table with the checksum that belongs to it.
fn sealed(table: &str) -> String {
    let body = &table[..table.rfind("sha256 ").unwrap()];
    format!("{body}sha256 {:x}\n", Sha256::digest(body))
}

#[test]
fn timing_finds_the_slow_algorithm_and_its_end() {
    let device = Device::open();
    let shapes = [shape(16, 32, Dtype::F32, 4)];
    let (proposed, _) = device.gemm(&shapes, &GemmOptions::default());
    let id = proposed.find(&shapes[0]).unwrap();
    let first = proposed.algorithm(id, 4).unwrap();
    // Which is the stand-in's number 0. Ten thousand times slower is not a question of how busy the machine is.
    emulator::delay_cublaslt_algorithm(0, 20_000);
    let tuning = |seconds_max| {
        let tuning = Some(GemmTuning { table_directory: None, seconds_max });
        GemmOptions { batch_invariant: false, tuning }
    };
    let (timed, report) = device.gemm(&shapes, &tuning(60.0));
    assert_eq!((report.timed, report.first_proposals), (3, 0));
    assert_ne!(timed.algorithm(id, 4), Some(first));
    let (stopped, report) = device.gemm(&shapes, &tuning(0.0));
    emulator::delay_cublaslt_algorithm(0, 0);
    assert_eq!((report.timed, report.first_proposals), (0, 3));
    assert_eq!(stopped.algorithm(id, 4), Some(first));
}

#[test]
fn the_batch_invariant_mode_gives_a_row_the_same_bits_in_any_company() {
    let device = Device::open();
    let directory = fresh_directory("invariant");
    for (seed, tuning) in [(1, None), (2, tuned(&directory).tuning), (3, tuned(&directory).tuning)] {
        let mut rng = StdRng::seed_from_u64(seed);
        let shape =
            GemmShape { n: 67, k: 1100, input: Dtype::Bf16, output: Dtype::F32, bias: true, rows_max: 200 };
        let (mut gemm, report) = device.gemm(&[shape], &GemmOptions { batch_invariant: true, tuning });
        let expected = [(0, 0, 1), (1, 0, 0), (0, 1, 0)][seed as usize - 1];
        assert_eq!((report.timed, report.from_table, report.first_proposals), expected);
        let id = gemm.find(&shape).unwrap();
        let algorithm = gemm.algorithm(id, 1).unwrap();
        // The stand-in's numbers 1, 6, 7 and 8 are split, 2, 3 and 4 refuse some numbers of rows; 0 sums in
        // another order above 8 rows, says nothing about it, and must have been found out.
        assert_eq!(algorithm.0[1] as u32, 5);
        assert!((1..=200).all(|rows| gemm.algorithm(id, rows) == Some(algorithm)));
        if seed == 1 {
            assert!(report.warnings[0].contains("other bits in another batch"), "{:?}", report.warnings);
        }

        let all = Case::random(&device, &mut rng, shape, 200);
        let together = all.run(&device, &mut gemm);
        all.assert_is_product(&together, "together");
        let (n, k) = (shape.n as usize, shape.k as usize);
        for _ in 0..20 {
            let first = rng.random_range(0..200_usize);
            let rows = rng.random_range(1..=200 - first);
            let x = device.upload(shape.input, &all.x[first * k..][..rows * k]);
            let operands = Operands { x: x.address(), ..all.operands() };
            gemm.run(&device.stream, id, rows as u32, &operands).unwrap();
            let out = all.out(&device);
            assert_eq!(
                bits(&out[..rows * n]),
                bits(&together[first * n..][..rows * n]),
                "seed {seed}: rows {first}.. of {rows}"
            );
        }
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn the_fastest_mode_is_allowed_other_bits() {
    // Without this, the test above could not fail.
    let device = Device::open();
    let shape = shape(67, 1100, Dtype::F32, 32);
    let (mut gemm, _) = device.gemm(&[shape], &GemmOptions::default());
    let mut rng = StdRng::seed_from_u64(1);
    let all = Case::random(&device, &mut rng, shape, 32);
    let together = all.run(&device, &mut gemm);
    let id = gemm.find(&shape).unwrap();
    gemm.run(&device.stream, id, 1, &all.operands()).unwrap();
    assert_ne!(bits(&all.out(&device)[..67]), bits(&together[..67]));
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_graph_repeats_products_of_what_then_is_in_memory() {
    let device = Device::open();
    let mut rng = StdRng::seed_from_u64(7);
    let shape = GemmShape { bias: true, ..shape(40, 96, Dtype::Bf16, 24) };
    let (mut gemm, _) = device.gemm(&[shape], &GemmOptions::default());
    let id = gemm.find(&shape).unwrap();
    let case = Case::random(&device, &mut rng, shape, 20);
    let before = [
        "cublasLtMatmulAlgoGetHeuristic",
        "cublasLtMatmulDescCreate",
        "cublasLtMatrixLayoutCreate",
        "cuMemAlloc",
    ]
    .map(emulator::count);
    device.stream.begin_capture().unwrap();
    gemm.run(&device.stream, id, case.rows, &case.operands()).unwrap();
    let graph = device.stream.end_capture().unwrap();
    let after = [
        "cublasLtMatmulAlgoGetHeuristic",
        "cublasLtMatmulDescCreate",
        "cublasLtMatrixLayoutCreate",
        "cuMemAlloc",
    ]
    .map(emulator::count);
    assert_eq!(before, after, "a product searches, creates or allocates");
    assert!(case.out(&device).iter().all(|value| value.is_nan()), "done before the graph was launched");

    // Another product of the same shape, with other rows and another bias, must not change what was recorded.
    let other = Case::random(&device, &mut rng, shape, 3);
    other.assert_is_product(&other.run(&device, &mut gemm), "between");
    for _ in 0..3 {
        let next = Case::random(&device, &mut rng, shape, 20);
        let to = case.operands();
        for (from, to, memory) in [
            (next.operands().x, to.x, 0),
            (next.operands().weight, to.weight, 1),
            (next.operands().bias.unwrap(), to.bias.unwrap(), 2),
        ] {
            device.stream.copy_on_device(to, from, next.memory[memory].len()).unwrap();
        }
        device.stream.launch_graph(&graph).unwrap();
        next.assert_is_product(&case.out(&device), "replayed");
    }
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let device = Device::open();
    let good = shape(16, 16, Dtype::F32, 8);
    let (mut gemm, _) = device.gemm(&[good, GemmShape { rows_max: 12, ..good }], &GemmOptions::default());
    let id = gemm.find(&good).unwrap();
    assert_eq!(gemm.find(&GemmShape { n: 17, ..good }), None);
    let case = Case::random(&device, &mut StdRng::seed_from_u64(1), good, 12);
    let operands = case.operands();
    let mut refusal =
        |rows, operands: Operands| gemm.run(&device.stream, id, rows, &operands).unwrap_err().to_string();
    assert_eq!(
        refusal(13, operands),
        "matrix product [rows][16] x [16][16] of f32 to f32: 13 rows, prepared for 1 to 12"
    );
    assert!(refusal(1, Operands { x: operands.x + 4, ..operands }).contains("x is at address"));
    assert!(refusal(1, Operands { out: 0, ..operands }).contains("out is at address 0x0"));
    assert!(refusal(1, Operands { bias: Some(operands.x), ..operands }).contains("the bias is given"));
    gemm.run(&device.stream, id, 0, &operands).unwrap();
    for bad in [
        GemmShape { n: 0, ..good },
        GemmShape { rows_max: 0, ..good },
        GemmShape { output: Dtype::Bf16, ..good },
    ] {
        let error = Gemm::new(&device.stream, &[bad], &GemmOptions::default()).unwrap_err();
        assert!(matches!(error, GemmError::Shape { shape, .. } if shape == bad), "{error}");
    }
}
