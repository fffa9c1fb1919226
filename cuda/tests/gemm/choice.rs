//! How algorithms are chosen, seen from outside: by what the stand-in for cuBLASLt was asked.

use std::fs;
use std::path::{Path, PathBuf};

use quire_cuda::emulator;
use quire_cuda::gemm::{Algorithm, Gemm, GemmError, GemmOptions, GemmShape, GemmTuning};
use quire_model::Dtype;
use rand::SeedableRng;
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};

use crate::device::{Case, Device, shape};

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

    let counts =
        || ["cublasLtMatmulAlgoGetHeuristic", "cuEventElapsedTime", "cublasLtMatmul"].map(emulator::count);
    let [searches, timings, products] = counts();
    assert!(searches == 11 && timings > 100 && products > 100, "{:?}", counts());
    emulator::log_clear();
    let (second, report) = device.gemm(&shapes, &tuned(&directory));
    assert_eq!((report.timed, report.from_table, report.first_proposals), (0, 11, 0));
    // Each algorithm is run once all the same, to load it.
    let [searches, timings, products] = counts();
    assert!(searches == 0 && timings == 0 && products <= 11, "{:?}", counts());
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

#[test]
fn timing_finds_the_slow_algorithm_and_its_end() {
    let device = Device::open();
    let shapes = [shape(16, 32, Dtype::F32, 4)];
    let (proposed, _) = device.gemm(&shapes, &GemmOptions::default());
    let id = proposed.find(&shapes[0]).unwrap();
    let first = proposed.algorithm(id, 4).unwrap();
    assert_eq!(number(first), 0);
    // Ten thousand times slower is no question of how busy the machine is.
    emulator::change_cublaslt_algorithm(0, 1..=1000, 20_000);
    let tuning = |seconds_max| {
        let tuning = Some(GemmTuning { table_directory: None, seconds_max });
        GemmOptions { batch_invariant: false, tuning }
    };
    let (timed, report) = device.gemm(&shapes, &tuning(60.0));
    assert_eq!((report.timed, report.first_proposals), (3, 0));
    assert_ne!(number(timed.algorithm(id, 4).unwrap()), 0);
    let (stopped, report) = device.gemm(&shapes, &tuning(0.0));
    assert_eq!((report.timed, report.first_proposals), (0, 3));
    assert_eq!(stopped.algorithm(id, 4), Some(first));
}

#[test]
fn sums_are_never_added_in_the_output_type() {
    let device = Device::open();
    emulator::log_clear();
    device.gemm(&[shape(16, 64, Dtype::Bf16, 70)], &tuning_without_table());
    let log = emulator::log();
    let used = |number: u32| {
        let end = format!("algorithm={number}");
        log.iter().any(|line| line.starts_with("cublasLtMatmul ") && line.ends_with(&end))
    };
    // 7 and 8 are split in the ways that add in the output's type; 1 and 6 in f32.
    assert_eq!([1, 6, 7, 8].map(used), [true, true, false, false]);
}

#[test]
fn the_batch_invariant_algorithm_is_not_taken_on_trust() {
    let device = Device::open();
    let directory = fresh_directory("invariant");
    let shape = shape(67, 1100, Dtype::Bf16, 200);
    let modes =
        [(None, (0, 0, 1)), (tuned(&directory).tuning, (1, 0, 0)), (tuned(&directory).tuning, (0, 1, 0))];
    for (tuning, expected) in modes {
        let (gemm, report) = device.gemm(&[shape], &GemmOptions { batch_invariant: true, tuning });
        assert_eq!((report.timed, report.from_table, report.first_proposals), expected);
        // 1, 6, 7 and 8 are split; 2, 3 and 4 refuse some numbers of rows; 0 sums in another order above 8 rows,
        // says nothing about it, and is the one proposed first.
        assert_eq!(number(gemm.algorithm(gemm.find(&shape).unwrap(), 1).unwrap()), 5);
        if expected.2 == 1 {
            assert!(report.warnings[0].contains("other bits in another batch"), "{:?}", report.warnings);
        }
    }
    emulator::change_cublaslt_algorithm(5, 1..=100, 0);
    let options = GemmOptions { batch_invariant: true, tuning: None };
    let error = Gemm::new(&device.stream, &[shape], &options).unwrap_err();
    assert!(matches!(error, GemmError::NoAlgorithm { first: 1, last: 200, .. }), "{error}");
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_range_that_no_algorithm_can_do_whole_is_divided() {
    let device = Device::open();
    let directory = fresh_directory("divided");
    let shape = shape(16, 24, Dtype::F32, 8);
    for number in 0..9 {
        emulator::change_cublaslt_algorithm(number, 1..=6, 0);
    }
    emulator::change_cublaslt_algorithm(5, 7..=8, 0);
    for expected in [(5, 0), (0, 5)] {
        // 1, 2, 3-4, and instead of 5-8: 5-6, 7-8.
        let (mut gemm, report) = device.gemm(&[shape], &tuned(&directory));
        assert_eq!((report.timed, report.from_table), expected);
        let id = gemm.find(&shape).unwrap();
        for rows in 1..=8 {
            assert_eq!(number(gemm.algorithm(id, rows).unwrap()) == 5, rows > 6, "{rows} rows");
            let case = Case::random(&device, &mut StdRng::seed_from_u64(1), shape, rows);
            case.assert_is_product(&case.run(&device, &mut gemm), "divided");
        }
    }
    emulator::change_cublaslt_algorithm(5, 8..=8, 0);
    let error = Gemm::new(&device.stream, &[shape], &tuning_without_table()).unwrap_err();
    assert!(matches!(error, GemmError::NoAlgorithm { first: 7, last: 7, .. }), "{error}");
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn an_algorithm_that_is_accepted_and_then_does_not_run_is_left_out() {
    let device = Device::open();
    let shape = shape(16, 24, Dtype::F32, 6);
    emulator::fail_cublaslt_algorithm(0);
    for options in [GemmOptions::default(), tuning_without_table()] {
        let (mut gemm, _) = device.gemm(&[shape], &options);
        let id = gemm.find(&shape).unwrap();
        for rows in 1..=6 {
            assert_ne!(number(gemm.algorithm(id, rows).unwrap()), 0);
            let case = Case::random(&device, &mut StdRng::seed_from_u64(1), shape, rows);
            case.assert_is_product(&case.run(&device, &mut gemm), "another");
        }
    }
}

#[test]
fn a_product_searches_creates_and_allocates_nothing() {
    let device = Device::open();
    let shape = GemmShape { bias: true, ..shape(16, 24, Dtype::F32, 20) };
    let (mut gemm, _) = device.gemm(&[shape], &GemmOptions::default());
    let cases = [1, 7, 20].map(|rows| Case::random(&device, &mut StdRng::seed_from_u64(1), shape, rows));
    emulator::log_clear();
    let id = gemm.find(&shape).unwrap();
    for case in &cases {
        gemm.run(&device.stream, id, case.rows, &case.operands()).unwrap();
    }
    let others = [
        "cublasLtMatmulAlgoGetHeuristic",
        "cublasLtMatmulAlgoCheck",
        "cublasLtMatmulDescCreate",
        "cublasLtMatrixLayoutCreate",
        "cuMemAlloc",
        "cuStreamSynchronize",
        "cuEventSynchronize",
    ];
    assert_eq!(others.map(emulator::count), [0; 7]);
    assert_eq!(emulator::count("cublasLtMatmul"), 3);
}

/// The stand-in's number of an algorithm.
fn number(algorithm: Algorithm) -> u32 {
    algorithm.0[1] as u32
}

fn tuning_without_table() -> GemmOptions {
    let tuning = GemmTuning { table_directory: None, seconds_max: 60.0 };
    GemmOptions { batch_invariant: false, tuning: Some(tuning) }
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

/// A table with the checksum that belongs to it.
fn sealed(table: &str) -> String {
    let body = &table[..table.rfind("sha256 ").unwrap()];
    format!("{body}sha256 {:x}\n", Sha256::digest(body))
}
