//! [`ApiKeys`]: who may call, by `Authorization: Bearer KEY`. HTTP and gRPC ask here; what needs a key and
//! what the refusal looks like is theirs to say.

use sha2::{Digest, Sha256};

/// SHA-256 of the keys. Digests have one length, so comparing them tells nothing about the keys' lengths.
#[derive(Debug)]
pub struct ApiKeys(Vec<[u8; 32]>);

impl ApiKeys {
    /// These keys. Without any, everybody may pass.
    pub fn new(keys: &[String]) -> Self {
        Self(keys.iter().map(|key| Sha256::digest(key.as_bytes()).into()).collect())
    }

    /// Whether a request with this `Authorization` header (HTTP) or `authorization` metadata (gRPC) may pass.
    pub fn admit(&self, authorization: Option<&[u8]>) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let Some((scheme, key)) = authorization.and_then(|header| header.split_at_checked(7)) else {
            return false;
        };
        if !scheme.eq_ignore_ascii_case(b"Bearer ") {
            return false;
        }
        self.is_known(key)
    }

    /// Whether this, without any scheme, is one of the keys.
    pub fn is_known(&self, key: &[u8]) -> bool {
        let digest: [u8; 32] = Sha256::digest(key.trim_ascii()).into();
        // Every key and every byte is looked at, whatever matches, so that time tells nothing.
        self.0.iter().fold(false, |admitted, key| admitted | same_bytes(key, &digest))
    }
}

fn same_bytes(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b));
    // Keeps the optimiser from leaving the loop at the first difference.
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_keys_pass() {
        let keys = ApiKeys::new(&["secret".into(), "other".into()]);
        for good in ["Bearer secret", "bearer other", "Bearer  secret"] {
            assert!(keys.admit(Some(good.as_bytes())), "{good}");
        }
        for bad in
            ["Bearer wrong", "Bearer ", "Bearer", "secret", "Basic secret", "Bearer secret2", "", "Bearér x"]
        {
            assert!(!keys.admit(Some(bad.as_bytes())), "{bad}");
        }
        assert!(!keys.admit(None));
        assert!(keys.is_known(b"secret") && !keys.is_known(b"Bearer secret") && !keys.is_known(b""));
        assert!(ApiKeys::new(&[]).admit(None));
    }
}
