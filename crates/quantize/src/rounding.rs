//! Which scale (and minimum) makes a group of weights come out nearest? The searches of ggml, so
//! that a file made here is as good as one made there.
//!
//! Each tries some scales about the obvious one, rounds with it, and keeps the one whose weighted
//! square of errors is smallest once the best scale for those codes is worked out.
//!
//! Source: `make_qx_quants` and `make_qkx2_quants` in `ggml-quants.c` of ggml.

/// Magnitudes below it are none.
pub(crate) const NOTHING: f32 = 1e-15;

/// Round to even, as ggml's `nearest_int` does.
pub(crate) fn nearest(value: f32) -> i32 {
    value.round_ties_even() as i32
}

/// The scale of codes of `-half` to `half - 1` around 0; heavier where weights are larger. Zero if
/// there is nothing.
pub(crate) fn symmetric(values: &[f32], half: i32) -> f32 {
    let largest = values.iter().copied().fold(0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    if largest.abs() < NOTHING {
        return 0.0;
    }
    let sums = |inverse: f32| {
        values.iter().fold((0f32, 0f32), |(products, squares), value| {
            let code = nearest(inverse * value).clamp(-half, half - 1) as f32;
            let weight = value * value;
            (products + weight * value * code, squares + weight * code * code)
        })
    };
    let (products, squares) = sums(-(half as f32) / largest);
    let mut scale = if squares > 0.0 { products / squares } else { 0.0 };
    let mut best = scale * products;
    for step in (-9..=9).filter(|step| *step != 0) {
        let (products, squares) = sums(-(half as f32 + 0.1 * step as f32) / largest);
        if squares > 0.0 && products * products > best * squares {
            scale = products / squares;
            best = scale * products;
        }
    }
    scale
}

/// Where and how far the search for a scale and a minimum goes.
#[derive(Clone, Copy)]
pub(crate) struct Search {
    pub(crate) codes_max: i32,
    pub(crate) first: f32,
    pub(crate) steps: u32,
}

/// Scale and minimum (0 or below) of codes from 0 up; `weights` say how much each error counts.
pub(crate) fn with_minimum(values: &[f32], weights: &[f32], search: Search) -> (f32, f32) {
    let low = values.iter().copied().fold(0f32, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if high <= low {
        return (0.0, low);
    }
    let most = search.codes_max as f32;
    let code = |inverse: f32, value: f32| {
        nearest(inverse * (value - low)).clamp(0, search.codes_max) as f32
    };
    let error_of = |inverse: f32, scale: f32, minimum: f32| {
        let pairs = values.iter().zip(weights);
        pairs.fold(0f32, |sum, (value, weight)| {
            let error = scale * code(inverse, *value) + minimum - value;
            sum + weight * error * error
        })
    };
    let weight_sum: f32 = weights.iter().sum();
    let value_sum: f32 = values.iter().zip(weights).map(|(value, weight)| value * weight).sum();
    let inverse = most / (high - low);
    let (mut scale, mut minimum) = (1.0 / inverse, low);
    let mut best = error_of(inverse, scale, minimum);
    for step in 0..=search.steps {
        let inverse = (search.first + 0.1 * step as f32 + most) / (high - low);
        let (mut codes, mut squares, mut products) = (0f32, 0f32, 0f32);
        for (value, weight) in values.iter().zip(weights) {
            let code = code(inverse, *value);
            codes += weight * code;
            squares += weight * code * code;
            products += weight * code * value;
        }
        let determinant = weight_sum * squares - codes * codes;
        if determinant <= 0.0 {
            continue;
        }
        let mut own_scale = (weight_sum * products - value_sum * codes) / determinant;
        let mut own_minimum = (squares * value_sum - codes * products) / determinant;
        if own_minimum > 0.0 {
            own_minimum = 0.0;
            own_scale = products / squares;
        }
        let error = error_of(inverse, own_scale, own_minimum);
        if error < best {
            (best, scale, minimum) = (error, own_scale, own_minimum);
        }
    }
    (scale, minimum)
}

#[cfg(test)]
mod tests {
    use super::{Search, symmetric, with_minimum};

    fn ramp(count: usize, from: f32, step: f32) -> Vec<f32> {
        (0..count).map(|index| from + step * index as f32).collect()
    }

    #[test]
    fn what_codes_can_hold_is_found() {
        // -32 to 31 in steps of a quarter, the first the largest in magnitude.
        let scale = symmetric(&ramp(64, -8.0, 0.25), 32);
        assert!((scale - 0.25).abs() < 1e-6, "{scale}");
        let values = ramp(16, -1.5, 0.5);
        let search = Search { codes_max: 15, first: -1.0, steps: 20 };
        let (scale, minimum) = with_minimum(&values, &[1.0; 16], search);
        assert!((scale - 0.5).abs() < 1e-6 && (minimum + 1.5).abs() < 1e-6, "{scale} {minimum}");
        // A minimum is never above 0.
        let (scale, minimum) = with_minimum(&ramp(16, 3.0, 0.5), &[1.0; 16], search);
        assert!(minimum <= 0.0 && scale > 0.5, "{scale} {minimum}");
    }

    #[test]
    fn nothing_has_no_scale() {
        let search = Search { codes_max: 15, first: -1.0, steps: 20 };
        assert_eq!(symmetric(&[0.0; 16], 32), 0.0);
        assert_eq!(with_minimum(&[0.0; 32], &[0.0; 32], search), (0.0, 0.0));
    }
}
