//! Routing and mixtures against straight loops in f64, on odd sizes.

use quire_model::{
    Dtype, ExpertActivation, ExpertGroups, Experts, GroupScore, MoeSpec, RouterScores, RouterSpec,
    TensorData, TensorView,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{MoeScratch, Threads, moe};
use crate::lanes::Isa;
use crate::linear::UnpackScratch;
use crate::pool::Pool;
use crate::router::{route, route_scratch_len};
use crate::weight::{CpuWeight, WeightData};

fn random(rng: &mut StdRng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-2.0..2.0)).collect()
}

fn random_router(rng: &mut StdRng) -> RouterSpec {
    let scores = [
        RouterScores::Softmax,
        RouterScores::SoftmaxOfChosen,
        RouterScores::Sigmoid,
        RouterScores::SparseMixer { jitter: 0.2 },
    ][rng.random_range(0..4)];
    let sparse = matches!(scores, RouterScores::SparseMixer { .. });
    let num_groups = rng.random_range(1..5);
    let group_len = rng.random_range(2..9);
    let top_groups = rng.random_range(1..=num_groups);
    let score = [GroupScore::Best, GroupScore::SumOfTwoBest][rng.random_range(0..2)];
    let grouped = num_groups > 1 && !sparse && scores != RouterScores::SoftmaxOfChosen;
    let most = if grouped { top_groups * group_len } else { num_groups * group_len };
    RouterSpec {
        num_experts: num_groups * group_len,
        top_k: if sparse { 2 } else { rng.random_range(1..=most) },
        scores,
        correction_bias: scores == RouterScores::Sigmoid,
        groups: grouped.then_some(ExpertGroups { num_groups, top_groups, score }),
        renormalise: !sparse && rng.random(),
        scale: if sparse { 1.0 } else { rng.random_range(0.5..3.0) },
    }
}

/// (expert, weight) by the rules, written down anew.
fn naive_route(spec: &RouterSpec, logits: &[f32], correction: &[f32]) -> Vec<(usize, f64)> {
    let logits: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
    let all: Vec<usize> = (0..logits.len()).collect();
    if let RouterScores::SparseMixer { jitter } = spec.scores {
        let mut chosen = Vec::new();
        for _ in 0..2 {
            let left = all.iter().copied().filter(|e| chosen.iter().all(|(c, _)| c != e));
            let best = left.clone().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            let top = logits[best];
            let near =
                left.filter(|e| (top - logits[*e]) / logits[*e].abs().max(top) <= 2.0 * f64::from(jitter));
            chosen.push((best, 1.0 / near.map(|e| (logits[e] - top).exp()).sum::<f64>()));
        }
        return chosen;
    }
    let total: f64 = logits.iter().map(|x| x.exp()).sum();
    let scores: Vec<f64> = match spec.scores {
        RouterScores::Softmax => logits.iter().map(|x| x.exp() / total).collect(),
        RouterScores::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        _ => logits.clone(),
    };
    let choice: Vec<f64> = match spec.correction_bias {
        true => scores.iter().zip(correction).map(|(score, by)| score + f64::from(*by)).collect(),
        false => scores.clone(),
    };
    let mut candidates = all.clone();
    if let Some(groups) = spec.groups {
        let len = logits.len() / groups.num_groups;
        let worth = |group: usize| {
            let mut of = choice[group * len..][..len].to_vec();
            of.sort_by(|a, b| b.total_cmp(a));
            if groups.score == GroupScore::Best { of[0] } else { of[0] + of[1] }
        };
        let mut order: Vec<usize> = (0..groups.num_groups).collect();
        order.sort_by(|a, b| worth(*b).total_cmp(&worth(*a)));
        candidates.retain(|expert| order[..groups.top_groups].contains(&(expert / len)));
    }
    candidates.sort_by(|a, b| choice[*b].total_cmp(&choice[*a]));
    candidates.truncate(spec.top_k);
    let mut weights: Vec<f64> = candidates.iter().map(|expert| scores[*expert]).collect();
    if spec.scores == RouterScores::SoftmaxOfChosen {
        let total: f64 = weights.iter().map(|x| x.exp()).sum();
        weights.iter_mut().for_each(|x| *x = x.exp() / total);
    }
    let sum: f64 = if spec.renormalise { weights.iter().sum() } else { 1.0 };
    candidates.into_iter().zip(weights).map(|(e, w)| (e, w / sum * f64::from(spec.scale))).collect()
}

#[test]
fn routes_are_those_of_the_rules() {
    for seed in 0..400 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let spec = random_router(rng);
        let (logits, correction) = (random(rng, spec.num_experts), random(rng, spec.num_experts));
        let expected = naive_route(&spec, &logits, &correction);
        let mut scratch = vec![9.0; route_scratch_len(spec.num_experts)];
        for isa in Isa::available() {
            let (mut experts, mut weights) = (vec![99; spec.top_k], vec![9.0; spec.top_k]);
            let correction = spec.correction_bias.then_some(&correction[..]);
            route(isa, &spec, &logits, correction, &mut scratch, &mut experts, &mut weights);
            for (rank, (expert, weight)) in expected.iter().enumerate() {
                assert_eq!(experts[rank] as usize, *expert, "seed {seed}, {isa:?}, rank {rank}, {spec:?}");
                let found = f64::from(weights[rank]);
                assert!((found - weight).abs() < 1e-5 * (1.0 + weight), "seed {seed}: {found} for {weight}");
            }
        }
    }
}

#[test]
fn logits_that_are_no_numbers_choose_experts_all_the_same() {
    for seed in 0..100 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let spec = random_router(rng);
        let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let logits: Vec<f32> = (0..spec.num_experts).map(|_| bad[rng.random_range(0..3)]).collect();
        let correction = spec.correction_bias.then(|| vec![0.0; spec.num_experts]);
        let mut scratch = vec![0.0; route_scratch_len(spec.num_experts)];
        let (mut experts, mut weights) = (vec![u32::MAX; spec.top_k], vec![0.0; spec.top_k]);
        let isa = Isa::available()[0];
        route(isa, &spec, &logits, correction.as_deref(), &mut scratch, &mut experts, &mut weights);
        experts.sort_unstable();
        assert!(experts.windows(2).all(|pair| pair[0] != pair[1]), "seed {seed}: {experts:?}");
        assert!(experts.iter().all(|e| (*e as usize) < spec.num_experts), "seed {seed}: {experts:?}");
    }
}

/// A mixture with weights of its own.
struct Mixture {
    spec: MoeSpec,
    hidden: usize,
    correction: CpuWeight,
    gate_up: Vec<CpuWeight>,
    gate_up_bias: Vec<CpuWeight>,
    down: Vec<CpuWeight>,
    down_bias: Vec<CpuWeight>,
}

impl Mixture {
    fn random(rng: &mut StdRng) -> Self {
        let (hidden, inner) = (rng.random_range(1..70), rng.random_range(1..40));
        let router = random_router(rng);
        let activation = match rng.random() {
            true => ExpertActivation::Silu,
            false => ExpertActivation::ClampedSwiGlu { alpha: 1.702, limit: 1.5 },
        };
        let num_experts = router.num_experts;
        let bias = rng.random();
        let mut weights = |len: usize, shape: &[usize]| -> Vec<CpuWeight> {
            (0..len).map(|_| bf16_weight(rng, shape)).collect()
        };
        Self {
            hidden,
            correction: weights(1, &[num_experts]).remove(0),
            gate_up: weights(num_experts, &[2 * inner, hidden]),
            gate_up_bias: weights(if bias { num_experts } else { 0 }, &[2 * inner]),
            down: weights(num_experts, &[hidden, inner]),
            down_bias: weights(if bias { num_experts } else { 0 }, &[hidden]),
            spec: MoeSpec {
                router,
                router_bias: false,
                intermediate_size: inner,
                activation,
                bias,
                shared: None,
            },
        }
    }

    fn compute(&self, pool: &mut Pool, isa: Isa, x: &[f32], logits: &[f32]) -> Vec<f32> {
        self.compute_with(MoeScratch::default(), pool, isa, x, logits)
    }

    fn compute_with(
        &self,
        mut scratch: MoeScratch,
        pool: &mut Pool,
        isa: Isa,
        x: &[f32],
        logits: &[f32],
    ) -> Vec<f32> {
        let rows = x.len() / self.hidden;
        scratch.reserve(pool.num_threads(), rows, self.hidden, &self.spec);
        let experts = Experts {
            spec: &self.spec,
            correction_bias: self.spec.router.correction_bias.then_some(&self.correction),
            gate_up: &self.gate_up,
            gate_up_bias: &self.gate_up_bias,
            down: &self.down,
            down_bias: &self.down_bias,
        };
        let mut out = vec![9.0; rows * self.hidden];
        let mut unpack = UnpackScratch::default();
        let mut threads = Threads { pool, isa, unpacked: unpack.share() };
        moe(&mut threads, &mut scratch, &experts, x, logits, &mut out);
        out
    }

    /// One row in f64.
    fn naive(&self, x: &[f32], logits: &[f32]) -> Vec<f64> {
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let mut out = vec![0.0; self.hidden];
        for (expert, weight) in naive_route(&self.spec.router, logits, self.correction.f32()) {
            let both = naive_product(&x, &self.gate_up[expert], self.gate_up_bias.get(expert));
            let (gate, up) = both.split_at(self.spec.intermediate_size);
            let activated: Vec<f64> =
                gate.iter().zip(up).map(|(gate, up)| self.naive_activation(*gate, *up)).collect();
            let row = naive_product(&activated, &self.down[expert], self.down_bias.get(expert));
            out.iter_mut().zip(row).for_each(|(out, x)| *out += weight * x);
        }
        out
    }

    fn naive_activation(&self, gate: f64, up: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match self.spec.activation {
            ExpertActivation::Silu => gate * sigmoid(gate) * up,
            ExpertActivation::ClampedSwiGlu { alpha, limit } => {
                let limit = f64::from(limit);
                let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
                (up + 1.0) * gate * sigmoid(gate * f64::from(alpha))
            }
        }
    }
}

fn bf16_weight(rng: &mut StdRng, shape: &[usize]) -> CpuWeight {
    let values = random(rng, shape.iter().product());
    let data: Vec<u8> = values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
    let view =
        TensorView { dtype: Dtype::Bf16, shape: shape.to_vec(), data: TensorData::Stored(data.into()) };
    CpuWeight::from_parts(&mut Pool::new(1).unwrap(), &[view]).unwrap()
}

fn naive_product(x: &[f64], weight: &CpuWeight, bias: Option<&CpuWeight>) -> Vec<f64> {
    let WeightData::Bf16(values) = &weight.data else { panic!("not as made by bf16_weight") };
    let row = |row: usize| -> f64 {
        let products = values[row * weight.columns..][..weight.columns].iter().zip(x);
        products.map(|(w, x)| w.to_f64() * x).sum::<f64>() + bias.map_or(0.0, |b| f64::from(b.f32()[row]))
    };
    (0..weight.rows).map(row).collect()
}

#[test]
fn a_mixture_is_the_weighted_sum_of_its_experts() {
    for seed in 0..60 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mixture = Mixture::random(rng);
        let (rows, hidden, num_experts) =
            (rng.random_range(1..20), mixture.hidden, mixture.spec.router.num_experts);
        let (x, logits) = (random(rng, rows * hidden), random(rng, rows * num_experts));
        let mut pool = Pool::new(3).unwrap();
        for isa in Isa::available() {
            let out = mixture.compute(&mut pool, isa, &x, &logits);
            for (row, out) in out.chunks_exact(hidden).enumerate() {
                let expected =
                    mixture.naive(&x[row * hidden..][..hidden], &logits[row * num_experts..][..num_experts]);
                let size = expected.iter().fold(1.0, |max: f64, x| max.max(x.abs()));
                for (found, expected) in out.iter().zip(&expected) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error < 1e-4 * size, "seed {seed}, {isa:?}, row {row}: {found} for {expected}");
                }
            }
        }
    }
}

#[test]
fn a_token_gets_the_same_bits_in_any_company() {
    for seed in 0..40 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mixture = Mixture::random(rng);
        let (rows, hidden, num_experts) =
            (rng.random_range(2..40), mixture.hidden, mixture.spec.router.num_experts);
        let (x, logits) = (random(rng, rows * hidden), random(rng, rows * num_experts));
        let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|x| x.to_bits()).collect() };
        let mut all = Vec::new();
        for isa in Isa::available() {
            let together = mixture.compute(&mut Pool::new(3).unwrap(), isa, &x, &logits);
            let mut pool = Pool::new(1).unwrap();
            for (row, of_row) in together.chunks_exact(hidden).enumerate() {
                let (x, logits) = (&x[row * hidden..][..hidden], &logits[row * num_experts..][..num_experts]);
                let alone = mixture.compute(&mut pool, isa, x, logits);
                assert_eq!(bits(&alone), bits(of_row), "seed {seed}, {isa:?}, row {row}");
            }
            all.push(bits(&together));
        }
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "seed {seed}: instruction sets differ");
    }
}

#[test]
fn a_step_too_large_for_its_scratch_is_computed_in_passes() {
    let rng = &mut StdRng::seed_from_u64(7);
    let mixture = Mixture::random(rng);
    let (rows, hidden, num_experts) = (11, mixture.hidden, mixture.spec.router.num_experts);
    let (x, logits) = (random(rng, rows * hidden), random(rng, rows * num_experts));
    let (mut pool, isa) = (Pool::new(2).unwrap(), Isa::available()[0]);
    let whole = mixture.compute(&mut pool, isa, &x, &logits);
    for pass_bytes in [0, 1000, 10_000, 100_000] {
        let scratch = MoeScratch::of_passes(pass_bytes);
        let found = mixture.compute_with(scratch, &mut pool, isa, &x, &logits);
        assert_eq!(found, whole, "{pass_bytes} bytes a pass");
    }
}
