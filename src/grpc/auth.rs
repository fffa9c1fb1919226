//! API keys: `authorization: Bearer <key>` in the metadata of a call, as on HTTP.

use std::hint::black_box;
use std::sync::Arc;

use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Lets calls pass that bear one of the keys; all of them, if there are no keys.
#[derive(Debug, Clone)]
pub(super) struct ApiKeys(Arc<[String]>);

impl ApiKeys {
    pub(super) fn new(keys: &[String]) -> Self {
        Self(keys.into())
    }

    fn allows(&self, authorization: Option<&str>) -> bool {
        let Some((scheme, key)) = authorization.and_then(|value| value.split_once(' ')) else { return false };
        // No early exit: how long this takes must not tell which key it was.
        let known = self.0.iter().fold(false, |known, ours| known | equal(ours.as_bytes(), key.as_bytes()));
        scheme.eq_ignore_ascii_case("bearer") && known
    }
}

impl Interceptor for ApiKeys {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let authorization = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        if self.0.is_empty() || self.allows(authorization) {
            return Ok(request);
        }
        let message = "a valid API key is needed: send it as metadata 'authorization: Bearer <key>'";
        Err(Status::unauthenticated(message))
    }
}

/// Compares in a time that depends on the lengths only, so that a key cannot be guessed byte by byte.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| black_box(difference | (a ^ b)));
    a.len() == b.len() && difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_key_opens() {
        let keys = ApiKeys::new(&["first".into(), "second".into()]);
        for good in ["Bearer first", "bearer second"] {
            assert!(keys.allows(Some(good)), "{good}");
        }
        for bad in
            ["", "first", "Bearer", "Bearer ", "Bearer firs", "Bearer firstt", "Basic first", "Bearer  first"]
        {
            assert!(!keys.allows(Some(bad)), "{bad}");
        }
        assert!(!keys.allows(None));
    }
}
