//! Mixture of experts: a router's scores choose some feed-forwards for each token, whose results
//! are weighed and summed:
//! `y = sum_k weight[k] * down_e(activation(gate_e(x), up_e(x)))`, `e = chosen[k]`.
//!
//! Shazeer et al. 2017, <https://arxiv.org/abs/1701.06538>; Mixtral,
//! <https://arxiv.org/abs/2401.04088>; groups and a bias of the choice: DeepSeek V3,
//! <https://arxiv.org/abs/2412.19437>. Experts are summed in the order of their scores, so a
//! token's result depends on its own choice only. [`Routing::choose`] is the arithmetic of all
//! backends, for a choice that differs in rounding is another choice.

use crate::WeightId;
use crate::gated_linear::{self, Activation};
use crate::linear::{self, Sum};

/// Weights of a mixture: those of all experts one below the other, in one tensor each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    pub routing: Routing,
    /// `[experts]`: added to scores for the choice, not for the weights.
    pub choice_bias: Option<WeightId>,
    /// `[experts]`: what multiplies the weights of those that were chosen: Gemma 4.
    pub weight_scales: Option<WeightId>,
    /// `[experts * inner, width]`
    pub gate: WeightId,
    /// `[experts * inner, width]`
    pub up: WeightId,
    /// `[experts * width, inner]`
    pub down: WeightId,
    /// `[experts, inner]` of gate and up, `[experts, width]` of down.
    pub biases: Option<[WeightId; 3]>,
    pub activation: Activation,
    /// Rows of an expert's gate.
    pub inner: u32,
}

/// How experts are chosen and weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    pub experts: u32,
    /// Chosen for each token.
    pub used: u32,
    pub scoring: Scoring,
    /// Experts are chosen from so many of the groups only, those whose two best sigmoids are best
    /// (DeepSeek V3), or whose best is (V2): `(1, 1)` for all.
    pub groups: u32,
    pub groups_used: u32,
    /// Multiplies the weights.
    pub scale: f32,
    /// Multiplies scores before softmax makes weights of them: 1 in most families.
    pub sharpness: f32,
}

/// What a model learned about its experts apart from their matrices: `[experts]` each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Learned<'a> {
    pub choice_bias: Option<&'a [f32]>,
    pub weight_scales: Option<&'a [f32]>,
}

/// What makes weights of the router's scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over all experts.
    Softmax,
    /// Softmax over all experts; weights of the chosen then sum to 1: Mixtral, Qwen 3.
    SoftmaxNormed,
    /// Softmax over the chosen alone, which is the same but for rounding: GPT-OSS.
    SoftmaxOfChosen,
    /// Each by itself: `1 / (1 + e^-score)`.
    Sigmoid,
    /// The same; weights of the chosen then sum to 1: DeepSeek V3, GLM-4-MoE.
    SigmoidNormed,
}

/// An expert that a token goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Choice {
    pub expert: u32,
    pub weight: f32,
}

impl Routing {
    /// Chooses for one token: `scores: [experts]`, `chosen: [used]`, the best first. Equals are
    /// taken in ascending order. Scores that are no numbers choose something all the same, with
    /// weights that are none.
    pub fn choose(&self, scores: &[f32], learned: Learned<'_>, chosen: &mut [Choice]) {
        assert_eq!((scores.len(), chosen.len()), (self.experts as usize, self.used as usize));
        let rank = |expert: usize| {
            let score = scores[expert];
            let score = match self.scoring {
                // The order of softmax is that of the scores.
                Scoring::Softmax | Scoring::SoftmaxNormed | Scoring::SoftmaxOfChosen => score,
                Scoring::Sigmoid | Scoring::SigmoidNormed => sigmoid(score),
            };
            score + learned.choice_bias.map_or(0.0, |bias| bias[expert])
        };
        let groups = self.best_groups(&rank);
        let in_group = self.experts / self.groups;
        for at in 0..chosen.len() {
            let (before, _) = chosen.split_at(at);
            let mut best: Option<(f32, u32)> = None;
            for expert in 0..self.experts {
                let is_open = groups >> (expert / in_group) & 1 == 1;
                if !is_open || before.iter().any(|choice| choice.expert == expert) {
                    continue;
                }
                let rank = rank(expert as usize);
                if best.is_none_or(|(known, _)| rank > known) {
                    best = Some((rank, expert));
                }
            }
            let (_, expert) =
                best.expect("invariant: open groups have as many experts as are used");
            chosen[at] = Choice { expert, weight: 0.0 };
        }
        self.weigh(scores, chosen);
        if let Some(scales) = learned.weight_scales {
            chosen.iter_mut().for_each(|choice| choice.weight *= scales[choice.expert as usize]);
        }
    }

    /// The groups that are open, as bits.
    fn best_groups(&self, rank: &dyn Fn(usize) -> f32) -> u128 {
        if self.groups_used == self.groups {
            return u128::MAX;
        }
        let in_group = (self.experts / self.groups) as usize;
        let worth = |group: u32| {
            let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            for expert in group as usize * in_group..(group as usize + 1) * in_group {
                let rank = rank(expert);
                if rank > first {
                    (first, second) = (rank, first);
                } else if rank > second {
                    second = rank;
                }
            }
            match self.scoring {
                Scoring::Softmax | Scoring::SoftmaxNormed | Scoring::SoftmaxOfChosen => first,
                Scoring::Sigmoid | Scoring::SigmoidNormed => first + second,
            }
        };
        let mut open = 0u128;
        for _ in 0..self.groups_used {
            let mut best: Option<(f32, u32)> = None;
            for group in (0..self.groups).filter(|group| open >> group & 1 == 0) {
                let worth = worth(group);
                if best.is_none_or(|(known, _)| worth > known) {
                    best = Some((worth, group));
                }
            }
            open |= best.map_or(0, |(_, group)| 1 << group);
        }
        open
    }

    fn weigh(&self, scores: &[f32], chosen: &mut [Choice]) {
        let score = |choice: &Choice| scores[choice.expert as usize];
        let exps = |scores: &mut dyn Iterator<Item = f32>, max: f32| -> f32 {
            scores.map(|score| ((score - max) * self.sharpness).exp()).sum()
        };
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total = match self.scoring {
            Scoring::Softmax => exps(&mut scores.iter().copied(), max),
            Scoring::SoftmaxNormed | Scoring::SoftmaxOfChosen => {
                exps(&mut chosen.iter().map(score), max)
            }
            Scoring::Sigmoid => 1.0,
            // Never 0, as in the published implementations.
            Scoring::SigmoidNormed => {
                chosen.iter().map(|choice| sigmoid(score(choice))).sum::<f32>() + 1e-20
            }
        };
        for choice in chosen {
            let own = match self.scoring {
                Scoring::Softmax | Scoring::SoftmaxNormed | Scoring::SoftmaxOfChosen => {
                    ((score(choice) - max) * self.sharpness).exp()
                }
                Scoring::Sigmoid | Scoring::SigmoidNormed => sigmoid(score(choice)),
            };
            choice.weight = own / total * self.scale;
        }
    }
}

fn sigmoid(value: f32) -> f32 {
    1.0 / (1.0 + (-value).exp())
}

/// The weights of a mixture, decoded; shapes as in [`Experts`].
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    pub gate: &'a [f32],
    pub up: &'a [f32],
    pub down: &'a [f32],
    pub biases: Option<[&'a [f32]; 3]>,
}

/// One token: `x, y: [width]`, `chosen` by [`Routing::choose`].
pub fn reference(
    shape: &Experts,
    weights: &Weights<'_>,
    x: &[f32],
    chosen: &[Choice],
    sum: Sum,
    y: &mut [f32],
) {
    let (width, inner) = (x.len(), shape.inner as usize);
    let mut total = vec![0f32; width];
    let (mut gate, mut up, mut out) = (vec![0f32; inner], vec![0f32; inner], vec![0f32; width]);
    for choice in chosen {
        let expert = choice.expert as usize;
        let rows = |all, rows: usize| -> &[f32] { part(all, expert, rows * width) };
        let bias = |index: usize, rows| weights.biases.map(|all| part(all[index], expert, rows));
        let (of_gate, of_up) = (rows(weights.gate, inner), rows(weights.up, inner));
        linear::reference(x, of_gate, bias(0, inner), width, Sum::Store, &mut gate);
        linear::reference(x, of_up, bias(1, inner), width, Sum::Store, &mut up);
        gated_linear::reference(shape.activation, &mut gate, &up);
        let of_down = part(weights.down, expert, width * inner);
        linear::reference(&gate, of_down, bias(2, width), inner, Sum::Store, &mut out);
        for (total, out) in total.iter_mut().zip(&out) {
            *total += choice.weight * out;
        }
    }
    for (y, total) in y.iter_mut().zip(total) {
        match sum {
            Sum::Store => *y = total,
            Sum::Add => *y += total,
        }
    }
}

fn part(all: &[f32], index: usize, length: usize) -> &[f32] {
    &all[index * length..(index + 1) * length]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(routing: Routing, scores: &[f32], bias: Option<&[f32]>) -> Vec<(u32, f32)> {
        let mut chosen = vec![Choice::default(); routing.used as usize];
        let learned = Learned { choice_bias: bias, ..Learned::default() };
        routing.choose(scores, learned, &mut chosen);
        chosen.iter().map(|choice| (choice.expert, choice.weight)).collect()
    }

    fn routing(scoring: Scoring) -> Routing {
        Routing {
            experts: 4,
            used: 2,
            scoring,
            groups: 1,
            groups_used: 1,
            scale: 1.0,
            sharpness: 1.0,
        }
    }

    fn near(got: &[(u32, f32)], expected: &[(u32, f32)]) {
        for (got, expected) in got.iter().zip(expected) {
            assert_eq!(got.0, expected.0);
            assert!((got.1 - expected.1).abs() < 1e-6, "{got:?} for {expected:?}");
        }
    }

    /// Scores whose exponentials are 1, 4, 2 and 1.
    fn scores() -> [f32; 4] {
        [1f32, 4.0, 2.0, 1.0].map(f32::ln)
    }

    #[test]
    fn weights_are_those_of_the_scoring() {
        near(&choose(routing(Scoring::Softmax), &scores(), None), &[(1, 0.5), (2, 0.25)]);
        for scoring in [Scoring::SoftmaxNormed, Scoring::SoftmaxOfChosen] {
            near(&choose(routing(scoring), &scores(), None), &[(1, 2.0 / 3.0), (2, 1.0 / 3.0)]);
        }
        // Sigmoids of 4 and 2 to 1.
        let (four, two) = (4.0 / 5.0, 2.0 / 3.0);
        near(&choose(routing(Scoring::Sigmoid), &scores(), None), &[(1, four), (2, two)]);
        let normed = Routing { scale: 3.0, ..routing(Scoring::SigmoidNormed) };
        let sum = (four + two) / 3.0;
        near(&choose(normed, &scores(), None), &[(1, four / sum), (2, two / sum)]);
    }

    #[test]
    fn equals_are_taken_in_order_and_a_bias_chooses_without_weighing() {
        near(&choose(routing(Scoring::Softmax), &[0.0; 4], None), &[(0, 0.25), (1, 0.25)]);
        let bias = [0.0, 0.0, 0.0, 5.0];
        let chosen = choose(routing(Scoring::Sigmoid), &scores(), Some(&bias));
        near(&chosen, &[(3, 0.5), (1, 4.0 / 5.0)]);
    }

    #[test]
    fn weights_are_sharpened_and_scaled() {
        // Exponentials are the squares: 1, 16, 4 and 1.
        let sharp = Routing { sharpness: 2.0, ..routing(Scoring::Softmax) };
        near(&choose(sharp, &scores(), None), &[(1, 16.0 / 22.0), (2, 4.0 / 22.0)]);
        let sharp = Routing { scoring: Scoring::SoftmaxNormed, ..sharp };
        let scales = [9.0, 2.0, 10.0, 9.0];
        let learned = Learned { weight_scales: Some(&scales), ..Learned::default() };
        let mut chosen = [Choice::default(); 2];
        sharp.choose(&scores(), learned, &mut chosen);
        let chosen = chosen.map(|choice| (choice.expert, choice.weight));
        near(&chosen, &[(1, 2.0 * 0.8), (2, 10.0 * 0.2)]);
    }

    #[test]
    fn experts_come_from_the_best_groups() {
        // The best expert is alone in its group; the other group's two are better together.
        let grouped = Routing { groups: 2, groups_used: 1, ..routing(Scoring::Sigmoid) };
        let scores = [4.0, -9.0, 2.0, 1.9];
        let chosen: Vec<u32> = choose(grouped, &scores, None).iter().map(|c| c.0).collect();
        assert_eq!(chosen, [2, 3]);
        // By softmax the best expert brings its group along.
        let grouped = Routing { groups: 2, groups_used: 1, ..routing(Scoring::Softmax) };
        let chosen: Vec<u32> = choose(grouped, &scores, None).iter().map(|c| c.0).collect();
        assert_eq!(chosen, [0, 1]);
    }

    #[test]
    fn no_numbers_choose_something() {
        let chosen = choose(routing(Scoring::SoftmaxNormed), &[f32::NAN; 4], None);
        assert!(chosen.iter().all(|(expert, weight)| *expert < 4 && weight.is_nan()));
        assert_ne!(chosen[0].0, chosen[1].0);
    }

    #[test]
    fn chosen_experts_are_summed_by_weight() {
        // Expert e multiplies by e + 1, of a width and an inner width of 1.
        let shape = Experts {
            routing: routing(Scoring::Softmax),
            choice_bias: None,
            weight_scales: None,
            gate: WeightId(0),
            up: WeightId(1),
            down: WeightId(2),
            biases: None,
            activation: Activation::Silu,
            inner: 1,
        };
        let down = [1.0, 2.0, 3.0, 4.0];
        let biases = [&[0.0; 4][..], &[0.0; 4], &[0.0, 0.0, 0.0, 10.0]];
        let weights = Weights { gate: &[1.0; 4], up: &[1.0; 4], down: &down, biases: Some(biases) };
        let chosen = [Choice { expert: 3, weight: 0.5 }, Choice { expert: 1, weight: 0.25 }];
        let mut y = [100.0];
        reference(&shape, &weights, &[2.0], &chosen, Sum::Add, &mut y);
        let hidden = 2.0 * (2.0 / (1.0 + (-2f32).exp()));
        let expected = 100.0 + 0.5 * (4.0 * hidden + 10.0) + 0.25 * 2.0 * hidden;
        assert!((y[0] - expected).abs() < 1e-5, "{} for {expected}", y[0]);
    }
}
