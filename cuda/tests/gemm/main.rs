//! The matrix products of [`quire_cuda::gemm`] against sums in f64: over the stand-in for cuBLASLt with feature
//! `emulator`, on a GPU without it.

#[cfg(feature = "emulator")]
mod choice;
mod device;

use quire_cuda::Kernels;
use quire_cuda::gemm::{Gemm, GemmError, GemmOptions, GemmShape, Operands};
use quire_cuda::linear_plain::LinearPlain;
use quire_model::Dtype;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use device::{Case, Device, random_shape, shape};

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
fn the_batch_invariant_mode_gives_a_row_the_same_bits_in_any_company() {
    let device = Device::open();
    for (seed, input, output) in
        [(1, Dtype::Bf16, Dtype::F32), (2, Dtype::F16, Dtype::F16), (3, Dtype::F32, Dtype::F32)]
    {
        let mut rng = StdRng::seed_from_u64(seed);
        let shape = GemmShape { n: 67, k: 1100, input, output, bias: true, rows_max: 200 };
        let options = GemmOptions { batch_invariant: true, tuning: None };
        let (mut gemm, _) = device.gemm(&[shape], &options);
        let id = gemm.find(&shape).unwrap();
        let algorithm = gemm.algorithm(id, 1);
        assert!(algorithm.is_some() && (1..=200).all(|rows| gemm.algorithm(id, rows) == algorithm));

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
}

#[cfg(feature = "emulator")]
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

#[test]
fn a_graph_repeats_products_of_what_then_is_in_memory() {
    let device = Device::open();
    let mut rng = StdRng::seed_from_u64(7);
    let shape = GemmShape { bias: true, ..shape(40, 96, Dtype::Bf16, 24) };
    let (mut gemm, _) = device.gemm(&[shape], &GemmOptions::default());
    let id = gemm.find(&shape).unwrap();
    let case = Case::random(&device, &mut rng, shape, 20);
    case.assert_is_product(&case.run(&device, &mut gemm), "before");
    device.stream.fill(case.operands().out, 0xff, case.memory[3].len()).unwrap();
    device.stream.begin_capture().unwrap();
    gemm.run(&device.stream, id, case.rows, &case.operands()).unwrap();
    let graph = device.stream.end_capture().unwrap();
    assert!(case.out(&device).iter().all(|value| value.is_nan()), "done before the graph was launched");

    // Another product of the same shape, with other rows and another bias, must not change what was recorded.
    let other = Case::random(&device, &mut rng, shape, 3);
    other.assert_is_product(&other.run(&device, &mut gemm), "between");
    for _ in 0..3 {
        let next = Case::random(&device, &mut rng, shape, 20);
        for (from, to) in next.memory.iter().zip(&case.memory).take(3) {
            device.stream.copy_on_device(to.address(), from.address(), from.len()).unwrap();
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

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
