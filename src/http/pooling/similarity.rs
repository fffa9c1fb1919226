//! How near texts are to each other: the cosine of the angle between their embeddings.

use crate::embed::{EmbedInput, EmbedOptions, Embedding, embed};
use crate::http::HttpState;
use crate::http::error::ApiError;

/// Texts of a request, and the field they came in.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) param: &'static str,
    pub(crate) texts: Vec<String>,
}

/// Embeds both sides at once.
pub(super) async fn embed_both(
    state: &HttpState,
    options: &EmbedOptions,
    left: Side,
    right: Side,
) -> Result<(Vec<Embedding>, Vec<Embedding>), ApiError> {
    let embed_side = async |side: Side| {
        let options = EmbedOptions { input_param: side.param, normalize: Some(true), ..options.clone() };
        let inputs = side.texts.into_iter().map(EmbedInput::Text).collect();
        embed(&state.app, inputs, &options).await
    };
    Ok(futures_util::future::try_join(embed_side(left), embed_side(right)).await?)
}

/// Of two vectors of length 1.
pub(super) fn cosine(left: &Embedding, right: &Embedding) -> f64 {
    let products = left.values.iter().zip(&right.values).map(|(a, b)| f64::from(*a) * f64::from(*b));
    products.sum()
}
