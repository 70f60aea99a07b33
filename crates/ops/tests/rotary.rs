//! Are rotary frequencies and rotations those of transformers? Golden data of
//! `tools/golden/make_rotary.py`.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use ops::rotary::{
    Pairing, Rotary, RotaryScaling, Yarn, cos_sin, long_rope_attention_factor, reference,
};

const GOLDEN: &str = include_str!("data/rotary.txt");
/// One unit in the last place of an f32 that starts with 1.
const ULP: f32 = f32::EPSILON;

fn number(word: &str) -> f32 {
    f32::from_bits(u32::from_str_radix(word, 16).unwrap())
}

/// Case to attention factor and inverse frequencies.
fn golden_frequencies() -> BTreeMap<&'static str, (f32, Vec<f32>)> {
    GOLDEN
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|words| words[0] == "frequencies")
        .map(|words| (words[1], (number(words[2]), words[3..].iter().map(|w| number(w)).collect())))
        .collect()
}

fn rotary(dims: u32, base: f32, scaling: RotaryScaling) -> Rotary {
    Rotary { pairing: Pairing::HalfSplit, dims, base, scaling }
}

fn yarn(factor: f32, original_context: u32) -> Yarn {
    Yarn {
        factor,
        original_context,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor: None,
    }
}

fn yarn_cases() -> Vec<(&'static str, Rotary)> {
    let qwen = yarn(4.0, 32_768);
    let case = |dims, base, yarn| rotary(dims, base, RotaryScaling::Yarn(yarn));
    let exact_ends = Yarn { truncate: false, ..qwen.clone() };
    let given = Yarn { attention_factor: Some(1.25), ..qwen.clone() };
    let other_betas = Yarn { beta_fast: 64.0, beta_slow: 2.0, ..yarn(40.0, 4096) };
    let gpt_oss = Yarn { truncate: false, ..yarn(32.0, 4096) };
    let no_ramp = Yarn { beta_fast: 4.0, beta_slow: 4.0, truncate: false, ..yarn(8.0, 2048) };
    vec![
        ("yarn", case(128, 1e6, qwen)),
        ("yarn_exact_ends", case(128, 1e6, exact_ends)),
        ("yarn_given_factor", case(128, 1e6, given)),
        ("yarn_other_betas", case(128, 1e4, other_betas)),
        ("yarn_gpt_oss", case(64, 150_000.0, gpt_oss)),
        ("yarn_no_ramp", case(64, 1e4, no_ramp)),
        ("yarn_small", case(16, 1e4, yarn(4.0, 32))),
    ]
}

fn longrope_cases() -> Vec<(&'static str, Rotary)> {
    let case = |step: f64, attention_factor| {
        let divisors = (0..48).map(|i| (1.0 + step * f64::from(i)) as f32).collect();
        rotary(96, 1e4, RotaryScaling::Divisors { divisors, attention_factor })
    };
    let worked_out = long_rope_attention_factor(4096, 131_072);
    vec![
        ("longrope_short", case(0.01, worked_out)),
        ("longrope_long", case(0.37, worked_out)),
        ("longrope_given_factor", case(0.37, 1.5)),
    ]
}

/// The settings of every case, as the script has them.
fn cases() -> Vec<(&'static str, Rotary)> {
    let dynamic = |context| {
        let original_context = 2048;
        rotary(64, 1e4, RotaryScaling::DynamicNtk { factor: 2.0, original_context, context })
    };
    let llama3 = |factor| RotaryScaling::Llama3 {
        factor,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context: 8192,
    };
    let mut cases = vec![
        ("default", rotary(128, 500_000.0, RotaryScaling::None)),
        ("default_96", rotary(96, 1e4, RotaryScaling::None)),
        ("linear", rotary(64, 1e4, RotaryScaling::Linear { factor: 3.0 })),
        ("linear_partial", rotary(32, 1e4, RotaryScaling::None)),
        ("dynamic_within", dynamic(1000)),
        ("dynamic_3000", dynamic(3000)),
        ("dynamic_16384", dynamic(16_384)),
        ("llama3_8b", rotary(128, 500_000.0, llama3(8.0))),
        ("llama3_1b", rotary(64, 500_000.0, llama3(32.0))),
        ("proportional", rotary(512, 1e6, RotaryScaling::Proportional { turning: 128 })),
    ];
    cases.extend(yarn_cases());
    cases.extend(longrope_cases());
    cases
}

/// Largest relative difference, in units in the last place, that two right computations may have.
///
/// A power, a reciprocal and a division or product: each side is within 1 + 0.5 + 0.5 of the
/// exact value, so two are within 4. YaRN and llama3 blend a frequency `f` with `f / factor` by
/// weights that are right to an absolute half unit or two (a difference of numbers near 1 to 4):
/// an error of up to `2 f` units in a sum of at least `f / factor`.
fn tolerance_units(scaling: &RotaryScaling) -> f32 {
    match scaling {
        RotaryScaling::Yarn(Yarn { factor, .. }) | RotaryScaling::Llama3 { factor, .. } => {
            4.0 + 2.0 * factor
        }
        _ => 4.0,
    }
}

#[test]
fn frequencies_are_those_of_transformers() {
    let golden = golden_frequencies();
    let cases = cases();
    assert_eq!(cases.len(), golden.len(), "each case on both sides");
    for (name, rotary) in cases {
        let (factor, frequencies) = &golden[name];
        let got = rotary.inverse_frequencies();
        assert_eq!(got.len(), frequencies.len(), "{name}");
        let units = tolerance_units(&rotary.scaling);
        for (index, (got, want)) in got.iter().zip(frequencies).enumerate() {
            let differ = (got - want).abs();
            assert!(differ <= units * ULP * want, "{name}[{index}]: {got} for {want}");
        }
        // A logarithm and two roundings on our side, one rounding on the other.
        let got = rotary.attention_factor();
        assert!((got - factor).abs() <= 2.0 * ULP * factor, "{name}: factor {got} for {factor}");
    }
}

/// What one line of `turn` holds.
struct Turn {
    name: &'static str,
    position: u32,
    lists: BTreeMap<&'static str, Vec<f32>>,
}

fn golden_turns() -> Vec<Turn> {
    let mut turns = Vec::new();
    for line in GOLDEN.lines().filter(|line| line.starts_with("turn ")) {
        let mut words = line.split(' ').skip(1);
        let name = words.next().unwrap();
        let position = words.next().unwrap().parse().unwrap();
        let mut lists = BTreeMap::<_, Vec<f32>>::new();
        let mut list = "";
        for word in words {
            if ["cos", "sin", "input", "half_split", "adjacent"].contains(&word) {
                list = word;
            } else {
                lists.entry(list).or_default().push(number(word));
            }
        }
        turns.push(Turn { name, position, lists });
    }
    turns
}

/// Frequencies are the golden ones here: at position 131,071 their last bit is worth 0.008 radians.
#[test]
fn heads_turn_as_in_transformers() {
    let golden = golden_frequencies();
    let turns = golden_turns();
    let positions: Vec<u32> = turns.iter().map(|turn| turn.position).collect();
    assert_eq!(positions, [0, 1, 4095, 131_071].repeat(4));
    for Turn { name, position, lists } in turns {
        let (factor, frequencies) = &golden[name];
        let mut got = vec![(0.0, 0.0); frequencies.len()];
        cos_sin(frequencies, *factor, position, &mut got);
        for (index, &(cos, sin)) in got.iter().enumerate() {
            let (want_cos, want_sin) = (lists["cos"][index], lists["sin"][index]);
            // Cosine and product: half a unit each here, one and a half there.
            let differ = (cos - want_cos).abs().max((sin - want_sin).abs());
            assert!(differ <= 2.0 * ULP * factor, "{name} at {position}[{index}]: {differ}");
        }
        let input = &lists["input"];
        let half = input.len() / 2;
        let mut half_split = input.clone();
        reference(Pairing::HalfSplit, &got, &mut half_split);
        let mut adjacent: Vec<f32> = (0..half).flat_map(|i| [input[i], input[i + half]]).collect();
        reference(Pairing::Adjacent, &got, &mut adjacent);
        for (list, got) in [("half_split", &half_split), ("adjacent", &adjacent)] {
            for (index, (got, want)) in got.iter().zip(&lists[list]).enumerate() {
                // Two products of an element below 5 with a cosine right to 2 units, and a sum.
                let bound = 2.0 * 5.0 * (2.0 + 1.0) * ULP * factor;
                let differ = (got - want).abs();
                assert!(differ <= bound, "{name} at {position} {list}[{index}]: {got} for {want}");
            }
        }
    }
}

/// Elements past `dims` stay as they are, in both pairings.
#[test]
fn the_rest_of_a_head_does_not_turn() {
    let rotary = rotary(4, 1e4, RotaryScaling::None);
    let mut turns = vec![(0.0, 0.0); 2];
    cos_sin(&rotary.inverse_frequencies(), 1.0, 7, &mut turns);
    for pairing in [Pairing::Adjacent, Pairing::HalfSplit] {
        let mut head = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        reference(pairing, &turns, &mut head);
        assert_eq!(head[4..], [5.0, 6.0]);
        assert!(head[..4] != [1.0, 2.0, 3.0, 4.0]);
    }
}
