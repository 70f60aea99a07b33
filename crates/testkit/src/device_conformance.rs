//! How far is a device from the reference? Every step of small models, row by row.

#![allow(clippy::unwrap_used, reason = "for tests only")]

use device::Backend;

use crate::device_cases::{Model, VOCABULARY, tape};
use crate::device_steps::{CAPACITY, difference, run, schedule};
use crate::device_tensors::Tensors;

/// Rows, of 71, that may be another choice's: two experts can be so near to each other that the
/// rounding of f16 lets one be chosen for the other, and later rows attend to that one. A wrong
/// expert would show in a quarter of all rows.
const OTHER_CHOICES_MAX: usize = 8;

/// What is farther from the `reference` than `most`, relative to the largest logit, in words.
///
/// # Panics
/// When a device fails in a step.
pub fn far_from(
    reference: &dyn Backend,
    backend: &dyn Backend,
    models: impl IntoIterator<Item = (String, Model)>,
    most: f32,
) -> Vec<String> {
    let mut failed = Vec::new();
    for (name, model) in models {
        let tape = tape(&model);
        let tensors = Tensors::of(&model, &tape);
        let mut reference = reference.load(tape.clone(), &tensors, CAPACITY).unwrap();
        let mut program = match backend.load(tape, &tensors, CAPACITY) {
            Ok(program) => program,
            Err(error) => {
                failed.push(format!("{name}: {error}"));
                continue;
            }
        };
        let expected = run(reference.as_mut(), &schedule());
        let got = run(program.as_mut(), &schedule());
        let mut other_choices = 0;
        for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let vocabulary = VOCABULARY as usize;
            let pairs = got.chunks_exact(vocabulary).zip(expected.chunks_exact(vocabulary));
            let differ: Vec<f32> = pairs.map(|(got, expected)| difference(got, expected)).collect();
            let worst = differ.iter().copied().fold(0.0, f32::max);
            let is_far = |differ: &&f32| differ.is_nan() || **differ > most;
            let far = differ.iter().filter(is_far).count();
            if model.scoring().is_some() {
                other_choices += far;
            } else if far > 0 {
                failed.push(format!("{name}, step {index}: {worst:e}"));
            }
        }
        if other_choices > OTHER_CHOICES_MAX {
            failed.push(format!("{name}: {other_choices} rows"));
        }
    }
    failed
}
