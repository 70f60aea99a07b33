//! Pooling: the rows of a text to the one that stands for it.
//!
//! The first row is BERT's (<https://arxiv.org/abs/1810.04805>), the mean of all is
//! Sentence-BERT's (<https://arxiv.org/abs/1908.10084>), the last is that of decoders, which alone
//! has seen the whole text. A text may be read in several steps: what later ones need of earlier
//! ones is kept in a row of its own, and sums are made in the order of positions, so that the
//! result does not depend on where the text was cut.

/// Which row stands for a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    First,
    Last,
    Mean,
}

impl Pooling {
    /// As settings name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Last => "last",
            Self::Mean => "mean",
        }
    }
}

/// Takes the rows of one text at the positions from `start` on; `input: [tokens, width]`,
/// `kept: [width]`, which needs no value before the first position.
pub fn keep(pooling: Pooling, start: u32, input: &[f32], kept: &mut [f32]) {
    let width = kept.len();
    let mut rows = input.chunks_exact(width);
    match pooling {
        Pooling::First => {
            if let Some(first) = rows.next().filter(|_| start == 0) {
                kept.copy_from_slice(first);
            }
        }
        Pooling::Last => {
            if let Some(last) = rows.next_back() {
                kept.copy_from_slice(last);
            }
        }
        Pooling::Mean => {
            if start == 0 {
                kept.fill(0.0);
            }
            for row in rows {
                kept.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
    }
}

/// The row of a text of `count` tokens, all of them taken; `kept, output: [width]`.
pub fn finish(pooling: Pooling, count: u32, kept: &[f32], output: &mut [f32]) {
    output.copy_from_slice(kept);
    if pooling == Pooling::Mean {
        output.iter_mut().for_each(|value| *value /= count as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooled(pooling: Pooling, rows: &[f32], cut: usize) -> Vec<f32> {
        let (mut kept, mut output) = (vec![7.0; 2], vec![0.0; 2]);
        keep(pooling, 0, &rows[..2 * cut], &mut kept);
        keep(pooling, cut as u32, &rows[2 * cut..], &mut kept);
        finish(pooling, rows.len() as u32 / 2, &kept, &mut output);
        output
    }

    #[test]
    fn a_cut_changes_nothing() {
        let rows = [1.0, 2.0, 3.0, -4.0, 8.0, 0.5];
        for (pooling, expected) in [
            (Pooling::First, [1.0, 2.0]),
            (Pooling::Last, [8.0, 0.5]),
            (Pooling::Mean, [4.0, -0.5]),
        ] {
            for cut in 1..=3 {
                assert_eq!(pooled(pooling, &rows, cut), expected, "{pooling:?} cut at {cut}");
            }
        }
    }
}
