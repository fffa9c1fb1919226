//! Whatever a safetensors file, or a folder of them, says about itself: it is true, or it is refused by name.

use std::path::{Path, PathBuf};

use quire_model::{Checkpoint, ModelError, StoredDtype};

/// A file of this header and that many bytes of tensors.
fn file(header: &str, data_len: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend((0..data_len).map(|i| i as u8));
    file
}

/// A folder of this test's own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("quire-safetensors-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.0.join(name), bytes).unwrap();
        self
    }

    #[track_caller]
    fn assert_refused(&self, words: &[&str]) {
        let message = Checkpoint::open(&self.0).err().expect("this folder is refused").to_string();
        for word in words {
            assert!(message.contains(word), "{word:?} is not in {message:?}");
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const TWO: &str = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"I8","shape":[3],"data_offsets":[0,3]},
    "b.weight":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[3,7]}}   "#;

fn one(name: &str) -> Vec<u8> {
    file(&format!(r#"{{"{name}":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}}"#), 4)
}

fn refusal(bytes: Vec<u8>) -> String {
    match Checkpoint::from_bytes(bytes) {
        Err(ModelError::Malformed { reason, .. }) => reason,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("read without complaint"),
    }
}

#[test]
fn tensors_of_any_type_are_there_as_stored() {
    let read = |checkpoint: &Checkpoint| {
        let raw = checkpoint.raw("b.weight").unwrap();
        assert_eq!((raw.dtype, raw.shape, raw.bytes), (StoredDtype::F8_E4M3, &[2, 2][..], &[3, 4, 5, 6][..]));
        assert_eq!(checkpoint.raw("a").unwrap().dtype, StoredDtype::I8);
        assert!(matches!(checkpoint.raw("c"), Err(ModelError::MissingTensor { name }) if name == "c"));
        assert_eq!(checkpoint.names().into_iter().collect::<Vec<_>>(), ["a", "b.weight"]);
    };
    read(&Checkpoint::from_bytes(file(TWO, 7)).unwrap());
    let folder = Folder::new("any-type");
    folder.write("model.safetensors", file(TWO, 7));
    let mapped = Checkpoint::open(&folder.0).unwrap();
    read(&mapped);
    mapped.give_back("b.weight");
    mapped.give_back("no such tensor");
    read(&mapped);
}

#[test]
fn every_type_of_the_format_is_known_by_name_and_width() {
    let types = [
        ("BOOL", 8),
        ("F4", 4),
        ("F6_E2M3", 6),
        ("F6_E3M2", 6),
        ("U8", 8),
        ("I8", 8),
        ("F8_E5M2", 8),
        ("F8_E4M3", 8),
        ("F8_E8M0", 8),
        ("F8_E4M3FNUZ", 8),
        ("F8_E5M2FNUZ", 8),
        ("I16", 16),
        ("U16", 16),
        ("F16", 16),
        ("BF16", 16),
        ("I32", 32),
        ("U32", 32),
        ("F32", 32),
        ("C64", 64),
        ("F64", 64),
        ("I64", 64),
        ("U64", 64),
    ];
    for (name, bits) in types {
        let len = 4 * bits / 8;
        let header = format!(r#"{{"t":{{"dtype":"{name}","shape":[2,2],"data_offsets":[0,{len}]}}}}"#);
        let checkpoint = Checkpoint::from_bytes(file(&header, len)).unwrap();
        let raw = checkpoint.raw("t").unwrap();
        assert_eq!((raw.dtype.to_string().as_str(), raw.dtype.bits(), raw.bytes.len()), (name, bits, len));
    }
}

#[test]
fn headers_that_lie_are_refused_by_name() {
    let t = |entry: &str| file(&format!(r#"{{"t":{{{entry}}}}}"#), 8);
    let typed = |dtype: &str, shape: &str, offsets: &str| {
        t(&format!(r#""dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}"#))
    };
    let two = |second: &str| {
        file(&format!(r#"{{"t":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},{second}}}"#), 8)
    };
    let deep = format!(r#"{{"t":{}"#, "[".repeat(100_000));
    let huge = u64::MAX.to_string();
    let cases = [
        (b"short".to_vec(), "5 bytes are too few"),
        (u64::MAX.to_le_bytes().to_vec(), "18446744073709551615 bytes of header"),
        (99_999_999u64.to_le_bytes().to_vec(), "only 0 follow"),
        (file("", 0), "EOF"),
        (file("[]", 0), "an object of tensors"),
        (file("{\"t\":", 0), "EOF"),
        (file("{} {}", 0), "trailing"),
        (file("{\"\u{0}\":3}", 0), "control character"),
        (file(&deep, 0), "tensor \"t\""),
        (t(""), "missing field"),
        (typed("F31", "[2]", "[0,8]"), "tensor \"t\": dtype \"F31\""),
        (typed("F32", "[2]", "[0,4]"), "F32 of shape [2] has 8 bytes; data_offsets are [0, 4]"),
        (typed("F32", "[2]", "[8,0]"), "data_offsets are [8, 0]"),
        (typed("F32", "[2]", "[0]"), "tensor \"t\""),
        (typed("F32", "[-2]", "[0,8]"), "tensor \"t\""),
        (typed("F32", "[2.5]", "[0,8]"), "tensor \"t\""),
        (typed("F4", "[3]", "[0,1]"), "in whole bytes"),
        (typed("F32", "[4294967296,4294967296]", "[0,8]"), "no memory holds"),
        (typed("F64", &format!("[{huge}]"), "[0,8]"), "no memory holds"),
        (typed("U8", "[8]", &format!("[{},{huge}]", u64::MAX - 8)), "data_offsets are"),
        (typed("U8", "[1,1,1,1,1,1,1,1,8]", "[0,8]"), "more than 8 dimensions"),
        (typed("U8", "[8]", "[8,16]"), "leaves a hole"),
        (typed("U8", "[16]", "[0,16]"), "truncated"),
        (typed("U8", "[4]", "[0,4]"), "4 bytes at its end belong to no tensor"),
        (
            two(r#""u":{"dtype":"U8","shape":[5],"data_offsets":[3,8]}"#),
            "\"u\" with data_offsets [3, 8] overlaps",
        ),
        (two(r#""u":{"dtype":"U8","shape":[3],"data_offsets":[5,8]}"#), "leaves a hole"),
        (two(r#""t":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}"#), "\"t\" is listed twice"),
        (two(r#""t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#), "\"t\" is listed twice"),
    ];
    for (bytes, words) in cases {
        let reason = refusal(bytes);
        assert!(reason.contains(words), "{words:?} is not in {reason:?}");
    }
    assert!(refusal(file("{\"\u{e9}", 0)).len() < 200);
    let empty = Checkpoint::from_bytes(file("{}", 0)).unwrap();
    assert!(empty.names().is_empty());
}

#[test]
fn folders_that_contradict_themselves_are_refused_by_name() {
    let index = |map: &str| format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{{{map}}}}}"#);
    const INDEX: &str = "model.safetensors.index.json";
    let folder = Folder::new("folders");
    folder.assert_refused(&["no weights in", "neither model.safetensors nor"]);
    folder.write("pytorch_model.bin", "");
    folder.assert_refused(&["pytorch_model.bin holds Python objects", "save_pretrained"]);
    folder.write("one.safetensors", one("a")).write("two.safetensors", one("b"));
    folder.write("consolidated.safetensors", one("a"));
    assert_eq!(Checkpoint::open(&folder.0).unwrap().names().len(), 2, "all files, where there is no index");
    for outside in ["../one.safetensors", "/one.safetensors", "..\\\\one.safetensors", "one.bin", ".."] {
        folder.write(INDEX, index(&format!(r#""a":"{outside}""#)));
        folder.assert_refused(&["weight_map[\"a\"]", "in this folder"]);
    }
    for (map, words) in [
        ("", &["lists no tensor"][..]),
        (r#""a":"one.safetensors","a":"two.safetensors""#, &["lists \"a\" twice"]),
        (r#""a":"one.safetensors","b":"gone.safetensors""#, &["lists 1 tensors in gone.safetensors"]),
        (
            r#""a":"one.safetensors","c":"two.safetensors""#,
            &["tensor \"c\"", "two.safetensors", "none of that name"],
        ),
        (
            r#""a":"two.safetensors","b":"one.safetensors""#,
            &["\"a\" is in two.safetensors; it is in one.safetensors"],
        ),
    ] {
        folder.write(INDEX, index(map));
        folder.assert_refused(words);
    }
    folder.write(INDEX, index(r#""a":"one.safetensors","b":"two.safetensors""#));
    assert_eq!(Checkpoint::open(&folder.0).unwrap().names().len(), 2);
    folder.write("two.safetensors", one("a"));
    folder.assert_refused(&["two.safetensors", "tensor \"a\" is in", "one.safetensors as well"]);
    folder.write("two.safetensors", &one("b")[..20]);
    folder.assert_refused(&["two.safetensors", "truncated"]);
    folder.write("model.safetensors", file(TWO, 6));
    folder.assert_refused(&["model.safetensors", "\"b.weight\" ends at byte"]);
}

#[test]
fn damaged_files_are_refused_or_read_and_never_more() {
    let good = std::fs::read(Path::new("tests/fixtures/llama-tied-linear/model.safetensors")).unwrap();
    let header_len = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut refused = 0;
    for seed in 0..2000u64 {
        let mut numbers = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |n: usize| {
            numbers ^= numbers << 13;
            numbers ^= numbers >> 7;
            numbers ^= numbers << 17;
            (numbers % n as u64) as usize
        };
        let mut bytes = good.clone();
        for _ in 0..1 + below(3) {
            let at = below(header_len);
            match below(4) {
                0 => bytes.truncate(below(bytes.len())),
                1 if at < bytes.len() => bytes[at] = b"0123456789[]{},:\"-.eF"[below(21)],
                2 if at < bytes.len() => drop(bytes.remove(at)),
                _ => bytes.insert(at.min(bytes.len()), below(256) as u8),
            }
        }
        match Checkpoint::from_bytes(bytes) {
            Ok(checkpoint) => {
                for name in checkpoint.names() {
                    let raw = checkpoint.raw(&name).unwrap();
                    let len = raw.dtype.bits() * raw.shape.iter().product::<usize>() / 8;
                    assert_eq!(raw.bytes.len(), len, "seed {seed}");
                }
            }
            Err(ModelError::Malformed { reason, .. }) => {
                assert!(!reason.is_empty() && reason.len() < 1000, "seed {seed}: {reason}");
                refused += 1;
            }
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
    assert!(refused > 1000, "only {refused} were damaged enough to notice");
}
