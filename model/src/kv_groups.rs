//! [`KvGroups`]: which layers share the memory of the KV cache, so that those with a window need little of it.
//!
//! Layers that see equally far back are sorted into groups of (nearly) equal size. Each sequence has a block table
//! for each group, and there is one buffer for the first layers of all groups, one for the second ones, and so on:
//! a block belongs to one group at a time and holds its tokens in every buffer. So whatever the windows leave free
//! goes to the layers that see everything. What it costs: where the layers of a kind are no multiple of the group's
//! size, the last buffers of a block lie idle in some groups.

use quire_scheduler::kv::{KvGroup, MAX_KV_GROUPS};

use crate::kv_layout::KvLayout;
use crate::spec::{LayerSpec, ModelSpec};

/// Where a layer keeps its keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvPlace {
    /// The group, whose block tables say which blocks.
    pub group: usize,
    /// The buffer that has these blocks.
    pub buffer: usize,
}

/// The layers of a model, sorted. See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvGroups {
    groups: Vec<KvGroup>,
    /// By layer.
    places: Vec<KvPlace>,
}

impl KvGroups {
    /// One group and a buffer for each layer; nothing is ever given back before the sequence ends.
    pub fn one(spec: &ModelSpec) -> Self {
        let places = (0..spec.layers.len()).map(|buffer| KvPlace { group: 0, buffer }).collect();
        Self { groups: vec![KvGroup::FULL], places }
    }

    /// Groups by windows, where all layers keep equally much of a token; else, and where they keep latents (which no
    /// model has windows on), [`Self::one`].
    pub fn by_window(spec: &ModelSpec) -> Self {
        // The size of a block does not matter here.
        let kept = KvLayout::new(spec, 1).layers;
        let is_latent = |layer: &LayerSpec| layer.attention.latent.is_some();
        let differ = kept.windows(2).any(|pair| pair[0] != pair[1]);
        if kept.is_empty() || differ || spec.layers.iter().any(is_latent) {
            return Self::one(spec);
        }
        let mut kinds: Vec<(KvGroup, Vec<usize>)> = Vec::new();
        for (index, layer) in spec.layers.iter().enumerate() {
            // A window as long as any sequence is none.
            let short = |window: &u32| (*window as usize) < spec.max_position_embeddings;
            let group = KvGroup { sliding_window: layer.attention.sliding_window.filter(short) };
            match kinds.iter_mut().find(|(of, _)| *of == group) {
                Some((_, layers)) => layers.push(index),
                None => kinds.push((group, vec![index])),
            }
        }
        Self::sort(&kinds, spec.layers.len())
    }

    /// The groups, as the scheduler knows them.
    pub fn groups(&self) -> &[KvGroup] {
        &self.groups
    }

    /// Where a layer keeps its keys and values.
    pub fn place(&self, layer: usize) -> KvPlace {
        self.places[layer]
    }

    /// What there is in memory: one entry a buffer, in the form of the layers that share it.
    pub fn layout(&self, spec: &ModelSpec, block_size: usize) -> KvLayout {
        let of_layers = KvLayout::new(spec, block_size);
        let num_buffers = self.places.iter().map(|place| place.buffer + 1).max().unwrap_or(0);
        let layer = |buffer: usize| self.places.iter().position(|place| place.buffer == buffer);
        let kept = (0..num_buffers).filter_map(|buffer| of_layers.layers.get(layer(buffer)?).copied());
        KvLayout { layers: kept.collect(), block_size }
    }

    /// Groups as large as the rarest kind, as vLLM has them; or as the commonest, if that leaves no more idle: the
    /// fewer groups, the fewer block tables.
    fn sort(kinds: &[(KvGroup, Vec<usize>)], num_layers: usize) -> Self {
        let num_groups =
            |size: usize| kinds.iter().map(|(_, layers)| layers.len().div_ceil(size)).sum::<usize>();
        let sizes = kinds.iter().map(|(_, layers)| layers.len());
        let (rarest, commonest) = (sizes.clone().min().unwrap_or(1), sizes.max().unwrap_or(1));
        let no_more = num_groups(commonest) * commonest <= num_groups(rarest) * rarest;
        let mut size = if no_more { commonest } else { rarest };
        while num_groups(size) > MAX_KV_GROUPS {
            size += 1;
        }
        let (mut groups, mut places) = (Vec::new(), vec![KvPlace { group: 0, buffer: 0 }; num_layers]);
        for (kind, layers) in kinds {
            let (first, count) = (groups.len(), layers.len().div_ceil(size));
            for (at, layer) in layers.iter().enumerate() {
                places[*layer] = KvPlace { group: first + at % count, buffer: at / count };
            }
            groups.extend(std::iter::repeat_n(*kind, count));
        }
        Self { groups, places }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Layers with the window where the pattern says so: `layer % period != period - 1`.
    fn sorted(num_layers: usize, period: usize) -> KvGroups {
        let window = |slides| KvGroup { sliding_window: if slides { Some(512) } else { None } };
        let of = |slides: bool| (0..num_layers).filter(|at| (at % period != period - 1) == slides).collect();
        let kinds: Vec<(KvGroup, Vec<usize>)> =
            [true, false].map(|slides| (window(slides), of(slides))).into_iter().collect();
        let kinds: Vec<_> = kinds.into_iter().filter(|(_, layers)| !layers.is_empty()).collect();
        let groups = KvGroups::sort(&kinds, num_layers);
        let places: BTreeSet<(usize, usize)> =
            groups.places.iter().map(|place| (place.group, place.buffer)).collect();
        assert_eq!(places.len(), num_layers, "no two layers share a place");
        for (layer, place) in groups.places.iter().enumerate() {
            let slides = layer % period != period - 1;
            assert_eq!(groups.groups[place.group], window(slides), "layer {layer} of {num_layers}");
        }
        groups
    }

    fn num_buffers(groups: &KvGroups) -> usize {
        groups.places.iter().map(|place| place.buffer + 1).max().unwrap()
    }

    /// Groups and buffers of published models, by their numbers of layers and patterns.
    #[test]
    fn layers_are_sorted_into_groups_of_equal_size() {
        let shape = |num_layers, period| {
            let groups = sorted(num_layers, period);
            (groups.groups.len(), num_buffers(&groups))
        };
        assert_eq!(shape(26, 2), (2, 13), "Gemma 2 2B: every other layer");
        assert_eq!(shape(34, 6), (7, 5), "Gemma 3 4B: 29 and 5");
        assert_eq!(shape(26, 6), (7, 4), "Gemma 3 1B: 22 and 4");
        assert_eq!(shape(62, 6), (7, 10), "Gemma 3 27B: 52 and 10");
        assert_eq!(shape(24, 2), (2, 12), "gpt-oss 20B");
        assert_eq!(shape(32, 100), (1, 32), "Mistral 7B: all layers");
        assert_eq!(shape(5, 2), (2, 3), "3 and 2: six places either way");
        assert_eq!(shape(7, 2), (2, 4), "4 and 3: eight places, not nine");
    }

    #[test]
    fn there_are_never_too_many_groups() {
        let groups = sorted(200, 200);
        assert!(groups.groups.len() <= MAX_KV_GROUPS, "{}", groups.groups.len());
    }
}
