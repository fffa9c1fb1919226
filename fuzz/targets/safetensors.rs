//! Any bytes as a safetensors file: refused with a sentence, or read as what its header says and no more.

use quire_model::{Checkpoint, ModelError};

/// The whole input is the file.
pub fn run(data: &[u8]) {
    match Checkpoint::from_bytes(data.to_vec()) {
        Ok(checkpoint) => {
            let mut bytes = 0;
            for name in checkpoint.names() {
                let tensor = checkpoint.raw(&name).expect("it is listed");
                let elements: usize = tensor.shape.iter().product();
                assert_eq!(tensor.dtype.bytes_of(elements), Some(tensor.bytes.len()), "{name:?}");
                bytes += tensor.bytes.len();
            }
            assert!(bytes <= data.len(), "more tensors than file");
        }
        Err(ModelError::Malformed { reason, .. }) => {
            assert!(!reason.is_empty() && reason.len() < 4096, "{} bytes of error", reason.len());
        }
        Err(other) => panic!("another kind of error: {other}"),
    }
}
