//! The checked-in code is what the generator makes of the `.proto` files today.

use std::fs;
use std::path::Path;

use prost::Message;

const FILES: [&str; 7] = [
    "vllm/inference.proto",
    "vllm/control.proto",
    "vllm/engine.proto",
    "smg/common.proto",
    "openengine/v1/inference.proto",
    "openengine/v1/control.proto",
    "xds/data/orca/v3/orca_load_report.proto",
];

#[test]
fn generated_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = std::env::temp_dir().join(format!("quire-proto-{}", std::process::id()));
    fs::create_dir_all(&out).unwrap();
    let mut compiler = protox::Compiler::new([root.join("proto")]).unwrap();
    compiler.include_imports(true).include_source_info(true).open_files(FILES).unwrap();
    let descriptors = compiler.file_descriptor_set();
    fs::write(out.join("descriptor.bin"), descriptors.encode_to_vec()).unwrap();
    tonic_prost_build::configure().btree_map(".").out_dir(&out).compile_fds(descriptors).unwrap();

    let checked_in = root.join("src/generated");
    let update = std::env::var_os("UPDATE_GENERATED").is_some();
    let mut names = Vec::new();
    for entry in fs::read_dir(&out).unwrap() {
        let name = entry.unwrap().file_name();
        let fresh = fs::read(out.join(&name)).unwrap();
        if update {
            fs::write(checked_in.join(&name), &fresh).unwrap();
        }
        let current = fs::read(checked_in.join(&name)).unwrap_or_default();
        assert!(
            current == fresh,
            "{} is stale: run UPDATE_GENERATED=1 cargo test -p quire-proto",
            name.display()
        );
        names.push(name);
    }
    fs::remove_dir_all(&out).unwrap();
    names.sort();
    assert_eq!(
        names,
        [
            "descriptor.bin",
            "openengine.v1.rs",
            "smg.grpc.common.rs",
            "vllm.grpc.engine.rs",
            "vllm.rs",
            "xds.data.orca.v3.rs",
        ]
    );
}
