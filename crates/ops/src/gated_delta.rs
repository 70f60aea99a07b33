//! Gated delta rule: a matrix for each head, which every token lets fade, corrects and reads.
//!
//! `g = exp(rate * softplus(decay + bias))`, `b = sigmoid(strength)`, and with `k` and `q` as long
//! as 1, `S = g S`, `S += k (b (v - S^T k))^T`, `o = S^T q / sqrt(key_dim)`.
//!
//! Gated Delta Networks, <https://arxiv.org/abs/2412.06464>; reference: transformers
//! `modeling_qwen3_5.py`. A sequence carries `S` in f32; sums of the reference are f64. Tokens of a
//! sequence are taken one after another, so that it does not matter how a prompt is cut.

use crate::gated_linear::sigmoid;

/// Added to a squared length, so that a vector of zeros stays one.
pub const LENGTH_EPSILON: f32 = 1e-6;

/// Sizes of a layer's heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaShape {
    /// Of values, and so matrices.
    pub heads: u32,
    /// Of keys and queries.
    pub heads_key: u32,
    pub key_dim: u32,
    pub value_dim: u32,
    pub sharing: HeadSharing,
}

/// Which values share a head of keys, where there are more heads of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadSharing {
    /// Those that follow each other, as their authors have it.
    Grouped,
    /// Each head of keys in turn, as GGUF files have them.
    Tiled,
}

impl DeltaShape {
    /// Columns of queries and keys, each.
    pub fn key_width(&self) -> u32 {
        self.heads_key * self.key_dim
    }

    pub fn value_width(&self) -> u32 {
        self.heads * self.value_dim
    }

    /// Queries, keys and values of a token, side by side.
    pub fn mixed_width(&self) -> u32 {
        2 * self.key_width() + self.value_width()
    }

    /// Elements of what a sequence carries.
    pub fn state_elements(&self) -> u32 {
        self.heads * self.key_dim * self.value_dim
    }

    /// The head of keys that a head of values reads.
    pub fn key_head(&self, head: u32) -> u32 {
        match self.sharing {
            HeadSharing::Grouped => head / (self.heads / self.heads_key),
            HeadSharing::Tiled => head % self.heads_key,
        }
    }

    /// Where a head's query, key and value are among a token's.
    pub fn parts(&self, head: u32) -> [std::ops::Range<usize>; 3] {
        let (key_dim, value_dim) = (self.key_dim as usize, self.value_dim as usize);
        let query = self.key_head(head) as usize * key_dim;
        let key = self.key_width() as usize + query;
        let value = 2 * self.key_width() as usize + head as usize * value_dim;
        [query..query + key_dim, key..key + key_dim, value..value + value_dim]
    }
}

/// What a head's token does to its matrix besides its key and value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gates {
    /// What is left of the matrix.
    pub keep: f32,
    /// How much of the difference is corrected.
    pub correct: f32,
}

impl Gates {
    pub fn of(rate: f32, bias: f32, decay: f32, strength: f32) -> Self {
        let x = decay + bias;
        // As the authors' code does: beyond 20 the two differ by less than f32 shows.
        let softplus = if x > 20.0 { x } else { x.exp().ln_1p() };
        Self { keep: (rate * softplus).exp(), correct: sigmoid(strength) }
    }
}

/// One token of one head: `state: [key_dim, value_dim]`, `query` and `key: [key_dim]`,
/// `value` and `output: [value_dim]`.
pub fn reference(
    gates: Gates,
    state: &mut [f32],
    [query, key, value]: [&[f32]; 3],
    output: &mut [f32],
) {
    let key = unit(key);
    let scale = (query.len() as f64).sqrt().recip();
    let query: Vec<f64> = unit(query).into_iter().map(|x| x * scale).collect();
    let width = value.len();
    state.iter_mut().for_each(|element| *element *= gates.keep);
    for column in 0..width {
        let elements = || state.iter().skip(column).step_by(width);
        let known: f64 = elements().zip(&key).map(|(&s, k)| f64::from(s) * k).sum();
        let missing = f64::from(gates.correct) * (f64::from(value[column]) - known);
        let own = state.iter_mut().skip(column).step_by(width);
        own.zip(&key).for_each(|(element, k)| *element += (k * missing) as f32);
        let elements = state.iter().skip(column).step_by(width);
        let read: f64 = elements.zip(&query).map(|(&s, q)| f64::from(s) * q).sum();
        output[column] = read as f32;
    }
}

fn unit(vector: &[f32]) -> Vec<f64> {
    let squares: f64 = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let inverse = (squares + f64::from(LENGTH_EPSILON)).sqrt().recip();
    vector.iter().map(|&x| f64::from(x) * inverse).collect()
}

#[cfg(test)]
mod tests {
    use super::{DeltaShape, Gates, HeadSharing, reference};

    #[test]
    fn what_was_written_is_read_and_fades() {
        let (mut state, mut output) = ([0.0; 6], [0.0; 3]);
        let (east, north) = ([5.0, 0.0], [0.0, 2.0]);
        let gates = Gates { keep: 0.5, correct: 1.0 };
        let root = 2f32.sqrt();
        reference(gates, &mut state, [&east, &east, &[1.0, 2.0, 3.0]], &mut output);
        // Keys are as long as one, whatever they were.
        for (got, written) in output.iter().zip([1.0, 2.0, 3.0]) {
            assert!((got - written / root).abs() < 1e-6, "{output:?}");
        }
        // Another key's value leaves it alone, but for the fading.
        reference(gates, &mut state, [&east, &north, &[7.0, 7.0, 7.0]], &mut output);
        for (got, written) in output.iter().zip([0.5, 1.0, 1.5]) {
            assert!((got - written / root).abs() < 1e-5, "{output:?}");
        }
        // The same key's value replaces it.
        reference(gates, &mut state, [&east, &east, &[9.0, 9.0, 9.0]], &mut output);
        assert!(output.iter().all(|got| (got - 9.0 / root).abs() < 1e-5), "{output:?}");
    }

    #[test]
    fn gates_are_between_nothing_and_all() {
        let gates = Gates::of(-1.0, 0.0, 0.0, 0.0);
        assert!((gates.keep - 0.5).abs() < 1e-6 && gates.correct == 0.5, "{gates:?}");
        let wide = Gates::of(-2.0, 5.0, 95.0, 100.0);
        assert!(wide.keep < 1e-30 && wide.correct == 1.0, "{wide:?}");
    }

    #[test]
    fn heads_share_keys_as_files_have_them() {
        let shape =
            |sharing| DeltaShape { heads: 4, heads_key: 2, key_dim: 8, value_dim: 3, sharing };
        let keys = |sharing| [0, 1, 2, 3].map(|head| shape(sharing).key_head(head));
        assert_eq!(keys(HeadSharing::Grouped), [0, 0, 1, 1]);
        assert_eq!(keys(HeadSharing::Tiled), [0, 1, 0, 1]);
        let shape = shape(HeadSharing::Grouped);
        assert_eq!(shape.parts(3), [8..16, 24..32, 41..44]);
        assert_eq!((shape.mixed_width(), shape.state_elements()), (44, 96));
    }
}
