//! Attention over paged keys and values:
//! `out[t, h] = softmax(scale * q[t, h] . k[j, h / group]) v[j, h / group]`, `j <= position(t)`.
//!
//! Pages: PagedAttention, <https://arxiv.org/abs/2309.06180>. Grouped heads:
//! <https://arxiv.org/abs/2305.13245>. Soft cap: Gemma 2, <https://arxiv.org/abs/2408.00118>.
//! Sinks: one more score a head in the softmax's sum, of a position that has no value (GPT-OSS,
//! <https://arxiv.org/abs/2508.10925>; after <https://arxiv.org/abs/2309.17453>).
//! The reference keeps pages in f32 and sums in f64.

/// Everything about a layer's attention that is fixed at load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    pub heads: u32,
    pub heads_kv: u32,
    pub head_dim: u32,
    /// Multiplies `q . k`; usually `head_dim^-1/2`.
    pub scale: f32,
    pub window: Window,
    /// `cap * tanh(score / cap)` where set.
    pub soft_cap: Option<f32>,
}

/// Which positions a query may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// All up to its own.
    Full,
    /// The last `n` up to and with its own.
    Sliding(u32),
    /// All of its text, which is whole in its row of the step: encoders.
    Whole,
}

impl Window {
    /// First position that a query at `position` sees.
    pub fn first(self, position: u32) -> u32 {
        match self {
            Self::Full | Self::Whole => 0,
            Self::Sliding(tokens) => (position + 1).saturating_sub(tokens),
        }
    }
}

/// Shape of one layer's pages: `[blocks, heads_kv, {key, value}, block_tokens, head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShape {
    pub heads_kv: usize,
    pub block_tokens: usize,
    pub head_dim: usize,
}

impl PageShape {
    /// Elements of one block of one layer, keys and values together.
    pub fn block_elements(&self) -> usize {
        2 * self.heads_kv * self.block_tokens * self.head_dim
    }

    /// Start of the key of `position` in its sequence's pages.
    pub fn key(&self, blocks: &[u32], position: u32, head_kv: usize) -> usize {
        let block = blocks[position as usize / self.block_tokens] as usize;
        let offset = position as usize % self.block_tokens;
        let head = block * self.heads_kv + head_kv;
        (head * 2 * self.block_tokens + offset) * self.head_dim
    }

    /// Start of the value of `position`.
    pub fn value(&self, blocks: &[u32], position: u32, head_kv: usize) -> usize {
        self.key(blocks, position, head_kv) + self.block_tokens * self.head_dim
    }
}

/// One query token: `query, output: [heads, head_dim]`, at `position`, its sequence's `blocks`;
/// `sinks: [heads]`, where the model has them.
#[allow(clippy::too_many_arguments, reason = "an op's operands, each of another kind")]
pub fn reference(
    shape: &AttentionShape,
    sinks: Option<&[f32]>,
    pages: &[f32],
    page_shape: &PageShape,
    blocks: &[u32],
    position: u32,
    query: &[f32],
    output: &mut [f32],
) {
    let dim = shape.head_dim as usize;
    let group = (shape.heads / shape.heads_kv) as usize;
    let first = shape.window.first(position);
    let mut scores = Vec::with_capacity((position - first + 1) as usize);
    for (head, (query, output)) in
        query.chunks_exact(dim).zip(output.chunks_exact_mut(dim)).enumerate()
    {
        scores.clear();
        for j in first..=position {
            let start = page_shape.key(blocks, j, head / group);
            let dot: f64 = query
                .iter()
                .zip(&pages[start..start + dim])
                .map(|(&q, &k)| f64::from(q) * f64::from(k))
                .sum();
            scores.push(capped(dot * f64::from(shape.scale), shape.soft_cap));
        }
        let sink = sinks.map(|sinks| f64::from(sinks[head]));
        let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let mut sums = vec![0f64; dim];
        let mut total = sink.map_or(0.0, |sink| (sink - max).exp());
        for (j, score) in (first..=position).zip(&scores) {
            let weight = (score - max).exp();
            total += weight;
            let start = page_shape.value(blocks, j, head / group);
            for (sum, &v) in sums.iter_mut().zip(&pages[start..start + dim]) {
                *sum += weight * f64::from(v);
            }
        }
        for (out, sum) in output.iter_mut().zip(&sums) {
            *out = (sum / total) as f32;
        }
    }
}

fn capped(score: f64, soft_cap: Option<f32>) -> f64 {
    match soft_cap {
        Some(cap) => f64::from(cap) * (score / f64::from(cap)).tanh(),
        None => score,
    }
}
