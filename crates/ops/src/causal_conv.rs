//! Causal convolution of each channel over its sequence's last tokens, then SiLU:
//! `y[t, c] = silu(sum_j w[c, j] * x[t - taps + 1 + j, c])`, with zeros before the first token.
//!
//! Mamba's short convolution (<https://arxiv.org/abs/2312.00752>), as gated delta nets have it. A
//! sequence carries its last `taps - 1` inputs, the oldest first. The reference sums in f64.

use crate::gated_linear::silu;

/// One token: `values: [channels]` in place, `weight: [channels, taps]`,
/// `tail: [taps - 1, channels]`.
pub fn reference(weight: &[f32], tail: &mut [f32], values: &mut [f32]) {
    let channels = values.len();
    let taps = weight.len() / channels;
    for (channel, value) in values.iter_mut().enumerate() {
        let weight = &weight[channel * taps..][..taps];
        let before = tail.iter().skip(channel).step_by(channels);
        let inputs = before.copied().chain([*value]);
        let sum: f64 = inputs.zip(weight).map(|(x, &w)| f64::from(x) * f64::from(w)).sum();
        let input = std::mem::replace(value, silu(sum as f32));
        push(tail, channels, channel, input);
    }
}

/// Carries an input on without computing anything.
pub fn skip(tail: &mut [f32], values: &[f32]) {
    for (channel, &value) in values.iter().enumerate() {
        push(tail, values.len(), channel, value);
    }
}

/// The oldest input of a channel goes, the newest comes.
fn push(tail: &mut [f32], channels: usize, channel: usize, input: f32) {
    let mut place = channel;
    while place + channels < tail.len() {
        tail[place] = tail[place + channels];
        place += channels;
    }
    if let Some(last) = tail.get_mut(place) {
        *last = input;
    }
}

#[cfg(test)]
mod tests {
    use super::{reference, silu, skip};

    #[test]
    fn each_channel_sees_its_own_last_inputs() {
        // Two channels of three taps, so two inputs are carried.
        let weight = [1.0, 10.0, 100.0, 0.0, 0.0, 1.0];
        let mut tail = [0.0; 4];
        let mut sums = Vec::new();
        for token in 1..=4 {
            let mut values = [token as f32, -1.0];
            reference(&weight, &mut tail, &mut values);
            sums.push(values[0]);
            assert_eq!(values[1], silu(-1.0));
        }
        assert_eq!(sums, [100.0, 210.0, 321.0, 432.0].map(silu));
        assert_eq!(tail, [3.0, -1.0, 4.0, -1.0]);
        let mut skipped = [0.0; 4];
        (1..=4).for_each(|token| skip(&mut skipped, &[token as f32, -1.0]));
        assert_eq!(skipped, tail);
    }

    #[test]
    fn one_tap_carries_nothing() {
        let mut values = [2.0];
        reference(&[3.0], &mut [], &mut values);
        assert_eq!(values, [silu(6.0)]);
    }
}
