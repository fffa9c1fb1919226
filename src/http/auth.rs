//! API keys: who may call what.
//!
//! With `--api-key`, every route but the probes and `/metrics` needs `Authorization: Bearer KEY` (vLLM
//! guards only some prefixes, which its own security guide regrets). The decision is made on the path as
//! it came over the wire, before anything decodes or rewrites it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::HttpState;

/// Open to everybody: what kubelets, load balancers and Prometheus ask without a key.
const OPEN: &[&str] = &["/health", "/ready", "/ping", "/version", "/metrics"];

/// SHA-256 of the keys. Digests have one length, so comparing them tells nothing about the keys' lengths.
#[derive(Debug)]
pub(crate) struct ApiKeys(Vec<[u8; 32]>);

impl ApiKeys {
    pub(crate) fn new(keys: &[String]) -> Self {
        Self(keys.iter().map(|key| Sha256::digest(key.as_bytes()).into()).collect())
    }

    /// Whether a request with this `Authorization` header may pass.
    fn admit(&self, authorization: Option<&[u8]>) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let Some((scheme, key)) = authorization.and_then(|header| header.split_at_checked(7)) else {
            return false;
        };
        if !scheme.eq_ignore_ascii_case(b"Bearer ") {
            return false;
        }
        let digest: [u8; 32] = Sha256::digest(key.trim_ascii()).into();
        // Every key and every byte is looked at, whatever matches, so that time tells nothing.
        self.0.iter().fold(false, |admitted, key| admitted | same_bytes(key, &digest))
    }
}

/// Middleware: 401 in vLLM's words if the key is missing or wrong.
pub(crate) async fn check(State(state): State<Arc<HttpState>>, request: Request, next: Next) -> Response {
    let open = request.method() == Method::OPTIONS || OPEN.contains(&request.uri().path());
    let header = request.headers().get(AUTHORIZATION).map(|value| value.as_bytes());
    if open || state.api_keys.admit(header) {
        return next.run(request).await;
    }
    let headers = [(CONTENT_TYPE, "application/json"), (WWW_AUTHENTICATE, "Bearer")];
    (StatusCode::UNAUTHORIZED, headers, r#"{"error":"Unauthorized"}"#).into_response()
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
        assert!(ApiKeys::new(&[]).admit(None));
    }
}
