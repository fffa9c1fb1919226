//! A device for products, and products with their matrices on both sides.

use std::sync::{Arc, Mutex, MutexGuard};

use half::{bf16, f16};
use quire_cuda::driver::{Context, DeviceMemory, Stream};
use quire_cuda::gemm::{Gemm, GemmOptions, GemmReport, GemmShape, Operands};
use quire_model::Dtype;
use rand::Rng;
use rand::rngs::StdRng;

pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

#[cfg(feature = "emulator")]
const SUM_UNIT: f64 = 1.0 / (1 << 24) as f64;
#[cfg(not(feature = "emulator"))]
const SUM_UNIT: f64 = 1.0 / (1 << 22) as f64;

/// Calls are counted for the whole process, so tests take turns.
static TURN: Mutex<()> = Mutex::new(());

pub struct Device {
    pub context: Arc<Context>,
    pub stream: Stream,
    _turn: MutexGuard<'static, ()>,
}

impl Device {
    pub fn open() -> Self {
        let turn = TURN.lock().unwrap_or_else(|broken| broken.into_inner());
        #[cfg(feature = "emulator")]
        {
            quire_cuda::emulator::use_stand_in();
            quire_cuda::emulator::reset_cublaslt();
        }
        let context = Context::new(0).unwrap();
        let stream = Stream::new(&context).unwrap();
        Self { context, stream, _turn: turn }
    }

    pub fn gemm(&self, shapes: &[GemmShape], options: &GemmOptions) -> (Gemm, GemmReport) {
        Gemm::new(&self.stream, shapes, options).unwrap()
    }

    pub fn upload(&self, dtype: Dtype, values: &[f32]) -> DeviceMemory {
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        };
        let memory = DeviceMemory::alloc(&self.context, bytes.len()).unwrap();
        self.stream.write_bytes(memory.address(), &bytes).unwrap();
        memory
    }

    pub fn download(&self, dtype: Dtype, memory: &DeviceMemory) -> Vec<f32> {
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
pub struct Case {
    pub shape: GemmShape,
    pub rows: u32,
    pub x: Vec<f32>,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    pub memory: [DeviceMemory; 4],
}

impl Case {
    pub fn random(device: &Device, rng: &mut StdRng, shape: GemmShape, rows: u32) -> Self {
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

    pub fn operands(&self) -> Operands {
        let [x, weight, bias, out] = self.memory.each_ref().map(DeviceMemory::address);
        Operands { x, weight, bias: self.shape.bias.then_some(bias), out }
    }

    pub fn out(&self, device: &Device) -> Vec<f32> {
        device.download(self.shape.output, &self.memory[3])
    }

    /// Runs it with algorithms that `gemm` chose.
    pub fn run(&self, device: &Device, gemm: &mut Gemm) -> Vec<f32> {
        let id = gemm.find(&self.shape).unwrap();
        gemm.run(&device.stream, id, self.rows, &self.operands()).unwrap();
        self.out(device)
    }

    /// Fails if an element differs from the sum in f64 by more than sums in any order and one rounding may. Tensor
    /// cores keep two bits less than f32 while they add.
    pub fn assert_is_product(&self, out: &[f32], what: &str) {
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
            let allowed = 1.01 * unit * sum.abs() + (k + 2) as f64 * SUM_UNIT * size + 1e-7;
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

pub fn shape(n: u32, k: u32, input: Dtype, rows_max: u32) -> GemmShape {
    GemmShape { n, k, input, output: input, bias: false, rows_max }
}

pub fn random_shape(rng: &mut StdRng) -> GemmShape {
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
